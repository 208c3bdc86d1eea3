"""Read YAML into a tree of nodes with positions, with variables expanded and scalars typed.

The tree is built from the parser's events. A YAML loader would forget positions, keep the last of
two equal keys, follow aliases without a bound, and type plain scalars by YAML 1.1, where `8080:53`
is the number 484,853 and `no` is false. Scalars here follow the core schema of YAML 1.2 (section
10.3.2). Merge keys (`<<`) work, as in other tools around Kubernetes.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn

from krelay.config.grammar import ParseError, quote
from krelay.config.schema import is_secret, secret_keys
from krelay.errors import Problem

if TYPE_CHECKING:
    import yaml

MAX_DEPTH = 40
MAX_NODES = 50_000
"""Values in a document with every alias followed, and keys that `<<` copies."""
MAX_TEXT = 4 << 20
"""Characters in a document, with every alias followed and every variable expanded."""
MAX_ERRORS = 100
"""Problems after which reading stops, and errors reported for one text."""

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
_TOO_MANY = (f"more than {MAX_NODES} values or {MAX_DEPTH} levels",)
_TOO_LONG = (
    f"more than {MAX_TEXT >> 20} MiB of text",
    "an alias counts as its anchor's value, a variable as its text",
)
_PREFIX = "tag:yaml.org,2002:"

Scalar = None | bool | int | float | str


@dataclass(frozen=True, slots=True)
class Node:
    """A value of the file. `line` and `column` count from 1.

    `keys` has the position of every key of a mapping. `inside` is the column at which the text of
    a string starts, or None if the file does not have that text verbatim on one line. `size`,
    `height` and `text` count nodes, levels and characters, with aliases followed. `broken` marks a
    value whose problem has been reported. `raw` is the expanded text of a plain scalar with
    variables. `secret` marks a value that must not be shown.
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
        """Return the value without positions, as `json.loads` would."""
        if isinstance(self.value, dict):
            return {key: node.plain() for key, node in self.value.items()}
        if isinstance(self.value, list):
            return [node.plain() for node in self.value]
        return self.value

    def problem(self, error: ParseError) -> Problem:
        """Return an error in the scalar as a problem, at its character if that is known."""
        if self.secret:
            return Problem(self.line, self.column, "the value of a secret is invalid here")
        if self.inside is not None:
            return error.at(self.line, self.inside)
        return Problem(self.line, self.column, error.message, error.hint)


def read(text: str, environ: Mapping[str, str]) -> tuple[Node | None, list[Problem]]:
    """Return the document in the text, and every problem in it.

    The node is None if the text is empty, or so broken that reading had to stop.
    """
    composer = _Composer(text, environ)
    try:
        return composer.document(), composer.problems
    except _Stop:
        return None, composer.problems


class _Stop(Exception):
    """Reading cannot go on; the reason is among the problems."""


