"""A receive window: honest arithmetic, returned in time, grown within its bounds."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krelay.wire.errors import FlowControlError
from krelay.wire.stream import INITIAL_WINDOW, MAX_WINDOW, RecvWindow


@given(
    st.lists(
        st.tuples(st.integers(1, 100_000), st.floats(0, 1), st.integers(-5, 10**7)), max_size=60
    )
)
def test_credit_is_what_was_granted_and_not_used(
    steps: list[tuple[int, float, int]],
) -> None:
    window, now = RecvWindow(0.0), 0.0
    credit = INITIAL_WINDOW
    waiting = 0
    for wanted, later, room in steps:
        now += later
        size = min(wanted, credit)
        window.receive(size)
        credit -= size
        waiting += size
        before = window.size
        credit += window.consume(waiting, now, 0.05, room)
        waiting = 0
        assert INITIAL_WINDOW <= window.size <= MAX_WINDOW
        assert window.size - before <= max(room, 0)
        # Half of it at least is always the peer's, so that it never has to stop for long.
        assert window.size / 2 <= credit <= window.size


def test_a_byte_too_much() -> None:
    window = RecvWindow(0.0)
    window.receive(INITIAL_WINDOW)
    with pytest.raises(FlowControlError, match="1 bytes over"):
        window.receive(1)


def test_a_fast_stream_s_window_doubles_and_a_slow_one_s_does_not() -> None:
    for pause, size in ((0.01, 2 * INITIAL_WINDOW), (10.0, INITIAL_WINDOW)):
        window = RecvWindow(0.0)
        window.receive(INITIAL_WINDOW)
        window.consume(INITIAL_WINDOW, pause, 0.05, 1 << 30)
        assert window.size == size


def test_less_than_half_is_not_returned_yet() -> None:
    window = RecvWindow(0.0)
    window.receive(1000)
    assert window.consume(1000, 0.0, 0.05, 0) == 0
