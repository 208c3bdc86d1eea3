from __future__ import annotations

import math

from krelay.wire.congestion import AckTimer


def test_what_came_is_told_within_ten_milliseconds() -> None:
    acks = AckTimer(0.0)
    assert acks.tick(0.0) == math.inf
    acks.received(100, 1.0)
    assert acks.waiting
    assert acks.tick(1.005) == 1.010
    assert not acks.due
    assert acks.tick(1.010) == math.inf
    assert acks.due
    assert acks.next_ack(1.010) == 100
    assert not acks.due


def test_much_is_told_at_once_and_more_of_it_less_often() -> None:
    acks = AckTimer(0.0)
    acks.received(16 << 10, 10.0)
    acks.flush_if_due(10.0)
    assert acks.due
    acks.next_ack(10.0)
    told, now = 0, 10.0
    for _ in range(64):
        now += 0.0001
        acks.received(16 << 10, now)
        acks.flush_if_due(now)
        if acks.due:
            told += 1
            acks.next_ack(now)
    assert told < 16
    # and slowly again where the path is slow
    now += 60.0
    acks.received(1 << 20, now)
    acks.flush_if_due(now)
    acks.next_ack(now)
    for _ in range(4):
        now += 1.0
        acks.received(128 << 10, now)
        acks.flush_if_due(now)
        assert acks.due
        acks.next_ack(now)


def test_another_tunnel_counts_from_zero() -> None:
    acks = AckTimer(0.0)
    acks.received(100, 0.0)
    acks.reset()
    assert not acks.waiting
    acks.received(7, 1.0)
    assert acks.next_ack(1.0) == 7
