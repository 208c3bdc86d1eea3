"""Typed: read JSON that others wrote into values of declared types. Pure.

An API server, an issuer or a plugin may send anything. `load` and `read` return only the fields
that a `Kind` declares, each of the declared type, or raise an error that says which field is
wrong, what was expected and what was there. So the code behind them needs no checks. An error
shows a wrong value only where a secret cannot stand: never where text or an object was expected.

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

MAX_VALUES = 1_000_000
"""Values in one document: a page of 200 large pods has about 100,000."""

_SHOWN = 40
_MAX_DIGITS = 20


class Mismatch(ValueError):
    """A value of the wrong type. `path` leads to it from the outside in."""

    def __init__(self, problem: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.path = ""

    def inside(self, step: str) -> Mismatch:
        """The same, one step further out: a field's name, or an index in brackets."""
        dot = "." if self.path and not self.path.startswith("[") else ""
        self.path = f"{step}{dot}{self.path}"
        return self

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}" if self.path else self.problem


def _wrong(expected: str, value: object, *, shown: bool = False) -> Mismatch:
    return Mismatch(f"expected {expected}, got {_described(value, shown=shown)}")


def _described(value: object, *, shown: bool) -> str:
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


class Kind(Protocol):
    """What a value must be."""

    def read(self, value: Any) -> Any:
        """`value` as this kind. Raises Mismatch."""


@dataclass(frozen=True, slots=True)
class Text:
    """Any Unicode text of up to `most` characters, none of them in `without`."""

    most: int = 1 << 20
    without: str = ""

    def read(self, value: Any) -> str:
        if not isinstance(value, str):
            raise _wrong("a text", value)
        if len(value) > self.most:
            raise Mismatch(f"longer than {self.most} characters")
        try:
            value.isascii() or value.encode()
        except UnicodeEncodeError:
            raise Mismatch("half of a surrogate pair, which no text can hold") from None
        for character in self.without:
            if character in value:
                raise Mismatch(f"expected a text without {json.dumps(character)}")
        return value


@dataclass(frozen=True, slots=True)
class Words:
    """Text for a person, of which `most` characters are kept."""

    most: int = 4096

    def read(self, value: Any) -> str:
        if not isinstance(value, str):
            raise _wrong("a text", value)
        text = value[: self.most]
        return text if text.isascii() else text.encode("utf-8", "replace").decode()


@dataclass(frozen=True, slots=True)
class Word:
    """A name or a token: printable ASCII without a space."""

    most: int = 253

    def read(self, value: Any) -> str:
        if not isinstance(value, str):
            raise _wrong("a text", value)
        if len(value) > self.most:
            raise Mismatch(f"longer than {self.most} characters")
        if not (value.isascii() and value.isprintable()) or " " in value:
            # Not what it is instead: it may be a token with one character too many.
            raise Mismatch("expected printable ASCII without spaces, got other characters")
        return value


@dataclass(frozen=True, slots=True)
class OneOf:
    """One of a few words; empty counts as absent."""

    words: Collection[str]

    def read(self, value: Any) -> str:
        if not isinstance(value, str) or (value and value not in self.words):
            raise _wrong(f"one of {', '.join(self.words)}", value, shown=True)
        return value


@dataclass(frozen=True, slots=True)
class Address:
    """An IP address as text; empty counts as absent."""

    def read(self, value: Any) -> str:
        if isinstance(value, str) and len(value) <= 64:
            try:
                if value:
                    ipaddress.ip_address(value)
                return value
            except ValueError:
                pass
        raise _wrong("an IP address", value, shown=True)


@dataclass(frozen=True, slots=True)
class Flag:
    """true or false."""

    def read(self, value: Any) -> bool:
        if not isinstance(value, bool):
            raise _wrong("true or false", value, shown=True)
        return value


@dataclass(frozen=True, slots=True)
class Whole:
    """An integer of a range."""

    least: int = 0
    most: int = (1 << 63) - 1

    def read(self, value: Any) -> int:
        if not isinstance(value, int) or isinstance(value, bool):
            raise _wrong("a whole number", value, shown=True)
        if not self.least <= value <= self.most:
            wanted = f"a whole number from {self.least} to {self.most}"
            raise _wrong(wanted, value, shown=True)
        return value


@dataclass(frozen=True, slots=True)
class Number:
    """A finite number, as a float."""

    def read(self, value: Any) -> float:
        if isinstance(value, int | float) and not isinstance(value, bool):
            try:
                found = float(value)
            except OverflowError:
                found = math.inf
            if math.isfinite(found):
                return found
        raise _wrong("a number", value, shown=True)


