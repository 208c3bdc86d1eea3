"""The manifest against the rules that it must pass; e2e tests it on a real API server."""

from __future__ import annotations

import json
from typing import Any

import pytest

from krelay import payload
from krelay.cluster.agent_job import (
    KEY_ENV,
    NAME,
    POD_IP_ENV,
    RUN_LABEL,
    carries_source,
    job_manifest,
)
from krelay.errors import ConfigError
from krelay.model import AgentConfig, Patch, SessionConfig

KEY = "ab" * 32


DEFAULT = AgentConfig()


def made(config: AgentConfig = DEFAULT) -> dict[str, Any]:
    """Return the manifest of a config; its patches must remove no useful field."""
    manifest, warnings = job_manifest(config, namespace="tools", key_sha256=KEY)
    assert warnings == []
    return manifest


def pod(manifest: dict[str, Any]) -> dict[str, Any]:
    """The pod's spec."""
    spec: dict[str, Any] = manifest["spec"]["template"]["spec"]
    return spec


def server(manifest: dict[str, Any]) -> dict[str, Any]:
    """The agent's container."""
    (container,) = pod(manifest)["containers"]
    assert container["name"] == NAME
    return dict(container)


def env(manifest: dict[str, Any]) -> dict[str, str]:
    """The agent's environment, without its address."""
    variables = {each["name"]: each for each in server(manifest)["env"]}
    address = variables.pop(POD_IP_ENV)
    assert address["valueFrom"] == {"fieldRef": {"fieldPath": "status.podIP"}}
    return {name: each["value"] for name, each in variables.items()}


def of_container(**changes: Any) -> dict[str, Any]:
    """A patch of the agent's container."""
    return {"spec": {"containers": [{"name": NAME, **changes}]}}


def with_patches(*patches: Patch) -> AgentConfig:
    return AgentConfig(patches=patches)


def test_the_job_has_a_time_to_live_and_no_retries() -> None:
    manifest = made()
    assert manifest["apiVersion"] == "batch/v1"
    assert manifest["metadata"]["generateName"] == "krelay-server-"
    assert manifest["metadata"]["namespace"] == "tools"
    assert manifest["spec"]["backoffLimit"] == 0
    assert 3 <= manifest["spec"]["ttlSecondsAfterFinished"] <= 10
    assert pod(manifest)["restartPolicy"] == "Never"
    assert pod(manifest)["terminationGracePeriodSeconds"] == 5


def test_the_manifest_is_plain_json_and_reproducible() -> None:
    manifest = made(
        AgentConfig(
            labels={"team": "net"}, tolerations=({"key": "a"},), node_selector={"disk": "ssd"}
        )
    )
    assert json.loads(json.dumps(manifest)) == manifest
    assert made() == made()


def test_the_pod_passes_pod_security_restricted() -> None:
    spec, container = pod(made()), server(made())
    assert spec["securityContext"]["runAsNonRoot"] is True
    assert spec["securityContext"]["runAsUser"] > 0
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "readOnlyRootFilesystem": True,
        "capabilities": {"drop": ["ALL"]},
    }
    assert spec["automountServiceAccountToken"] is False
    assert spec["enableServiceLinks"] is False
    assert "volumes" not in spec


def test_the_pod_has_requests_and_limits_for_a_quota() -> None:
    assert set(server(made())["resources"]) == {"requests", "limits"}
    for amounts in server(made())["resources"].values():
        assert set(amounts) == {"cpu", "memory"}


def test_limits_are_at_most_ten_times_the_requests() -> None:
    """A LimitRange with `maxLimitRequestRatio: 10` is common."""
    amounts = server(made())["resources"]
    assert amounts == {
        "requests": {"cpu": "100m", "memory": "48Mi"},
        "limits": {"cpu": "1", "memory": "256Mi"},
    }


def test_the_node_runs_linux_unless_the_user_chooses_another_system() -> None:
    assert pod(made())["nodeSelector"] == {"kubernetes.io/os": "linux"}
    other = made(AgentConfig(node_selector={"kubernetes.io/os": "windows"}))
    assert pod(other)["nodeSelector"] == {"kubernetes.io/os": "windows"}


def test_a_stock_image_gets_the_source() -> None:
    manifest = made()
    assert server(manifest)["command"] == payload.command()
    assert env(manifest) == {KEY_ENV: KEY, payload.ENV_NAME: payload.payload()}
    assert manifest["metadata"]["labels"]["krelay/payload"] == payload.digest()


def test_an_image_with_an_agent_gets_no_source() -> None:
    manifest = made(AgentConfig(image="ghcr.io/knight42/krelay-server:v0.0.4"))
    assert "command" not in server(manifest)
    assert env(manifest) == {KEY_ENV: KEY}
    assert "krelay/payload" not in manifest["metadata"]["labels"]
    assert server(manifest)["args"] == ["--idle-timeout=300s", "--connect-timeout=10s"]


