"""Convert the files of other tools: targets.txt, kftray's export and kportal's .kportal.yaml."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice
from typing import Any

from krelay.config import files, yaml_reader
from krelay.config.grammar import parse_line, split
from krelay.config.parsed_file import MAX_FORWARDS
from krelay.config.validation import MAX_PROBLEMS
from krelay.errors import ConfigError, Problem
from krelay.importers.entry import Converted, Entry, scope, write
from krelay.importers.pod_ports import Place, Services, translate

_KFTRAY_UNSUPPORTED = {
    "http_logs_enabled": "its HTTP log was not carried over",
    "domain_enabled": "its local domain was not carried over",
    "auto_loopback_address": "its own loopback address was not carried over; `listen` sets one",
    "kubeconfig": "its kubeconfig was not carried over; KUBECONFIG may list several",
}
_KPORTAL_KEYS = ("resource", "selector", "protocol", "port", "localPort", "alias")


@dataclass(frozen=True, slots=True)
class Foreign:
    """What another tool's file says; `origin` names it."""

    origin: str
    entries: tuple[Entry, ...]

    def convert(
        self, found: Mapping[Place, Services] | None = None, *, context: str | None = None
    ) -> Converted:
        """Return it as a krelay.yaml. `found` has the Services of `places`, and `context` is that
        of entries without one.

        Raises:
            ConfigError: there are more entries than a file may have.
        """
        entries = translate(self.entries, found or {})
        return write(self.origin, entries, head=scope(context))


def read(data: bytes, path: str) -> Foreign:
    """Read a file, whose format is recognized by its content.

    Raises:
        ConfigError: the format is unknown, or the file is invalid; carries all problems.
    """
    text = files.decode(data, path)
    if text.lstrip().startswith(("[", "{")):
        return _foreign(f"kftray's {path}", _kftray(text, path))
    if files.is_targets_txt(text, path):
        return _foreign(path, _targets_txt(text, path))
    entries = _kportal(text, path)
    if entries is None:
        hint = "a targets.txt, a kftray export or a .kportal.yaml"
        raise ConfigError(path, [Problem(0, 0, "the format is unknown", hint)])
    return _foreign(f"kportal's {path}", entries)


def _foreign(origin: str, entries: Iterable[Entry]) -> Foreign:
    # `write` refuses one more than a file may have.
    return Foreign(origin, tuple(islice(entries, MAX_FORWARDS + 1)))


def _targets_txt(text: str, path: str) -> list[Entry]:
    """Return an entry for each line, with the comments above it."""
    problems: list[Problem] = []
    entries: list[Entry] = []
    comments: list[str] = []
    for number, content in enumerate(text.split("\n"), start=1):
        stripped = content.strip()
        if stripped.startswith(("#", "//")):
            comments.append(stripped.lstrip("#/").strip())
        if len(problems) > MAX_PROBLEMS:
            break
        words = split(content)
        if not words:
            if not stripped:
                comments.clear()
            continue
        line, errors = parse_line(words)
        problems += [error.at(number, 1) for error in errors]
        if line is None:
            continue
        entries.append(
            Entry(
                name=line.resource,
                target=f"{line.kind}/{line.resource}",
                ports=tuple(map(str, line.ports)),
                namespace=line.namespace,
                listen=line.listen,
                comments=tuple(filter(None, comments)),
            )
        )
        comments.clear()
    if problems:
        raise ConfigError(path, problems)
    return entries


def _kftray(text: str, path: str) -> Iterator[Entry]:
    """Return an entry for each forward in a JSON list."""
    try:
        found = json.loads(text)
    except ValueError as exc:
        line, column = getattr(exc, "lineno", 0), getattr(exc, "colno", 0)
        raise ConfigError(path, [Problem(line, column, f"not JSON: {exc}")]) from exc
    except RecursionError as exc:
        raise ConfigError(path, [Problem(0, 0, "nested too deeply")]) from exc
    found = [found] if isinstance(found, dict) else found
    if not isinstance(found, list) or not found or not all(map(_is_kftray_forward, found)):
        raise ConfigError(path, [Problem(1, 1, "no list of forwards")])
    return map(_kftray_entry, found)


def _is_kftray_forward(item: object) -> bool:
    return isinstance(item, dict) and bool({"remote_port", "workload_type"} & item.keys())


def _kftray_entry(item: Mapping[str, Any]) -> Entry:
    kind, name = _text(item, "workload_type") or "service", _text(item, "service")
    why = ""
    if kind == "proxy":
        address = _text(item, "remote_address") or name
        is_address = address.replace(".", "").isdigit() or ":" in address
        target = f"ip/{address}" if is_address else f"host/{address}"
    elif kind == "pod":
        target = f"pod/{name or 'unknown'}"
        why = f"it selects a pod by labels ({_text(item, 'target')}): name its workload instead"
    else:
        target = f"svc/{name}"
        if kind != "service":
            why = f"krelay has no equivalent of kftray's type {kind}"
    remote = item.get("remote_port", "")
    local = item.get("local_port") or ""
    notes = [
        text
        for key, text in _KFTRAY_UNSUPPORTED.items()
        if item.get(key) and item[key] != "default"
    ]
    return Entry(
        name=_text(item, "alias") or name or kind,
        target=target,
        ports=(f"{local}:{remote}{_protocol(item)}",),
        namespace=_text(item, "namespace") or None if kind in ("service", "pod") else None,
        context=_text(item, "context") or None,
        listen=_text(item, "local_address") or None,
        notes=tuple(notes),
        why=why,
        by_pod_port=kind == "service",
    )


def _kportal(text: str, path: str) -> list[Entry] | None:
    """Return an entry for each forward of each namespace of each context, or None if the text is
    not such a file."""
    # Its dollars are not krelay's variables.
    root, problems = yaml_reader.read(text.replace("$", "$$"), {})
    if root is None and problems:
        raise ConfigError(path, problems)
    found = root.plain() if root is not None else None
    if not isinstance(found, dict) or not isinstance(found.get("contexts"), list):
        return None
    return [
        _kportal_entry(forward, _text(context, "name"), _text(namespace, "name"))
        for context in _maps(found["contexts"])
        for namespace in _maps(context.get("namespaces"))
        for forward in _maps(namespace.get("forwards"))
    ]


def _kportal_entry(forward: dict[str, Any], context: str, namespace: str) -> Entry:
    resource = _text(forward, "resource")
    selector = _text(forward, "selector")
    why = ""
    if selector:
        why = f"it selects a pod by labels ({selector}): name its workload instead"
    elif resource.startswith("pod/"):
        why = "it selects a pod by the prefix of its name: name its workload instead"
    return Entry(
        name=_text(forward, "alias") or resource.rpartition("/")[2],
        target=resource,
        ports=(f"{_text(forward, 'localPort')}:{_text(forward, 'port')}{_protocol(forward)}",),
        namespace=namespace or None,
        context=context or None,
        notes=tuple(
            f"its {key} was not carried over" for key in forward if key not in _KPORTAL_KEYS
        ),
        why=why,
        by_pod_port=resource.partition("/")[0] in ("service", "services", "svc"),
    )


def _maps(value: Any) -> list[dict[str, Any]]:
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


def _text(item: Mapping[str, Any], key: str) -> str:
    value = item.get(key)
    return " ".join(str(value).split()) if isinstance(value, str | int) else ""


def _protocol(item: Mapping[str, Any]) -> str:
    return "/udp" if _text(item, "protocol").lower() == "udp" else ""