@dataclass(frozen=True, slots=True)
class Time:
    """RFC 3339, as seconds since the epoch."""

    def read(self, value: Any) -> float:
        if isinstance(value, str) and 20 <= len(value) <= 40:
            try:
                found = datetime.fromisoformat(value)
                if found.tzinfo is not None:
                    return found.timestamp()
            except (ValueError, OverflowError):
                pass
        raise _wrong("a time (RFC 3339)", value, shown=True)


@dataclass(frozen=True, slots=True)
class Either:
    """The first of several kinds that fits."""

    kinds: tuple[Kind, ...]
    words: str

    def read(self, value: Any) -> Any:
        for kind in self.kinds:
            try:
                return kind.read(value)
            except Mismatch:
                continue
        raise _wrong(self.words, value)


@dataclass(frozen=True, slots=True)
class Many:
    """A list; each element is of one kind."""

    kind: Kind
    most: int = 100_000

    def read(self, value: Any) -> list[Any]:
        if not isinstance(value, list):
            raise _wrong("a list", value)
        if len(value) > self.most:
            raise Mismatch(f"a list of more than {self.most} elements")
        found = []
        for index, element in enumerate(value):
            try:
                found.append(self.kind.read(element))
            except Mismatch as exc:
                raise exc.inside(f"[{index}]") from None
        return found


@dataclass(frozen=True, slots=True)
class Table:
    """An object with any keys; each value is of one kind."""

    kind: Kind
    most: int = 10_000

    def read(self, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise _wrong("an object", value)
        if len(value) > self.most:
            raise Mismatch(f"an object of more than {self.most} keys")
        found = {}
        for name, inner in value.items():
            try:
                key = _KEY.read(name)
            except Mismatch as exc:
                raise exc.inside("a key") from None
            if inner is None:
                continue
            try:
                found[key] = self.kind.read(inner)
            except Mismatch as exc:
                raise exc.inside(key if key.isidentifier() else _quoted(key)) from None
        return found


_KEY = Text(1024)


@dataclass(frozen=True, slots=True)
class Shape:
    """An object: its fields that are read, and those that it needs (neither null nor empty)."""

    fields: Mapping[str, Kind]
    needs: Collection[str] = field(default=())

    def read(self, value: Any) -> dict[str, Any]:
        if not isinstance(value, dict):
            raise _wrong("an object", value)
        found = {}
        for name, kind in self.fields.items():
            inner = value.get(name)
            if inner is None:
                continue
            try:
                found[name] = kind.read(inner)
            except Mismatch as exc:
                raise exc.inside(name) from None
        for name in self.needs:
            if found.get(name) in (None, ""):
                raise Mismatch("is missing").inside(name)
        return found


class Anything:
    """A value that is passed on and never looked into."""

    def read(self, value: Any) -> Any:
        return value


# -- documents -------------------------------------------------------------------------------------


def read(kind: Kind, value: Any, what: str, *, error: type[ClusterError] = MalformedError) -> Any:
    """`value` as `kind`; `what` names its source in the error.

    Raises:
        ClusterError: of the type `error`; the message names the field.
    """
    try:
        return kind.read(value)
    except Mismatch as exc:
        raise error(f"{what}: {exc}") from exc


def load(
    kind: Kind,
    data: bytes,
    what: str,
    *,
    values: int = MAX_VALUES,
    error: type[ClusterError] = MalformedError,
) -> Any:
    """The JSON document `data` as `kind`. The caller has bounded its size.

    Raises:
        ClusterError: of the type `error`: no JSON, more than `values` values, or another type.
    """
    try:
        return kind.read(parse(data, values=values))
    except Mismatch as exc:
        raise error(f"{what}: {exc}") from exc


def parse(data: bytes, *, values: int = MAX_VALUES) -> Any:
    """A JSON document (RFC 8259) as Python values.

    Raises:
        Mismatch: it is none, nests too deep, has a key twice, or has a number that no double or
            64-bit integer holds.
    """
    # Each value has one of these before it, but for the first: the parser's time and memory are
    # known before it starts.
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


def _whole(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise Mismatch(f"a number of {len(digits)} digits")
    return int(digits)


def _real(digits: str) -> float:
    found = float(digits)
    if not math.isfinite(found):
        raise Mismatch(f"the number {digits[:_SHOWN]} is out of range")
    return found


def _constant(name: str) -> float:
    raise Mismatch(f"{name} is no number in JSON")


_DECODER = json.JSONDecoder(
    object_pairs_hook=_unique, parse_int=_whole, parse_float=_real, parse_constant=_constant
)
