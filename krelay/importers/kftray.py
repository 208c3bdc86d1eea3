"""kftray's export: a JSON list of forwards."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from krelay.errors import ConfigError, Problem
from krelay.importers.entry import Entry

_UNSUPPORTED = {
    "http_logs_enabled": "its HTTP log was not carried over",
    "domain_enabled": "its local domain was not carried over",
    "auto_loopback_address": "its own loopback address was not carried over; `listen` sets one",
    "kubeconfig": "its kubeconfig was not carried over; KUBECONFIG may list several",
}


def read(text: str, path: str) -> Iterator[Entry]:
    """An entry for each forward.

    Raises:
        ConfigError: not JSON, or no list of objects.
    """
    try:
        found = json.loads(text)
    except ValueError as exc:
        line, column = getattr(exc, "lineno", 0), getattr(exc, "colno", 0)
        raise ConfigError(path, [Problem(line, column, f"not JSON: {exc}")]) from exc
    except RecursionError as exc:
        raise ConfigError(path, [Problem(0, 0, "nested too deep")]) from exc
    found = [found] if isinstance(found, dict) else found
    if not isinstance(found, list) or not found or not all(map(_is_forward, found)):
        raise ConfigError(path, [Problem(1, 1, "no list of forwards")])
    return map(_entry, found)


def _is_forward(item: object) -> bool:
    """Not any object: what is made of one that is none would be nonsense."""
    return isinstance(item, dict) and bool({"remote_port", "workload_type"} & item.keys())


def _entry(item: Mapping[str, Any]) -> Entry:
    kind, name = _text(item, "workload_type") or "service", _text(item, "service")
    why = ""
    if kind == "proxy":
        address = _text(item, "remote_address") or name
        target = f"ip/{address}" if _is_address(address) else f"host/{address}"
    elif kind == "pod":
        target = f"pod/{name or 'unknown'}"
        why = f"a pod by its labels ({_text(item, 'target')}): name its workload instead"
    else:
        target = f"svc/{name}"
        if kind != "service":
            why = f"kftray's type {kind} is not known here"
    protocol = "/udp" if _text(item, "protocol").lower() == "udp" else ""
    remote = item.get("remote_port", "")
    local = item.get("local_port") or ""
    notes = [text for key, text in _UNSUPPORTED.items() if _said(item.get(key))]
    if kind == "service":
        notes.append(f"{remote} was its pods' port; here it is the Service's")
    return Entry(
        name=_text(item, "alias") or name or kind,
        target=target,
        ports=(f"{local}:{remote}{protocol}",),
        namespace=_text(item, "namespace") or None if kind in ("service", "pod") else None,
        context=_text(item, "context") or None,
        listen=_text(item, "local_address") or None,
        notes=tuple(notes),
        why=why,
    )


def _text(item: Mapping[str, Any], key: str) -> str:
    value = item.get(key)
    return " ".join(str(value).split()) if isinstance(value, str | int) else ""


def _said(value: object) -> bool:
    return bool(value) and value != "default"


def _is_address(text: str) -> bool:
    return text.replace(".", "").isdigit() or ":" in text
