"""Edit the text of a krelay.yaml: add a target, or remove one, and leave every other byte alone.

The places come from the events of the YAML parser. An edit reads its result again: unless that is
the old document plus or minus the target, the text is not one that krelay can edit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from krelay.config import yaml_reader
from krelay.config.grammar import quote
from krelay.errors import UsageError

_TARGETS = "targets"
_PLAIN = re.compile(r"[A-Za-z0-9./-][A-Za-z0-9._/:@ -]*")
_COMMENT = re.compile(r"( +)#.*")
_INDENT = 2

Value = str | Mapping[str, Any]
"""A target as its line, or as a mapping."""


@dataclass(slots=True)
class _Span:
    """A value of the text: where its first and last characters are; entries of a mapping."""

    start: int
    end: int
    kind: str
    flow: bool = False
    text: str = ""
    quoted: bool = False
    entries: list[tuple[_Span, _Span]] = field(default_factory=list)

    def get(self, key: str) -> _Span | None:
        """Return the value of a key."""
        return next((value for name, value in self.entries if name.text == key), None)


@dataclass(frozen=True, slots=True)
class _Change:
    """Replace the text from `start` to `end` by `text`."""

    start: int
    end: int
    text: str


def insert(text: str, name: str, value: Value) -> str:
    """Return the text with a target at the end of its `targets`.

    Raises:
        UsageError: krelay cannot edit this text; the hint says what to write into it.
    """
    clean = _Clean(text)
    result = clean.changed(list(_insertion(clean.text, name, value)))
    before, after = _tree(clean.text), _tree(result)
    wanted = value if isinstance(value, str) else dict(value)
    if not isinstance(before, dict):
        raise _by_hand(name, value)
    targets = before.get(_TARGETS) or {}
    expected = {**before, _TARGETS: {**targets, name: wanted}} if isinstance(targets, dict) else ()
    if name in targets or after != expected:
        raise _by_hand(name, value)
    return result


def remove(text: str, name: str) -> str:
    """Return the text without a target.

    Raises:
        UsageError: krelay cannot edit this text.
    """
    clean = _Clean(text)
    result = clean.changed(list(_removal(clean.text, name)))
    before, after = _tree(clean.text), _tree(result)
    targets = before.get(_TARGETS) if isinstance(before, dict) else None
    left = dict(targets) if isinstance(targets, dict) else {}
    known = left.pop(name, None) is not None
    expected = {**before, _TARGETS: left or None} if known else ()
    if isinstance(after, dict) and after.get(_TARGETS) == {}:
        after[_TARGETS] = None
    if after != expected:
        hint = "delete its lines in an editor"
        raise UsageError(f"krelay cannot remove {quote(name)} from this file", hint=hint)
    return result


def lacks_targets(text: str) -> bool:
    """Return whether a document has no targets, which an insertion would mend."""
    found = _tree(text)
    return isinstance(found, dict) and not found.get(_TARGETS)


def append_line(text: str, line: str) -> str:
    """Return the text of a targets.txt with another line at its end."""
    clean = _Clean(text)
    end = len(clean.text)
    before = "" if clean.text.endswith("\n") or not clean.text else "\n"
    return clean.changed([_Change(end, end, f"{before}{line}\n")])


def _by_hand(name: str, value: Value) -> UsageError:
    shown = _entry(name, value, json_style=False)
    return UsageError("krelay cannot edit this file", hint=f"add {quote(shown, 200)} by hand")


def _tree(text: str) -> Any:
    """Return the document as plain values, without variables; None if it is broken."""
    root, problems = yaml_reader.read(text, _Verbatim())
    return None if root is None or problems else root.plain()


class _Verbatim(dict[str, str]):
    """Variables that stand for themselves."""

    def get(self, key: str, default: Any = None) -> Any:
        """Return a text with the name."""
        return f"<{key}>"


# -- text with any line ends -----------------------------------------------------------------------


class _Clean:
    """A text as the parser sees it: without a byte order mark, and with `\\n` as line end."""

    def __init__(self, text: str) -> None:
        self._mark = text[: text.startswith("\ufeff")]
        self._units = re.findall("\r\n|.", text.removeprefix(self._mark), re.DOTALL)
        self.text = "".join("\n" if unit[0] == "\r" else unit for unit in self._units)
        self._end = next((unit for unit in self._units if unit[0] in "\r\n"), "\n")

    def changed(self, changes: list[_Change]) -> str:
        """Return the original text with the changes."""
        parts, last = [self._mark], 0
        for change in sorted(changes, key=lambda change: change.start):
            parts += self._units[last : change.start]
            parts.append(change.text.replace("\n", self._end))
            last = change.end
        return "".join([*parts, *self._units[last:]])


# -- where things are ------------------------------------------------------------------------------


def _read(text: str) -> _Span:
    """Return the document of the text. Raises ValueError if there is none."""
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    events: Iterator[Any] = iter(yaml.parse(text, Loader=loader))
    try:
        for event in events:
            if isinstance(event, yaml.DocumentStartEvent):
                return _span(next(events), events, text)
    except yaml.YAMLError as exc:
        raise ValueError from exc
    raise ValueError


def _span(event: Any, events: Iterator[Any], text: str) -> _Span:
    from yaml import events as kinds

    start, end = event.start_mark.index, event.end_mark.index
    if isinstance(event, kinds.AliasEvent):
        return _Span(start, end, "alias")
    if isinstance(event, kinds.ScalarEvent):
        if event.style in ("|", ">"):
            end = start + len(text[start:end].rstrip())
        return _Span(start, end, "scalar", text=event.value, quoted=event.style == '"')
    flow = bool(event.flow_style)
    kind = "map" if isinstance(event, kinds.MappingStartEvent) else "list"
    found = _Span(start, end, kind, flow)
    children: list[_Span] = []
    closing: Any = kinds.CollectionEndEvent
    while not isinstance(event := next(events), closing):
        children.append(_span(event, events, text))
    if kind == "map":
        found.entries = list(zip(children[::2], children[1::2], strict=True))
    found.end = event.end_mark.index if flow else children[-1].end if children else start
    return found


def _line_start(text: str, index: int) -> int:
    return text.rfind("\n", 0, index) + 1


def _column(text: str, index: int) -> int:
    return index - _line_start(text, index)


def _line_end(text: str, index: int) -> int:
    """Return where the line of `index` ends: at its line end, or at the end of the text."""
    found = text.find("\n", index)
    return len(text) if found < 0 else found


# -- an insertion ----------------------------------------------------------------------------------


def _insertion(text: str, name: str, value: Value) -> Iterator[_Change]:
    try:
        root = _read(text)
    except ValueError:
        return
    if root.kind != "map" or not root.entries:
        return
    targets = root.get(_TARGETS)
    style = _is_json(root)
    if targets is None:
        if root.flow:
            inside = f"{{{_entry(name, value, json_style=style, flow=True)}}}"
            yield from _into_flow(text, root, f"{_scalar(_TARGETS, style)}: {inside}")
        else:
            line = " " * _step(text, root) + _entry(name, value)
            yield from _into_block(text, root, [f"{_TARGETS}:", line])
    elif targets.kind == "map" and targets.flow:
        json_style = style or _is_json(targets)
        entry = _entry(name, value, json_style=json_style, flow=True)
        yield from _into_flow(text, targets, entry)
    elif targets.kind == "map":
        yield from _into_block(text, targets, [_entry(name, value)])
    elif targets.kind == "scalar" and root.flow:
        inside = f"{{{_entry(name, value, json_style=style, flow=True)}}}"
        space = " " if text[targets.start - 1] == ":" else ""
        yield _Change(targets.start, targets.end, space + inside)
    elif targets.kind == "scalar":
        yield _Change(targets.start, targets.end, "")
        yield from _first_of_block(text, root, targets, _entry(name, value))


def _is_json(mapping: _Span) -> bool:
    return bool(mapping.entries) and mapping.flow and mapping.entries[-1][0].quoted


def _step(text: str, root: _Span) -> int:
    """Return by how much the text indents."""
    outer = _column(text, root.entries[0][0].start)
    for _, value in root.entries:
        if value.kind == "map" and not value.flow:
            return _column(text, value.entries[0][0].start) - outer
    return _INDENT


def _into_block(text: str, mapping: _Span, lines: list[str]) -> Iterator[_Change]:
    indent = " " * _column(text, mapping.entries[0][0].start)
    yield _after_line(text, mapping.entries[-1][1].end, [indent + line for line in lines])


def _after_line(text: str, index: int, lines: list[str]) -> _Change:
    """Return the insertion of lines after the line of `index`."""
    end = _line_end(text, index)
    if end == len(text):
        return _Change(end, end, "".join(f"\n{line}" for line in lines) + "\n")
    return _Change(end + 1, end + 1, "".join(f"{line}\n" for line in lines))


def _first_of_block(text: str, root: _Span, value: _Span, entry: str) -> Iterator[_Change]:
    """Yield the insertion of the first entry below a key without a value, and below the comments
    that follow it."""
    outer = _column(text, root.entries[0][0].start)
    indent, last = outer + _step(text, root), value.end
    while (at := _line_end(text, last) + 1) < len(text):
        comment = _COMMENT.fullmatch(text[at : _line_end(text, at)])
        if comment is None or len(comment[1]) <= outer:
            break
        indent, last = len(comment[1]), at
    yield _after_line(text, last, [" " * indent + entry])


def _into_flow(text: str, mapping: _Span, entry: str) -> Iterator[_Change]:
    close = mapping.end - 1
    if not mapping.entries:
        yield _Change(close, close, entry)
        return
    key, value = mapping.entries[-1]
    end = max(value.end, key.end)
    comma = _comma(text, end, close)
    before = text[_line_start(text, key.start) : key.start]
    if before.strip() or "\n" not in text[end:close]:
        point = end if comma is None else comma + 1
        yield _Change(point, point, f", {entry}" if comma is None else f" {entry}")
        return
    # Each entry has its own line.
    if comma is None:
        yield _Change(end, end, ",")
    at = _line_end(text, end if comma is None else comma)
    yield _Change(at, at, f"\n{before}{entry}{'' if comma is None else ','}")


def _comma(text: str, start: int, end: int) -> int | None:
    """Return where the comma is between a value and what follows it; None if there is none."""
    bare = re.sub(r"#[^\n]*", lambda found: "#" * len(found[0]), text[start:end])
    found = bare.find(",")
    return None if found < 0 else start + found


def _entry(name: str, value: Value, *, json_style: bool = False, flow: bool = False) -> str:
    """Return `name: value` as YAML or JSON on one line."""
    if isinstance(value, str):
        shown = _scalar(value, json_style)
    elif json_style:
        shown = json.dumps(value, ensure_ascii=False)
    else:
        shown = yaml_reader.flow(dict(value))
    return f"{_scalar(name, json_style)}: {shown}"


def _scalar(text: str, json_style: bool) -> str:
    plain = _PLAIN.fullmatch(text) and isinstance(yaml_reader.typed(text), str)
    unclear = text.startswith("- ") or ": " in text or text.endswith((":", " "))
    if plain and not unclear and not json_style:
        return text
    return json.dumps(text, ensure_ascii=False)


# -- a removal -------------------------------------------------------------------------------------


def _removal(text: str, name: str) -> Iterator[_Change]:
    try:
        targets = _read(text).get(_TARGETS)
    except ValueError:
        return
    if targets is None:
        return
    entries = targets.entries
    found = [number for number, (key, _) in enumerate(entries) if key.text == name]
    if len(found) != 1:
        return
    key, value = entries[found[0]]
    end = max(key.end, value.end)
    if not targets.flow:
        yield _Change(_line_start(text, key.start), min(_line_end(text, end) + 1, len(text)), "")
    elif found[0] + 1 < len(entries):
        yield _Change(key.start, entries[found[0] + 1][0].start, "")
    elif found[0]:
        before_key, before = entries[found[0] - 1]
        yield _Change(max(before_key.end, before.end), end, "")
    else:
        yield _Change(key.start, end, "")
