"""Job: what the agent is to the cluster, a manifest made of the config and its patches. Pure.

The source lies in `env` and not in `args`, and the lists of a container merge by key: a patch
of `args`, or one that adds to `env`, leaves it alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from krelay import __version__, payload
from krelay.cluster.patch import PatchError, json_patch, merge, plain, strategic
from krelay.errors import ConfigError, Problem
from krelay.model import AgentConfig, Patch, SessionConfig

NAME = "krelay-server"
"""The container's name and the value of the label `app`, as users of the Go krelay know them."""

KEY_ENV = "KRELAY_KEY_SHA256"
"""Holds the hex SHA-256 of the run's key: the spec is no place for the key itself."""

RUN_LABEL = "krelay/run"
"""What the agents of one pool have in common."""

TTL = 15
"""Seconds that a finished Job stays: time to look at it, and nothing is left behind."""

GRACE = 5
UID = 65532
"""Any but 0; no image needs to know it."""


def job_manifest(
    config: AgentConfig,
    *,
    namespace: str,
    key_sha256: str,
    connect_timeout: float = 10.0,
    session: SessionConfig = SessionConfig(),  # noqa: B008
    run: str = "",
) -> tuple[dict[str, Any], list[str]]:
    """The batch/v1 Job to create, and a warning for each thing of use that a patch took away.

    `connect_timeout`, in seconds, is the agent's time to reach a target. The Job's
    `metadata.namespace` is `namespace`, unless a patch moved it. Agents of the same `run` (a
    label's value; empty: there is one alone) spread over the nodes.

    Raises:
        ConfigError: a patch does not fit; names it by its number, from 0.
    """
    labels = _labels(config)
    if run:
        labels[RUN_LABEL] = run
    metadata = {"labels": labels, "annotations": plain(config.annotations)}
    pod = _pod(config, key_sha256, connect_timeout, session)
    if run:
        pod["topologySpreadConstraints"] = [_spread(run)]
    manifest: dict[str, Any] = {
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"generateName": f"{NAME}-", "namespace": namespace, **plain(metadata)},
        "spec": {
            # A second pod would know nothing of the first one's sessions: no retries, and for
            # the same reason no podFailurePolicy that makes a new one after a disruption.
            "backoffLimit": 0,
            "ttlSecondsAfterFinished": TTL,
            "template": {"metadata": metadata, "spec": pod},
        },
    }
    warnings: list[str] = []
    for number, patch in enumerate(config.patches):
        try:
            changed = _patched(manifest, patch)
        except PatchError as exc:
            problem = Problem(0, 0, f"agent.patches[{number}] ({patch.type}): {exc}")
            raise ConfigError("agent.patches", [problem]) from exc
        after = set(_needed(changed))
        warnings += [
            f"agent.patches[{number}] drops {what} of the agent's pod"
            for what in _needed(manifest)
            if what not in after
        ]
        manifest = changed
    return manifest, warnings


def carries_source(config: AgentConfig) -> bool:
    """Whether the agent's source goes along: as the config says, or to an image whose name ends
    in `python`. Any other image has a program of its own (ours, or the Go krelay's). Its
    registry and its tag do not count."""
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


def _spread(run: str) -> dict[str, Any]:
    """On different nodes where that can be, and anywhere rather than nowhere."""
    return {
        "maxSkew": 1,
        "topologyKey": "kubernetes.io/hostname",
        "whenUnsatisfiable": "ScheduleAnyway",
        "labelSelector": {"matchLabels": {RUN_LABEL: run}},
    }


def _pod(
    config: AgentConfig, key_sha256: str, connect_timeout: float, session: SessionConfig
) -> dict[str, Any]:
    """The pod's spec; passes Pod Security `restricted` (policy/check_*.go)."""
    spec: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": GRACE,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": UID,
            "runAsGroup": UID,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [_container(config, key_sha256, connect_timeout, session)],
    }
    if config.node_selector:
        spec["nodeSelector"] = plain(config.node_selector)
    if config.tolerations:
        spec["tolerations"] = plain(config.tolerations)
    return spec


