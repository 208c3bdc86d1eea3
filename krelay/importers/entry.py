"""Write targets as the text of a krelay.yaml, and comment out those that it cannot express."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace

from krelay.config import parse
from krelay.config.parsed_file import MAX_FORWARDS
from krelay.errors import ConfigError, Problem
from krelay.model import LOOPBACK

_PLAIN = re.compile(r"[A-Za-z][A-Za-z0-9 ._/:@-]*")
_WORDS = {"true", "false", "null", "yes", "no", "on", "off", "y", "n"}
_NAME = re.compile(r"[^a-z0-9._-]+")
_LONGEST_NAME = 63
_LONGEST_TEXT = 1_000
_HEAD = """\
# Converted from {origin}. Run `krelay check` to validate it.
apiVersion: krelay/v1
"""


@dataclass(frozen=True, slots=True)
class Entry:
    """A target to write. `target` is TYPE/NAME, `ports` are as in a file.

    `comments` and `notes` go above it; notes say what could not be carried over, and are warnings
    too. With a `why`, the whole entry becomes a comment. `by_pod_port` says that the port of a
    Service is a port of its pods.
    """

    name: str
    target: str
    ports: tuple[str, ...]
    namespace: str | None = None
    context: str | None = None
    listen: str | None = None
    comments: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    why: str = ""
    by_pod_port: bool = False


@dataclass(frozen=True, slots=True)
class Converted:
    """The text of a krelay.yaml, how many targets it has, and warnings of what could not be
    carried over."""

    text: str
    warnings: tuple[str, ...] = ()
    targets: int = 0


def write(origin: str, entries: Iterable[Entry], *, head: str = "") -> Converted:
    """Write a file with these entries. Its first line names `origin`; `head` precedes its targets.

    Raises:
        ConfigError: there are more entries than a file may have.
    """
    lines: list[str] = []
    warnings: list[str] = []
    taken: dict[tuple[str, str, str], str] = {}
    names: dict[str, int] = {}
    live = 0
    for number, given in enumerate(entries):
        if number >= MAX_FORWARDS:
            raise ConfigError(origin, [Problem(0, 0, f"more than {MAX_FORWARDS} targets")])
        entry = replace(given, name=_unique(given.name, names))
        entry = _checked(entry, taken)
        warnings += [f"{entry.name}: {text}" for text in (*entry.notes, entry.why) if text]
        lines += map(_comment, (*entry.comments, *entry.notes))
        if entry.why:
            lines += map(_comment, (f"{entry.why}:", _line(entry)))
        else:
            live += 1
            lines.append(f"  {_line(entry)}")
    first = _HEAD.format(origin=" ".join(origin.split()))
    text = "\n".join([f"{first}{head}targets:", *lines, ""])
    return Converted(text, tuple(warnings), live)


def scope(context: str | None, namespace: str | None = None) -> str:
    """Return the lines of a file that set its context and namespace."""
    given = {"context": context, "namespace": namespace}
    return "".join(f"{key}: {_scalar(value)}\n" for key, value in given.items() if value)


def _unique(wanted: str, names: dict[str, int]) -> str:
    """Return a valid name that no target has yet.

    `names` has the last number given to each name, so many equal names take linear time.
    """
    wanted = _NAME.sub("-", wanted[:_LONGEST_TEXT].lower())
    base = wanted.strip("-._")[: _LONGEST_NAME - 4].strip("-._") or "target"
    name = base
    while name in names:
        names[base] += 1
        suffix = f"-{names[base]}"
        name = base[: _LONGEST_NAME - len(suffix)] + suffix
    names[name] = 1
    return name


def _checked(entry: Entry, taken: dict[tuple[str, str, str], str]) -> Entry:
    """Return the entry, with a `why` if it is invalid or its local port is taken."""
    if entry.why:
        return entry
    try:
        config = parse(f"apiVersion: krelay/v1\ntargets:\n  {_line(entry)}\n", "entry", {})
    except ConfigError as exc:
        return replace(entry, why=exc.problems[0].message)
    for port in config.targets[0].ports:
        key = (entry.listen or LOOPBACK, str(port.local), str(port.protocol or "tcp"))
        if port.local and key in taken:
            return replace(entry, why=f"local port {port.local} is taken by {taken[key]}")
        taken[key] = entry.name
    return entry


def _comment(text: str) -> str:
    """Return the text as a comment: on one line, printable."""
    return "  # " + " ".join("".join(c if c.isprintable() else " " for c in text).split())


def _line(entry: Entry) -> str:
    """Return the entry in YAML, as a line of targets.txt if it has no context."""
    name = _scalar(entry.name)
    if not entry.context:
        words = [entry.target, *entry.ports]
        words += ["-n", entry.namespace] if entry.namespace else []
        words += ["-l", entry.listen] if entry.listen else []
        return f"{name}: {_scalar(' '.join(words))}"
    fields = {
        "target": entry.target,
        "ports": list(entry.ports),
        "namespace": entry.namespace,
        "context": entry.context,
        "listen": entry.listen,
    }
    inside = ", ".join(f"{key}: {_quoted(value)}" for key, value in fields.items() if value)
    return f"{name}: {{{inside}}}"


def _scalar(text: str) -> str:
    """Return the text as a YAML scalar, in quotes only if it needs them."""
    plain = _PLAIN.fullmatch(text) and ": " not in text and not text.endswith(":")
    return text if plain and text not in _WORDS else _quoted(text)


def _quoted(value: str | list[str] | None) -> str:
    # A single dollar may start a variable.
    return json.dumps(value).replace("$", "$$")
