from __future__ import annotations

import json
import math
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krelay.errors import ClusterError, CredentialsError, MalformedError
from krelay.typed import (
    Address,
    AnyOf,
    AnyValue,
    Boolean,
    Integer,
    ListOf,
    MapOf,
    Message,
    Mismatch,
    Number,
    OneOf,
    Schema,
    Shape,
    String,
    Timestamp,
    Token,
    load,
    parse,
    read,
)


@pytest.mark.parametrize(
    ("kind", "value", "message"),
    [
        (String(), 5, "expected a text, got a number"),
        (String(), None, "expected a text, got nothing"),
        (String(3), "secret", "longer than 3 characters"),
        (String(), "\ud800", "half of a surrogate pair, which no text can hold"),
        (String(without="\0="), "secret=", 'expected a text without "="'),
        (String(without="\0="), "secret\0", 'expected a text without "\\u0000"'),
        (Message(), [], "expected a text, got a list"),
        (Token(), {}, "expected a text, got an object"),
        (Token(), "a b", "expected printable ASCII without spaces, got other characters"),
        (Token(), "a\x1b", "expected printable ASCII without spaces, got other characters"),
        (Token(3), "abcd", "longer than 3 characters"),
        (OneOf(("a", "b")), "c", 'expected one of a, b, got the text "c"'),
        (Address(), "db.test", 'expected an IP address, got the text "db.test"'),
        (Boolean(), "false", 'expected true or false, got the text "false"'),
        (Boolean(), 0, "expected true or false, got the number 0"),
        (Integer(), True, "expected a whole number, got true"),
        (Integer(), 1.0, "expected a whole number, got the number 1.0"),
        (Integer(1, 9), 10, "expected a whole number from 1 to 9, got the number 10"),
        (Number(), math.nan, "expected a number, got the number nan"),
        (Number(), 10**400, f"expected a number, got the number 1{'0' * 39}"),
        (Timestamp(), "2026-01-01", 'expected a time (RFC 3339), got the text "2026-01-01"'),
        (Timestamp(), "2026-01-01T00:00:00", "expected a time (RFC 3339), got the text"),
        (Timestamp(), "2026-99-99T00:00:00+00:00", "expected a time (RFC 3339), got the text"),
        (Timestamp(), "2026-01-01T00:00:00.5", "expected a time (RFC 3339), got the text"),
        (String(), b"x", "expected a text, got a bytes"),
        (AnyOf((Integer(), Token()), "a port"), 1.5, "expected a port, got a number"),
        (ListOf(Boolean()), [True, 1], "[1]: expected true or false, got the number 1"),
        (ListOf(Boolean(), 1), [True, True], "a list of more than 1 elements"),
        (
            MapOf(Boolean()),
            {"a": True, "b.c": 1},
            '"b.c": expected true or false, got the number 1',
        ),
        (MapOf(Boolean(), 0), {"a": True}, "an object of more than 0 keys"),
        (MapOf(Boolean()), {1: True}, "a key: expected a text, got a number"),
        (Shape({}, needs=("name",)), {}, "name: is missing"),
        (Shape({"a": Token()}, needs=("a",)), {"a": ""}, "a: is missing"),
        (
            Shape({"a": ListOf(Shape({"b": MapOf(ListOf(Boolean()))}))}),
            {"a": [{}, {"b": {"c": [1]}}]},
            "a[1].b.c[0]: expected true or false, got the number 1",
        ),
    ],
)
def test_a_wrong_value_is_named_with_its_place(kind: Schema, value: Any, message: str) -> None:
    with pytest.raises(Mismatch) as caught:
        kind.read(value)
    assert str(caught.value).startswith(message)


def test_only_declared_fields_come_out_and_null_is_absent() -> None:
    kind = Shape({"a": Boolean(), "b": Message(3), "c": AnyValue(), "d": MapOf(Boolean())})
    value = {"a": None, "b": "\ud800bcde", "c": [1, None], "d": {"x": None, "y": False}, "z": 1}
    assert kind.read(value) == {"b": "?bc", "c": [1, None], "d": {"y": False}}


def test_a_value_that_fits_is_returned() -> None:
    assert Timestamp().read("2026-01-01T00:00:00.123456789Z") == pytest.approx(1767225600.123456)
    assert AnyOf((Integer(), Token()), "a port").read("http") == "http"
    assert Address().read("fd00::7") == "fd00::7"
    assert Address().read("") == ""
    assert Number().read(5) == 5.0


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"{", "not JSON"),
        (b"\xff", "not UTF-8"),
        (b"[" * 90_000, "nested too deep"),
        (b'{"a":' * 90_000, "nested too deep"),
        (b"1" * 21, "a number of 21 digits"),
        (b"1" * 10_000, "a number of 10000 digits"),
        (b"NaN", "NaN is not a JSON number"),
        (b"[-Infinity]", "-Infinity is not a JSON number"),
        (b"1e999", "the number 1e999 is out of range"),
        (b'{"a":1,"a":2}', 'the key "a" is there twice'),
        (b"[" + b"0," * 99_999 + b"0]", "more than 100000 values"),
        (b'"\n"', "not JSON"),
    ],
    ids=range(12),
)
def test_a_hostile_document_is_refused(data: bytes, message: str) -> None:
    with pytest.raises(Mismatch, match=message):
        parse(data, values=100_000)


def test_the_error_is_of_the_type_that_is_wanted() -> None:
    with pytest.raises(MalformedError, match="^a pod: expected an object, got a list$") as caught:
        load(Shape({}), b"[]", "a pod")
    assert caught.value.exit_code == 4
    with pytest.raises(CredentialsError, match="^kubeconfig: a: expected"):
        read(Shape({"a": Boolean()}), {"a": 1}, "kubeconfig", error=CredentialsError)


def test_a_secret_is_not_repeated() -> None:
    for kind in (
        Shape({"a": Boolean()}),
        MapOf(Boolean()),
        ListOf(Boolean()),
        String(3),
        Shape({"k": Boolean()}),
    ):
        with pytest.raises(Mismatch) as caught:
            kind.read("hunter2")
        assert "hunter2" not in str(caught.value)
    with pytest.raises(Mismatch) as caught:
        Token().read("hunter2\n")
    assert "hunter2" not in str(caught.value)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=12,
)


@given(json_values)
def test_any_document_is_read_or_refused_in_words(value: Any) -> None:
    kind = Shape(
        {"a": ListOf(MapOf(AnyOf((Integer(), Token()), "x"))), "b": String(), "c": Timestamp()}
    )
    try:
        load(kind, json.dumps(value).encode(), "it")
    except ClusterError as exc:
        assert str(exc).startswith("it: ")
        assert len(str(exc)) < 400


@pytest.mark.parametrize(
    "piece", [b'{"a":[', b'"\\u0041', b"[],", b'"a":1,', b"1,", b" ", b"\xc3\xa4", b"{}"]
)
def test_time_is_linear_in_the_size(piece: bytes) -> None:
    """Sizes doubled up to 8 MiB: the CPU time a byte does not grow with them."""

    def spent(size: int) -> float:
        data = piece * (size // len(piece))
        began = time.process_time()
        with pytest.raises(Mismatch):
            parse(b"[" + data, values=1 << 16)
        return time.process_time() - began

    spent(1 << 16)
    # A quadratic reader would take 2,000 times what this allows.
    assert spent(8 << 20) < 64 * spent(1 << 19) + 0.5


@pytest.mark.parametrize("value", ["a", ""])
def test_a_known_word_or_no_word_is_read_as_it_stands(value: str) -> None:
    assert OneOf(("a", "b")).read(value) == value