@pytest.mark.parametrize(
    ("image", "carried"),
    [
        ("python:3.11-slim", True),
        ("docker.io/library/python@sha256:0123", True),
        ("mirror.corp:5000/base/our-python:7", True),
        ("mirror.corp:5000/base/py311:7", False),
        ("python:3.12-for-krelay", True),
        ("ghcr.io/knight42/krelay-server:v0.0.1", False),
        ("python/krelay:0.1.0", False),
    ],
)
def test_the_image_s_name_decides_whether_it_gets_the_source(image: str, carried: bool) -> None:
    assert carries_source(AgentConfig(image=image)) is carried
    for inject in (True, False):
        assert carries_source(AgentConfig(image=image, inject_source=inject)) is inject


@pytest.mark.parametrize(
    ("seconds", "argument"), [(300.0, "300s"), (0.5, "0.5s"), (90000, "90000s"), (1 / 3, "0.333s")]
)
def test_the_idle_timeout_is_a_go_duration(seconds: float, argument: str) -> None:
    container = server(made(AgentConfig(idle_timeout=seconds)))
    assert container["args"] == [f"--idle-timeout={argument}", "--connect-timeout=10s"]


def test_the_manifest_has_the_config_s_own_fields() -> None:
    manifest = made(
        AgentConfig(
            image="python:3.13-slim",
            labels={"team": "net"},
            annotations={"sidecar.istio.io/inject": "false"},
            node_selector={"disk": "ssd"},
            tolerations=({"operator": "Exists"},),
            resources={"limits": {"memory": "64Mi"}},
        )
    )
    for metadata in (manifest["metadata"], manifest["spec"]["template"]["metadata"]):
        assert metadata["labels"]["team"] == "net"
        assert metadata["labels"]["app"] == "krelay-server"
        assert metadata["labels"]["app.kubernetes.io/managed-by"] == "krelay"
        assert metadata["annotations"] == {"sidecar.istio.io/inject": "false"}
    assert server(manifest)["image"] == "python:3.13-slim"
    assert server(manifest)["resources"] == {"limits": {"memory": "64Mi"}}
    assert pod(manifest)["nodeSelector"] == {"kubernetes.io/os": "linux", "disk": "ssd"}
    assert pod(manifest)["tolerations"] == [{"operator": "Exists"}]


@pytest.mark.parametrize(
    "patch",
    [
        Patch(of_container(args=["--port=1"])),
        Patch(
            ({"op": "replace", "path": "/spec/containers/0/args", "value": ["--port=1"]},), "json"
        ),
        Patch({"spec": {"template": of_container(args=["--port=1"])}}, target="job"),
    ],
)
def test_a_patch_of_args_leaves_the_source_alone(patch: Patch) -> None:
    manifest = made(with_patches(patch))
    assert server(manifest)["args"] == ["--port=1"]
    assert server(manifest) == server(made()) | {"args": ["--port=1"]}


def test_a_patch_adds_to_env() -> None:
    patch = Patch(of_container(env=[{"name": "HTTP_PROXY", "value": "http://p:1"}]))
    assert env(made(with_patches(patch))) == env(made()) | {"HTTP_PROXY": "http://p:1"}


def test_a_patch_may_drop_the_address_of_the_door() -> None:
    patch = Patch(of_container(env=[{"name": POD_IP_ENV, "$patch": "delete"}]))
    names = [each["name"] for each in server(made(with_patches(patch)))["env"]]
    assert names == [KEY_ENV, payload.ENV_NAME]


def test_a_merge_patch_changes_the_pod() -> None:
    patch = Patch({"spec": {"priorityClassName": "low", "enableServiceLinks": None}}, "merge")
    spec = pod(made(with_patches(patch)))
    assert spec["priorityClassName"] == "low"
    assert "enableServiceLinks" not in spec


@pytest.mark.parametrize(
    "patch",
    [
        Patch({"metadata": {"namespace": "other", "generateName": "foo-"}}, "merge"),
        Patch({"metadata": {"namespace": "other", "generateName": "foo-"}}),
        Patch({"metadata": {"namespace": "other", "generateName": "foo-"}}, target="job"),
        Patch(
            (
                {"op": "replace", "path": "/metadata/namespace", "value": "other"},
                {"op": "replace", "path": "/metadata/generateName", "value": "foo-"},
            ),
            "json",
        ),
    ],
)
def test_a_patch_moves_and_names_the_agent(patch: Patch) -> None:
    manifest = made(with_patches(patch))
    assert manifest["metadata"]["namespace"] == "other"
    assert manifest["metadata"]["generateName"] == "foo-"
    assert "namespace" not in manifest["spec"]["template"]["metadata"]
    assert "generateName" not in manifest["spec"]["template"]["metadata"]


