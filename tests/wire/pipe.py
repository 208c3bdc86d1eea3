"""Two sessions joined by a pipe that lags, splits reads and loses tunnels; virtual time."""

from __future__ import annotations

from collections.abc import Sequence

from krelay.wire.compression import Algorithm
from krelay.wire.events import (
    DatagramReceived,
    DataReceived,
    Event,
    StreamAccepted,
    StreamEnded,
    StreamOpened,
    StreamRefused,
    StreamReset,
)
from krelay.wire.header import TCP, Header
from krelay.wire.session import Limits, Session, Side
from krelay.wire.stream import Stream

TARGET = Header(TCP, "10.0.0.1", 80)


class End:
    """A session, and the events of each of its streams."""

    def __init__(self, side: Side, limits: Limits, algorithm: Algorithm) -> None:
        self.session = Session(side, 0.0, limits)
        self.session.use_compression(algorithm, float)
        self.wire = bytearray()  # sent by this end, not yet with the other
        self.received: dict[int, bytearray] = {}
        self.unconsumed: dict[int, int] = {}
        self.ended: set[int] = set()
        self.closed: dict[int, str] = {}
        self.accepted: set[int] = set()
        self.opened: list[Stream] = []
        self.datagrams: list[bytes] = []

    def compress(self, *, on: bool) -> None:
        """Begin or end to compress, whatever the path is like."""
        compressor = self.session._compressor
        assert compressor is not None
        compressor.active = on
        self.session._send_queue.compressor = compressor if on else None

    def handle(self, events: Sequence[Event]) -> None:
        """Record events, and check that none follows the end of its stream."""
        for event in events:
            if isinstance(event, StreamOpened):
                self.opened.append(event.stream)
            elif isinstance(event, StreamAccepted):
                self.accepted.add(event.stream.id)
            elif isinstance(event, DataReceived):
                number = event.stream.id
                assert number not in self.ended
                assert number not in self.closed
                self.received.setdefault(number, bytearray()).extend(event.data)
                self.unconsumed[number] = self.unconsumed.get(number, 0) + len(event.data)
            elif isinstance(event, DatagramReceived):
                self.datagrams.append(bytes(event.data))
            elif isinstance(event, StreamEnded):
                assert event.stream.id not in self.ended
                self.ended.add(event.stream.id)
            elif isinstance(event, StreamReset):
                self.closed[event.stream.id] = f"reset {event.code.name}"
            elif isinstance(event, StreamRefused):
                self.closed[event.stream.id] = f"refused {event.code.name}"


class Joined:
    """A client and an agent, and the time between them."""

    def __init__(
        self,
        limits: Limits = Limits(),  # noqa: B008
        algorithm: Algorithm = Algorithm.NONE,
    ) -> None:
        self.now = 0.0
        self.client = End(Side.CLIENT, limits, algorithm)
        self.agent = End(Side.AGENT, limits, algorithm)
        self.ends = (self.client, self.agent)
        # A move to another tunnel: the client's count in AUTH, then the agent's in WELCOME.
        self.resume_from: int | None = None
        self.told: int | None = None
        self.old = bytearray()  # of the agent, on a tunnel that it has left and the client has not
        self.attach()

    def attach(self) -> None:
        """Attach a new tunnel; bytes in flight on the old one are lost."""
        self._forget_move()
        counts = [end.session.begin_resume() for end in self.ends]
        for end, theirs in zip(self.ends, reversed(counts), strict=True):
            end.wire.clear()
            end.session.attach(theirs, self.now)

    def cut(self) -> None:
        """Lose the tunnel."""
        self._forget_move()
        for end in self.ends:
            end.wire.clear()
            end.session.detach()

    def move(self) -> None:
        """Take the next step of a move to another tunnel, while the old one works."""
        if self.resume_from is None:
            self.resume_from = self.client.session.begin_resume()
        elif self.told is None:
            self.told = self.agent.session.received_count
            self.client.wire.clear()
            self.old, self.agent.wire = self.agent.wire, bytearray()
            self.agent.session.attach(self.resume_from, self.now)
        else:
            self.client.wire.clear()
            self.client.session.attach(self.told, self.now)
            self._forget_move()

    def _forget_move(self) -> None:
        self.resume_from = self.told = None
        self.old.clear()

    def other(self, end: End) -> End:
        """The far end of this one."""
        return self.agent if end is self.client else self.client

    def flush(self, end: End, limit: int = 1 << 18) -> int:
        """Write the bytes that are due."""
        buffers = end.session.data_to_send(limit, self.now)
        for buffer in buffers:
            end.wire += buffer
        end.session.writable.clear()
        return len(buffers)

    def deliver(self, end: End, size: int) -> None:
        """Up to `size` bytes from this end's wire reach the other."""
        wire = end.wire
        if self.told is not None:
            # The agent reads the new tunnel, which is still silent; the client reads the old one.
            wire = self.old if end is self.agent else bytearray()
        piece = bytes(wire[:size])
        del wire[:size]
        if piece:
            other = self.other(end)
            other.handle(other.session.receive_data(piece, self.now))

    def consume(self, end: End) -> None:
        """Consume all received bytes."""
        for number, size in list(end.unconsumed.items()):
            stream = end.session.streams.get(number)
            if stream is not None and size:
                end.session.consume(stream, size, self.now)
            end.unconsumed[number] = 0

    def settle(self, rounds: int = 20_000) -> None:
        """Run until every byte in flight has arrived and is consumed."""
        while self.resume_from is not None:
            self.move()
        quiet = 0
        for _ in range(rounds):
            self.now += 0.011
            moved = 0
            for end in self.ends:
                end.session.tick(self.now)
                moved += self.flush(end)
                size = len(end.wire)
                self.deliver(end, size)
                self.consume(end)
            queued = any(s.queued for end in self.ends for s in end.session.streams.values())
            quiet = 0 if moved and queued else quiet + 1
            if quiet > 6:
                return
        raise AssertionError("it never settles")
