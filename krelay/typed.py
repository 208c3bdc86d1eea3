"""Typed: read JSON from outside into declared types. Pure.

An API server, an issuer or a plugin may send anything. `load` and `read` return only the fields
that a `Schema` declares, each of the declared type, or raise an error that names the field, what
was expected and what was found. The code behind them needs no checks. An error shows a wrong
value only where no secret can stand: never in place of a string or an object.

As in Go's encoding/json, null counts as absent and unknown fields are ignored.
"""

from __future__ import annotations

import ipaddress
import json
import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Protocol

from krelay.errors import ClusterError, MalformedError

MAX_VALUES = 1_000_000  # values in one document: a page of 200 large pods has about 100,000

_SHOWN = 40
_MAX_DIGITS = 20


class Mismatch(ValueError):
    """A value of the wrong type. `path` leads to it from the outside in."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.path = ""

    def inside(self, step: str) -> Mismatch:
        """Prefix the path with `step` (a field's name, or an index in brackets); return self."""
        dot = "." if self.path and not self.path.startswith("[") else ""
        self.path = f"{step}{dot}{self.path}"
        return self

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}" if self.path else self.problem


class Schema(Protocol):
    """The type that a value must have."""

    def read(self, value: Any) -> Any:
        """Return `value` as this type. Raises Mismatch."""


@dataclass(frozen=True, slots=True)
class String:
    """Any Unicode text of up to `limit` characters, none of them in `without`."""

    limit: int = 1 << 20
    without: str = ""

    def read(self, value: Any) -> str:
        text = _string(value, self.limit)
        try:
            text.isascii() or text.encode()
        except UnicodeEncodeError:
            raise Mismatch("half of a surrogate pair, which no text can hold") from None
        for character in self.without:
            if character in text:
                raise Mismatch(f"expected a text without {json.dumps(character)}")
        return text


@dataclass(frozen=True, slots=True)
class Message:
    """Text for people, cut after `limit` characters."""

    limit: int = 4096

    def read(self, value: Any) -> str:
        text = _string(value)[: self.limit]
        return text if text.isascii() else text.encode("utf-8", "replace").decode()


@dataclass(frozen=True, slots=True)
class Token:
    """A name or a secret token: printable ASCII without spaces."""

    limit: int = 253

    def read(self, value: Any) -> str:
        text = _string(value, self.limit)
        if not (text.isascii() and text.isprintable()) or " " in text:
            # The error shows no character: the value may be a secret with one character too many.
            raise Mismatch("expected printable ASCII without spaces, got other characters")
        return text


@dataclass(frozen=True, slots=True)
class OneOf:
    """One of a few words; an empty string counts as absent."""

    words: Collection[str]

    def read(self, value: Any) -> str:
        if not isinstance(value, str) or (value and value not in self.words):
            raise _wrong(f"one of {', '.join(self.words)}", value, shown=True)
        return value


class Address:
    """An IP address as text; an empty string counts as absent."""

    def read(self, value: Any) -> str:
        if isinstance(value, str) and len(value) <= 64:
            try:
                if value:
                    ipaddress.ip_address(value)
                return value
            except ValueError:
                pass
        raise _wrong("an IP address", value, shown=True)


class Boolean:
    """true or false."""

    def read(self, value: Any) -> bool:
        if not isinstance(value, bool):
            raise _wrong("true or false", value, shown=True)
        return value


