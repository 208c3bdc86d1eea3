from __future__ import annotations

import math

from krelay.wire.acks import AckTimer


def test_what_came_is_told_within_ten_milliseconds() -> None:
    acks = AckTimer(0.0)
    assert acks.tick(0.0) == math.inf
    acks.take(100, 1.0)
    assert acks.waiting
    assert acks.tick(1.005) == 1.010
    assert not acks.due
    assert acks.tick(1.010) == math.inf
    assert acks.due
    assert acks.tell(1.010) == 100
    assert not acks.due


def test_much_is_told_at_once_and_more_of_it_less_often() -> None:
    acks = AckTimer(0.0)
    acks.take(16 << 10, 10.0)
    acks.pace(10.0)
    assert acks.due
    acks.tell(10.0)
    told, now = 0, 10.0
    for _ in range(64):
        now += 0.0001
        acks.take(16 << 10, now)
        acks.pace(now)
        if acks.due:
            told += 1
            acks.tell(now)
    assert told < 16
    # and slowly again where the path is slow
    now += 60.0
    acks.take(1 << 20, now)
    acks.pace(now)
    acks.tell(now)
    for _ in range(4):
        now += 1.0
        acks.take(128 << 10, now)
        acks.pace(now)
        assert acks.due
        acks.tell(now)


def test_another_tunnel_counts_from_zero() -> None:
    acks = AckTimer(0.0)
    acks.take(100, 0.0)
    acks.begin()
    assert not acks.waiting
    acks.take(7, 1.0)
    assert acks.tell(1.0) == 7
