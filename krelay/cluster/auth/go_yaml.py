"""Go YAML: read a YAML document to the values that kubectl reads from it.

client-go turns YAML into JSON with go.yaml.in/yaml/v2, and this module follows that where PyYAML
and YAML 1.1 differ: only the first document counts, unknown tags are ignored, dates and times are
text, `1e3` is a number and `y` is true.
"""

from __future__ import annotations

import base64
import binascii
import math
import re
from typing import Any

import yaml

_BOOLEANS = {
    word: value
    for value, words in ((True, "y yes true on"), (False, "n no false off"))
    for lower in words.split()
    for word in (lower, lower.capitalize(), lower.upper())
}
_NULLS = frozenset(("", "~", "null", "Null", "NULL"))
_INTEGER = re.compile(r"[-+]?(0[xX][0-9a-fA-F]+|0[bB][01]+|0[oO][0-7]+|0[0-7]*|[1-9][0-9]*)")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)")
_NAN = frozenset((".nan", ".NaN", ".NAN"))
_TAG = "tag:yaml.org,2002:"
_DEEPEST = 200
_MOST_BY_ALIASES = 4_000_000
"""Values of a document with aliases, each counted where it is used; Go's YAML has a bound too."""


class NotYamlError(ValueError):
    """The text is not YAML; the message says where and never repeats the text."""


def read_yaml(data: bytes) -> Any:
    """Return the first document of `data`, None if it has none. UTF-8, or UTF-16 with its mark.

    Raises:
        NotYamlError: the first document cannot be read.
    """
    # Events, since libyaml's nodes need the C stack: a file of brackets would end the process.
    parser = _parser()(data)
    try:
        return _Reader(parser).document()
    except yaml.MarkedYAMLError as exc:
        raise _error(exc.problem_mark or exc.context_mark) from None
    except yaml.YAMLError as exc:
        at = getattr(exc, "position", None)
        raise NotYamlError(f"not YAML: a bad character at position {at}") from None
    finally:
        parser.dispose()


def _parser() -> Any:
    """Return libyaml's parser, from which Go's descends; else PyYAML's, slower and stricter."""
    return getattr(yaml, "CBaseLoader", yaml.BaseLoader)


def _error(mark: Any, problem: str = "") -> NotYamlError:
    place = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
    return NotYamlError(f"not YAML{place}{problem and ': '}{problem}")


class _Reader:
    """Builds the values of one document from the parser's events."""

    def __init__(self, parser: Any) -> None:
        self._next = parser.get_event
        self._anchors: dict[str | None, Any] = {}
        self._sizes: dict[str | None, int] = {}
        self._values = 0
        self._depth = 0

    def document(self) -> Any:
        self._next()  # the start of the stream
        if isinstance(self._next(), yaml.StreamEndEvent):
            return None
        return self._value(self._next())

    def _value(self, event: Any) -> Any:
        if isinstance(event, yaml.AliasEvent):
            if (found := self._anchors.get(event.anchor, _OPEN)) is _OPEN:
                raise _error(event.start_mark, "no such anchor, or a value that contains itself")
            self._values += self._sizes[event.anchor]
            if self._values > _MOST_BY_ALIASES:
                raise _error(event.start_mark, "too many values by aliases")
            return found
        before, self._values = self._values, self._values + 1
        if isinstance(event, yaml.ScalarEvent):
            found = _scalar(event)
        else:
            if self._depth == _DEEPEST:
                raise _error(event.start_mark, "nested too deep")
            if event.anchor:
                self._anchors[event.anchor] = _OPEN
            self._depth += 1
            sequence = isinstance(event, yaml.SequenceStartEvent)
            found = self._sequence() if sequence else self._mapping()
            self._depth -= 1
        if event.anchor:
            self._anchors[event.anchor] = found
            self._sizes[event.anchor] = self._values - before
        return found

    def _sequence(self) -> list[Any]:
        found = []
        while not isinstance(event := self._next(), yaml.SequenceEndEvent):
            found.append(self._value(event))
        return found

    def _mapping(self) -> dict[str, Any]:
        """Read the fields in their order: in Go the later one wins, merged or not."""
        found: dict[str, Any] = {}
        while not isinstance(event := self._next(), yaml.MappingEndEvent):
            if _is_merge(event):
                merged = self._value(self._next())
                for source in reversed(merged) if isinstance(merged, list) else (merged,):
                    if not isinstance(source, dict):
                        raise _error(event.start_mark, "not an object to merge")
                    found.update(source)
            else:
                key = _field(self._value(event), event.start_mark)
                found[key] = self._value(self._next())
        return found


_OPEN = object()


def _field(key: Any, mark: Any) -> str:
    if isinstance(key, bool):
        return "true" if key else "false"
    if not isinstance(key, str | int | float):
        raise _error(mark, "not the name of a field")
    return str(key)


def _is_merge(event: Any) -> bool:
    plain = isinstance(event, yaml.ScalarEvent) and event.value == "<<"
    return plain and (event.implicit[0] or event.tag == f"{_TAG}merge")


def _scalar(event: Any) -> Any:
    text = event.value
    if event.tag is None:
        found = _plain(text) if event.implicit[0] else text
        if isinstance(found, float) and not math.isfinite(found):
            raise _error(event.start_mark, "a number that JSON does not have")
        return found
    tag = event.tag.removeprefix(_TAG)
    if tag == "binary":
        try:
            return base64.b64decode(text, validate=True).decode()
        except (binascii.Error, ValueError):
            raise _error(event.start_mark, "not base64") from None
    wanted = {"bool": bool, "int": int, "float": float, "null": type(None)}.get(tag)
    if wanted is None:
        return text
    found = _plain(text)
    if wanted is float and type(found) is int:
        return float(found)
    if type(found) is not wanted:
        raise _error(event.start_mark, "not what its tag says")
    return found


def _plain(text: str) -> Any:
    """Return what a scalar without tag and quotes stands for."""
    if text in _NULLS:
        return None
    if (found := _BOOLEANS.get(text)) is not None:
        return found
    if text[0] not in "+-.0123456789":
        return text
    digits = text.replace("_", "")
    if _INTEGER.fullmatch(digits) and len(digits) < 100:
        sign = -1 if digits[0] == "-" else 1
        bare = digits.lstrip("+-")
        old_octal = len(bare) > 1 and bare[0] == "0" and bare[1].isdigit()
        return sign * (int(bare, 8) if old_octal else int(bare, 0))
    if _FLOAT.fullmatch(digits) or text in _NAN:
        return float(digits.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text
