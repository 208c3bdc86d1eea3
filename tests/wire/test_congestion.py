"""How much is in flight, and when ACKs are sent."""

from __future__ import annotations

import math
import statistics
from collections import deque

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from krelay.wire.congestion import MIN_LIMIT, START_LIMIT, AckTimer, CongestionWindow
from tests.wire.link import Link

CAP = 4 << 20


class Path:
    """A bottleneck of `rate` bytes a second with a round trip of `rtt` seconds."""

    def __init__(self, rate: float, rtt: float) -> None:
        self.rate, self.rtt = rate, rtt
        self.now = 0.0
        self.free_at = 0.0
        self.flight = CongestionWindow(CAP)
        self.acks: deque[tuple[float, int]] = deque()
        self.worst_queue = 0.0

    def run(self, seconds: float) -> float:
        """Send all that the limit allows for so long; the bytes a second that got through."""
        chunk = (128 if self.rate > 100e6 else 16) << 10
        until, began = self.now + seconds, self.flight.acked
        self.worst_queue = 0.0
        while self.now < until:
            sent = 0
            while self.flight.room > 0 and sent < 1 << 18:
                self.free_at = max(self.free_at, self.now) + chunk / self.rate
                self.worst_queue = max(self.worst_queue, self.free_at - self.now)
                sent += chunk
                self.flight.on_sent(chunk, self.now, limited=self.flight.room <= chunk)
                self.acks.append((self.free_at + self.rtt, self.flight.sent))
            if not self.acks:
                break
            self.now, acked = self.acks.popleft()
            assert self.flight.on_ack(acked, self.now)
        return (self.flight.acked - began) / seconds


@pytest.mark.parametrize(
    ("rate", "rtt"), [(6.25e6, 0.04), (250e6, 0.0005), (1.25e6, 0.1), (12.5e6, 0.005)]
)
def test_the_window_fills_the_path_and_little_more(rate: float, rtt: float) -> None:
    path = Path(rate, rtt)
    path.run(5)
    assert path.run(4) > 0.8 * rate
    assert path.worst_queue < 2 * rtt + 0.05
    # Half a minute later it has measured the round trip anew, and not its own queue.
    path.run(30)
    assert path.flight.rtt < rtt * 1.5 + 0.02
    assert path.run(4) > 0.8 * rate


def test_the_window_grows_when_the_path_becomes_faster() -> None:
    path = Path(1e6, 0.02)
    path.run(10)
    path.rate = 20e6
    path.run(5)
    assert path.run(3) > 0.8 * 20e6


def test_the_window_grows_again_after_a_trickle() -> None:
    path = Path(50e6, 0.001)
    for _ in range(500):
        path.now += 0.05
        path.flight.on_sent(100, path.now, limited=False)
        assert path.flight.on_ack(path.flight.sent, path.now + 0.001)
    path.run(2)
    assert path.run(2) > 0.8 * 50e6


@given(
    st.lists(
        st.tuples(
            st.integers(0, 300_000), st.floats(0, 30), st.integers(0, 400_000), st.booleans()
        ),
        max_size=80,
    )
)
@settings(deadline=None)
def test_the_limit_stays_within_its_bounds(
    steps: list[tuple[int, float, int, bool]],
) -> None:
    flight, now = CongestionWindow(CAP), 0.0
    assert flight.limit == START_LIMIT
    for sent, later, acked, limited in steps:
        flight.on_sent(sent, now, limited=limited)
        now += later
        if flight.on_ack(flight.acked + acked, now):
            assert flight.acked <= flight.sent
        assert MIN_LIMIT <= flight.limit <= CAP
        assert flight.rtt >= 0


def test_the_limit_of_a_probe_stays_within_its_bounds() -> None:
    flight = CongestionWindow(CAP)
    # A rate beyond all measure, then a round trip that is too old to be believed.
    flight.on_sent(1 << 20, 0.0, limited=True)
    assert flight.on_ack(1 << 20, 0.0)
    flight.rtt = 10.0
    flight.on_sent(1, 100.0, limited=False)
    assert flight.on_ack((1 << 20) + 1, 111.0)
    assert flight.limit == CAP


def test_an_impossible_ack_is_rejected() -> None:
    flight = CongestionWindow(CAP)
    flight.on_sent(100, 0.0, limited=False)
    assert not flight.on_ack(101, 0.1)
    assert flight.on_ack(100, 0.1)
    assert not flight.on_ack(99, 0.2)


def test_a_ping_s_round_trip_counts_when_it_is_the_shortest() -> None:
    flight = CongestionWindow(CAP)
    flight.on_rtt(0.05, 1.0)
    flight.on_rtt(0.09, 2.0)
    assert flight.rtt == 0.05
    flight.on_rtt(0.01, 3.0)
    assert flight.rtt == 0.01


def test_octets_are_acknowledged_within_ten_milliseconds() -> None:
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


def test_fast_data_is_acknowledged_at_once_and_ever_less_often() -> None:
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


def test_octets_of_a_new_tunnel_count_from_zero() -> None:
    acks = AckTimer(0.0)
    acks.received(100, 0.0)
    acks.reset()
    assert not acks.waiting
    acks.received(7, 1.0)
    assert acks.next_ack(1.0) == 7


@pytest.mark.parametrize("up", [False, True], ids=["down", "up"])
@pytest.mark.parametrize("rtt", [0.01, 0.04, 0.1])
def test_bulk_fills_a_link_and_an_echo_beside_it_waits_for_little_more_than_half_a_round_trip(
    rtt: float, up: bool
) -> None:
    link = Link(50e6 / 8, rtt, up=up)
    assert link.run(14.0) > 0.98  # the round trip is measured again meanwhile
    assert statistics.median(link.echoes) < rtt * 1.65 + 0.013


@pytest.mark.parametrize("up", [False, True], ids=["down", "up"])
def test_bulk_fills_a_link_whose_ends_are_late_by_most_of_a_round_trip(up: bool) -> None:
    assert Link(50e6 / 8, 0.04, up=up, jitter=0.03).run(12.0) > 0.96
