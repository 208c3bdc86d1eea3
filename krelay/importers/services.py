"""Write the Services and workloads of a namespace as targets, from plain Kubernetes objects."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from krelay.config.schema import FILE
from krelay.importers.entry import Converted, Entry, scope, write

Object = Mapping[str, Any]

_HIGH = 10_000
_KNOWN = {80: 8080, 443: 8443}
_SCHEMA = f"""\
# yaml-language-server: $schema={FILE}
#
"""
_STARTER = """\
# Run `krelay check` to validate this file, and `krelay up` to relay its targets. krelay applies an
# edit when you save it. docs/config.md describes every key, krelay.yaml.example shows them all.
apiVersion: krelay/v1
{scope}targets:
  # A name of your choice: TYPE/NAME, then [LOCAL:]REMOTE[/PROTOCOL]...
  # web: svc/my-service 8080:80
  # db: sts/postgres 5432
  # dns: -n kube-system svc/kube-dns 5353:53/udp
  # cache: host/redis.example.com 6379
"""


def kubefwd(services: Mapping[str, Iterable[Object]], *, context: str | None = None) -> Converted:
    """Write every Service with unchanged ports on its own loopback address, as kubefwd does."""

    def entries() -> Iterator[Entry]:
        number = 0
        for namespace, items in services.items():
            for item in _sorted(items):
                number += 1
                ports = [(port["port"], port) for port in _ports(item)]
                listen = f"127.1.{27 + number // 250}.{number % 250 + 1}"
                yield _entry(item, ports, namespace=namespace, listen=listen)

    names = ", ".join(services)
    origin = f"the Services of {names}, as kubefwd has them"
    return write(origin, entries(), head=scope(context))


def starter(
    namespace: str | None,
    services: Sequence[Object] = (),
    workloads: Sequence[Object] = (),
    *,
    context: str | None = None,
) -> Converted:
    """Write a first file: with comments only, or with the Services and workloads of a namespace.

    Its first line names the schema, which `krelay init` writes beside it, for editors.
    """
    if namespace is None:
        given = scope(context) or "# context: staging\n"
        return Converted(_SCHEMA + _STARTER.format(scope=f"{given}# namespace: shop\n"))
    taken: set[tuple[int, str]] = set()

    def entries() -> Iterator[Entry]:
        for item in _sorted(services):
            yield _entry(item, [(_local(port, taken), port) for port in _ports(item)])
        for item in _sorted(workloads):
            if not any(_selects(service, item) for service in services):
                yield from _workload(item)

    found = write(f"the namespace {namespace}", entries(), head=scope(context, namespace))
    return replace(found, text=_SCHEMA + found.text)


def _sorted(items: Iterable[Object]) -> list[Object]:
    return sorted(items, key=lambda item: str(item["metadata"]["name"]))


def _ports(service: Object) -> list[Any]:
    """Return the ports that krelay can relay, which are TCP and UDP."""
    ports = service["spec"].get("ports") or ()
    return [port for port in ports if _protocol(port) in ("tcp", "udp")]


def _protocol(port: Mapping[str, Any]) -> str:
    return str(port.get("protocol", "TCP")).lower()


def _entry(service: Object, ports: list[tuple[int, Any]], **more: Any) -> Entry:
    name = str(service["metadata"]["name"])
    why = "" if ports else "it has no ports"
    return Entry(name, f"svc/{name}", tuple(_texts(ports)), why=why, **more)


def _texts(ports: Sequence[tuple[int, Any]]) -> Iterator[str]:
    for local, port in ports:
        # The protocol is written if it is UDP, or if the Service has the number twice.
        alike = sum(other["port"] == port["port"] for _, other in ports) > 1
        protocol = _protocol(port)
        yield f"{local}:{port['port']}" + (f"/{protocol}" if alike or protocol == "udp" else "")


def local_ports(ports: Iterable[Mapping[str, Any]], taken: set[tuple[int, str]]) -> list[str]:
    """Return the ports of an object as words of a target; `taken` has local ports and protocols."""
    relayed = [port for port in ports if _protocol(port) in ("tcp", "udp")]
    return list(_texts([(_local(port, taken), port) for port in relayed]))


def _local(port: Mapping[str, Any], taken: set[tuple[int, str]]) -> int:
    """Return a local port that needs no privileges, and that no other target has."""
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
