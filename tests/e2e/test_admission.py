"""Admission that refuses the agent's pod: what krelay says, and that what it names is enough."""

from __future__ import annotations

import json
import re
import secrets
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e import kit
from tests.e2e.kit import Krelay
from tests.e2e.test_relay import kubectl_relay

Make = Callable[..., str]
FILE, FLAG = "in the file, agent: ", re.compile(r"--(?:patch|server\.image)=.*")


def limit_range(**item: Any) -> dict[str, Any]:
    limits = [{"type": "Container", **item}]
    return {
        "apiVersion": "v1",
        "kind": "LimitRange",
        "metadata": {"name": "range"},
        "spec": {"limits": limits},
    }


def quota(**hard: str) -> dict[str, Any]:
    amounts = {name.replace("_", "."): amount for name, amount in hard.items()}
    return {
        "apiVersion": "v1",
        "kind": "ResourceQuota",
        "metadata": {"name": "small"},
        "spec": {"hard": amounts},
    }


def enforce(namespace: str, *objects: dict[str, Any]) -> None:
    """Create the objects, and wait until the quotas among them count."""
    if objects:
        kit.apply(namespace, *objects)
    kit.eventually(
        lambda: all(
            "hard" in quota.get("status", {})
            for quota in kit.get(namespace, "resourcequotas")["items"]
        ),
        "a quota in force",
    )


def up(namespace: str, tmp_path: Path, agent: dict[str, Any], world: str) -> Krelay:
    path = tmp_path / f"krelay-{secrets.token_hex(2)}.yaml"
    config = {
        "apiVersion": "krelay/v1",
        "namespace": namespace,
        "via": "agent",
        "agent": agent,
        "targets": {"web": f"svc/web :80 -n {world}"},
    }
    path.write_text(json.dumps(config))
    return Krelay("up", "-f", str(path))


def hint_of(krelay: Krelay) -> str:
    assert krelay.finish() == 4, krelay.told()
    return next(line for line in krelay.log if line.startswith("  hint: "))


def mended_in_the_file(
    namespace: str, tmp_path: Path, agent: dict[str, Any], world: str
) -> tuple[str, dict[str, Any]]:
    """Add the line of the hint to the file, which then works; return the hint and the line."""
    hint = hint_of(up(namespace, tmp_path, agent, world))
    assert FILE in hint, hint
    line = yaml.safe_load(hint.partition(FILE)[2])
    patches = [*agent.get("patches", ()), *line.get("patches", ())]
    with up(namespace, tmp_path, {**agent, **line, "patches": patches}, world) as krelay:
        krelay.wait_lines(1)
        assert kit.http_get(krelay.address("web"))
    return hint, line


PRESENT = {"requests": {"cpu": "100m", "memory": "48Mi"}, "limits": {"cpu": "1", "memory": "256Mi"}}


@pytest.mark.parametrize(
    ("objects", "agent", "line"),
    [
        (
            [limit_range(max={"cpu": "500m", "memory": "128Mi"})],
            {},
            {
                "requests": {"cpu": "100m", "memory": "48Mi"},
                "limits": {"cpu": "500m", "memory": "128Mi"},
            },
        ),
        (
            [limit_range(maxLimitRequestRatio={"cpu": "4", "memory": "2"}, min={"cpu": "200m"})],
            {},
            {
                "requests": {"cpu": "250m", "memory": "128Mi"},
                "limits": {"cpu": "1", "memory": "256Mi"},
            },
        ),
        (
            [quota(limits_memory="200Mi", requests_cpu="60m")],
            {},
            {
                "requests": {"cpu": "60m", "memory": "48Mi"},
                "limits": {"cpu": "1", "memory": "200Mi"},
            },
        ),
        (
            [quota(limits_cpu="2", limits_memory="1Gi", requests_memory="1Gi")],
            {"resources": {"requests": {"memory": "64Mi"}}},
            {
                "requests": {"memory": "64Mi"},
                "limits": {"cpu": "1", "memory": "256Mi"},
            },
        ),
    ],
    ids=["maximum", "ratio and minimum", "quota", "quota that wants limits"],
)
def test_the_hint_has_the_resources_that_the_namespace_allows(
    objects: list[Any],
    agent: dict[str, Any],
    line: Any,
    namespace: Make,
    world: str,
    tmp_path: Path,
) -> None:
    place = namespace()
    enforce(place, *objects)
    _, found = mended_in_the_file(place, tmp_path, agent, world)
    assert found == {"resources": line}


def test_a_ratio_of_ten_takes_the_agent_as_it_is(
    namespace: Make, world: str, tmp_path: Path
) -> None:
    place = namespace()
    enforce(place, limit_range(maxLimitRequestRatio={"cpu": "10", "memory": "10"}))
    with up(place, tmp_path, {}, world) as krelay:
        krelay.wait_lines(1)


