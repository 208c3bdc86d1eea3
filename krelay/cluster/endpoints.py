"""Endpoints: what a target's port means on a pod or on a Service. Pure.

A Service's port leads to its clusterIP, to one of its endpoints (headless), or to its
externalName. Objects are as `krelay.cluster.objects` reads them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from krelay.model import Endpoint, PodPort, Port, Protocol, Resolution

Object = Mapping[str, Any]


def is_ready(pod: Object) -> bool:
    """Return whether the pod is ready and does not end."""
    return not is_ending(pod) and any(
        condition.get("type") == "Ready" and condition.get("status") == "True"
        for condition in pod.get("status", {}).get("conditions", ())
    )


def is_ending(pod: Object) -> bool:
    """Return whether the pod is being deleted or has ended."""
    phase = pod.get("status", {}).get("phase")
    return "deletionTimestamp" in pod["metadata"] or phase in ("Succeeded", "Failed")


def choose_pod(pods: Iterable[Object], current: str | None) -> Object | None:
    """Return the pod for new connections, or None.

    The `current` pod (its uid) stays while it is ready, since applications keep state in a pod;
    else the newest ready pod is chosen.
    """
    candidates = [pod for pod in pods if is_ready(pod) and pod["status"].get("podIP")]
    for pod in candidates:
        if pod["metadata"].get("uid") == current:
            return pod
    # The name decides between pods of the same second.
    return max(
        candidates,
        key=lambda pod: (pod["metadata"].get("creationTimestamp", ""), pod["metadata"]["name"]),
        default=None,
    )


def why_no_pod(pods: Iterable[Object]) -> str:
    """Say why `choose_pod` found none."""
    pod = next((pod for pod in pods if not is_ending(pod)), None)
    if pod is None:
        return "no pod"
    name = pod["metadata"]["name"]
    for status in pod.get("status", {}).get("containerStatuses", ()):
        if reason := status.get("state", {}).get("waiting", {}).get("reason"):
            return f"pod {name} is not ready: {reason}"
    return f"pod {name} is not ready"


def resolve_pod(pod: Object, port: Port) -> Resolution:
    """Return what `port` means on this pod; a name is that of a container's port."""
    name = pod["metadata"]["name"]
    declared = _declared(pod, port)
    protocols = {_protocol(declaration) for declaration in declared}
    protocol = port.protocol or (protocols.pop() if len(protocols) == 1 else None) or Protocol.TCP
    if isinstance(port.remote, int):
        number = port.remote
    elif declared:
        number = declared[0]["containerPort"]
    else:
        names = sorted(d["name"] for d in _container_ports(pod) if d.get("name"))
        has = f"; it has {', '.join(names)}" if names else ""
        reason = f"pod {name} has no port named {port.remote!r}{has}"
        return Resolution(protocol, reason=reason, missing=True)
    return Resolution(
        protocol,
        Endpoint(pod["status"]["podIP"], number),
        via=f"pod {name}",
        pods=pods_behind((pod,), port),
    )


def pods_behind(
    pods: Iterable[Object], port: Port, current: str | None = None
) -> tuple[PodPort, ...]:
    """Return `port` on each pod that runs and has it: the `current` pod (its uid) first, then the
    other ready ones, the newest first."""
    running = [
        pod
        for pod in pods
        if not is_ending(pod) and pod.get("status", {}).get("phase") == "Running"
    ]
    running.sort(key=lambda pod: pod["metadata"]["name"])
    running.sort(key=lambda pod: pod["metadata"].get("creationTimestamp", ""), reverse=True)
    running.sort(key=lambda pod: (not is_ready(pod), pod["metadata"].get("uid") != current))
    return tuple(
        _pod_port(pod["metadata"], number, ready=is_ready(pod))
        for pod in running
        if (number := _number_on(pod, port)) is not None
    )


