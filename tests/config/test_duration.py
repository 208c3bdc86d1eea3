from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krelay.config.grammar import ParseError, parse_duration


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (30, 30.0),
        (0.5, 0.5),
        ("30", 30.0),
        ("1.5", 1.5),
        ("500ms", 0.5),
        ("30s", 30.0),
        ("5m", 300.0),
        ("1h30m", 5400.0),
        ("1h0.5m1s250ms", 3631.25),
        ("24h", 86400.0),
        (0, 0.0),
        ("0s", 0.0),
    ],
)
def test_durations(value: float | str, seconds: float) -> None:
    assert parse_duration(value) == seconds


@pytest.mark.parametrize(
    "value",
    ["", "s", " 5s", "5 s", "5s ", "5s\n", "5d", "5m1h", "5s5s", "-5s", "1e3", ".5s", "5.s", "٣s"],
)
def test_what_is_no_duration(value: str) -> None:
    with pytest.raises(ParseError, match="not a duration"):
        parse_duration(value)


@pytest.mark.parametrize("value", [-1, "25h", 86400.1, float("inf"), float("nan")])
def test_out_of_range(value: float | str) -> None:
    with pytest.raises(ParseError, match="out of range"):
        parse_duration(value)


@pytest.mark.parametrize("value", [0, "0", "0h0m"])
def test_positive(value: float | str) -> None:
    with pytest.raises(ParseError, match="out of range"):
        parse_duration(value, positive=True)


@given(st.text(alphabet="0123456789.hms -", max_size=12))
def test_any_text_is_a_duration_or_a_flaw(text: str) -> None:
    with contextlib.suppress(ParseError):
        assert 0 <= parse_duration(text) <= 86400
