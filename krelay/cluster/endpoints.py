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


Service = Mapping[str, Any]
Slice = Mapping[str, Any]
ServicePort = Mapping[str, Any]


def resolve_service(
    service: Service, port: Port, slices: Iterable[Slice] | None, present: str | None = None
) -> Resolution:
    """What `port` means now. `slices` are the Service's EndpointSlices, None where they may not
    be read; `present` is the address that was chosen before."""
    spec = service["spec"]
    if spec.get("type") == "ExternalName":
        return _external(spec, port)
    found = find_port(spec.get("ports") or (), port)
    if found is None:
        reason = _no_port(service, port)
        return Resolution(port.protocol or Protocol.TCP, reason=reason, missing=True)
    protocol = protocol_of(found)
    if protocol is None:
        reason = f"port {port.remote} is {found['protocol']}, which is not relayed"
        return Resolution(Protocol.TCP, reason=reason)
    headless = spec.get("clusterIP") in (None, "", "None")
    address = None
    if slices is not None:
        address = _endpoint(service, found, slices, present)
        if address is None:
            name = service["metadata"]["name"]
            return Resolution(protocol, reason=f'service "{name}" has no ready endpoint')
    elif headless:
        return Resolution(protocol, reason="its EndpointSlices may not be read")
    if headless:
        assert address is not None
        return Resolution(protocol, address, via="endpoint")
    return Resolution(protocol, Endpoint(spec["clusterIP"], int(found["port"])), via="clusterIP")


def find_port(ports: Iterable[ServicePort], port: Port) -> ServicePort | None:
    """The Service's port that the user means: by its number, its name or its targetPort's name."""
    ports = [p for p in ports if port.protocol is None or protocol_of(p) is port.protocol]
    keys = ("port",) if isinstance(port.remote, int) else ("name", "targetPort")
    for key in keys:
        found = [declared for declared in ports if declared.get(key) == port.remote]
        # One number for both protocols: TCP, as kubectl takes it.
        found.sort(key=lambda declared: protocol_of(declared) is not Protocol.TCP)
        if found:
            return found[0]
    return None


def _no_port(service: Service, port: Port) -> str:
    names = [
        f"{declared['port']}"
        + (f" ({declared['name']})" if declared.get("name") else "")
        + (f"/{declared['protocol'].lower()}" if declared.get("protocol", "TCP") != "TCP" else "")
        for declared in service["spec"].get("ports") or ()
    ]
    wanted = f"{port.remote}/{port.protocol}" if port.protocol else str(port.remote)
    has = f"; it has {', '.join(names)}" if names else ""
    return f'service "{service["metadata"]["name"]}" has no port {wanted}{has}'


def _external(spec: Mapping[str, Any], port: Port) -> Resolution:
    found = find_port(spec.get("ports") or (), port)
    protocol = port.protocol or (protocol_of(found) if found else None) or Protocol.TCP
    if isinstance(port.remote, int):
        number = port.remote
    elif found:
        number = int(found["port"])
    else:
        reason = f"an ExternalName without a port named {port.remote!r}; use its number"
        return Resolution(protocol, reason=reason)
    if not spec.get("externalName"):
        return Resolution(protocol, reason="an ExternalName without a name")
    return Resolution(protocol, Endpoint(spec["externalName"], number), via="externalName")


def _endpoint(
    service: Service, port: ServicePort, slices: Iterable[Slice], present: str | None
) -> Endpoint | None:
    """A ready endpoint behind a Service's port: the present one while it is; else one that still
    serves though it ends, as kube-proxy takes it (pkg/proxy/topology.go)."""
    family = next(iter(service["spec"].get("ipFamilies") or ()), None)
    found = sorted(
        _endpoints(port, slices),
        key=lambda e: (not e[0], e[1].host != present, e[2] != family, e[1].host, e[1].port),
    )
    return found[0][1] if found else None


def _endpoints(
    port: ServicePort, slices: Iterable[Slice]
) -> Iterator[tuple[bool, Endpoint, str | None]]:
    """(ready, endpoint, family) of each that takes or still serves connections."""
    for part in slices:
        numbers = [
            declared["port"]
            for declared in part.get("ports") or ()
            if (declared.get("name") or "") == (port.get("name") or "")
            and protocol_of(declared) is protocol_of(port)
            and declared.get("port")
        ]
        for endpoint in part.get("endpoints") or ():
            conditions = endpoint.get("conditions") or {}
            is_ready = conditions.get("ready") is not False
            serves = conditions.get("serving") is not False
            if numbers and endpoint.get("addresses") and (is_ready or serves):
                address = Endpoint(endpoint["addresses"][0], int(numbers[0]))
                yield is_ready, address, part.get("addressType")
