"""Endpoints: what a target's port means on a pod or on a Service. Pure.

A Service's port leads to its clusterIP, to one of its endpoints (headless), or to its
externalName. Objects are as `krelay.cluster.objects` reads them.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any

from krelay.model import Endpoint, PodPort, Port, Protocol, Resolution

Object = Mapping[str, Any]

MAX_ENDPOINTS = 100
"""Endpoints of a Service that are kept; more than that need no balancing."""


def is_ready(pod: Object) -> bool:
    """Return whether the pod is ready and does not end."""
    return not is_ending(pod) and any(
        condition.get("type") == "Ready" and condition.get("status") == "True"
        for condition in pod.get("status", {}).get("conditions", ())
    )


def is_running(pod: Object) -> bool:
    """Return whether the pod has an address and a container that runs, also while it is being
    deleted."""
    status = pod.get("status", {})
    containers = status.get("containerStatuses", ())
    up = not containers or any("running" in found.get("state", {}) for found in containers)
    return bool(phase(pod) == "Running" and status.get("podIP") and up)


def is_ending(pod: Object) -> bool:
    """Return whether the pod is being deleted or has ended."""
    return "deletionTimestamp" in pod["metadata"] or has_ended(pod)


def has_ended(pod: Object) -> bool:
    """Return whether all containers of the pod have ended for good."""
    return phase(pod) in ("Succeeded", "Failed")


def phase(pod: Object) -> str:
    """Return the phase of the pod; empty if it has none yet."""
    return str(pod.get("status", {}).get("phase", ""))


def owners(pod: Object) -> set[str]:
    """Return the kinds of the objects that own the pod."""
    return {owner.get("kind", "") for owner in pod["metadata"].get("ownerReferences", ())}


def choose_pod(pods: Iterable[Object], current: str | None) -> Object | None:
    """Return the ready pod for new connections, or None.

    The `current` pod (its uid) stays while it is ready, since applications keep state in a pod;
    else the newest ready pod is chosen.
    """
    return _choose([pod for pod in pods if is_ready(pod) and pod["status"].get("podIP")], current)


def choose_running(pods: Iterable[Object], current: str | None) -> Object | None:
    """Return a pod that runs, ready or not, or None; rather one that is not being deleted."""
    running = [pod for pod in pods if is_running(pod)]
    return _choose([pod for pod in running if not is_ending(pod)] or running, current)


def _choose(pods: Iterable[Object], current: str | None) -> Object | None:
    def rank(pod: Object) -> tuple[bool, str, str]:
        metadata = pod["metadata"]
        # The name decides between pods of the same second.
        created = metadata.get("creationTimestamp", "")
        return metadata.get("uid") == current, created, metadata["name"]

    return max(pods, key=rank, default=None)


def why_not_ready(pods: Iterable[Object]) -> tuple[str, str]:
    """Return why none of `pods` is ready, and the phase of the pod that says so.

    Both are empty if there is no pod.
    """
    ranked = sorted(pods, key=lambda pod: (has_ended(pod), is_ending(pod)))
    if not ranked:
        return "", ""
    pod = ranked[0]
    name, now = pod["metadata"]["name"], phase(pod)
    if not has_ended(pod) and is_ending(pod):
        return f"pod {name} is being deleted", now
    if now in ("Running", ""):
        text = f"pod {name} is not ready"
    else:
        text = f"pod {name} is not running: {now}"
    why = "" if has_ended(pod) else _why_waiting(pod.get("status", {}))
    return f"{text}: {why}" if why else text, now


def _why_waiting(status: Object) -> str:
    for group in ("initContainerStatuses", "containerStatuses"):
        for container in status.get(group, ()):
            reason = container.get("state", {}).get("waiting", {}).get("reason", "")
            # This one waits for another container, whose reason counts.
            if reason not in ("", "PodInitializing"):
                return str(reason)
    for condition in status.get("conditions", ()):
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            return str(condition.get("message") or condition.get("reason") or "")
    return ""


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
    via, ready, ending = f"pod {name}", is_ready(pod), is_ending(pod)
    if not ready:
        via += ", which is being deleted" if ending else ", which is not ready"
    first = pod["status"]["podIP"]
    # A program may listen on the addresses of one family only.
    others = [found.get("ip", first) for found in pod["status"].get("podIPs", ())]
    return Resolution(
        protocol,
        Endpoint(first, number),
        endpoints=tuple(Endpoint(other, number) for other in others if other != first),
        via=via,
        unready=not ready,
        ending=ending,
        pods=(_pod_port(pod["metadata"], number, ready=ready),),
    )


def pods_behind(
    pods: Iterable[Object], port: Port, current: str | None = None
) -> tuple[PodPort, ...]:
    """Return `port` on each pod that runs and has it: the `current` pod (its uid) first, then the
    other ready ones, the newest first."""
    running = [pod for pod in pods if not is_ending(pod) and phase(pod) == "Running"]
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
    """Return the declarations of `port` by the pod's containers.

    Several containers may use a name: as for kubectl the first one counts, here that of TCP.
    """
    key = "name" if isinstance(port.remote, str) else "containerPort"
    found = [
        declaration
        for declaration in _container_ports(pod)
        if declaration.get(key) == port.remote
        and (port.protocol is None or _protocol(declaration) is port.protocol)
    ]
    return sorted(found, key=lambda declaration: _protocol(declaration) is not Protocol.TCP)


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
    *,
    affinity: bool = False,
) -> Resolution:
    """Return what `port` means on this Service.

    `slices` are its EndpointSlices, None if krelay may not read them. `selected` are the pods that
    it selects, None if they are not known: they stand in for the slices, and say what else there is
    without a ready endpoint. `current` is the address that was chosen last. With `affinity` each
    client stays on one endpoint.
    """
    spec = service["spec"]
    if spec.get("type") == "ExternalName":
        return _resolve_external_name(spec, port)
    found, by_target_port = _find_port(spec, port)
    if found is None:
        reason = _no_port(service, port)
        return Resolution(port.protocol or Protocol.TCP, reason=reason, missing=True)
    protocol = _protocol(found)
    if protocol is None:
        reason = f"port {port.remote} is {found['protocol']}, which is not relayed"
        return Resolution(Protocol.TCP, reason=reason)
    note = f", whose port {found['port']} has targetPort {port.remote}" if by_target_port else ""
    cluster_ip = None if is_headless(service) else Endpoint(spec["clusterIP"], found["port"])
    if slices is not None:
        endpoints = _ready_endpoints(service, found, slices)
        pods = _pods_of_slices(found, slices)
    elif selected is not None:
        pods = pods_behind(selected, _target_port(found))
        endpoints = _addresses(pods, selected)
    elif cluster_ip is not None:
        return Resolution(protocol, cluster_ip, via=f"clusterIP{note}", balanced=True)
    else:
        return Resolution(protocol, reason="its EndpointSlices may not be read")
    if not endpoints:
        return _without_endpoint(service, found, pods, selected or ())
    serves = slices is None or any(one[4] for one in _endpoints(found, slices))
    endpoint = next((one for one in endpoints if one.host == current), endpoints[0])
    affinity = affinity or spec.get("sessionAffinity") == "ClientIP"
    several: dict[str, Any] = {
        **{"endpoints": endpoints, "affinity": affinity},
        **{"pods": pods, "balanced": not affinity, "unready": not serves},
    }
    if affinity:
        # By clusterIP all clients would be one, the agent, and two agents would be two.
        return Resolution(protocol, endpoint, via=f"endpoint by client{note}", **several)
    if cluster_ip is None:
        several |= {"endpoints": (), "balanced": True}
        return Resolution(protocol, endpoint, via=f"endpoint{note}", **several)
    if spec.get("internalTrafficPolicy") == "Local":
        # By clusterIP only endpoints on the agent's node could be reached.
        via = f"endpoint, as internalTrafficPolicy is Local{note}"
        return Resolution(protocol, endpoint, via=via, **several)
    return Resolution(protocol, cluster_ip, via=f"clusterIP{note}", **several)


def _without_endpoint(
    service: Object,
    declared: Object,
    pods: tuple[PodPort, ...],
    selected: Collection[Object],
) -> Resolution:
    """Return the resolution of a Service's port that has no ready endpoint."""
    port = _target_port(declared)
    why, of_pod = why_not_ready(selected)
    reason = f'service "{service["metadata"]["name"]}" has no ready endpoint'
    running = choose_running(selected, None)
    fallback = resolve_pod(running, port) if running is not None else None
    return Resolution(
        port.protocol or Protocol.TCP,
        reason=f"{reason}: {why}" if why else reason,
        phase=of_pod,
        ended=bool(selected) and all(has_ended(pod) and not owners(pod) for pod in selected),
        fallback=fallback if fallback and fallback.endpoint else None,
        pods=pods,
    )


