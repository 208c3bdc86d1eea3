"""One stream of a session: its state, its credit both ways, and what waits to be sent."""

from __future__ import annotations

from collections import deque
from enum import Enum, auto
from typing import Any

from krelay.wire.errors import FlowControlError, ProtocolError
from krelay.wire.frames import MAX_PAYLOAD, Buffer, FrameType
from krelay.wire.header import Header

INITIAL_WINDOW = 65_536
MAX_WINDOW = 4 << 20

# Chunks up to this size, in bytes, are joined while they wait.
_JOINED = 4_096


class State(Enum):
    """What the peer may still send on a stream (protocol.md, section 5)."""

    OPENING = auto()
    OPEN = auto()
    ENDED = auto()
    CLOSED = auto()


# (state, frame from the peer) -> the state after it; a pair that is absent is a protocol error.
_RECEIVE = {
    (State.OPENING, FrameType.OPENED): State.OPEN,
    (State.OPENING, FrameType.REFUSED): State.CLOSED,
    (State.OPENING, FrameType.RESET): State.CLOSED,
    (State.OPENING, FrameType.WINDOW): State.OPENING,
    (State.OPEN, FrameType.DATA): State.OPEN,
    (State.OPEN, FrameType.WINDOW): State.OPEN,
    (State.OPEN, FrameType.END): State.ENDED,
    (State.OPEN, FrameType.RESET): State.CLOSED,
    (State.ENDED, FrameType.WINDOW): State.ENDED,
    (State.ENDED, FrameType.RESET): State.CLOSED,
}


class RecvWindow:
    """The credit we granted. It is returned at half a window, and grows while it is the brake.

    A window that is used up twice within a few round trips is what limits the rate, so it is
    doubled (protocol.md, section 6), up to `MAX_WINDOW`.
    """

    __slots__ = ("_consumed", "_credit", "_returned_at", "size")

    def __init__(self, now: float, size: int = INITIAL_WINDOW) -> None:
        self.size = size
        self._credit = size
        self._consumed = 0
        self._returned_at = now

    def receive(self, count: int) -> None:
        """Account for `count` bytes from the peer.

        Raises:
            FlowControlError: it had no credit for them.
        """
        self._credit -= count
        if self._credit < 0:
            raise FlowControlError(f"{-self._credit} bytes over the window")

    def consume(self, count: int, now: float, rtt: float, room: int) -> int:
        """Account for `count` bytes handed on; the credit to return now, 0 for none yet.

        `room` is how many bytes the window may still grow by, `rtt` the round trip in seconds.
        Where it is negative the window gives up what it had grown by: credit is kept back.
        """
        self._consumed += count
        if self._consumed * 2 < self.size:
            return 0
        increment, self._consumed = self._consumed, 0
        if room < 0:
            shrink = min(-room, increment, self.size - INITIAL_WINDOW)
            if shrink > 0:
                self.size -= shrink
                increment -= shrink
        elif now - self._returned_at < 4 * rtt:
            growth = min(self.size, MAX_WINDOW - self.size, room)
            if growth > 0:
                self.size += growth
                increment += growth
        self._returned_at = now
        self._credit += increment
        return increment


class Stream:
    """Bookkeeping of one stream; only its Session changes it.

    `owner` belongs to the layer above, which puts there whoever acts on the stream's events.
    """

    __slots__ = (
        "credit",
        "end_queued",
        "end_sent",
        "header",
        "id",
        "owner",
        "queue",
        "queued",
        "scheduled",
        "state",
        "taken",
        "wants_writable",
        "window",
    )

    def __init__(self, stream_id: int, header: Header, now: float, state: State) -> None:
        self.id = stream_id
        self.header = header
        self.state = state
        self.window = RecvWindow(now)
        self.credit = INITIAL_WINDOW
        self.queue: deque[Buffer] = deque()
        self.queued = 0
        self.taken = 0
        """Bytes of the first chunk of `queue` that were taken."""
        self.end_queued = False
        self.end_sent = False
        self.scheduled = False
        self.wants_writable = False
        self.owner: Any = None

    def __repr__(self) -> str:
        return f"<Stream s{self.id} {self.state.name} queued={self.queued} credit={self.credit}>"

    def receive(self, frame_type: int) -> None:
        """Move to the state after a frame from the peer.

        Raises:
            ProtocolError: that frame is illegal in this state.
        """
        state = _RECEIVE.get((self.state, FrameType(frame_type)))
        if state is None:
            raise ProtocolError(
                f"{FrameType(frame_type).name} on a stream that is {self.state.name}"
            )
        self.state = state

    def take(self, limit: int) -> Buffer:
        """The next queued bytes, at most `limit` (>= 1) and never joined.

        A part of a chunk that fits into a frame is copied, and so is the rest once it is the
        smaller half: a view would keep the whole chunk alive, uncounted. Larger chunks, of which
        only a client reads any, are not copied.
        """
        chunk = self.queue[0]
        at = self.taken
        if len(chunk) - at <= limit:
            self.queue.popleft()
            self.taken = 0
            piece = memoryview(chunk)[at:] if at else chunk
        else:
            piece = memoryview(chunk)[at : at + limit]
            self.taken = at + limit
        if at or self.taken:
            if len(chunk) <= MAX_PAYLOAD:
                piece = bytes(piece)
            if self.taken * 2 > len(chunk):
                self.queue[0] = bytes(memoryview(chunk)[self.taken :])
                self.taken = 0
        self.queued -= len(piece)
        return piece

    def add(self, data: Buffer) -> None:
        """Queue bytes. Small chunks are joined: each would take more than its bytes."""
        queue = self.queue
        self.queued += len(data)
        if queue and len(data) < _JOINED:
            last = queue[-1]
            if len(last) + len(data) <= _JOINED and (len(queue) > 1 or not self.taken):
                queue[-1] = b"".join((last, data))
                return
        queue.append(data)

    @property
    def sendable(self) -> bool:
        """Whether it has something to send that its credit allows."""
        if self.queue:
            return self.credit > 0
        return self.end_queued and not self.end_sent
