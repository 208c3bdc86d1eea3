"""ForwardMetrics: count what one forward carries, over all of its listeners.

The counts are plain integers, changed where the bytes pass: nothing here waits, or allocates for a
chunk. A TCP relay counts its own bytes, so a forward only keeps track of its live relays.
"""

from __future__ import annotations

import socket
import time
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any, NamedTuple, Protocol

from krelay import model
from krelay.model import Endpoint
from krelay.mux.sockets import ReceiveDrops
from krelay.state.states import ConnectionState
from krelay.wire.errors import ErrorCode

BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
"""Upper bounds of dial times, in seconds."""

OK, RESET, NO_STREAM, IDLE, EVICTED = "ok", "reset", "no_stream", "idle", "evicted"
"""Results of streams that the agent opened, and (`no_stream`) of requests that got none. A flow
ends as `idle` after a time without datagrams, and as `evicted` to make room for another client."""

REFUSALS = {code: code.name.lower() for code in ErrorCode} | {
    # `reset` is the result of streams that were open.
    ErrorCode.RESET: ErrorCode.DIAL_FAILED.name.lower(),
    ErrorCode.NONE: ErrorCode.DIAL_FAILED.name.lower(),
}
"""Results of streams that the agent refused, by its answer; `cancelled` is a client that left
first."""
_CANCELLED = REFUSALS[ErrorCode.CANCELLED]

BACKLOG, EARLY, UNROUTED = "backlog", "early", "no_stream"
KERNEL, RECEIVE = "kernel", "kernel_receive"
"""Reasons of lost datagrams: too much waits for the tunnel, or it is down; too many wait for a
stream; there was no stream for those that waited; the kernel did not take the datagram for the
application; it dropped what the application sent, since krelay was too slow to read it."""

_BY_CLIENT = "the client closed it first"
_ENDS = {
    ErrorCode.NONE: "",
    ErrorCode.RESET: "the target reset it",
    ErrorCode.CANCELLED: "it was cut",
}
"""Why an open stream was reset, where the code's own text says less."""

RESULTS = frozenset({OK, RESET, NO_STREAM, IDLE, EVICTED, *REFUSALS.values()})
DROPS = frozenset({BACKLOG, EARLY, UNROUTED, KERNEL, RECEIVE})

RECENT = 20
"""Ended connections and flows that a forward remembers."""

OnDial = Callable[[ErrorCode | None, str], None]
"""Receives the result of each dial: None if the agent reached the endpoint, else its answer."""


class Relay(Protocol):
    """Counts the bytes that it carries from and to the local application."""

    received_bytes: int
    sent_bytes: int


class Histogram:
    """Counts dials by their duration in seconds."""

    def __init__(self) -> None:
        self.count = 0
        self.sum = 0.0
        self._counts = [0] * (len(BUCKETS) + 1)

    def add(self, seconds: float) -> None:
        """Count one dial."""
        self.count += 1
        self.sum += seconds
        self._counts[bisect_left(BUCKETS, seconds)] += 1

    def cumulative(self) -> dict[float, int]:
        """Return how many took no longer than each bound. `count` includes longer ones."""
        found, total = {}, 0
        for bound, count in zip(BUCKETS, self._counts, strict=False):
            total += count
            found[bound] = total
        return found


class Record(NamedTuple):
    """What is known of one stream. It is made for each connection, so it only takes what is there;
    `state` makes the texts."""

    peer: Sequence[Any] | None
    began: float
    program: str
    endpoint: Endpoint | None
    via: str
    ended: float | None
    received: int
    sent: int
    result: str | None
    reason: str
    opened: bool

    @property
    def state(self) -> ConnectionState:
        """The record for people and programs."""
        return ConnectionState(
            client=str(Endpoint(self.peer[0], self.peer[1])) if self.peer else "",
            started=datetime.fromtimestamp(self.began, UTC),
            program=self.program,
            endpoint=str(self.endpoint) if self.endpoint is not None else None,
            via=self.via,
            ended=datetime.fromtimestamp(self.ended, UTC) if self.ended is not None else None,
            to_remote_bytes=self.received,
            to_local_bytes=self.sent,
            result=self.result,
            reason=self.reason,
            opened=self.opened,
        )


class ForwardMetrics:
    """Counts of one forward.

    Every requested stream ends in exactly one of `results`. `opened` counts those that the agent
    opened: they are live, or ended as `ok`, `reset`, `idle` or `evicted`. `drops` counts lost
    datagrams by reason.
    """

    def __init__(self, on_dial: OnDial | None = None) -> None:
        self.opened = 0
        self.results: Counter[str] = Counter()
        self.drops: Counter[str] = Counter()
        self.dials = Histogram()
        self.on_dial = on_dial
        self.on_stream: Callable[[StreamMetrics], None] | None = None
        """Called with each connection or flow that requests a stream."""
        self.to_remote = 0
        """Bytes from local applications, without those of live relays."""
        self.to_local = 0
        """Bytes to local applications, without those of live relays."""
        self.relays: set[Relay] = set()
        """The live relays, which count their bytes themselves."""
        self.streams: set[StreamMetrics] = set()
        """The connections and flows that have a stream, or wait for one."""
        self.recent: deque[Record] = deque(maxlen=RECENT)
        """The last ones that ended, the newest last."""
        self._sockets: set[ReceiveDrops] = set()

    @property
    def to_remote_bytes(self) -> int:
        """Bytes from local applications."""
        return self.to_remote + sum(relay.received_bytes for relay in self.relays)

    @property
    def to_local_bytes(self) -> int:
        """Bytes to local applications."""
        return self.to_local + sum(relay.sent_bytes for relay in self.relays)

    def remove_relay(self, relay: Relay) -> None:
        """Keep the bytes of a relay whose stream has ended."""
        if relay in self.relays:
            self.relays.discard(relay)
            self.to_remote += relay.received_bytes
            self.to_local += relay.sent_bytes

    def add_socket(self, sock: socket.socket) -> ReceiveDrops:
        """Count what the kernel drops at a bound socket, until `remove_socket`."""
        drops = ReceiveDrops(sock)
        self._sockets.add(drops)
        return drops

    def remove_socket(self, drops: ReceiveDrops) -> None:
        """Keep the drops of a socket that is about to be closed."""
        if drops in self._sockets:
            self._sockets.discard(drops)
            if count := drops.close():
                self.drops[RECEIVE] += count

    def lost(self) -> Counter[str]:
        """Return all lost datagrams by reason, with those that the kernel has dropped so far."""
        found = self.drops.copy()
        if dropped := sum(drops.count for drops in self._sockets):
            found[RECEIVE] += dropped
        return found


