"""The three forms of a patch, against kubectl's own: the same document, the same patch."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from krelay.cluster.agent_job import KEY_ENV, NAME, job_manifest
from krelay.cluster.patch import MERGE_KEYS, json_patch, merge, strategic
from krelay.model import AgentConfig

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(60)]


def job() -> dict[str, Any]:
    """The agent's Job with a bit of everything, and a short source."""
    manifest, _ = job_manifest(
        AgentConfig(tolerations=({"key": "a"}, {"key": "b"}), node_selector={"disk": "ssd"}),
        namespace="default",
        key_sha256="ab" * 32,
    )
    manifest["metadata"]["name"] = "agent"
    spec = manifest["spec"]["template"]["spec"]
    spec["volumes"] = [{"name": "tmp", "emptyDir": {}}, {"name": "c", "configMap": {"name": "c"}}]
    spec["imagePullSecrets"] = [{"name": "one"}]
    container = spec["containers"][0]
    container["command"] = ["python3"]
    container["env"][1]["value"] = "source"
    container["ports"] = [{"containerPort": 9527, "name": "agent", "protocol": "TCP"}]
    container["volumeMounts"] = [{"name": "tmp", "mountPath": "/tmp"}]
    return manifest


def kubectl(document: Any, patch: Any, kind: str, folder: Path) -> Any:
    """What kubectl makes of it, without asking a server."""
    file = folder / "job.json"
    file.write_text(json.dumps(document))
    done = subprocess.run(
        [
            *("kubectl", "patch", "--local", f"--filename={file}", f"--type={kind}"),
            *("--output=json", f"--patch={json.dumps(patch)}"),
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(done.stdout)


def unordered(value: Any, name: str = "") -> Any:
    """Lists that merge by a key, in the order of that key: kubectl's own order is another."""
    if isinstance(value, dict):
        return {key: unordered(inner, key) for key, inner in value.items()}
    if isinstance(value, list):
        inner = [unordered(each) for each in value]
        return (
            sorted(inner, key=lambda each: str(each[MERGE_KEYS[name]]))
            if name in MERGE_KEYS
            else inner
        )
    return value


def of_pod(**spec: Any) -> dict[str, Any]:
    return {"spec": {"template": {"spec": spec}}}


def of_container(**changes: Any) -> dict[str, Any]:
    return of_pod(containers=[{"name": NAME, **changes}])


STRATEGIC = {
    "args": of_container(args=["--port=1"]),
    "env": of_container(env=[{"name": "A", "value": "1"}, {"name": KEY_ENV, "value": "2"}]),
    "env deleted": of_container(env=[{"name": KEY_ENV, "$patch": "delete"}]),
    "env replaced": of_container(env=[{"$patch": "replace"}, {"name": "A", "value": "1"}]),
    "another container": of_pod(containers=[{"name": "side", "image": "i"}]),
    "an init container": of_pod(initContainers=[{"name": "first", "image": "i", "command": ["x"]}]),
    "ports": of_container(ports=[{"containerPort": 9527, "name": "n"}, {"containerPort": 1}]),
    "mounts": of_container(
        volumeMounts=[{"mountPath": "/tmp", "readOnly": True}, {"mountPath": "/c", "name": "c"}],
    ),
    "volumes": of_pod(volumes=[{"name": "a", "emptyDir": {}}, {"name": "tmp", "$patch": "delete"}]),
    "retain keys": of_pod(
        volumes=[{"name": "tmp", "$retainKeys": ["name", "secret"], "secret": {"secretName": "s"}}]
    ),
    "pull secrets": of_pod(imagePullSecrets=[{"name": "two"}]),
    "tolerations": of_pod(tolerations=[{"operator": "Exists"}]),
    "node selector": of_pod(nodeSelector={"arch": "arm64", "disk": None}),
    "node selector replaced": of_pod(nodeSelector={"$patch": "replace", "arch": "arm64"}),
    "spread": of_pod(
        topologySpreadConstraints=[
            {"topologyKey": "zone", "maxSkew": 1, "whenUnsatisfiable": "DoNotSchedule"}
        ]
    ),
    "host aliases": of_pod(hostAliases=[{"ip": "10.0.0.1", "hostnames": ["a"]}]),
    "nulls": of_container(command=None, securityContext={"capabilities": None}, resources=None),
    "capabilities": of_container(securityContext={"capabilities": {"drop": ["NET_RAW"]}}),
    "labels": {"metadata": {"labels": {"app": "other", "team": "net"}, "namespace": "default"}},
    "a scalar": {"spec": {"ttlSecondsAfterFinished": 60, "suspend": True}},
}


@pytest.mark.parametrize("patch", STRATEGIC.values(), ids=STRATEGIC.keys())
def test_strategic(patch: Any, tmp_path: Path) -> None:
    theirs = kubectl(job(), patch, "strategic", tmp_path)
    assert unordered(strategic(job(), patch)) == unordered(theirs)


@pytest.mark.parametrize("name", ["tolerations", "node selector", "labels", "a scalar"])
def test_merge(name: str, tmp_path: Path) -> None:
    patch = STRATEGIC[name]
    assert merge(job(), patch) == kubectl(job(), patch, "merge", tmp_path)


AT = "/spec/template/spec/containers/0"


@pytest.mark.parametrize(
    "patch",
    [
        [{"op": "replace", "path": f"{AT}/args/0", "value": "--idle-timeout=1m"}],
        [{"op": "add", "path": f"{AT}/args/-", "value": "--connect-timeout=1s"}],
        [{"op": "add", "path": f"{AT}/env/0", "value": {"name": "FIRST", "value": "1"}}],
        [{"op": "remove", "path": f"{AT}/env/0"}],
        [{"op": "add", "path": "/metadata/labels/example.com~1team", "value": "net"}],
        [
            {"op": "test", "path": "/spec/backoffLimit", "value": 0},
            {"op": "copy", "from": "/spec/backoffLimit", "path": "/spec/parallelism"},
            {"op": "move", "from": f"{AT}/args", "path": f"{AT}/command"},
        ],
    ],
)
def test_json_patch(patch: Any, tmp_path: Path) -> None:
    assert json_patch(job(), patch) == kubectl(job(), patch, "json", tmp_path)
