"""What a namespace has: every Service as a target, as plain Kubernetes objects say it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from krelay.importers.entry import Converted, Entry, write

Object = Mapping[str, Any]

_HIGH = 10_000
_KNOWN = {80: 8080, 443: 8443}
_STARTER = """\
# yaml-language-server: $schema=https://krelay.dev/schema/v1.json
#
# `krelay check` says whether this is right, `krelay up` relays it; an edit is followed as it is
# saved. docs/config.md has every key, krelay.yaml.example is a tour.
apiVersion: krelay/v1
# context: staging
# namespace: shop
targets:
  # TYPE/NAME, then [LOCAL:]REMOTE[/PROTOCOL]...
  example: svc/my-service 8080:80
  # db: sts/postgres 5432
  # dns: -n kube-system svc/kube-dns 5353:53/udp
  # cache: host/redis.example.com 6379
"""


def kubefwd(services: Mapping[str, Iterable[Object]]) -> Converted:
    """Every Service of these namespaces on a loopback address of its own, its ports as they are,
    as kubefwd has them."""

    def entries() -> Iterator[Entry]:
        number = 0
        for namespace, items in services.items():
            for item in _sorted(items):
                number += 1
                ports = [(port["port"], port) for port in _ports(item)]
                listen = f"127.1.{27 + number // 250}.{number % 250 + 1}"
                yield _entry(item, ports, namespace=namespace, listen=listen)

    names = ", ".join(services)
    return write(f"the Services of {names}, as kubefwd has them", entries())


def starter(
    namespace: str | None, services: Sequence[Object] = (), workloads: Sequence[Object] = ()
) -> str:
    """A file to begin with: an example, or what the namespace has."""
    if namespace is None:
        return _STARTER
    taken: set[tuple[int, str]] = set()

    def entries() -> Iterator[Entry]:
        for item in _sorted(services):
            yield _entry(item, [(_local(port, taken), port) for port in _ports(item)])
        for item in _sorted(workloads):
            if not any(_selects(service, item) for service in services):
                yield from _workload(item)

    return write(f"what {namespace} has", entries(), head=f"namespace: {namespace}\n").text


def _sorted(items: Iterable[Object]) -> list[Object]:
    return sorted(items, key=lambda item: str(item["metadata"]["name"]))


def _ports(service: Object) -> list[Any]:
    """Those that can be relayed."""
    ports = service["spec"].get("ports") or ()
    return [port for port in ports if _protocol(port) in ("tcp", "udp")]


def _protocol(port: Mapping[str, Any]) -> str:
    return str(port.get("protocol", "TCP")).lower()


def _entry(service: Object, ports: list[tuple[int, Any]], **more: Any) -> Entry:
    name = str(service["metadata"]["name"])
    texts = []
    for local, port in ports:
        # One number for both protocols says which it means; so does what is not TCP.
        alike = sum(other["port"] == port["port"] for _, other in ports) > 1
        protocol = _protocol(port)
        texts.append(
            f"{local}:{port['port']}" + (f"/{protocol}" if alike or protocol == "udp" else "")
        )
    why = "" if ports else "it has no ports"
    return Entry(name, f"svc/{name}", tuple(texts), why=why, **more)


def _local(port: Mapping[str, Any], taken: set[tuple[int, str]]) -> int:
    """A local port that needs no rights, and that no other target has."""
    number, protocol = int(port["port"]), _protocol(port)
    wanted = _KNOWN.get(number, number if number >= 1024 else number + _HIGH)
    while (wanted, protocol) in taken:
        wanted = wanted + 1 if wanted < 65535 else _HIGH
    taken.add((wanted, protocol))
    return wanted


def _selects(service: Object, workload: Object) -> bool:
    selector = service["spec"].get("selector") or {}
    template = workload["spec"].get("template") or {}
    labels = (template.get("metadata") or {}).get("labels") or {}
    return bool(selector) and all(labels.get(key) == value for key, value in selector.items())


def _workload(item: Object) -> Iterator[Entry]:
    kind = {"StatefulSet": "sts", "DaemonSet": "ds"}.get(str(item.get("kind")), "deploy")
    name = str(item["metadata"]["name"])
    template = item["spec"].get("template") or {}
    containers = (template.get("spec") or {}).get("containers") or ()
    ports = [port for container in containers for port in container.get("ports") or ()]
    texts = [f":{port['containerPort']}" for port in ports] or [":PORT"]
    yield Entry(name, f"{kind}/{name}", tuple(texts), why="no Service leads to it")