class _Composer:
    def __init__(self, text: str, environ: Mapping[str, str]) -> None:
        self.problems: list[Problem] = []
        self._text = text
        self._environ = environ
        self._events = self._parse(text)
        self._anchors: dict[str, Node | None] = {}  # None while a node is open
        self._depth = 0
        self._hidden = 0  # secret keys around the current node
        self._nodes = 0
        self._merged = 0
        self._length = 0

    def document(self) -> Node | None:
        from yaml import events

        root: Node | None = None
        for event in self._events:
            if isinstance(event, events.DocumentStartEvent):
                if root is not None:
                    hint = "a file has one document; remove this `---`"
                    self._stop(event, "a second document", hint)
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
        except ValueError as exc:  # PyYAML's own scanner, for an escape beyond Unicode
            self.problems.append(Problem(1, 1, "an escape is not a valid character"))
            raise _Stop from exc

    def _problem(self, event: Any, message: str, hint: str | None = None) -> None:
        self._add(Problem(*_place(event), message, hint))

    def _stop(self, event: Any, message: str, hint: str | None = None) -> NoReturn:
        self._problem(event, message, hint)
        raise _Stop

    def _add(self, problem: Problem) -> None:
        self.problems.append(problem)
        if len(self.problems) > MAX_ERRORS:
            raise _Stop

    def _node(self, event: Any) -> Node:
        from yaml import events

        if isinstance(event, events.AliasEvent):
            return self._alias(event)
        if event.anchor is not None:
            self._anchors[event.anchor] = None
        self._depth += 1
        if self._depth > MAX_DEPTH:
            self._stop(event, f"nested more than {MAX_DEPTH} levels deep")
        self._nodes += 1
        if self._nodes > MAX_NODES:
            self._stop(event, *_TOO_MANY)
        if isinstance(event, events.ScalarEvent):
            node = self._scalar(event)
        elif isinstance(event, events.SequenceStartEvent):
            self._check_tag(event, "seq")
            items: list[Node] = []
            while not isinstance(item := next(self._events), events.CollectionEndEvent):
                items.append(self._node(item))
            node = self._collection(event, items)
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
            self._stop(event, f"{name} refers to a value that contains it")
        if self._hidden:
            _hide(node)
        return node

    def _shown(self, text: str, else_: str, before: str = "") -> str:
        """Return the quoted text, or `else_` if it is secret."""
        return else_ if self._hidden else before + quote(text)

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
            # Copying keys costs time even if they are dropped.
            self._merged += len(source.value)
            if self._merged > MAX_NODES:
                self._stop(event, *_TOO_MANY)
            for key, value in source.value.items():
                if key not in entries:
                    entries[key], keys[key] = value, source.keys[key]
        return self._collection(event, entries, keys, broken=broken)

    def _keys(self) -> Iterator[tuple[Any, str | None]]:
        """Yield each key of the open mapping as text, whatever type YAML would give it."""
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
            self._stop(event, *_TOO_MANY)
        if text > MAX_TEXT:
            self._stop(event, *_TOO_LONG)
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

    def _check_tag(self, event: Any, allowed: str) -> None:
        tag = event.tag
        if tag not in (None, "!", _PREFIX + allowed):
            shown = "!!" + tag.removeprefix(_PREFIX) if tag.startswith(_PREFIX) else tag
            hint = "put a value that starts with `!` in quotes" if self._hidden else "remove it"
            self._problem(
                event, f"{self._shown(shown, 'a tag', 'the tag ')} is not supported", hint
            )

    def _scalar(self, event: Any) -> Node:
        before = len(self.problems)
        self._check_tag(event, "str")
        line, column = _place(event)
        quotes = 1 if event.style else 0
        # The text starts after the quote, unless it spans lines or has escapes.
        length = event.end_mark.column - event.start_mark.column - 2 * quotes
        one_line = event.start_mark.line == event.end_mark.line and event.style not in ("|", ">")
        inside = column + quotes if one_line and length == len(event.value) else None

        text, errors = expand(event.value, self._environ, hidden=bool(self._hidden))
        self._length += len(text)
        if self._length > MAX_TEXT:
            self._stop(event, *_TOO_LONG)
        for error in errors[:MAX_ERRORS]:
            offset = 0 if inside is None else error.offset + quotes
            self._add(Problem(line, column + offset, error.message, error.hint))
        plain = not event.style and event.tag is None
        raw = text if plain and text != event.value else None
        if _SURROGATE.search(text):
            what = self._shown(text, "the value")
            self._problem(event, f"{what} is not valid text", "a variable in it may not be UTF-8")
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
    """Return whether YAML 1.1 would read the text as an octal number."""
    return _OLD_OCTAL.fullmatch(text) is not None


def octal(node: Node, text: str) -> Problem:
    """Return the problem with such a number."""
    what = "a number that starts with 0" if node.secret else quote(text)
    hint = "write `0o644` for octal or `644` for decimal, or quote it"
    message = f"{what} is octal in YAML 1.1 and decimal in YAML 1.2"
    return Problem(node.line, node.column, message, hint)


def _hide(node: Node) -> None:
    """Mark a value as secret after it was read: an alias under a secret key refers to it."""
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
    """Return the value of a plain scalar by YAML 1.2's core schema; infinity and NaN stay text."""
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


# -- variables ---------------------------------------------------------------------------------

MAX_EXPANDED = 1 << 20
"""Characters of one text with its variables expanded."""
_REFERENCE = re.compile(r"\$\$|\$\{([^{}]*)(\}?)")
_INSIDE = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)(?::-(.*))?", re.DOTALL)


def expand(
    text: str, environ: Mapping[str, str], *, hidden: bool = False
) -> tuple[str, list[ParseError]]:
    """Expand `${VAR}`, `${VAR:-default}` and `$$`; return the text and up to MAX_ERRORS errors.

    As in a shell, `${VAR:-default}` is the default if VAR is unset or empty. Any other `$` is
    itself. Expansion follows YAML parsing, so a variable never adds a key, an item or a line.
    `hidden`: the text is secret, and errors show no part of it but the names of variables.
    """
    errors: list[ParseError] = []
    length = len(text)

    def value(match: re.Match[str]) -> str:
        nonlocal length
        if match[0] == "$$":
            return "$"
        if len(errors) >= MAX_ERRORS or length > MAX_EXPANDED:
            return ""
        try:
            found = _lookup(match[1], bool(match[2]), environ, hidden=hidden)
            length += len(found)
            if length > MAX_EXPANDED:
                raise ParseError("more than 1 MiB of text", hint="a variable in it is too long")
        except ParseError as error:
            errors.append(error.moved(match.start()))
            return ""
        return found

    return (_REFERENCE.sub(value, text) if "$" in text else text), errors