def test_a_flag_of_kubectl_relay_mends_it_too(namespace: Make, world: str) -> None:
    place = namespace()
    enforce(place, limit_range(max={"cpu": "300m"}))
    words = ("-n", world, "--via", "agent", "--agent-namespace", place, "svc/web", ":80")
    found = FLAG.search(hint_of(kubectl_relay(*words)))
    assert found
    with kubectl_relay(*words, *shlex.split(found[0])) as krelay:
        krelay.wait_lines(1)


def test_what_patches_took_from_pod_security_is_put_back(
    namespace: Make, world: str, tmp_path: Path
) -> None:
    place = namespace(**{"pod-security.kubernetes.io/enforce": "restricted"})
    container = {"name": "krelay-server", "securityContext": {"capabilities": None}}
    spec = {"securityContext": {"seccompProfile": None}, "containers": [container]}
    hint, _ = mended_in_the_file(place, tmp_path, {"patches": [{"patch": {"spec": spec}}]}, world)
    assert "the last of agent.patches" in hint


def test_a_cluster_that_gives_no_user_id(namespace: Make, world: str, tmp_path: Path) -> None:
    """As OpenShift's patch on a cluster that assigns none."""
    patch = {"spec": {"securityContext": {"runAsUser": None, "runAsGroup": None}}}
    agent = {"patches": [{"patch": patch}]}
    hint, _ = mended_in_the_file(namespace(), tmp_path, agent, world)
    assert "user id" in hint


@pytest.fixture
def policy() -> Iterator[Callable[..., None]]:
    """Makes a ValidatingAdmissionPolicy for what is created in one namespace."""
    made: list[str] = []

    def make(namespace: str, resource: str, **validation: str) -> None:
        name = f"e2e-{secrets.token_hex(3)}"
        made.append(name)
        group, plural = resource.split("/")
        rule = {
            "apiGroups": [group],
            "apiVersions": ["v1"],
            "operations": ["CREATE"],
            "resources": [plural],
        }
        head = {"apiVersion": "admissionregistration.k8s.io/v1", "metadata": {"name": name}}
        constraints = {"resourceRules": [rule]}
        selector = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
        kit.apply(
            namespace,
            {
                **head,
                "kind": "ValidatingAdmissionPolicy",
                "spec": {"matchConstraints": constraints, "validations": [validation]},
            },
            {
                **head,
                "kind": "ValidatingAdmissionPolicyBinding",
                "spec": {
                    "policyName": name,
                    "validationActions": ["Deny"],
                    "matchResources": {"namespaceSelector": selector},
                },
            },
        )
        # It takes a moment until the API server has compiled it.
        probe: dict[str, Any] = {
            "apiVersion": "v1" if not group else f"{group}/v1",
            "kind": "Pod" if plural == "pods" else "Job",
            "metadata": {"name": "probe"},
        }
        bare = {"containers": [{"name": "c", "image": kit.IMAGE}], "restartPolicy": "Never"}
        probe["spec"] = bare if plural == "pods" else {"template": {"spec": bare}}
        dry = ("create", "-n", namespace, "--dry-run=server", "-f", "-")
        kit.eventually(
            lambda: not kit.kubectl(*dry, stdin=json.dumps(probe), check=False), "the policy"
        )

    yield make
    for name in made:
        for kind in ("validatingadmissionpolicybinding", "validatingadmissionpolicy"):
            kit.kubectl("delete", kind, name, "--ignore-not-found")


LABEL = "'team' in object.metadata.?labels.orValue({})"


@pytest.mark.parametrize(
    ("resource", "message"),
    [
        ("/pods", {}),
        ("/pods", {"message": "every pod must have the label `team`"}),
        ("batch/jobs", {"message": "the label team is required"}),
    ],
    ids=["expression", "message", "job"],
)
def test_a_label_that_a_policy_wants(
    resource: str,
    message: dict[str, str],
    policy: Callable[..., None],
    namespace: Make,
    world: str,
    tmp_path: Path,
) -> None:
    place = namespace()
    policy(place, resource, expression=LABEL, **message)
    hint, line = mended_in_the_file(place, tmp_path, {}, world)
    assert line == {"labels": {"team": "VALUE"}}
    assert "a policy wants the label team" in hint


def test_an_image_that_a_policy_wants(
    policy: Callable[..., None], namespace: Make, world: str
) -> None:
    place = namespace()
    expression = "object.spec.containers.all(c, c.image.startsWith('krelay.test/'))"
    policy(place, "/pods", expression=expression)
    words = ("-n", world, "--via", "agent", "--agent-namespace", place, "svc/web", ":80")
    hint = hint_of(kubectl_relay(*words))
    assert "--server.image=REGISTRY/python:3.11-slim" in hint