@dataclass(frozen=True, slots=True)
class Integer:
    """A whole number from `minimum` to `maximum`."""

    minimum: int = 0
    maximum: int = (1 << 63) - 1

    def read(self, value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise _wrong("a whole number", value, shown=True)
        if not self.minimum <= value <= self.maximum:
            expected = f"a whole number from {self.minimum} to {self.maximum}"
            raise _wrong(expected, value, shown=True)
        return value


class Number:
    """A finite number, as a float."""

    def read(self, value: Any) -> float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            try:
                number = float(value)
            except OverflowError:
                number = math.inf
            if math.isfinite(number):
                return number
        raise _wrong("a number", value, shown=True)


class Timestamp:
    """An RFC 3339 time, as seconds since the epoch."""

    def read(self, value: Any) -> float:
        if isinstance(value, str) and 20 <= len(value) <= 40:
            try:
                time = datetime.fromisoformat(value)
                if time.tzinfo is not None:
                    return time.timestamp()
            except (ValueError, OverflowError):
                pass
        raise _wrong("a time (RFC 3339)", value, shown=True)


@dataclass(frozen=True, slots=True)
class AnyOf:
    """The first of several schemas that fits; `description` names them all in an error."""

    schemas: tuple[Schema, ...]
    description: str

    def read(self, value: Any) -> Any:
        for schema in self.schemas:
            try:
                return schema.read(value)
            except Mismatch:
                continue
        raise _wrong(self.description, value)


@dataclass(frozen=True, slots=True)
class ListOf:
    """A list of up to `limit` elements of one schema."""

    schema: Schema
    limit: int = 100_000

    def read(self, value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise _wrong("a list", value)
        if len(value) > self.limit:
            raise Mismatch(f"a list of more than {self.limit} elements")
        return [_read_at(f"[{index}]", self.schema, item) for index, item in enumerate(value)]


@dataclass(frozen=True, slots=True)
class MapOf:
    """An object with any keys, up to `limit` of them, and values of one schema."""

    schema: Schema
    limit: int = 10_000

    def read(self, value: Any) -> dict[str, Any]:
        _check_object(value)
        if len(value) > self.limit:
            raise Mismatch(f"an object of more than {self.limit} keys")
        found = {}
        for name, inner in value.items():
            key = _read_at("a key", _KEY, name)
            if inner is not None:
                step = key if key.isidentifier() else _quoted(key)
                found[key] = _read_at(step, self.schema, inner)
        return found


_KEY = String(1024)


@dataclass(frozen=True, slots=True)
class Shape:
    """An object: the fields to read, and those that must be present (not null, not empty)."""

    fields: Mapping[str, Schema]
    needs: Collection[str] = field(default=())

    def read(self, value: Any) -> dict[str, Any]:
        _check_object(value)
        found = {
            name: _read_at(name, schema, value[name])
            for name, schema in self.fields.items()
            if value.get(name) is not None
        }
        for name in self.needs:
            if found.get(name) in (None, ""):
                raise Mismatch("is missing").inside(name)
        return found


def fields(schema: Schema, *names: str) -> dict[str, Schema]:
    """Return fields of one schema, for a Shape."""
    return dict.fromkeys(names, schema)


class AnyValue:
    """A value that is passed on unread."""

    def read(self, value: Any) -> Any:
        return value


def read(
    schema: Schema, value: Any, source: str, *, error: type[ClusterError] = MalformedError
) -> Any:
    """Return `value` as `schema`; `source` begins the error's text.

    Raises:
        ClusterError: of the type `error`; the message names the field.
    """
    try:
        return schema.read(value)
    except Mismatch as exc:
        raise error(f"{source}: {exc}") from exc


def load(
    schema: Schema,
    data: bytes,
    source: str,
    *,
    values: int = MAX_VALUES,
    error: type[ClusterError] = MalformedError,
) -> Any:
    """Return the JSON document `data` as `schema`. The caller has bounded its size.

    Raises:
        ClusterError: of the type `error`; `data` is not JSON, has more than `values` values, or
            has another type.
    """
    try:
        return schema.read(parse(data, values=values))
    except Mismatch as exc:
        raise error(f"{source}: {exc}") from exc


def parse(data: bytes, *, values: int = MAX_VALUES) -> Any:
    """Parse a JSON document (RFC 8259).

    Raises:
        Mismatch: not JSON, more than `values` values, nested too deep, a duplicate key, or a
            number that neither a double nor a 64-bit integer can hold.
    """
    # Each value but the first follows one of these characters, so the parser's time and memory
    # are bounded before it starts.
    if data.count(b",") + data.count(b"[") + data.count(b"{") >= values:
        raise Mismatch(f"more than {values} values")
    try:
        return _DECODER.decode(data.decode())
    except RecursionError:
        raise Mismatch("nested too deep") from None
    except Mismatch:
        raise
    except UnicodeDecodeError:
        raise Mismatch("not UTF-8") from None
    except ValueError as exc:
        raise Mismatch(f"not JSON: {exc}") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        seen: set[str] = set()
        twice = next(name for name, _ in pairs if name in seen or seen.add(name))  # type: ignore[func-returns-value]
        raise Mismatch(f"the key {_quoted(twice)} is there twice")
    return found


def _integer(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise Mismatch(f"a number of {len(digits)} digits")
    return int(digits)


def _float(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise Mismatch(f"the number {digits[:_SHOWN]} is out of range")
    return number


def _constant(name: str) -> float:
    raise Mismatch(f"{name} is not a JSON number")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_int=_integer, parse_float=_float, parse_constant=_constant
)


def _read_at(step: str, schema: Schema, value: Any) -> Any:
    try:
        return schema.read(value)
    except Mismatch as exc:
        raise exc.inside(step) from None


def _string(value: Any, limit: int | None = None) -> str:
    if not isinstance(value, str):
        raise _wrong("a text", value)
    if limit is not None and len(value) > limit:
        raise Mismatch(f"longer than {limit} characters")
    return value


def _check_object(value: Any) -> None:
    if not isinstance(value, dict):
        raise _wrong("an object", value)


def _wrong(expected: str, value: object, *, shown: bool = False) -> Mismatch:
    return Mismatch(f"expected {expected}, got {_describe(value, shown=shown)}")


def _describe(value: object, *, shown: bool) -> str:
    match value:
        case None:
            return "nothing"
        case bool():
            return "true" if value else "false"
        case int() | float():
            return f"the number {str(value)[:_SHOWN]}" if shown else "a number"
        case str():
            return f"the text {_quoted(value)}" if shown else "a text"
        case list():
            return "a list"
        case dict():
            return "an object"
    return f"a {type(value).__name__}"


def _quoted(text: str) -> str:
    return json.dumps(text[:_SHOWN] + ("..." if len(text) > _SHOWN else ""))
