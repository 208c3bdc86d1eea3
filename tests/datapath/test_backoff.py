"""The delays between tries."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krelay.datapath.backoff import Backoff


def test_the_first_try_waits_for_nothing() -> None:
    assert Backoff().delay() == 0


@given(st.integers(1, 40))
def test_delays_stay_below_a_ceiling_that_doubles(tries: int) -> None:
    backoff = Backoff(first=0.1, most=10.0)
    delays = [backoff.delay() for _ in range(tries)]
    for index, delay in enumerate(delays[1:]):
        assert 0 <= delay <= min(0.1 * 2**index, 10.0) + 1e-9


def test_the_ceiling_is_reached_and_not_passed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: high)
    backoff = Backoff(first=1.0, most=5.0)
    assert [backoff.delay() for _ in range(6)] == [0, 1, 2, 4, 5, 5]
    backoff.reset()
    assert backoff.delay() == 0
