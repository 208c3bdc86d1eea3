"""Backoff and OnceUntilChanged: the delays between attempts, and which failures are news."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krelay.errors import KrelayError, TunnelError
from krelay.retry import Backoff, OnceUntilChanged


def test_the_first_delay_is_zero() -> None:
    assert Backoff().delay() == 0


@given(st.integers(1, 40))
def test_delays_stay_below_a_ceiling_that_doubles(attempts: int) -> None:
    backoff = Backoff(first=0.1, most=10.0)
    delays = [backoff.delay() for _ in range(attempts)]
    for index, delay in enumerate(delays[1:]):
        assert 0 <= delay <= min(0.1 * 2**index, 10.0) + 1e-9


def test_delays_reach_the_ceiling_and_do_not_pass_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("random.uniform", lambda low, high: high)
    backoff = Backoff(first=1.0, most=5.0)
    assert [backoff.delay() for _ in range(6)] == [0, 1, 2, 4, 5, 5]
    backoff.reset()
    assert backoff.delay() == 0


def test_the_first_failure_is_new() -> None:
    assert OnceUntilChanged().is_new(OSError(2, "no such file"))


def test_an_equal_failure_is_a_repeat() -> None:
    once = OnceUntilChanged()
    once.is_new(OSError(2, "no such file"))
    assert not once.is_new(OSError(2, "no such file"))
    assert not once.is_new(OSError(2, "no such file"))


@pytest.mark.parametrize("other", [KrelayError("shut"), TunnelError("open")], ids=["type", "text"])
def test_a_failure_of_another_type_or_text_is_new(other: Exception) -> None:
    once = OnceUntilChanged()
    once.is_new(TunnelError("shut"))
    assert once.is_new(other)
    assert once.is_new(TunnelError("shut"))


def test_a_failure_is_new_again_after_clear() -> None:
    once = OnceUntilChanged()
    once.is_new(TunnelError("shut"))
    once.clear()
    assert once.is_new(TunnelError("shut"))
