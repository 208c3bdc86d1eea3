"""Agent Job: build the manifest of the agent's Job from the config and its patches. Pure.

The agent's source is in `env`, and the lists of a container merge by key, so a patch that
replaces `args` or adds to `env` does not remove it.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from krelay import __version__, payload
from krelay.cluster.objects import nested
from krelay.cluster.patch import PatchError, json_patch, merge, plain, strategic
from krelay.errors import ConfigError, Problem
from krelay.model import AgentConfig, Patch, SessionConfig

NAME = "krelay-server"  # the container's name and the label `app`, as in the Go krelay

KEY_ENV = "KRELAY_KEY_SHA256"
"""The hex SHA-256 of the run's key: more users may read the spec than may hold the key."""

POD_IP_ENV = "KRELAY_POD_IP"
"""The pod's own address, on which the agent opens its door; without it, there is no door."""

RUN_LABEL = "krelay/run"  # the label that the agents of one pool share

TTL = 5  # seconds that a finished Job stays for inspection before Kubernetes deletes it

TERMINATION_GRACE = 5
UID = 65532  # any user but root; images need no entry for it
RESTRICTED_POD = {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
RESTRICTED_CONTAINER = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
"""What Pod Security `restricted` demands in the security contexts (policy/check_*.go)."""


def job_manifest(
    config: AgentConfig,
    *,
    namespace: str,
    key_sha256: str,
    connect_timeout: float = 10.0,
    session: SessionConfig = SessionConfig(),  # noqa: B008
    run: str = "",
) -> tuple[dict[str, Any], list[str]]:
    """Return the batch/v1 Job to create, and a warning for each useful field that a patch removes.

    `connect_timeout` is the agent's timeout for a target, in seconds. The Job goes to `namespace`
    unless a patch moves it. Agents with the same `run` (a label's value; empty for a single
    agent) spread over the nodes.

    Raises:
        ConfigError: a patch does not fit; the message has its index.
    """
    labels = _labels(config)
    if run:
        labels[RUN_LABEL] = run
    metadata = {"labels": labels, "annotations": plain(config.annotations)}
    pod = _pod(config, key_sha256, connect_timeout, session)
    if run:
        # Different nodes are preferred, not required.
        pod["topologySpreadConstraints"] = [
            {
                "maxSkew": 1,
                "topologyKey": "kubernetes.io/hostname",
                "whenUnsatisfiable": "ScheduleAnyway",
                "labelSelector": {"matchLabels": {RUN_LABEL: run}},
            }
        ]
    manifest: dict[str, Any] = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"generateName": f"{NAME}-", "namespace": namespace, **plain(metadata)},
        "spec": {
            # A second pod would not have the sessions of the first: so no retries, and no
            # podFailurePolicy that replaces the pod after a disruption.
            "backoffLimit": 0,
            "ttlSecondsAfterFinished": TTL,
            "template": {"metadata": metadata, "spec": pod},
        },
    }
    warnings: list[str] = []
    for index, patch in enumerate(config.patches):
        try:
            patched = _patch_job(manifest, patch)
        except PatchError as exc:
            problem = Problem(0, 0, f"agent.patches[{index}] ({patch.type}): {exc}")
            raise ConfigError("agent.patches", [problem]) from exc
        kept = set(_useful_fields(patched))
        warnings += [
            f"agent.patches[{index}] drops {name} of the agent's pod"
            for name in _useful_fields(manifest)
            if name not in kept
        ]
        manifest = patched
    return manifest, warnings


def carries_source(config: AgentConfig) -> bool:
    """Return whether the pod gets the agent's source: as configured, or if the image's name, less
    registry and tag, ends in `python`. Other images contain an agent (krelay's, or the Go's)."""
    if config.inject_source is not None:
        return config.inject_source
    return re.split("[:@]", config.image.rpartition("/")[2])[0].endswith("python")


def _labels(config: AgentConfig) -> dict[str, str]:
    labels = {
        "app": NAME,
        "app.kubernetes.io/name": NAME,
        "app.kubernetes.io/managed-by": "krelay",
        "app.kubernetes.io/version": __version__.replace("+", "_"),
    }
    if carries_source(config):
        labels["krelay/payload"] = payload.digest()
    return labels | dict(config.labels)


def _pod(
    config: AgentConfig, key_sha256: str, connect_timeout: float, session: SessionConfig
) -> dict[str, Any]:
    """Return the pod's spec, which passes Pod Security `restricted` (policy/check_*.go)."""
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": TERMINATION_GRACE,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        # Nodes of other systems cannot run the image.
        "nodeSelector": {"kubernetes.io/os": "linux", **plain(config.node_selector)},
        "securityContext": {"runAsUser": UID, "runAsGroup": UID, **RESTRICTED_POD},
        "containers": [_container(config, key_sha256, connect_timeout, session)],
    }
    if config.tolerations:
        spec["tolerations"] = plain(config.tolerations)
    return spec


