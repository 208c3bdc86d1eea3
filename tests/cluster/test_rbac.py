"""The least rights of a config."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from krelay.cluster.rbac import roles, view_command
from krelay.config import parse
from krelay.model import Config

AGENT = [
    ("batch/jobs", "create,delete", None),
    ("/pods", "list,watch", None),
    ("/pods/portforward", "get,create", None),
]
SERVICES = "discovery.k8s.io/endpointslices", "list,watch", None


def config(*lines: str, more: str = "") -> Config:
    targets = "".join(f"  t{number}: {line}\n" for number, line in enumerate(lines))
    text = f"apiVersion: krelay/v1\nnamespace: shop\n{more}targets:\n{targets}"
    return parse(text, "krelay.yaml", {})


def summary(found: list[dict[str, Any]]) -> dict[str, list[tuple[str, str, str | None]]]:
    """Return the rules by namespace: resource, verbs and name of each."""
    return {
        role["metadata"]["namespace"]: [
            (
                f"{rule['apiGroups'][0]}/{rule['resources'][0]}",
                ",".join(rule["verbs"]),
                ",".join(rule["resourceNames"]) if "resourceNames" in rule else None,
            )
            for rule in role["rules"]
        ]
        for role in found
        if role["kind"] == "Role"
    }


def own(context: str | None) -> str:
    return f"own-{context}"


def least(given: Config, **more: Any) -> dict[str, list[tuple[str, str, str | None]]]:
    ((_, found),) = roles(given, own, **more).items()
    return summary(found)


def test_hosts_and_addresses_need_only_the_agent_s_rights() -> None:
    assert least(config("host/a 80", "ip/10.0.0.1 81")) == {"shop": AGENT}


@pytest.mark.parametrize(
    ("line", "rules"),
    [
        ("svc/web 80", [("/services", "list,watch", "web"), SERVICES]),
        ("deploy/web 80", [("apps/deployments", "list,watch", "web"), AGENT[1]]),
        ("sts/web 80", [("apps/statefulsets", "list,watch", "web"), AGENT[1]]),
        ("ds/web 80", [("apps/daemonsets", "list,watch", "web"), AGENT[1]]),
        ("rs/web 80", [("apps/replicasets", "list,watch", "web"), AGENT[1]]),
        ("job/web 80", [("batch/jobs", "list,watch", "web"), AGENT[1]]),
        ("pod/web 80", [("/pods", "list,watch", "web")]),
    ],
)
def test_a_target_in_another_namespace_gets_a_role_there(line: str, rules: list[Any]) -> None:
    assert least(config(f"{line} -n far")) == {"shop": AGENT, "far": rules}


def test_a_service_whose_pods_need_not_be_ready_needs_to_watch_them() -> None:
    rules = [("/services", "list,watch", "web"), SERVICES]
    any_pod = config("{target: svc/web, port: 80, namespace: far, ready: false}")
    assert least(any_pod) == {"shop": AGENT, "far": [*rules, AGENT[1]]}
    found = least(config("svc/web 80 -n far"), optional=True)
    assert found["far"] == [*rules, AGENT[1]]


def test_equal_rights_are_joined_with_their_names() -> None:
    given = config(
        "svc/a 80", "svc/b 81", "svc/a 82", "pod/p 83", "pod/q 84 -n far", "pod/r 85 -n far"
    )
    assert least(given) == {
        "shop": [*AGENT, ("/services", "list,watch", "a,b"), SERVICES],
        "far": [("/pods", "list,watch", "q,r")],
    }
    given = config("pod/p 83 -n far", "deploy/d 84 -n far", "pod/q 85 -n far")
    assert least(given)["far"][0] == ("/pods", "list,watch", None)


PROXY = ("/pods/proxy", "get", None)
CLEARER = [("/events", "list,watch", None), ("batch/jobs", "list,watch", None)]


@pytest.mark.parametrize(
    ("transport", "needed", "optional"),
    [
        ("auto", AGENT, [*AGENT, PROXY, *CLEARER]),
        ("proxy", [*AGENT, PROXY], [*AGENT, PROXY, *CLEARER]),
        ("spdy", AGENT, [*AGENT, *CLEARER]),
    ],
)
def test_optional_rights_make_tunnels_faster_and_errors_clearer(
    transport: str, needed: list[Any], optional: list[Any]
) -> None:
    given = config("host/a 80", more=f"tunnel: {{transport: {transport}}}\n")
    assert least(given) == {"shop": needed}
    assert least(given, optional=True) == {"shop": optional}


def test_the_example_s_roles_have_only_the_needed_rights() -> None:
    example = Path(__file__).parents[2] / "examples" / "rbac.yaml"
    agent, targets = (
        {
            (group, resource, verb)
            for rule in document["rules"]
            for group in rule["apiGroups"]
            for resource in rule["resources"]
            for verb in rule["verbs"]
        }
        for document in yaml.safe_load_all(example.read_text())
        if document["kind"] == "Role"
    )
    kinds = ("svc", "pod", "deploy", "sts", "ds", "rs", "job")
    least = roles(config(*(f"{kind}/web {n} -n far" for n, kind in enumerate(kinds, 80))), own)
    needed: dict[str, set[tuple[str, str, str]]] = {}
    for role in least[None]:
        place = needed.setdefault(role["metadata"]["namespace"], set())
        for rule in role["rules"]:
            (group,), (resource,) = rule["apiGroups"], rule["resources"]
            place.update((group, resource, verb) for verb in rule["verbs"])
    assert {"shop": agent, "far": targets} == needed


def test_a_direct_target_needs_port_forwards_to_its_pods_and_no_agent() -> None:
    rules = [("/services", "list,watch", "web"), SERVICES, AGENT[2]]
    given = config("{target: svc/web, port: 80, namespace: far, via: direct}")
    assert least(given) == {"far": rules}
    mixed = config("{target: svc/web, port: 80, via: direct}", "svc/db 5432")
    assert least(mixed)["shop"].count(AGENT[2]) == 1


def test_the_agent_s_role_is_in_its_namespace() -> None:
    assert list(least(config("host/a 80", more="agent: {namespace: relays}\n"))) == ["relays"]
    patch = "agent: {patches: [{patch: {metadata: {namespace: moved}}}]}\n"
    assert list(least(config("host/a 80", more=patch))) == ["moved"]
    text = "svc/web 80\n-n far svc/web 81\n"
    assert list(least(parse(text, "targets.txt", {}))) == ["own-None", "far"]


def test_a_role_for_each_context() -> None:
    more = "context: main\n"
    given = config("svc/a 80", "{target: svc/b, port: 81, context: other}", more=more)
    found = roles(given, own)
    assert list(found) == ["main", "other"]
    assert summary(found["other"])["shop"][3] == ("/services", "list,watch", "b")


JANE = {"kind": "User", "name": "jane@example.com"}
BOT = {"kind": "ServiceAccount", "name": "bot", "namespace": "ci"}


def names(*lines: str, **more: Any) -> set[str]:
    ((_, found),) = roles(config(*lines), own, **more).items()
    return {document["metadata"]["name"] for document in found}


def test_roles_of_other_subjects_or_rules_have_other_names() -> None:
    """Applying one user's Roles must not take away another's, nor those for another file."""
    given = [
        names("svc/a 80", subjects=[JANE]),
        names("svc/b 80", subjects=[JANE]),
        names("svc/a 80", subjects=[BOT]),
        names("svc/a 80", subjects=[{**BOT, "namespace": "other"}]),
        names("svc/a 80", subjects=[JANE, BOT]),
    ]
    assert len(set().union(*given)) == len(given)
    assert names("svc/a 8080:80", subjects=[JANE]) == given[0]
    (name,) = given[0]
    assert name.startswith("krelay-jane-example-com-")


@pytest.mark.parametrize("subject", ["system:masters", "x" * 300, "Jörg/%2F", "日本"])
def test_the_name_of_a_role_is_a_dns_name(subject: str) -> None:
    (name,) = names("svc/a 80", subjects=[{"kind": "User", "name": subject}])
    assert re.fullmatch(r"krelay(-[a-z0-9]+)+", name)
    assert len(name) < 100


def test_a_binding_to_view_is_named_by_its_user() -> None:
    jane, bot = (view_command(user, "shop") for user in ("jane", "system:serviceaccount:ci:bot"))
    pattern = "kubectl create rolebinding krelay-jane-[0-9a-f]{8} -n shop --clusterrole view"
    assert re.fullmatch(f"{pattern} --user jane", jane)
    assert bot.endswith(" --serviceaccount ci:bot")
    assert "it'\"'\"'s" in view_command("it's", "shop")


def test_the_user_may_choose_the_name() -> None:
    assert names("svc/a 80") == {"krelay"}
    assert names("svc/a 80", name="shop") == {"shop"}
    assert names("svc/a 80 -n far", name="shop", subjects=[JANE]) == {"shop"}


def test_a_binding_for_each_role() -> None:
    jane = {"kind": "User", "name": "jane"}
    ((_, found),) = roles(config("svc/a 80 -n far"), own, subjects=[jane]).items()
    assert [document["kind"] for document in found] == ["Role", "RoleBinding"] * 2
    assert found[1]["subjects"] == [jane]
    assert found[1]["roleRef"]["name"] == found[0]["metadata"]["name"]
    assert found[1]["metadata"]["namespace"] == "shop"
