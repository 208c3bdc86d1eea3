"""YAML text -> a tree of nodes that know where they stand, with its scalars expanded and typed.

Built from the parser's events rather than by a YAML loader, because a loader forgets positions,
keeps the last of two equal keys, follows aliases without a bound, and types plain scalars by
YAML 1.1, where `8080:53` is the number 484,853 and `no` is false. Scalars here follow the core
schema of YAML 1.2 (section 10.3.2). Merge keys (`<<`) are read, as everything around
Kubernetes reads them.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from krelay.config.parse_error import Flaw, quote
from krelay.config.schema import is_secret
from krelay.config.syntax import explain
from krelay.config.variables import expand
from krelay.errors import Problem

MAX_DEPTH = 40
MAX_NODES = 50_000
"""Values in a document, counted with every alias followed; also keys that `<<` copies."""
MAX_TEXT = 4 << 20
"""Characters in them, with every alias followed and every variable filled in."""
MAX_FLAWS = 100
"""Problems after which the rest is not read."""

_INT = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")
_BASED = re.compile(r"0o[0-7]{1,20}|0x[0-9a-fA-F]{1,16}")
_OLD_OCTAL = re.compile(r"0[0-9]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]{1,30}|[0-9]{1,30}(\.[0-9]{0,30})?)([eE][-+]?[0-9]{1,3})?")
_SURROGATE = re.compile("[\ud800-\udfff]")
_WORDS = {
    **dict.fromkeys(("", "~", "null", "Null", "NULL")),
    **dict.fromkeys(("true", "True", "TRUE"), True),
    **dict.fromkeys(("false", "False", "FALSE"), False),
}
_ALIASES = "an alias and a variable count for what they stand for"
_PREFIX = "tag:yaml.org,2002:"

Scalar = None | bool | int | float | str


@dataclass(frozen=True, slots=True)
class Node:
    """A value of the file. `line` and `column` count from 1.

    `keys` has the place of every key where the value is a mapping. `inside` is the column at
    which a string's own text starts, or None where the text is not verbatim on one line.
    `size`, `height` and `text` count the nodes, levels and characters in it, with aliases
    followed. `raw` is the text of a plain scalar that has variables, with those filled in.
    `secret`: it belongs to a key whose value is shown nowhere.
    """

    line: int
    column: int
    value: Scalar | list[Node] | dict[str, Node]
    keys: dict[str, tuple[int, int]] = field(default_factory=dict)
    inside: int | None = None
    size: int = 1
    height: int = 1
    text: int = 0
    broken: bool = False
    raw: str | None = None
    secret: bool = False

    def plain(self) -> Any:
        """The value without positions: what `json.loads` would give."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def problem(self, flaw: Flaw) -> Problem:
        """A flaw in the scalar: at the very character where the file has it as it is."""
        if self.secret:
            return Problem(self.line, self.column, "a secret cannot be the value here")
        if self.inside is not None:
            return flaw.at(self.line, self.inside)
        return Problem(self.line, self.column, flaw.message, flaw.hint)


def read(text: str, environ: Mapping[str, str]) -> tuple[Node | None, list[Problem]]:
    """The document in the text, and every problem found on the way.

    The node is None where the text is empty, or so broken that reading had to stop.
    """
    composer = _Composer(text, environ)
    try:
        return composer.document(), composer.problems
    except _Stop:
        return None, composer.problems


class _Stop(Exception):
    """The rest cannot be read; the reason is among the problems."""


