"""Two sessions over an emulated link, in virtual time: a rate, a delay, and a queue without end."""

from __future__ import annotations

import heapq
import random
from collections.abc import Callable
from functools import partial
from itertools import count

from krelay.wire.events import DataReceived, StreamOpened
from krelay.wire.session import Session, Side
from krelay.wire.stream import Stream
from tests.wire.pipe import TARGET

_SEGMENT = 8 << 10
_HOP = 0.0005
_QUEUED = 256 << 10


class Link:
    """One bulk stream (the first), and one that echoes 64 bytes every few milliseconds.

    `rate` is in bytes a second, `rtt` in seconds. `up`: the client sends the bulk, which repeats
    `block`. An end reads up to `jitter` seconds after the bytes have arrived.
    """

    def __init__(
        self,
        rate: float,
        rtt: float,
        *,
        up: bool,
        block: bytes = bytes(64 << 10),
        jitter: float = 0.0,
    ) -> None:
        self.now = 0.0
        self.received = 0
        self.echoes: list[float] = []
        self.client = Session(Side.CLIENT, 0.0)
        self.agent = Session(Side.AGENT, 0.0)
        self.block = block
        self._sender = self.client if up else self.agent
        self._rate, self._delay, self._jitter = rate, rtt / 2, jitter
        self._read_at = {Side.CLIENT: 0.0, Side.AGENT: 0.0}
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._number = count()
        self._free = {Side.CLIENT: 0.0, Side.AGENT: 0.0}
        self._ticks = {Side.CLIENT: float("inf"), Side.AGENT: float("inf")}
        self._random = random.Random(1)
        self._pinged = 0.0

    def run(self, seconds: float, warm_up: float = 2.0) -> float:
        """Run, and return the share of the link's rate that the bulk stream had after `warm_up`."""
        for session in (self.client, self.agent):
            session.attach(0, 0.0)
        bulk = self.client.open(TARGET, 0.0)
        self._echo = self.client.open(TARGET, 0.0)
        if self._sender is self.client:
            self._fill(self.client, bulk)
        for session in (self.client, self.agent):
            self._flush(session)
        self._at(warm_up, self._ping)
        before = 0
        while self._events and self.now < seconds:
            self.now, _, act = heapq.heappop(self._events)
            if self.now < warm_up:
                before = self.received
            act()
        return (self.received - before) / (seconds - warm_up) / self._rate

    def _at(self, when: float, act: Callable[[], None]) -> None:
        heapq.heappush(self._events, (when, next(self._number), act))

    def _flush(self, session: Session) -> None:
        other = self.agent if session is self.client else self.client
        while data := b"".join(session.data_to_send(256 << 10, self.now)):
            for at in range(0, len(data), _SEGMENT):
                segment = data[at : at + _SEGMENT]
                free = max(self.now, self._free[session.side]) + len(segment) / self._rate
                self._free[session.side] = free
                read = free + self._delay + _HOP + self._random.uniform(0.0, self._jitter)
                read = self._read_at[other.side] = max(read, self._read_at[other.side])
                self._at(read, partial(self._receive, other, segment))
            while session.writable:
                self._fill(session, session.writable.pop())
        self._arm(session)

    def _arm(self, session: Session) -> None:
        deadline = session.tick(self.now)
        if deadline is not None and deadline < self._ticks[session.side]:
            self._ticks[session.side] = deadline
            self._at(deadline, lambda: self._tick(session))

    def _tick(self, session: Session) -> None:
        self._ticks[session.side] = float("inf")
        session.tick(self.now)
        self._flush(session)

    def _fill(self, session: Session, stream: Stream) -> None:
        while stream.queued < _QUEUED:
            session.write(stream, self.block)
        stream.wants_writable = True

    def _receive(self, session: Session, data: bytes) -> None:
        for event in session.receive_data(data, self.now):
            if isinstance(event, StreamOpened):
                session.accept(event.stream)
                if event.stream.id == 1 and session is self._sender:
                    self._fill(session, event.stream)
            elif isinstance(event, DataReceived):
                session.consume(event.stream, len(event.data), self.now)
                if event.stream.id == 1:
                    self.received += len(event.data)
                elif session is self.agent:
                    session.write(event.stream, bytes(event.data))
                else:
                    self.echoes.append(self.now - self._pinged)
                    self._at(self.now + self._random.uniform(0.005, 0.05), self._ping)
        self._flush(session)

    def _ping(self) -> None:
        self._pinged = self.now
        self.client.write(self._echo, b"x" * 64)
        self._flush(self.client)