def _pod_port(metadata: Object, number: int, *, ready: bool) -> PodPort:
    """Return a port of the pod that `metadata`, or a reference to it, names."""
    namespace, uid = metadata.get("namespace", ""), metadata.get("uid", "")
    return PodPort(namespace, metadata["name"], uid, number, ready)


def _number_on(pod: Object, port: Port) -> int | None:
    if isinstance(port.remote, int):
        return port.remote
    return next((found["containerPort"] for found in _declared(pod, port)), None)


def _declared(pod: Object, port: Port) -> list[Object]:
    """Return the declarations of `port` by the pod's containers."""
    key = "name" if isinstance(port.remote, str) else "containerPort"
    return [
        declaration
        for declaration in _container_ports(pod)
        if declaration.get(key) == port.remote
        and (port.protocol is None or _protocol(declaration) is port.protocol)
    ]


def _container_ports(pod: Object) -> Iterator[Object]:
    """Yield the declared ports of all containers that stay, sidecars included."""
    spec = pod.get("spec", {})
    sidecars = (c for c in spec.get("initContainers", ()) if c.get("restartPolicy") == "Always")
    for container in (*spec.get("containers", ()), *sidecars):
        yield from container.get("ports", ())


def _protocol(declaration: Object) -> Protocol | None:
    """Return the protocol of a container's, Service's or EndpointSlice's port; None for SCTP."""
    try:
        return Protocol(declaration.get("protocol", "TCP").lower())
    except ValueError:
        return None


def is_headless(service: Object) -> bool:
    """Return whether the Service has no clusterIP."""
    return service["spec"].get("clusterIP") in (None, "", "None")


def resolve_service(
    service: Object,
    port: Port,
    slices: Collection[Object] | None,
    current: str | None = None,
    selected: Collection[Object] | None = None,
) -> Resolution:
    """Return what `port` means on this Service.

    `slices` are its EndpointSlices, None if krelay may not read them; then `selected` are the pods
    that it selects, None if those may not be read either. `current` is the address that was chosen
    last.
    """
    spec = service["spec"]
    if spec.get("type") == "ExternalName":
        return _resolve_external_name(spec, port)
    found = _find_port(spec, port)
    if found is None:
        reason = _no_port(service, port)
        return Resolution(port.protocol or Protocol.TCP, reason=reason, missing=True)
    protocol = _protocol(found)
    if protocol is None:
        reason = f"port {port.remote} is {found['protocol']}, which is not relayed"
        return Resolution(Protocol.TCP, reason=reason)
    endpoint: Endpoint | None = None
    pods: tuple[PodPort, ...] = ()
    if slices is not None:
        endpoint = _choose_endpoint(service, found, slices, current)
        pods = _pods_of_slices(found, slices)
    elif selected is not None:
        pods = pods_behind(selected, _target_port(found))
        endpoint = _address_of(pods[0], selected) if pods and pods[0].ready else None
    elif is_headless(service):
        return Resolution(protocol, reason="its EndpointSlices may not be read")
    if endpoint is None and (slices is not None or selected is not None):
        name = service["metadata"]["name"]
        return Resolution(protocol, reason=f'service "{name}" has no ready endpoint', pods=pods)
    if not is_headless(service):
        endpoint = Endpoint(spec["clusterIP"], found["port"])
    via = "endpoint" if is_headless(service) else "clusterIP"
    return Resolution(protocol, endpoint, via=via, pods=pods, balanced=True)


def _target_port(declared: Object) -> Port:
    """Return a Service's port as one of its pods."""
    return Port(declared.get("targetPort") or declared["port"], protocol=_protocol(declared))


def _address_of(found: PodPort, pods: Iterable[Object]) -> Endpoint | None:
    for pod in pods:
        if pod["metadata"].get("uid", "") == found.uid and (address := pod["status"].get("podIP")):
            return Endpoint(address, found.port)
    return None


