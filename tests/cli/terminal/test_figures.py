"""Times, sizes and rates of the table."""

from __future__ import annotations

import re
from datetime import timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krelay.cli.terminal.figures import RateMeter, age, size
from tests.cli.reports import START, carried, forward, report


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(-3, "0s"), (0, "0s"), (59.9, "59s"), (60, "1m"), (3599, "59m"), (7200, "2h"), (1e6, "11d")],
)
def test_an_age_has_one_unit(seconds: float, text: str) -> None:
    assert age(START.isoformat(), START + timedelta(seconds=seconds)) == text


def test_a_rate_is_the_difference_of_two_snapshots() -> None:
    rates = RateMeter()
    before = report(forward(traffic=carried(1000, 50)), forward("db", traffic=carried(0, 0)))
    after = report(forward(traffic=carried(3000, 50)), forward("new", traffic=carried(9, 9)))
    assert rates.update(before, 10.0) == {}
    assert rates.update(after, 10.5) == {("web", 0): (4000.0, 0.0), ("new", 0): (0.0, 0.0)}


def test_another_run_has_no_rates_at_first() -> None:
    rates = RateMeter()
    busy = report(forward(traffic=carried(1000, 1000)))
    rates.update(busy, 10.0)
    assert rates.update({**busy, "pid": 1}, 11.0) == {}
    busier = report(forward(traffic=carried(1500, 1000)))
    assert rates.update({**busier, "pid": 1}, 12.0) == {("web", 0): (500.0, 0.0)}


def test_no_elapsed_time_and_fewer_bytes_give_no_rate() -> None:
    rates = RateMeter()
    rates.update(report(forward(traffic=carried(1000, 0))), 10.0)
    assert rates.update(report(forward(traffic=carried(2000, 0))), 10.0) == {}
    assert rates.update(report(forward(traffic=carried(2001, 0))), 11.0) == {("web", 0): (1.0, 0.0)}
    assert rates.update(report(forward(traffic=carried(0, 0))), 12.0) == {("web", 0): (0.0, 0.0)}


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
def test_a_size_has_a_unit(count: float, text: str) -> None:
    assert size(count) == text


@settings(deadline=None)
@given(st.floats(0, 9e14))
def test_a_size_has_three_digits_at_most(count: float) -> None:
    assert re.fullmatch(r"(\d{1,3}|\d\.\d) [kMGT]?B", size(count))


def test_an_idle_run_has_no_rates() -> None:
    rates = RateMeter()
    rates.update(report(forward()), 1.0)
    assert rates.update(report(forward()), 2.0) == {}
    busy = report(forward(traffic=carried(10, 0)))
    assert rates.update(busy, 3.0) == {("web", 0): (10.0, 0.0)}
    assert rates.update(busy, 33.0) == {("web", 0): (0.0, 0.0)}
    assert rates.update(busy, 33.1) == {}
