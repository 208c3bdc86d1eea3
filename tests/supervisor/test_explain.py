"""Errors of the cluster get hints in the words of the command line."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest

from krelay.config import parse
from krelay.config.sources import Overlay, Proxy, Words
from krelay.errors import AccessDeniedError, AgentError, ClusterError, KrelayError
from krelay.model import Config, Kind, Origin, Port, Target, Via
from krelay.supervisor.explain import dial_hint, explain_error, missing_hint
from krelay.wire.errors import ErrorCode

API = cast(Any, SimpleNamespace(namespace="own"))
ACCOUNT = "system:serviceaccount:ci:bot"


def explained(error: KrelayError, config: Config, context: str | None = None) -> str | None:
    explain_error(error, config=config, context=context, api=API)
    return error.hint


def denied(user: str = "jane", agent_namespace: str = "") -> AccessDeniedError:
    return AccessDeniedError("no", hint="plain", user=user, agent_namespace=agent_namespace)


def file(text: str, *words: str) -> Config:
    config = parse(f"apiVersion: krelay/v1\n{text}\n", "krelay.yaml", {})
    return Overlay().over(config, words or ("-f", "krelay.yaml"))


WEB = ("svc/web", "8080:http")
TWO = "targets: {a: svc/a 80, b: {target: svc/b, port: 81, context: other}}"


@pytest.mark.parametrize(
    ("config", "error", "command"),
    [
        (Words(WEB).load(), denied(), "svc/web 8080:http -n own --user jane"),
        (Words(WEB, Overlay(namespace="n")).load(), denied(), "svc/web 8080:http -n n --user jane"),
        (
            Words(WEB, Overlay(namespace="n")).load(),
            denied(ACCOUNT, "n"),
            "svc/web 8080:http -n n --serviceaccount ci:bot",
        ),
        (
            Words(WEB, Overlay(namespace="n")).load(),
            denied(agent_namespace="own"),
            "svc/web 8080:http -n n --agent-namespace own --user jane",
        ),
        (
            Words(WEB, Overlay(namespace="n", agent_namespace="relays")).load(),
            denied(),
            "svc/web 8080:http -n n --agent-namespace relays --user jane",
        ),
        (Words(WEB).load(), denied("it's me"), """svc/web 8080:http -n own --user 'it'"'"'s me'"""),
        (Words(WEB).load(), denied(""), "svc/web 8080:http -n own --user NAME"),
        (Proxy().load(), denied(), "proxy -n own --user jane"),
        (file("targets: {a: svc/a 80}"), denied(), "-f krelay.yaml -n own --user jane"),
        (
            file("namespace: shop\ntargets: {a: svc/a 80}", "-f", "my file"),
            denied(agent_namespace="shop"),
            "-f 'my file' --user jane",
        ),
        (
            file("defaults: {namespace: shop}\ntargets: {a: svc/a 80}"),
            denied(),
            "-f krelay.yaml --agent-namespace own --user jane",
        ),
        (
            file("targets: {a: svc/a 80 -n shop}"),
            denied(agent_namespace="shop"),
            "-f krelay.yaml --agent-namespace shop --user jane",
        ),
    ],
)
def test_a_missing_right_names_the_command_that_gives_all_rights(
    config: Config, error: AccessDeniedError, command: str
) -> None:
    assert explained(error, config) == (
        f"an administrator gives this run all rights with: krelay rbac {command} "
        "| kubectl apply -f -"
    )


def test_the_command_names_the_context_if_the_file_has_several() -> None:
    assert "-f krelay.yaml --context other -n own" in str(explained(denied(), file(TWO), "other"))
    assert "-f krelay.yaml -n own" in str(explained(denied(), file(TWO)))


SETTINGS = {
    "labels": {"team": "VALUE"},
    "annotations": {"linkerd.io/inject": "disabled"},
    "image": "REGISTRY/python:3.11-slim",
    "resources": {"limits": {"cpu": "500m"}},
    "patches": [{"patch": {"spec": {"securityContext": {"runAsUser": None}}}}],
}


@pytest.mark.parametrize(
    ("key", "line", "flag"),
    [
        (
            "labels",
            "agent: {labels: {team: VALUE}}",
            "--patch='{metadata: {labels: {team: VALUE}}}'",
        ),
        (
            "annotations",
            "agent: {annotations: {linkerd.io/inject: disabled}}",
            "--patch='{metadata: {annotations: {linkerd.io/inject: disabled}}}'",
        ),
        (
            "image",
            "agent: {image: 'REGISTRY/python:3.11-slim'}",
            "--server.image=REGISTRY/python:3.11-slim",
        ),
        (
            "resources",
            "agent: {resources: {limits: {cpu: 500m}}}",
            (
                "--patch='{spec: {containers: "
                "[{name: krelay-server, resources: {limits: {cpu: 500m}}}]}}'"
            ),
        ),
        (
            "patches",
            "agent: {patches: [{patch: {spec: {securityContext: {runAsUser: null}}}}]}",
            "--patch='{spec: {securityContext: {runAsUser: null}}}'",
        ),
    ],
)
def test_a_refused_pod_names_the_line_of_the_file_or_the_flag(
    key: str, line: str, flag: str
) -> None:
    def error() -> AgentError:
        return AgentError("refused", hint="so", settings={key: SETTINGS[key]})

    assert explained(error(), Config(())) == f"so: in the file, {line}"
    assert explained(error(), Config((), origin=Origin(flags=True))) == f"so: {flag}"


def test_other_errors_keep_their_hint() -> None:
    assert explained(denied(), Config(())) == "plain"
    assert explained(AgentError("no", hint="so"), Words(WEB).load()) == "so"
    assert explained(ClusterError("no", hint="so"), Words(WEB).load()) == "so"


def test_a_refused_dial_names_the_other_way_where_it_may_help() -> None:
    port = Port(80, 0)
    web = Target("web", Kind.SERVICE, "web", (port,))
    other = Target("web", Kind.SERVICE, "web", (port,), via=Via.DIRECT)
    assert "`via: direct`" in dial_hint(ErrorCode.REFUSED, web)
    for target in (other, Target("web", Kind.HOST, "web", (port,))):
        assert dial_hint(ErrorCode.REFUSED, target).endswith("has started")
    assert "NetworkPolicies" in dial_hint(ErrorCode.CONNECT_TIMEOUT, web)
    assert dial_hint(ErrorCode.INTERNAL, web) == dial_hint(None, web) == ""


def test_a_missing_object_has_the_command_that_lists_those_that_exist() -> None:
    web = Target("web", Kind.DEPLOYMENT, "web", (Port(80, 0),))
    assert missing_hint(web).endswith(": kubectl get deploy")
    assert missing_hint(replace(web, namespace="shop")).endswith("kubectl get deploy -n shop")