class StreamMetrics:
    """Counts the streams of one connection or flow, one after the other.

    Calls without a requested stream, or after its end, do nothing. Each stream that ends leaves a
    record in `ForwardMetrics.recent`.
    """

    __slots__ = (
        "_dialled_at",
        "_live",
        "_metrics",
        "_opened",
        "_relay",
        "began",
        "counts",
        "endpoint",
        "peer",
        "program",
        "protocol",
        "via",
    )

    def __init__(
        self,
        metrics: ForwardMetrics,
        relay: Relay | None = None,
        protocol: model.Protocol = model.Protocol.TCP,
    ) -> None:
        self._metrics = metrics
        self._relay = relay
        self.protocol = protocol
        self.counts = relay
        """What counts the bytes for the record; those of a `relay` also count for the forward."""
        self.peer: Sequence[Any] | None = None
        """The socket address of the local application."""
        self.program = ""
        """The local application, if the system has been asked."""
        self.endpoint: Endpoint | None = None
        self.via = ""
        self.began = 0.0
        """When the stream was requested, in Unix time."""
        self._dialled_at = 0.0
        self._live = False
        self._opened = False

    def stream_requested(self, peer: Sequence[Any] | None = None) -> None:
        """Begin a stream of the application at `peer`: the bytes of the relay count until it
        ends."""
        self.peer = peer
        self._live = True
        self._opened = False
        self.began = time.time()
        self._metrics.streams.add(self)
        if self._relay is not None:
            self._metrics.relays.add(self._relay)
        if self._metrics.on_stream is not None:
            self._metrics.on_stream(self)

    def dialled(self, endpoint: Endpoint | None = None, via: str = "") -> None:
        """Record that `endpoint`, the one of the object `via`, is dialled now, maybe again."""
        self._dialled_at = time.monotonic()
        self.endpoint, self.via = endpoint, via

    def record(
        self, ended: float | None = None, result: str | None = None, reason: str = ""
    ) -> Record:
        """Return what is known of the present stream."""
        counts = self.counts
        received, sent = (counts.received_bytes, counts.sent_bytes) if counts else (0, 0)
        return Record(
            self.peer,
            self.began,
            self.program,
            self.endpoint,
            self.via,
            ended,
            received,
            sent,
            result,
            reason,
            self._opened,
        )

    def accepted(self, *, proof: bool = True) -> None:
        """Count a dial that succeeded; `proof`: this proves that the endpoint works."""
        if self._opened or not self._live:
            return
        self._opened = True
        self._metrics.opened += 1
        self._metrics.dials.add(time.monotonic() - self._dialled_at)
        if proof:
            self.dial_result(None)

    def dial_result(self, code: ErrorCode | None, message: str = "") -> None:
        """Report whether the endpoint works: None if it does, else the agent's answer."""
        if self._metrics.on_dial is not None:
            self._metrics.on_dial(code, message)

    def refused(self, code: ErrorCode, message: str) -> None:
        """End the stream: the agent refused it."""
        if self._live:
            self._end(REFUSALS[code], message or code.text)
            self.dial_result(code, message)

    def open_failed(self, reason: str = "") -> None:
        """End the stream: no tunnel or no endpoint was found for it."""
        self._end(NO_STREAM, reason)

    def reset(self, code: ErrorCode) -> None:
        """End the stream: either end has reset it, or its tunnel is lost."""
        if self._opened:
            self._end(RESET, _ENDS.get(code, code.text))
        else:
            self._end(_CANCELLED if code is ErrorCode.CANCELLED else NO_STREAM, code.text)

    def expired(self) -> None:
        """End the stream: its flow was idle."""
        self._end(IDLE if self._opened else _CANCELLED)

    def evicted(self) -> None:
        """End the stream: its flow made room for that of another client."""
        self._end(EVICTED if self._opened else _CANCELLED)

    def closed(self, *, clean: bool) -> None:
        """End the stream: the local application has left; `clean`: after both ends had ended."""
        if self._opened:
            self._end(OK if clean else RESET, "" if clean else _BY_CLIENT)
        else:
            self._end(_CANCELLED)

    def _end(self, result: str, reason: str = "") -> None:
        if not self._live:
            return
        self._live = False
        self._metrics.results[result] += 1
        self._metrics.streams.discard(self)
        self._metrics.recent.append(self.record(time.time(), result, reason))
        if self._relay is not None:
            self._metrics.remove_relay(self._relay)
