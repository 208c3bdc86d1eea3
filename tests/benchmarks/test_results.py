"""Samples, medians and ratios."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.results import BASE, Results, Spread, figure, spread


def test_a_spread_is_the_median_between_least_and_most() -> None:
    assert spread([3.0, 1.0, 2.0, 10.0]) == Spread(2.5, 1.0, 10.0, 4)


def test_no_samples_have_no_spread() -> None:
    assert spread([]) is None


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (12345.6, "12,346"),
        (100.0, "100"),
        (99.96, "100"),
        (1.2345, "1.23"),
        (0.01234, "0.0123"),
        (0.00002, "2e-05"),
        (0.0, "0"),
    ],
)
def test_a_figure_has_three_digits(value: float, text: str) -> None:
    assert figure(value) == text


def test_a_ratio_divides_medians() -> None:
    results = Results()
    for value in (10.0, 30.0, 20.0):
        results.add("down", "MB/s", "krelay", value)
    results.add("down", "MB/s", BASE, 5.0)
    assert results.ratio("down", "krelay", BASE) == 4.0


def test_a_ratio_needs_samples_of_both() -> None:
    results = Results()
    results.add("down", "MB/s", "krelay", 1.0)
    assert results.ratio("down", "krelay", BASE) is None
    results.add("down", "MB/s", BASE, 0.0)
    assert results.ratio("down", "krelay", BASE) is None


def test_contenders_keep_their_order_and_include_those_that_failed() -> None:
    results = Results()
    results.add("down", "MB/s", "krelay", 1.0)
    results.add("up", "MB/s", "kubectl", 1.0)
    results.fail("down", "peer", "died")
    assert results.contenders() == ["krelay", "kubectl", "peer"]


def test_every_sample_survives_a_file(tmp_path: Path) -> None:
    results = Results(about={"cores": 2})
    results.add("down", "MB/s", "krelay", 1.5)
    results.fail("up", "peer", "died")
    results.grow("streams: memory", "krelay", 10, 60.5)
    results.save(tmp_path / "samples.json")
    again = Results.load(tmp_path / "samples.json")
    assert again == results