def _container(
    config: AgentConfig, key_sha256: str, connect_timeout: float, session: SessionConfig
) -> dict[str, Any]:
    env: list[dict[str, Any]] = [
        {"name": KEY_ENV, "value": key_sha256},
        {"name": POD_IP_ENV, "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
    ]
    if session != SessionConfig():
        # In the environment, since the Go krelay exits on an unknown argument.
        values = {
            "KRELAY_GRACE": _go_duration(session.resume_timeout),
            "KRELAY_REPLAY": str(session.resume_buffer),
            "KRELAY_PING": _go_duration(session.ping),
            "KRELAY_PING_TIMEOUT": _go_duration(session.ping_timeout),
        }
        env += [{"name": name, "value": value} for name, value in values.items()]
    container: dict[str, Any] = {
        "name": NAME,
        "image": config.image,
        "imagePullPolicy": "IfNotPresent",
        # Only arguments that the Go krelay knows too.
        "args": [
            f"--idle-timeout={_go_duration(config.idle_timeout)}",
            f"--connect-timeout={_go_duration(connect_timeout)}",
        ],
        "env": env,
        "resources": plain(config.resources),
        "securityContext": {"readOnlyRootFilesystem": True, **RESTRICTED_CONTAINER},
        # Puts the last log lines into the pod's status, so krelay needs no right to pods/log.
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    if carries_source(config):
        container["command"] = payload.command()
        env.append({"name": payload.ENV_NAME, "value": payload.payload()})
    return container


def _go_duration(seconds: float) -> str:
    return f"{seconds:.3f}".rstrip("0").rstrip(".") + "s"


def _patch_job(manifest: dict[str, Any], patch: Patch) -> dict[str, Any]:
    """Return a copy of the Job with `patch` applied to it or to its pod.

    The pod gets its namespace and the prefix of its name from the Job, so a patch of the pod that
    changes these changes the Job's. Patches written for versions with a bare pod still work.
    """
    if patch.target == "job":
        return _check_job(_apply(manifest, patch))
    job = merge(manifest, {})
    inherited = {k: v for k, v in job["metadata"].items() if k in ("namespace", "generateName")}
    template = job["spec"]["template"]
    pod = _apply(merge(template, {"metadata": inherited}), patch)
    job["spec"]["template"] = pod
    if isinstance(metadata := pod.get("metadata"), dict):
        job["metadata"] |= {k: metadata.pop(k) for k in inherited if k in metadata}
    return _check_job(job)


def _check_job(job: dict[str, Any]) -> dict[str, Any]:
    """Return `job` if it has what krelay itself needs; the API server validates the rest."""
    if not isinstance(nested(job, "spec", "template", "metadata"), dict):
        raise PatchError("leaves no pod with metadata")
    namespace = nested(job, "metadata", "namespace")
    if not isinstance(namespace, str) or not namespace:
        raise PatchError("leaves no namespace")
    return job


def _apply(document: dict[str, Any], patch: Patch) -> dict[str, Any]:
    after: Any
    if patch.type == "json":
        after = json_patch(document, patch.body if isinstance(patch.body, Sequence) else ())
    elif not isinstance(patch.body, Mapping):
        raise PatchError("is not an object")
    elif patch.type == "merge":
        after = merge(document, patch.body)
    else:
        after = strategic(document, patch.body)
    if not isinstance(after, dict):
        raise PatchError("leaves no object")
    return after


_POD_FIELDS = (("securityContext", "runAsNonRoot"), ("securityContext", "seccompProfile"))
_CONTAINER_FIELDS = (
    ("image",),
    ("command",),
    ("resources",),
    ("securityContext", "allowPrivilegeEscalation"),
    ("securityContext", "capabilities"),
)


def _useful_fields(manifest: Mapping[str, Any]) -> Iterator[str]:
    """Yield the fields present in `manifest` that the agent or admission may need."""
    spec = nested(manifest, "spec", "template", "spec")
    yield from (f"spec.{'.'.join(path)}" for path in _POD_FIELDS if nested(spec, *path) is not None)
    server = next(_named(nested(spec, "containers"), NAME), None)
    if server is None:
        return
    yield f"the container {NAME}"
    for path in _CONTAINER_FIELDS:
        if nested(server, *path) is not None:
            yield f"the container's {'.'.join(path)}"
    for name in (KEY_ENV, payload.ENV_NAME):
        if any(_named(server.get("env"), name)):
            yield f"the variable {name}"


def _named(elements: Any, name: str) -> Iterator[Mapping[str, Any]]:
    for element in elements if isinstance(elements, list) else ():
        if isinstance(element, Mapping) and element.get("name") == name:
            yield element