def _container(
    config: AgentConfig, key_sha256: str, connect_timeout: float, session: SessionConfig
) -> dict[str, Any]:
    env = [{"name": KEY_ENV, "value": key_sha256}]
    if session != SessionConfig():
        # By the environment, since the Go krelay's image would end on an argument unknown to it.
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
        # No argument that the Go krelay's image does not know too.
        "args": [
            f"--idle-timeout={_go_duration(config.idle_timeout)}",
            f"--connect-timeout={_go_duration(connect_timeout)}",
        ],
        "env": env,
        "resources": plain(config.resources),
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        # The last lines of the log arrive in the pod's status: no right to pods/log is needed.
        "terminationMessagePolicy": "FallbackToLogsOnError",
    }
    if carries_source(config):
        container["command"] = payload.command()
        env.append({"name": payload.ENV_NAME, "value": payload.payload()})
    return container


def _go_duration(seconds: float) -> str:
    return f"{seconds:.3f}".rstrip("0").rstrip(".") + "s"


def _patched(manifest: dict[str, Any], patch: Patch) -> dict[str, Any]:
    """A copy of the Job with one patch applied, to it or to its pod.

    A pod has its namespace and its name's beginning from the Job, so where a patch of the pod
    changes these, it changes the Job's: as it was when the agent was a bare pod.
    """
    if patch.target == "job":
        return _whole(_applied(manifest, patch))
    job = merge(manifest, {})
    inherited = {k: v for k, v in job["metadata"].items() if k in ("namespace", "generateName")}
    template = job["spec"]["template"]
    pod = _applied(merge(template, {"metadata": inherited}), patch)
    job["spec"]["template"] = pod
    if isinstance(metadata := pod.get("metadata"), dict):
        job["metadata"] |= {k: metadata.pop(k) for k in inherited if k in metadata}
    return _whole(job)


def _whole(job: dict[str, Any]) -> dict[str, Any]:
    """The Job, where there is still enough of it to ask the API server about the rest."""
    if not isinstance(_at(job, ("spec", "template", "metadata")), dict):
        raise PatchError("leaves no pod with metadata")
    namespace = _at(job, ("metadata", "namespace"))
    if not isinstance(namespace, str) or not namespace:
        raise PatchError("leaves no namespace")
    return job


def _applied(document: dict[str, Any], patch: Patch) -> dict[str, Any]:
    after: Any
    if patch.type == "json":
        after = json_patch(document, patch.body if isinstance(patch.body, Sequence) else ())
    elif not isinstance(patch.body, Mapping):
        raise PatchError("is no object")
    elif patch.type == "merge":
        after = merge(document, patch.body)
    else:
        after = strategic(document, patch.body)
    if not isinstance(after, dict):
        raise PatchError("leaves no object")
    return after


_OF_POD = (("securityContext", "runAsNonRoot"), ("securityContext", "seccompProfile"))
_OF_CONTAINER = (
    ("image",),
    ("command",),
    ("resources",),
    ("securityContext", "allowPrivilegeEscalation"),
    ("securityContext", "capabilities"),
)


def _needed(manifest: Mapping[str, Any]) -> Iterator[str]:
    """What is there of all that the agent, or admission, cannot do without."""
    spec = _at(manifest, ("spec", "template", "spec"))
    yield from (f"spec.{'.'.join(path)}" for path in _OF_POD if _at(spec, path) is not None)
    server = next(_named(_at(spec, ("containers",)), NAME), None)
    if server is None:
        return
    yield f"the container {NAME}"
    yield from (
        f"the container's {'.'.join(path)}"
        for path in _OF_CONTAINER
        if _at(server, path) is not None
    )
    for name in (KEY_ENV, payload.ENV_NAME):
        if any(_named(server.get("env"), name)):
            yield f"the variable {name}"


def _at(value: Any, path: Sequence[str]) -> Any:
    for name in path:
        value = value.get(name) if isinstance(value, Mapping) else None
    return value


def _named(elements: Any, name: str) -> Iterator[Mapping[str, Any]]:
    for element in elements if isinstance(elements, list) else ():
        if isinstance(element, Mapping) and element.get("name") == name:
            yield element