def _lookup(inside: str, closed: bool, environ: Mapping[str, str], *, hidden: bool) -> str:
    if not closed:
        shown = "`${`" if hidden else quote("${" + inside)
        raise ParseError(
            f"{shown} is not closed by `}}`, or holds another brace",
            hint="write `$${` for the characters themselves; variables do not nest",
        )
    match = _INSIDE.fullmatch(inside)
    if match is None:
        shown = "`${…}`" if hidden else quote("${" + inside + "}")
        raise ParseError(
            f"{shown} is not a variable",
            hint="write `${NAME}` or `${NAME:-default}`, and `$$` for a dollar",
        )
    name, default = match[1], match[2]
    found = environ.get(name)
    if default is not None:
        return found or default
    if found is None:
        raise ParseError(
            f"the variable {quote(name)} is not set",
            hint=f"set it, or write `${{{name}:-default}}`",
        )
    return found


# -- syntax errors -----------------------------------------------------------------------------

_IN_BRACKETS = "quote `${...}` inside `[ ]` and `{ }`, where braces have a meaning"
_INDENT = "keys of one mapping, and items of one list, start in the same column"
_OUTSIDE = "text outside the document", f"no `%` or `...` lines; {_INDENT}"
_ESCAPE = re.compile(r"\\.?[0-9A-Fa-f]*$")


def explain(error: yaml.YAMLError, text: str) -> Problem:
    """Return a syntax error as a problem; it points at an opening that was never closed.

    PyYAML's parser and libyaml's word the same error differently. The problem is therefore chosen
    by the error's class and by the characters at its two marks.
    """
    from yaml.parser import ParserError
    from yaml.scanner import ScannerError

    lines = text.split("\n")
    here, line, column = _marked(getattr(error, "problem_mark", None), lines)
    opening, *start = _marked(getattr(error, "context_mark", None), lines)
    char, first = here[column : column + 1], opening[start[1] : start[1] + 1]
    if start == [line, column]:
        first = ""
    # The character may belong to a secret.
    shown = "a character" if any(key in here.lower() for key in secret_keys()) else quote(char)

    def problem(message: str, hint: str | None = None) -> Problem:
        return Problem(line + 1, column + 1, message, hint)

    def opened(message: str, hint: str | None = None) -> Problem:
        return Problem(start[0] + 1, start[1] + 1, message, hint)

    if isinstance(error, ScannerError):
        if char == "\t" and not here[:column].strip():
            return problem("a tab indents this line", "YAML indents with spaces only")
        if first == '"' and (char == "\\" or _ESCAPE.search(here[:column])):
            return opened("an unknown escape", "in single quotes `\\` is itself")
        if first and first in "\"'" and line >= len(lines) - 1:
            return opened("the quote that opens here is never closed")
        if first and first in "&*":
            return problem(
                "a name must follow `&` and `*`", "a value that starts with one needs quotes"
            )
        if first == "%":
            return problem(*_OUTSIDE)
        if first and first not in "|>!":
            return opened("neither `key: value` nor a list item", "add the `:`")
        if char == ":" and not first:
            return problem(
                "unexpected `:`",
                "quote a value with `: ` in it or `:` at its end, or fix the indentation",
            )
        if char == "-" and not first:
            return problem("a list cannot start here", "start it on its own line")
        if char and not first:
            return problem(f"{shown} cannot start a value", "put the value in quotes")
    if isinstance(error, ParserError):
        if first and first in "[{":
            if not char:
                return opened("the bracket that opens here is never closed")
            hint = _IN_BRACKETS if "${" in here else "a `,` or the closing bracket is missing"
            return problem(f"{shown} is unexpected", hint)
        if first:
            return problem(f"{shown} is unexpected" if char else "wrong indentation", _INDENT)
        if error.context_mark is None:
            return problem(*_OUTSIDE)
        if char:
            return problem(f"{shown} is unexpected", "a value that starts with it needs quotes")
    what = getattr(error, "problem", None)
    return problem("not YAML" + (f": {what.lower()}" if what else ""))


def _marked(mark: Any, lines: list[str]) -> tuple[str, int, int]:
    """Return the line of a mark, and the numbers of its line and column, from 0."""
    if mark is None:
        return "", 0, 0
    return (lines[mark.line] if mark.line < len(lines) else ""), mark.line, mark.column


def flow(value: Any) -> str:
    """Return the value as YAML on one line."""
    import yaml

    text: str = yaml.safe_dump(value, default_flow_style=True, sort_keys=False, width=1 << 20)
    return text.strip()


def documents(values: Iterable[Any]) -> str:
    """Return the values as YAML documents of one text, keys in their order."""
    import yaml

    class Dumper(yaml.SafeDumper):
        def ignore_aliases(self, data: Any) -> bool:
            return True

    text: str = yaml.dump_all(values, Dumper=Dumper, sort_keys=False, explicit_start=True)
    return text