class _Composer:
    def __init__(self, text: str, environ: Mapping[str, str]) -> None:
        self.problems: list[Problem] = []
        self._text = text
        self._environ = environ
        self._events = self._parse(text)
        self._anchors: dict[str, Node | None] = {}  # None while the node is still open
        self._depth = 0
        self._hidden = 0  # how many of the keys around are secret
        self._nodes = 0
        self._merged = 0
        self._length = 0

    def document(self) -> Node | None:
        from yaml import events

        root: Node | None = None
        for event in self._events:
            if isinstance(event, events.DocumentStartEvent):
                if root is not None:
                    self._problem(event, "a second document", "a file has one; remove this `---`")
                    raise _Stop
                root = self._node(next(self._events))
        if root is not None and root.value is None:
            return None
        return root

    def _parse(self, text: str) -> Iterator[Any]:
        import yaml

        try:
            yield from yaml.parse(text, Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))
        except yaml.YAMLError as exc:
            self.problems.append(explain(exc, text))
            raise _Stop from exc
        except ValueError as exc:  # PyYAML's own scanner, on an escape that is beyond Unicode
            self.problems.append(Problem(1, 1, "an escape that is no character"))
            raise _Stop from exc

    def _problem(self, event: Any, message: str, hint: str | None = None) -> None:
        self._add(Problem(*_place(event), message, hint))

    def _add(self, problem: Problem) -> None:
        self.problems.append(problem)
        if len(self.problems) > MAX_FLAWS:
            raise _Stop

    def _node(self, event: Any) -> Node:
        from yaml import events

        if isinstance(event, events.AliasEvent):
            return self._alias(event)
        if event.anchor is not None:
            self._anchors[event.anchor] = None
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self._problem(event, f"nested more than {MAX_DEPTH} levels deep")
            raise _Stop
        self._nodes += 1
        if self._nodes > MAX_NODES:
            self._too_much(event)
        if isinstance(event, events.ScalarEvent):
            node = self._scalar(event)
        elif isinstance(event, events.SequenceStartEvent):
            node = self._sequence(event)
        else:
            node = self._mapping(event)
        self._depth -= 1
        if event.anchor is not None:
            self._anchors[event.anchor] = node
        return node

    def _alias(self, event: Any) -> Node:
        name = self._shown(f"*{event.anchor}", "an alias")
        if event.anchor not in self._anchors:
            hint = f"write {quote(f'&{event.anchor}')} there"
            if self._hidden:
                hint = "put a value that starts with `*` in quotes"
            self._problem(event, f"{name} has no anchor before it", hint)
            return Node(*_place(event), None, broken=True)
        node = self._anchors[event.anchor]
        if node is None:
            self._problem(event, f"{name} is inside of what it stands for")
            raise _Stop
        if self._hidden:
            _hide(node)
        return node

    def _shown(self, text: str, else_: str, before: str = "") -> str:
        """The text in quotes; what to say in its place where it is secret."""
        return else_ if self._hidden else before + quote(text)

    def _sequence(self, event: Any) -> Node:
        self._check_tag(event, "seq")
        items = list(self._children())
        return self._collection(event, items)

    def _mapping(self, event: Any) -> Node:
        self._check_tag(event, "map")
        entries: dict[str, Node] = {}
        keys: dict[str, tuple[int, int]] = {}
        merged: list[Node] = []
        broken = False
        for key_event, key in self._keys():
            secret = is_secret(key)
            self._hidden += secret
            node = self._node(next(self._events))
            self._hidden -= secret
            if key == "<<" and not key_event.style:
                merged += self._mergeable(node)
            elif key in keys:
                hint = f"the first is on line {keys[key][0]}; keep one of them"
                self._problem(key_event, f"{self._shown(key, 'a key')} is written twice", hint)
            elif key is None:
                broken = True
            else:
                entries[key], keys[key] = node, _place(key_event)
        for source in merged:
            assert isinstance(source.value, dict)
            # What is copied only to be dropped costs time as well.
            self._merged += len(source.value)
            if self._merged > MAX_NODES:
                self._too_much(event)
            for key, value in source.value.items():
                if key not in entries:
                    entries[key], keys[key] = value, source.keys[key]
        return self._collection(event, entries, keys, broken=broken)

    def _children(self) -> Iterator[Node]:
        from yaml import events

        while not isinstance(event := next(self._events), events.CollectionEndEvent):
            yield self._node(event)

    def _keys(self) -> Iterator[tuple[Any, str | None]]:
        """Each key of the open mapping: its text, whatever type YAML would give it."""
        from yaml import events

        while not isinstance(event := next(self._events), events.CollectionEndEvent):
            if isinstance(event, events.ScalarEvent):
                yield event, event.value
            else:
                self._problem(event, "a key must be plain text", "quote a value with braces")
                self._node(event)
                yield event, None

    def _mergeable(self, node: Node) -> list[Node]:
        sources = node.value if isinstance(node.value, list) else [node]
        for source in sources:
            if not isinstance(source.value, dict):
                message = "`<<` merges mappings only"
                self._add(Problem(source.line, source.column, message))
        return [source for source in sources if isinstance(source.value, dict)]

    def _collection(
        self,
        event: Any,
        value: list[Node] | dict[str, Node],
        keys: dict[str, tuple[int, int]] | None = None,
        *,
        broken: bool = False,
    ) -> Node:
        below = value.values() if isinstance(value, dict) else value
        size = 1 + sum(node.size for node in below)
        height = 1 + max((node.height for node in below), default=0)
        text = sum(node.text for node in below) + sum(map(len, keys or ()))
        if size > MAX_NODES or height > MAX_DEPTH:
            self._too_much(event)
        if text > MAX_TEXT:
            self._too_long(event)
        return Node(
            *_place(event),
            value,
            keys or {},
            size=size,
            height=height,
            text=text,
            broken=broken,
            secret=bool(self._hidden),
        )

    def _too_long(self, event: Any) -> NoReturn:
        self._problem(event, f"more than {MAX_TEXT >> 20} MiB of text in here", _ALIASES)
        raise _Stop

    def _too_much(self, event: Any) -> NoReturn:
        self._problem(event, f"more than {MAX_NODES} values or {MAX_DEPTH} levels in here")
        raise _Stop

    def _check_tag(self, event: Any, *allowed: str) -> None:
        tag = event.tag
        if tag not in (None, "!", *(_PREFIX + name for name in allowed)):
            shown = "!!" + tag.removeprefix(_PREFIX) if tag.startswith(_PREFIX) else tag
            hint = "put a value that starts with `!` in quotes" if self._hidden else "remove it"
            self._problem(
                event, f"{self._shown(shown, 'a tag', 'the tag ')} means nothing here", hint
            )

    def _scalar(self, event: Any) -> Node:
        before = len(self.problems)
        self._check_tag(event, "str")
        line, column = _place(event)
        quotes = 1 if event.style else 0
        # the text starts after the quote, unless it runs over lines or has escapes
        length = event.end_mark.column - event.start_mark.column - 2 * quotes
        one_line = event.start_mark.line == event.end_mark.line and event.style not in ("|", ">")
        inside = column + quotes if one_line and length == len(event.value) else None

        text, flaws = expand(event.value, self._environ, hidden=bool(self._hidden))
        self._length += len(text)
        if self._length > MAX_TEXT:
            self._too_long(event)
        for flaw in flaws[:MAX_FLAWS]:
            offset = 0 if inside is None else flaw.offset + quotes
            self._add(Problem(line, column + offset, flaw.message, flaw.hint))
        plain = not event.style and event.tag is None
        raw = text if plain and text != event.value else None
        if _SURROGATE.search(text):
            what = self._shown(text, "the value")
            self._problem(event, f"{what} is not all text", "a variable may not be UTF-8")
        node = Node(
            line,
            column,
            typed(text) if plain else text,
            inside=inside if text == event.value else None,
            text=len(text),
            broken=len(self.problems) > before,
            raw=raw,
            secret=bool(self._hidden),
        )
        if plain and raw is None and is_old_octal(text):
            self._add(octal(node, text))
            return dataclasses.replace(node, broken=True)
        return node


