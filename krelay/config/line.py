"""A target on one line: `[-n NAMESPACE] [-l ADDRESS] TYPE/NAME PORT...`, in any order.

The form of targets.txt, of a string in `targets:`, and of the command line. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from krelay.config.grammar import MAX_PORT, check_port, parse_listen, parse_port, parse_resource
from krelay.config.parse_error import Flaw, quote
from krelay.model import Kind, Port

MAX_FLAWS = 100  # told of in one line
_NAMESPACE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_WORD = re.compile(r"\S+")
_T = TypeVar("_T")
_EXAMPLE = "for example `svc/nginx 8080:80`"


@dataclass(frozen=True, slots=True)
class Word:
    """A word and the offset at which it starts in its line, from 0."""

    text: str
    offset: int = 0


@dataclass(frozen=True, slots=True)
class Line:
    """What one line says. `offsets` has one entry a port: where its word starts."""

    kind: Kind
    resource: str
    ports: tuple[Port, ...]
    namespace: str | None = None
    listen: str | None = None
    offsets: tuple[int, ...] = ()

    def __str__(self) -> str:
        """The line in its normal form; parsing that gives an equal line."""
        words = [f"{self.kind}/{self.resource}", *map(str, self.ports)]
        if self.namespace is not None:
            words += ["-n", self.namespace]
        if self.listen is not None:
            words += ["-l", self.listen]
        return " ".join(words)


def split(text: str) -> list[Word]:
    """The words of a line, without its comment: from a word on that starts with `#` or `//`."""
    words: list[Word] = []
    for match in _WORD.finditer(text):
        if match[0].startswith(("#", "//")):
            break
        words.append(Word(match[0], match.start()))
    return words


def parse_namespace(text: str) -> str:
    """A namespace's name (RFC 1123 label).

    Raises:
        Flaw: no namespace can have it.
    """
    if not _NAMESPACE.fullmatch(text):
        raise Flaw(
            f"{quote(text)} cannot be a namespace",
            hint="lower-case letters, digits and `-`, at most 63",
        )
    return text


_OPTIONS: dict[str, tuple[str, Callable[[str], str]]] = {
    "-n": ("namespace", parse_namespace),
    "--namespace": ("namespace", parse_namespace),
    "-l": ("listen", parse_listen),
    "--address": ("listen", parse_listen),
}


def parse_line(words: Sequence[Word]) -> tuple[Line | None, list[Flaw]]:
    """The line that the words make, or None and everything that is wrong with them.

    The first word that is no option is the target, the others are its ports. `-n X`, `-n=X`
    and `-nX` are the same, and so are the two forms of the long options.
    """
    flaws: list[Flaw] = []
    fields: dict[str, Any] = {}
    plain: list[Word] = []
    rest = iter(words)
    for word in rest:
        if not word.text.startswith("-"):
            plain.append(word)
            continue
        name, value = _taken_apart(word)
        if name not in _OPTIONS:
            # whether the next word is its value is anyone's guess: what follows is not read
            hint = "`-n NAMESPACE` and `-l ADDRESS` are known"
            flaws.append(Flaw(f"unknown option {quote(name)}", hint=hint, offset=word.offset))
            return None, flaws
        field, parse = _OPTIONS[name]
        value = next(rest, None) if value is None else value
        if value is None:
            hint = f"write `{name} {field.upper()}`"
            flaws.append(Flaw(f"`{name}` has no value", hint=hint, offset=word.offset))
        elif len(flaws) > MAX_FLAWS:
            break
        elif field in fields:
            message = f"`{name}` sets the {field} again"
            flaws.append(Flaw(message, hint="write it once", offset=word.offset))
        else:
            fields[field] = _parsed(value, parse, flaws)
    if not plain:
        end = words[-1].offset + len(words[-1].text) if words else 0
        return None, [*flaws, Flaw("no target", hint=_EXAMPLE, offset=end)]

    found, ports = _target(plain, flaws)
    if found is None or flaws:
        return None, flaws
    return Line(*found, tuple(ports), **fields, offsets=tuple(w.offset for w in plain[1:])), []


def _target(words: list[Word], flaws: list[Flaw]) -> tuple[tuple[Kind, str] | None, list[Port]]:
    found = _parsed(words[0], parse_resource, flaws)
    if not words[1:]:
        end = words[0].offset + len(words[0].text)
        flaws.append(Flaw(f"{quote(words[0].text)} has no port", hint=_EXAMPLE, offset=end))

    def parse(text: str) -> Port:
        port = parse_port(text)
        if found is not None:
            check_port(found[0], port)
        return port

    ports: list[Port] = []
    for word in words[1:]:
        port = _parsed(word, parse, flaws)
        if port is not None:
            ports.append(port)
        if len(ports) > MAX_PORT:
            hint = f"a machine has {MAX_PORT} of them"
            flaws.append(Flaw(f"more than {MAX_PORT} ports", hint=hint, offset=word.offset))
        if len(ports) > MAX_PORT or len(flaws) > MAX_FLAWS:
            break
    return found, ports


def _parsed(word: Word, parse: Callable[[str], _T], flaws: list[Flaw]) -> _T | None:
    try:
        return parse(word.text)
    except Flaw as flaw:
        flaws.append(flaw.moved(word.offset))
        return None


def _taken_apart(word: Word) -> tuple[str, Word | None]:
    """The name of an option, and its value where that is in the same word."""
    name, equals, value = word.text.partition("=")
    if name not in _OPTIONS and name[:2] in ("-n", "-l"):
        name, equals, value = name[:2], "", word.text[2:]
    if not equals and not value:
        return name, None
    return name, Word(value, word.offset + len(name) + len(equals))
