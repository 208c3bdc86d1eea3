from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from krelay.wire.keepalive import Keepalive


def made() -> Keepalive:
    alive = Keepalive(3.0, 6.0, 0.0)
    alive.reset(0.0)
    return alive


def test_a_ping_is_due_at_once_on_a_new_tunnel_then_every_interval() -> None:
    alive = made()
    assert alive.tick(0.0) == 3.0
    assert alive.due
    alive.received()
    alive.due = False
    assert alive.tick(2.0) == 3.0
    assert not alive.due
    assert alive.tick(3.5) == 6.5
    assert alive.due


def test_silence_counts_from_when_the_ping_fell_due_whether_it_was_written_or_not() -> None:
    alive = made()
    alive.tick(0.0)
    assert alive.tick(5.0) == 6.0
    assert not alive.expired(5.9)
    assert alive.expired(6.0)
    alive.received()
    assert not alive.expired(100.0)


def test_a_doubted_tunnel_has_less_time_once() -> None:
    alive = made()
    alive.tick(0.0)
    alive.received()
    alive.verify_within(2.0, 10.0)
    assert alive.due
    assert alive.tick(10.0) == 12.0
    assert not alive.expired(11.9)
    assert alive.expired(12.0)
    alive.received()
    alive.tick(20.0)
    assert not alive.expired(25.0)
    alive.verify_within(2.0, 25.0)  # what was left before is less
    assert alive.expired(26.0)


@given(st.floats(0.001, 1e9), st.floats(0.5, 60), st.floats(0.5, 60))
def test_a_tunnel_is_expired_at_the_deadline_that_tick_returned(
    now: float, interval: float, timeout: float
) -> None:
    alive = Keepalive(interval, timeout, now)
    alive.reset(now)
    while not alive.expired(now):
        then = alive.tick(now)
        assert then > now or alive.expired(then)
        now = then


def test_a_new_tunnel_resets_the_keepalive() -> None:
    alive = made()
    alive.tick(0.0)
    alive.verify_within(0.0, 1.0)
    assert alive.expired(1.0)
    alive.reset(1.0)
    assert not alive.expired(7.0)
