"""ForwardMetrics: count what one forward carries, over all of its listeners.

Plain counts, changed on the way of the bytes: nothing here waits or allocates for a chunk. A TCP
relay counts its own bytes, so the account only has to know which relays live.
"""

from __future__ import annotations

import socket
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable
from typing import Protocol

from krelay.mux.sockets import ReceiveDrops
from krelay.wire.errors import ErrorCode

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of dial times, in seconds."""

OK, RESET, NO_STREAM, IDLE = "ok", "reset", "no_stream", "idle"
"""The results of what an agent opened, and of what waited for a stream in vain. A flow that was
used longest ago ends as `idle`, after a time or to make room for another."""

REFUSALS = {code: code.name.lower() for code in ErrorCode} | {
    # The name is taken by streams that were open.
    ErrorCode.RESET: ErrorCode.DIAL_FAILED.name.lower(),
    ErrorCode.NONE: ErrorCode.DIAL_FAILED.name.lower(),
}
"""The results of what an agent refused, by its answer; `cancelled` is a client that left first."""
_CANCELLED = REFUSALS[ErrorCode.CANCELLED]

BACKLOG, EARLY, UNROUTED = "backlog", "early", "no_stream"
KERNEL, RECEIVE = "kernel", "kernel_receive"
"""Why datagrams are lost: too much waits for the tunnel (or there is none); too many wait for a
stream; there was no stream for what waited; the kernel did not take it for the application; it
dropped what the application sent, since krelay was too slow to read it."""

RESULTS = frozenset({OK, RESET, NO_STREAM, IDLE, *REFUSALS.values()})
DROPS = frozenset({BACKLOG, EARLY, UNROUTED, KERNEL, RECEIVE})

Told = Callable[[ErrorCode | None, str], None]
"""Learns of each answer of an agent: None that it reached the endpoint, or why not."""


class Relay(Protocol):
    """Counts its own bytes, those of the local application and those to it."""

    received_bytes: int
    sent_bytes: int


class Histogram:
    """How many dials took how long; cumulative counts are made when they are asked for."""

    def __init__(self) -> None:
        self.count = 0
        self.sum = 0.0
        self._counts = [0] * (len(BUCKETS) + 1)

    def add(self, seconds: float) -> None:
        """One more."""
        self.count += 1
        self.sum += seconds
        self._counts[bisect_left(BUCKETS, seconds)] += 1

    def cumulative(self) -> dict[float, int]:
        """How many took no longer than each bound; longer ones are only in `count`."""
        found, total = {}, 0
        for bound, count in zip(BUCKETS, self._counts, strict=False):
            total += count
            found[bound] = total
        return found


class ForwardMetrics:
    """Every stream asked for ends in exactly one of `results`. `opened` counts those that the agent
    opened: they are live, or ended `ok` or by a `reset`."""

    def __init__(self, on_dial: Told | None = None) -> None:
        self.opened = 0
        self.results: Counter[str] = Counter()
        self.drops: Counter[str] = Counter()
        self.dials = Histogram()
        self.on_dial = on_dial
        self.to_remote = 0
        """Bytes of what is not a live relay, as is `to_local`."""
        self.to_local = 0
        self._live: set[Relay] = set()
        self._sockets: set[ReceiveDrops] = set()

    def watch(self, sock: socket.socket) -> ReceiveDrops:
        """Count what the kernel drops at a bound socket, until `leave_socket`."""
        drops = ReceiveDrops(sock)
        self._sockets.add(drops)
        return drops

    def leave_socket(self, drops: ReceiveDrops) -> None:
        """It is about to be closed; what it has lost stays counted."""
        if drops in self._sockets:
            self._sockets.discard(drops)
            self._lost(drops.close())

    def lost(self) -> Counter[str]:
        """All lost datagrams by reason, those that the kernel dropped so far among them."""
        found = self.drops.copy()
        if dropped := sum(drops.count for drops in self._sockets):
            found[RECEIVE] += dropped
        return found

    def _lost(self, count: int) -> None:
        if count:
            self.drops[RECEIVE] += count

    @property
    def to_remote_bytes(self) -> int:
        """From local applications, by what lives too."""
        return self.to_remote + sum(relay.received_bytes for relay in self._live)

    @property
    def to_local_bytes(self) -> int:
        """To them."""
        return self.to_local + sum(relay.sent_bytes for relay in self._live)

    def begin(self, relay: Relay | None = None) -> StreamMetrics:
        """A connection or flow wants a stream; the bytes of `relay` count until its entry ends."""
        if relay is not None:
            self._live.add(relay)
        return StreamMetrics(self, relay)

    def leave(self, relay: Relay) -> None:
        """The relay is gone; what it carried stays."""
        if relay in self._live:
            self._live.discard(relay)
            self.to_remote += relay.received_bytes
            self.to_local += relay.sent_bytes


class StreamMetrics:
    """One connection or flow. What ended is ended: calls after that do nothing."""

    __slots__ = ("_metrics", "_asked_at", "_opened", "_relay", "_result")

    def __init__(self, metrics: ForwardMetrics, relay: Relay | None) -> None:
        self._metrics = metrics
        self._relay = relay
        self._asked_at = 0.0
        self._opened = False
        self._result: str | None = None

    def asked(self) -> None:
        """The agent is asked for a stream, maybe once more."""
        self._asked_at = time.monotonic()

    def accepted(self, *, proof: bool = True) -> None:
        """It reached the endpoint; `proof`: that this shows that the endpoint is there."""
        if self._opened or self._result is not None:
            return
        metrics = self._metrics
        self._opened = True
        metrics.opened += 1
        metrics.dials.add(time.monotonic() - self._asked_at)
        if proof:
            self.answered(None)

    def answered(self, code: ErrorCode | None, message: str = "") -> None:
        """What came from the endpoint, or did not, tells of it."""
        if self._metrics.on_dial is not None:
            self._metrics.on_dial(code, message)

    def refused(self, code: ErrorCode, message: str) -> None:
        """It did not."""
        if self._result is None:
            self._end(REFUSALS[code])
            self.answered(code, message)

    def unserved(self) -> None:
        """There was no stream to be had."""
        self._end(NO_STREAM)

    def reset(self, code: ErrorCode) -> None:
        """It was cut, at the other end or here. What was never open was given up, or lost with its
        tunnel."""
        if self._opened:
            self._end(RESET)
        else:
            self._end(_CANCELLED if code is ErrorCode.CANCELLED else NO_STREAM)

    def expired(self) -> None:
        """Nothing has used it for longest."""
        self._end(IDLE if self._opened else _CANCELLED)

    def left(self, *, clean: bool) -> None:
        """The local application is gone; `clean`: both ends had said all that they had to."""
        if self._opened:
            self._end(OK if clean else RESET)
        else:
            self._end(_CANCELLED)

    def _end(self, result: str) -> None:
        if self._result is None:
            self._result = result
            self._metrics.results[result] += 1
        if self._relay is not None:
            self._metrics.leave(self._relay)
            self._relay = None
