"""Pod ports: find the port of a Service that leads to a port of its pods.

kftray and kportal forward to a pod behind a Service, by the port of the pod. A target of krelay is
the Service, by its own port. Which one leads there, only the cluster knows.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from krelay.importers.entry import Entry

Object = Mapping[str, Any]
Place = tuple[str | None, str | None]
"""A context and a namespace; None stands for the current ones."""


@dataclass(frozen=True, slots=True)
class Services:
    """The Services of a namespace and their EndpointSlices; or why they are unknown."""

    services: Sequence[Object] = ()
    slices: Sequence[Object] = ()
    unknown: str = field(default="")


def places(entries: Iterable[Entry]) -> list[Place]:
    """Return where Services have to be looked up."""
    found = ((entry.context, entry.namespace) for entry in entries if _concerns(entry))
    return list(dict.fromkeys(found))


def translate(entries: Iterable[Entry], found: Mapping[Place, Services]) -> Iterator[Entry]:
    """Yield the entries with ports of Services; `found` has an answer for some places.

    Where it has none, a note says that a port was one of pods.
    """
    for entry in entries:
        if _concerns(entry):
            yield _translated(entry, found.get((entry.context, entry.namespace), Services()))
        else:
            yield entry


def _concerns(entry: Entry) -> bool:
    return entry.by_pod_port and not entry.why


def _translated(entry: Entry, place: Services) -> Entry:
    (text,) = entry.ports
    local, _, rest = text.rpartition(":")
    remote, slash, protocol = rest.partition("/")
    if not remote.isdecimal():
        return entry  # it is invalid, which is reported when it is written
    name = entry.target.partition("/")[2]
    service = next((one for one in place.services if one["metadata"]["name"] == name), None)
    if place.unknown or service is None:
        note = f"{remote} was the port of its pods; here it is the port of the Service"
        why = place.unknown or ("the cluster has no such Service" if place.services else "")
        return replace(entry, notes=(*entry.notes, f"{note} ({why})" if why else note))
    wanted = protocol.upper() or "TCP"
    ports = _leading(service, int(remote), wanted, _numbers(name, place.slices))
    if not ports:
        why = f"no port of the Service leads to port {remote} of its pods: name its workload"
        return replace(entry, why=why)
    port = int(remote) if int(remote) in ports else ports[0]
    return replace(entry, ports=(f"{local}:{port}{slash}{protocol}",))


def _leading(
    service: Object, remote: int, protocol: str, numbers: Collection[tuple[str, int]]
) -> list[int]:
    """Return the Service's ports that lead to a port of its pods. `numbers` has the name of each
    port of the Service with a number that it has in a pod."""
    return [
        port["port"]
        for port in service["spec"].get("ports") or ()
        if port.get("protocol", "TCP") == protocol
        and (
            (port.get("targetPort") or port["port"]) == remote
            or (port.get("name", ""), remote) in numbers
        )
    ]


def _numbers(service: str, slices: Iterable[Object]) -> set[tuple[str, int]]:
    return {
        (port.get("name") or "", port["port"])
        for found in slices
        if (found["metadata"].get("labels") or {}).get("kubernetes.io/service-name") == service
        for port in found.get("ports") or ()
        if port.get("port")
    }