def _pods_of_slices(port: Object, slices: Iterable[Object]) -> tuple[PodPort, ...]:
    """Return the pods behind a Service's port, by their names, the ready ones first.

    A pod with addresses of both families is in two slices.
    """
    pods = [
        _pod_port(reference, endpoint.port, ready=ready)
        for ready, endpoint, _, reference in _endpoints(port, slices)
        if reference.get("kind") == "Pod" and "name" in reference
    ]
    pods.sort(key=lambda pod: (not pod.ready, pod.name))
    found: dict[str, PodPort] = {}
    for pod in pods:
        found.setdefault(pod.name, pod)
    return tuple(found.values())


def _find_port(spec: Object, port: Port) -> Object | None:
    """Return the Service's port that matches by its number, its name or its targetPort's name."""
    ports: list[Object] = [
        declared
        for declared in spec.get("ports", ())
        if port.protocol is None or _protocol(declared) is port.protocol
    ]
    for key in ("port",) if isinstance(port.remote, int) else ("name", "targetPort"):
        found = [declared for declared in ports if declared.get(key) == port.remote]
        if found:
            # As kubectl, take TCP where a number has both protocols.
            return min(found, key=lambda declared: _protocol(declared) is not Protocol.TCP)
    return None


def _no_port(service: Object, port: Port) -> str:
    names = [
        f"{declared['port']}"
        + (f" ({declared['name']})" if declared.get("name") else "")
        + (f"/{declared['protocol'].lower()}" if declared.get("protocol", "TCP") != "TCP" else "")
        for declared in service["spec"].get("ports", ())
    ]
    wanted = f"{port.remote}/{port.protocol}" if port.protocol else str(port.remote)
    has = f"; it has {', '.join(names)}" if names else ""
    return f'service "{service["metadata"]["name"]}" has no port {wanted}{has}'


def _resolve_external_name(spec: Object, port: Port) -> Resolution:
    found = _find_port(spec, port)
    protocol = port.protocol or (_protocol(found) if found else None) or Protocol.TCP
    if isinstance(port.remote, int):
        number = port.remote
    elif found:
        number = found["port"]
    else:
        reason = f"an ExternalName without a port named {port.remote!r}; use its number"
        return Resolution(protocol, reason=reason)
    if not spec.get("externalName"):
        return Resolution(protocol, reason="an ExternalName without a name")
    return Resolution(protocol, Endpoint(spec["externalName"], number), via="externalName")


def _choose_endpoint(
    service: Object, port: Object, slices: Iterable[Object], current: str | None
) -> Endpoint | None:
    """Return a ready endpoint behind a Service's port, the current one if it still is.

    Without a ready one, an endpoint that ends but still serves is taken, as kube-proxy does
    (pkg/proxy/topology.go).
    """
    family = next(iter(service["spec"].get("ipFamilies", ())), None)
    found = min(
        _endpoints(port, slices),
        key=lambda e: (not e[0], e[1].host != current, e[2] != family, e[1].host, e[1].port),
        default=None,
    )
    return found[1] if found else None


def _endpoints(
    port: Object, slices: Iterable[Object]
) -> Iterator[tuple[bool, Endpoint, str | None, Object]]:
    """Yield (ready, endpoint, family, what it refers to) of each endpoint that is ready or still
    serves."""
    for part in slices:
        numbers = [
            declared["port"]
            for declared in part.get("ports", ())
            if declared.get("name", "") == port.get("name", "")
            and _protocol(declared) is _protocol(port)
            and declared.get("port")
        ]
        for endpoint in part.get("endpoints", ()) if numbers else ():
            conditions = endpoint.get("conditions", {})
            ready = conditions.get("ready") is not False
            serving = conditions.get("serving") is not False
            if endpoint.get("addresses") and (ready or serving):
                address = Endpoint(endpoint["addresses"][0], numbers[0])
                yield ready, address, part.get("addressType"), endpoint.get("targetRef", {})