def _target_port(declared: Object) -> Port:
    """Return a Service's port as one of its pods."""
    return Port(declared.get("targetPort") or declared["port"], protocol=_protocol(declared))


def _addresses(found: tuple[PodPort, ...], pods: Iterable[Object]) -> tuple[Endpoint, ...]:
    """Return the endpoints of those pods that are ready."""
    addresses = {pod["metadata"].get("uid", ""): pod["status"].get("podIP") for pod in pods}
    return tuple(
        Endpoint(address, port.port)
        for port in found
        if port.ready and (address := addresses.get(port.uid))
    )


def _pods_of_slices(port: Object, slices: Iterable[Object]) -> tuple[PodPort, ...]:
    """Return the pods behind a Service's port, by their names, the ready ones first.

    A pod with addresses of both families is in two slices.
    """
    pods = [
        _pod_port(reference, endpoint.port, ready=ready)
        for ready, endpoint, _, reference, _ in _endpoints(port, slices)
        if reference.get("kind") == "Pod" and "name" in reference
    ]
    pods.sort(key=lambda pod: (not pod.ready, pod.name))
    found: dict[str, PodPort] = {}
    for pod in pods:
        found.setdefault(pod.name, pod)
    return tuple(found.values())


def _find_port(spec: Object, port: Port) -> tuple[Object | None, bool]:
    """Return the Service's port that matches by its number or name, or else by its targetPort; and
    whether it was the latter."""
    ports: list[Object] = [
        declared
        for declared in spec.get("ports", ())
        if port.protocol is None or _protocol(declared) is port.protocol
    ]
    for key in ("port" if isinstance(port.remote, int) else "name", "targetPort"):
        found = [declared for declared in ports if declared.get(key) == port.remote]
        if found:
            # As kubectl, take TCP where a number has both protocols.
            tcp_first = min(found, key=lambda declared: _protocol(declared) is not Protocol.TCP)
            return tcp_first, key == "targetPort"
    return None, False


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
    found, _ = _find_port(spec, port)
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


def _ready_endpoints(
    service: Object, port: Object, slices: Iterable[Object]
) -> tuple[Endpoint, ...]:
    """Return the ready endpoints behind a Service's port, of its first family if it has any.

    Without a ready one, those that end but still serve are returned, as kube-proxy does
    (pkg/proxy/topology.go).
    """
    family = next(iter(service["spec"].get("ipFamilies", ())), None)
    found = list(_endpoints(port, slices))
    found = [one for one in found if one[0]] or found
    # A Service may publish pods that are not ready, too.
    found = [one for one in found if one[4]] or found
    found = [one for one in found if one[2] == family] or found
    return tuple(sorted({one[1] for one in found}, key=lambda e: (e.host, e.port))[:MAX_ENDPOINTS])


def _endpoints(
    port: Object, slices: Iterable[Object]
) -> Iterator[tuple[bool, Endpoint, str | None, Object, bool]]:
    """Yield (ready, endpoint, family, what it refers to, serves) of each endpoint that is ready or
    still serves. What serves is ready for the kubelet."""
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
                reference = endpoint.get("targetRef", {})
                yield ready, address, part.get("addressType"), reference, serving