def is_old_octal(text: str) -> bool:
    """Whether a number of YAML 1.1 would be octal."""
    return _OLD_OCTAL.fullmatch(text) is not None


def octal(node: Node, text: str) -> Problem:
    """What is wrong with such a number."""
    what = "a number that starts with 0" if node.secret else quote(text)
    hint = "say which: `0o644` is octal, `644` is decimal; or quote it"
    message = f"{what} is octal to some and decimal to others"
    return Problem(node.line, node.column, message, hint)


def _hide(node: Node) -> None:
    """Make a value secret that was read before: an alias under a secret key names it."""
    if node.secret:
        return
    object.__setattr__(node, "secret", True)
    if isinstance(node.value, dict):
        for child in node.value.values():
            _hide(child)
    elif isinstance(node.value, list):
        for child in node.value:
            _hide(child)


def typed(text: str) -> Scalar:
    """What a plain scalar is by YAML 1.2's core schema; infinities and NaN stay strings."""
    if text in _WORDS:
        return _WORDS[text]
    if _INT.fullmatch(text):
        return int(text)
    if _BASED.fullmatch(text):
        return int(text, 0)
    if _FLOAT.fullmatch(text) and not math.isinf(number := float(text)):
        return number
    return text


def _place(event: Any) -> tuple[int, int]:
    return event.start_mark.line + 1, event.start_mark.column + 1
