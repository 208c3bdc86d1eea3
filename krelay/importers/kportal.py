"""kportal's file: contexts, their namespaces, and the forwards of those."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from krelay.config import yaml_reader
from krelay.errors import ConfigError
from krelay.importers.entry import Entry


def read(text: str, path: str) -> list[Entry] | None:
    """An entry for each forward; None where the text is no such file.

    Raises:
        ConfigError: not YAML.
    """
    # Its variables, if it has any, are not ours to fill in.
    root, problems = yaml_reader.read(text.replace("$", "$$"), {})
    if root is None and problems:
        raise ConfigError(path, problems)
    found = root.plain() if root is not None else None
    if not isinstance(found, dict) or not isinstance(found.get("contexts"), list):
        return None
    return list(_entries(found["contexts"]))


def _entries(contexts: list[Any]) -> Iterator[Entry]:
    for context in _maps(contexts):
        for namespace in _maps(context.get("namespaces")):
            for forward in _maps(namespace.get("forwards")):
                yield _entry(forward, _text(context, "name"), _text(namespace, "name"))


def _entry(forward: dict[str, Any], context: str, namespace: str) -> Entry:
    resource = _text(forward, "resource")
    selector = _text(forward, "selector")
    why = ""
    if selector:
        why = f"a pod by its labels ({selector}): name its workload instead"
    elif resource.startswith("pod/"):
        why = "a pod by the beginning of its name: name its workload instead"
    protocol = "/udp" if _text(forward, "protocol").lower() == "udp" else ""
    known = ("resource", "selector", "protocol", "port", "localPort", "alias")
    notes = tuple(f"its {key} was not carried over" for key in forward if key not in known)
    return Entry(
        name=_text(forward, "alias") or resource.rpartition("/")[2],
        target=resource,
        ports=(f"{_text(forward, 'localPort')}:{_text(forward, 'port')}{protocol}",),
        namespace=namespace or None,
        context=context or None,
        notes=notes,
        why=why,
    )


def _maps(value: Any) -> list[dict[str, Any]]:
    items = value if isinstance(value, list) else []
    return [item for item in items if isinstance(item, dict)]


def _text(item: dict[str, Any], key: str) -> str:
    value = item.get(key)
    return " ".join(str(value).split()) if isinstance(value, str | int) else ""
