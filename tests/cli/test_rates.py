"""Bytes a second, from two reports; and how many that are, for people."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krelay.cli.rates import Rates, size
from tests.cli.reports import carried, forward, report


def test_a_rate_is_the_difference_of_two_reports() -> None:
    rates = Rates()
    before = report(forward(traffic=carried(1000, 50)), forward("db", traffic=carried(0, 0)))
    after = report(forward(traffic=carried(3000, 50)), forward("new", traffic=carried(9, 9)))
    assert rates.update(before, 10.0) == {}
    assert rates.update(after, 10.5) == {("web", 0): (4000.0, 0.0), ("new", 0): (0.0, 0.0)}


def test_another_run_begins_anew() -> None:
    rates = Rates()
    busy = report(forward(traffic=carried(1000, 1000)))
    rates.update(busy, 10.0)
    assert rates.update({**busy, "pid": 1}, 11.0) == {}
    assert rates.update({**busy, "pid": 1}, 12.0) == {("web", 0): (0.0, 0.0)}


def test_no_time_and_less_bytes_are_no_rate() -> None:
    rates = Rates()
    rates.update(report(forward(traffic=carried(1000, 0))), 10.0)
    assert rates.update(report(forward(traffic=carried(2000, 0))), 10.0) == {}
    assert rates.update(report(forward(traffic=carried(0, 0))), 11.0) == {("web", 0): (0.0, 0.0)}


@pytest.mark.parametrize(
    ("count", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (999.6, "1.0 kB"),
        (1234, "1.2 kB"),
        (9949, "9.9 kB"),
        (9951, "10 kB"),
        (999_499, "999 kB"),
        (1_500_000, "1.5 MB"),
        (2e15, "2000 TB"),
    ],
)
def test_a_size_for_people(count: float, text: str) -> None:
    assert size(count) == text


@settings(deadline=None)
@given(st.floats(0, 9e14))
def test_a_size_has_three_digits_at_most(count: float) -> None:
    assert re.fullmatch(r"(\d{1,3}|\d\.\d) [kMGT]?B", size(count))