def test_patches_apply_in_order() -> None:
    manifest = made(
        with_patches(
            Patch({"metadata": {"labels": {"step": "one", "team": "net"}}}),
            Patch(({"op": "test", "path": "/metadata/labels/step", "value": "one"},), "json"),
            Patch({"metadata": {"labels": {"step": "two"}}}, "merge"),
            Patch({"spec": {"activeDeadlineSeconds": 60}}, target="job"),
        )
    )
    labels = manifest["spec"]["template"]["metadata"]["labels"]
    assert (labels["step"], labels["team"], labels["app"]) == ("two", "net", "krelay-server")
    assert manifest["spec"]["activeDeadlineSeconds"] == 60


@pytest.mark.parametrize(
    ("patch", "dropped"),
    [
        (Patch(of_container(command=None)), ["the container's command"]),
        (Patch(of_container(image=None)), ["the container's image"]),
        (
            Patch(of_container(securityContext=None)),
            [
                "the container's securityContext.allowPrivilegeEscalation",
                "the container's securityContext.capabilities",
            ],
        ),
        (
            Patch({"spec": {"securityContext": {"$patch": "replace", "runAsNonRoot": True}}}),
            ["spec.securityContext.seccompProfile"],
        ),
        (
            Patch(of_container(env=[{"name": KEY_ENV, "$patch": "delete"}])),
            [f"the variable {KEY_ENV}"],
        ),
        (
            Patch({"spec": {"containers": [{"name": NAME, "image": "x"}]}}, "merge"),
            [
                "the container's command",
                "the container's resources",
                "the container's securityContext.allowPrivilegeEscalation",
                "the container's securityContext.capabilities",
                f"the variable {KEY_ENV}",
                f"the variable {payload.ENV_NAME}",
            ],
        ),
        (Patch(of_container(securityContext={"runAsUser": None})), []),
    ],
)
def test_a_patch_that_removes_a_useful_field_is_a_warning(patch: Patch, dropped: list[str]) -> None:
    _, warnings = job_manifest(with_patches(patch), namespace="x", key_sha256=KEY)
    assert warnings == [f"agent.patches[0] drops {what} of the agent's pod" for what in dropped]


def test_each_removed_field_is_one_warning_about_its_patch() -> None:
    config = with_patches(
        Patch({"metadata": {"labels": {"a": "b"}}}),
        Patch({"spec": {"containers": [{"name": "mine"}]}}, "merge"),
        Patch({"metadata": {"labels": {"a": "c"}}}),
    )
    _, warnings = job_manifest(config, namespace="x", key_sha256=KEY)
    assert f"agent.patches[1] drops the container {NAME} of the agent's pod" in warnings
    assert {warning.split()[0] for warning in warnings} == {"agent.patches[1]"}
    assert len(set(warnings)) == len(warnings)


@pytest.mark.parametrize(
    ("patch", "message"),
    [
        (
            Patch(({"op": "remove", "path": "/spec/none"},), "json"),
            "can't remove a non-existent object 'none'",
        ),
        (Patch(of_container(env=[{"value": "x"}])), "an element lacks the merge key 'name'"),
        (Patch(({"op": "add", "path": "", "value": 1},), "json"), "leaves no object"),
        (Patch({"metadata": None}, "merge"), "leaves no pod with metadata"),
        (Patch({"spec": None}, "merge", "job"), "leaves no pod with metadata"),
        (Patch({"metadata": {"namespace": None}}, target="job"), "leaves no namespace"),
        (Patch(({"op": "add"},), "merge"), "is not an object"),
    ],
)
def test_a_patch_that_does_not_fit_is_an_error_of_the_config(patch: Patch, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        job_manifest(with_patches(Patch({}), patch), namespace="x", key_sha256=KEY)
    (problem,) = caught.value.problems
    assert problem.message.startswith(f"agent.patches[1] ({patch.type}): ")
    assert message in problem.message
    assert caught.value.exit_code == 2


def test_the_agents_of_one_run_share_a_label_and_spread_over_nodes() -> None:
    manifest, _ = job_manifest(DEFAULT, namespace="tools", key_sha256=KEY, run="r1")
    assert manifest["spec"]["template"]["metadata"]["labels"][RUN_LABEL] == "r1"
    (spread,) = pod(manifest)["topologySpreadConstraints"]
    assert spread["labelSelector"] == {"matchLabels": {RUN_LABEL: "r1"}}
    assert spread["whenUnsatisfiable"] == "ScheduleAnyway"


def test_an_agent_learns_other_session_settings_from_its_environment() -> None:
    session = SessionConfig(resume_timeout=90.0, ping=1.5)
    manifest, _ = job_manifest(DEFAULT, namespace="tools", key_sha256=KEY, session=session)
    found = env(manifest)
    assert (found["KRELAY_GRACE"], found["KRELAY_PING"]) == ("90s", "1.5s")
    assert "KRELAY_GRACE" not in env(made())
