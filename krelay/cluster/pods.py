"""Pods: which one new connections go to, and what a port means there. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from krelay.model import Endpoint, Port, Protocol, Resolution

Pod = Mapping[str, Any]


def ready(pod: Pod) -> bool:
    """Ready, and not on its way out."""
    return not terminating(pod) and any(
        condition.get("type") == "Ready" and condition.get("status") == "True"
        for condition in (pod.get("status") or {}).get("conditions") or ()
    )


def terminating(pod: Pod) -> bool:
    """Being deleted, or ended."""
    phase = (pod.get("status") or {}).get("phase")
    return "deletionTimestamp" in pod["metadata"] or phase in ("Succeeded", "Failed")


def choose(pods: Iterable[Pod], present: str | None) -> Pod | None:
    """The pod for new connections: the `present` one (its uid) while it is ready, since what an
    application keeps in one pod it expects there; else the newest that is ready."""
    candidates = [pod for pod in pods if ready(pod) and (pod.get("status") or {}).get("podIP")]
    for pod in candidates:
        if pod["metadata"].get("uid") == present:
            return pod
    # By name too: pods of one second must not be chosen by chance.
    return max(
        candidates,
        key=lambda pod: (pod["metadata"].get("creationTimestamp", ""), pod["metadata"]["name"]),
        default=None,
    )


def why_none(pods: Iterable[Pod]) -> str:
    """Why `choose` found nothing, for people."""
    known = [pod for pod in pods if not terminating(pod)]
    if not known:
        return "no pod"
    pod = known[0]
    name = pod["metadata"]["name"]
    for status in (pod.get("status") or {}).get("containerStatuses") or ():
        waiting = (status.get("state") or {}).get("waiting")
        if waiting and waiting.get("reason"):
            return f"pod {name} is not ready: {waiting['reason']}"
    return f"pod {name} is not ready"


def resolve_port(pod: Pod, port: Port) -> Resolution:
    """What `port` of a target means on this pod; a name is a container port's."""
    name = pod["metadata"]["name"]
    declared = [
        declaration
        for declaration in container_ports(pod)
        if declaration.get("name" if isinstance(port.remote, str) else "containerPort")
        == port.remote
        and (port.protocol is None or protocol_of(declaration) is port.protocol)
    ]
    protocols = {protocol_of(declaration) for declaration in declared}
    protocol = port.protocol or (protocols.pop() if len(protocols) == 1 else None) or Protocol.TCP
    if isinstance(port.remote, int):
        number = port.remote
    elif declared:
        number = int(declared[0]["containerPort"])
    else:
        names = sorted(str(d["name"]) for d in container_ports(pod) if d.get("name"))
        has = f"; it has {', '.join(names)}" if names else ""
        reason = f"pod {name} has no port named {port.remote!r}{has}"
        return Resolution(protocol, reason=reason, missing=True)
    return Resolution(protocol, Endpoint(pod["status"]["podIP"], number), via=f"pod {name}")


def protocol_of(declaration: Mapping[str, Any]) -> Protocol | None:
    """The protocol of a container's, Service's or EndpointSlice's port; None for SCTP."""
    try:
        return Protocol(str(declaration.get("protocol") or "TCP").lower())
    except ValueError:
        return None


def container_ports(pod: Pod) -> Iterator[Mapping[str, Any]]:
    """Every declared port of the containers that stay (init containers that restart do)."""
    spec = pod.get("spec") or {}
    for container in spec.get("containers") or ():
        yield from container.get("ports") or ()
    for container in spec.get("initContainers") or ():
        if container.get("restartPolicy") == "Always":
            yield from container.get("ports") or ()
