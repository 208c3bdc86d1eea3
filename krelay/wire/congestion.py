"""Congestion control of one tunnel: the sender's window, and the receiver's acknowledgements.

The path into a cluster buffers tens of MiB, and a full buffer delays a keystroke by seconds. So the
sender keeps in flight what the path needs and little more: the delivery rate that ACKs show, times
1.5 of the shortest round trip (protocol.md, section 7). These are the ideas of BBR
(draft-cardwell-iccrg-bbr-congestion-control), to the extent that a reliable pipe needs them.
"""

from __future__ import annotations

import math
from collections import deque

MIN_LIMIT = 32 << 10
START_LIMIT = 256 << 10
# Round trips' worth of bytes in flight: a queue of half a round trip. With 2, a keystroke beside a
# download takes two round trips and more. Ends that are slow to read or to acknowledge need more to
# fill the path, so every eighth round has more, and shows whether more gets through.
_GAIN = 1.5
_PROBE_GAIN = 2.5
_PROBE_EVERY = 8
# Seconds of queueing that are allowed even on the shortest path: two event loops and a scheduler.
_SLACK = 0.005
# Rounds whose best rates count: a probe's lasts until the next one.
_RATE_ROUNDS = 10
# The rate of fewer rounds is not trusted: a moment's hiccup makes a fast path look slow.
_RATE_KNOWN = 4
# A shortest round trip older than this, in seconds, is measured again with the queue drained.
# Under a steady load it would otherwise include the queue that the sender itself has built.
_RTT_MEMORY = 10.0
_MARK_EVERY = 16 << 10

_ACK_DELAY = 0.010
_ACK_MIN = 16 << 10
_ACK_MAX = 256 << 10


class CongestionWindow:
    """The sender's side: octets sent and acknowledged on a tunnel, and the limit between them."""

    __slots__ = (
        "_limited",
        "_marks",
        "_max_limit",
        "_probe_from",
        "_rates",
        "_round_end",
        "_rounds",
        "_rtt_at",
        "acked",
        "limit",
        "rtt",
        "sent",
    )

    def __init__(self, max_limit: int) -> None:
        self.sent = 0
        self.acked = 0
        self.limit = min(START_LIMIT, max_limit)
        self.rtt = 0.0
        self._max_limit = max_limit
        self._rtt_at = 0.0
        self._probe_from: int | None = None
        self._rates: deque[float] = deque(maxlen=_RATE_ROUNDS)
        self._rounds = 0
        self._round_end = 0
        # (sent after this write, acked then, time), one for each write that is not yet acked.
        self._marks: deque[tuple[int, int, float]] = deque()
        self._limited = False

    @property
    def room(self) -> int:
        """Octets that may be sent now; zero or less if none may."""
        return self.limit - (self.sent - self.acked)

    @property
    def rate(self) -> float:
        """Bytes a second that the path delivers when it is full; 0.0 until that is known."""
        return max(self._rates) if len(self._rates) >= _RATE_KNOWN else 0.0

    def on_sent(self, count: int, now: float, *, limited: bool) -> None:
        """Count octets that were sent. `limited`: the limit alone held back more."""
        self.sent += count
        self._limited = self._limited or limited
        if count and (not self._marks or self.sent - self._marks[-1][0] >= _MARK_EVERY):
            self._marks.append((self.sent, self.acked, now))

    def on_ack(self, acked: int, now: float) -> bool:
        """Take an ACK of `acked` octets of this tunnel; return False if that is impossible."""
        if not self.acked <= acked <= self.sent:
            return False
        self.acked = acked
        mark = None
        while self._marks and self._marks[0][0] <= acked:
            mark = self._marks.popleft()
        if mark is not None:
            sent_after, acked_then, sent_at = mark
            elapsed = max(now - sent_at, 1e-6)
            self._on_round(sent_after, elapsed, (acked - acked_then) / elapsed, now)
        return True

    def on_rtt(self, sample: float, now: float) -> None:
        """Take a round trip of `sample` seconds: that of a PING, which never waits at the peer."""
        if not self.rtt or sample <= self.rtt:
            self.rtt = sample
            self._rtt_at = now

    def _on_round(self, sent_after: int, rtt: float, rate: float, now: float) -> None:
        if self._probe_from is not None:
            if sent_after <= self._probe_from:
                return
            self._probe_from = None
            self.rtt, self._rtt_at = rtt, now
        elif self.rtt and now - self._rtt_at > _RTT_MEMORY:
            self._probe_from = self.sent
            self._set_limit(self.rtt / _GAIN)
            return
        else:
            self.on_rtt(rtt, now)
            # A rate that the application held down, not the limit, says nothing about the path,
            # unless it is the best so far.
            if not self._limited and rate <= max(self._rates, default=0.0):
                return
            if not self._rates or sent_after > self._round_end:
                self._round_end = self.sent
                self._rounds += 1
                self._rates.append(rate)
            else:
                self._rates[-1] = max(self._rates[-1], rate)
        self._limited = False
        gain = _GAIN if self._rounds % _PROBE_EVERY else _PROBE_GAIN
        # The queue must outlast the delay of an ACK, or the measured rate sinks with the limit.
        ack_delay = min(self.rtt, _ACK_DELAY)
        self._set_limit(max(self.rtt * gain, self.rtt + ack_delay, self.rtt + _SLACK))

    def _set_limit(self, seconds: float) -> None:
        """Allow what the path delivers in `seconds`, within the bounds."""
        wanted = int(max(self._rates, default=0.0) * seconds)
        self.limit = max(MIN_LIMIT, min(wanted, self._max_limit))


class AckTimer:
    """The receiver's side: octets received on a tunnel, and when to acknowledge them.

    An ACK goes out every few milliseconds whatever the rate: often enough on a slow path, cheap on
    a fast one (protocol.md, section 7). `due` says that it is time.
    """

    __slots__ = ("_deadline", "_every", "_octets", "_acked", "_acked_at", "due")

    def __init__(self, now: float) -> None:
        self.due = False
        self._octets = self._acked = 0
        self._every = _ACK_MIN
        self._deadline: float | None = None
        self._acked_at = now

    @property
    def waiting(self) -> bool:
        """Whether octets wait to be acknowledged."""
        return self._deadline is not None

    def reset(self) -> None:
        """Count from zero, for another tunnel."""
        self.due = False
        self._octets = self._acked = 0
        self._deadline = None

    def received(self, octets: int, now: float) -> None:
        """Count a frame that needs an acknowledgement."""
        self._octets += octets
        if self._deadline is None:
            self._deadline = now + _ACK_DELAY

    def flush_if_due(self, now: float) -> None:
        """After a read: make an ACK due if enough octets wait."""
        if self._octets - self._acked < self._every:
            return
        self.due = True
        since = now - self._acked_at
        if since < 0.001:
            self._every = min(self._every * 2, _ACK_MAX)
        elif since > 0.004:
            self._every = max(self._every // 2, _ACK_MIN)

    def tick(self, now: float) -> float:
        """Make an ACK due if its time has come; return the next deadline, infinite without one."""
        if self._deadline is not None and now >= self._deadline:
            self.due = True
            self._deadline = None
        return math.inf if self._deadline is None else self._deadline

    def next_ack(self, now: float) -> int:
        """Return the octets that the ACK of this moment carries."""
        self.due = False
        self._deadline = None
        self._acked_at = now
        self._acked = self._octets
        return self._octets
