from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from krelay.wire.keepalive import Keepalive


def made() -> Keepalive:
    alive = Keepalive(3.0, 6.0, 0.0)
    alive.begin(0.0)
    return alive


def test_a_new_tunnel_is_asked_at_once_then_every_interval() -> None:
    alive = made()
    assert alive.tick(0.0) == 3.0
    assert alive.due
    alive.heard()
    alive.due = False
    assert alive.tick(2.0) == 3.0
    assert not alive.due
    assert alive.tick(3.5) == 6.5
    assert alive.due


def test_silence_counts_from_when_the_ping_fell_due_whether_it_was_written_or_not() -> None:
    alive = made()
    alive.tick(0.0)
    assert alive.tick(5.0) == 6.0
    assert not alive.dead(5.9)
    assert alive.dead(6.0)
    alive.heard()
    assert not alive.dead(100.0)


def test_one_that_is_doubted_has_less_time_and_has_it_once() -> None:
    alive = made()
    alive.tick(0.0)
    alive.heard()
    alive.hurry(10.0, 2.0)
    assert alive.due
    assert alive.tick(10.0) == 12.0
    assert not alive.dead(11.9)
    assert alive.dead(12.0)
    alive.heard()
    alive.tick(20.0)
    assert not alive.dead(25.0)
    alive.hurry(25.0, 2.0)  # what was left before is less
    assert alive.dead(26.0)


@given(st.floats(0.001, 1e9), st.floats(0.5, 60), st.floats(0.5, 60))
def test_it_is_dead_when_it_said_to_look(now: float, interval: float, timeout: float) -> None:
    alive = Keepalive(interval, timeout, now)
    alive.begin(now)
    while not alive.dead(now):
        then = alive.tick(now)
        assert then > now or alive.dead(then)
        now = then


def test_a_new_tunnel_begins_without_a_past() -> None:
    alive = made()
    alive.tick(0.0)
    alive.hurry(1.0, 0.0)
    assert alive.dead(1.0)
    alive.begin(1.0)
    assert not alive.dead(7.0)
