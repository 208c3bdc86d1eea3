"""A target on one line: `[-n NAMESPACE] [-l ADDRESS] TYPE/NAME PORT...`, in any order.

The form of targets.txt, of a string in `targets:`, and of the command line. Pure.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from krelay.config.flaw import Flaw, quote
from krelay.config.target import check_port, parse_listen, parse_port, parse_resource
from krelay.model import Kind, Port

_NAMESPACE = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")
_WORD = re.compile(r"\S+")
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
    options: dict[str, Any] = {}
    plain: list[Word] = []
    rest = iter(words)
    for word in rest:
        if not word.text.startswith("-"):
            plain.append(word)
            continue
        try:
            name, value = _option(word, lambda: next(rest, None))
            if name in options:
                raise Flaw(f"{quote(word.text)} sets `{name}` again", hint="write it once")
            options[name] = value
        except Flaw as flaw:
            flaws.append(flaw.moved(word.offset))
    if not plain:
        end = words[-1].offset + len(words[-1].text) if words else 0
        return None, [*flaws, Flaw("no target", hint=_EXAMPLE, offset=end)]

    found, ports = _plain(plain, flaws)
    if flaws or found is None:
        return None, flaws
    return Line(*found, tuple(ports), **options, offsets=tuple(w.offset for w in plain[1:])), []


def _plain(words: list[Word], flaws: list[Flaw]) -> tuple[tuple[Kind, str] | None, list[Port]]:
    first = words[0]
    found: tuple[Kind, str] | None = None
    try:
        found = parse_resource(first.text)
    except Flaw as flaw:
        flaws.append(flaw.moved(first.offset))
    if not words[1:]:
        end = first.offset + len(first.text)
        flaws.append(Flaw(f"{quote(first.text)} has no port", hint=_EXAMPLE, offset=end))
    ports: list[Port] = []
    for word in words[1:]:
        try:
            port = parse_port(word.text)
            if found is not None:
                check_port(found[0], port)
            ports.append(port)
        except Flaw as flaw:
            flaws.append(flaw.moved(word.offset))
    return found, ports


def _option(word: Word, following: Callable[[], Word | None]) -> tuple[str, str]:
    """The field that an option sets and its value; flaws count from the option's own start."""
    name, equals, text = word.text.partition("=")
    if name not in _OPTIONS and word.text[:2] in ("-n", "-l"):
        name, equals, text = word.text[:2], "", word.text[2:]
    if name not in _OPTIONS:
        raise Flaw(
            f"unknown option {quote(word.text)}", hint="`-n NAMESPACE` and `-l ADDRESS` are known"
        )
    field, parse = _OPTIONS[name]
    offset = len(name) + len(equals)
    if not equals and not text:
        value = following()
        if value is None:
            raise Flaw(f"`{name}` has no value", hint=f"write `{name} {field.upper()}`")
        text, offset = value.text, value.offset - word.offset
    try:
        return field, parse(text)
    except Flaw as flaw:
        raise flaw.moved(offset) from None
