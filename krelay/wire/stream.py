"""One stream of a session: its state, its credit in both directions, and its queued bytes."""

from __future__ import annotations

from collections import deque
from enum import Enum, auto
from typing import Any

from krelay.wire.errors import FlowControlError, ProtocolError
from krelay.wire.frames import MAX_PAYLOAD, Buffer, FrameType
from krelay.wire.header import Header

INITIAL_WINDOW = 65_536
MAX_WINDOW = 4 << 20

# Chunks are joined up to this size, in bytes, while they wait.
_JOINED = 4_096


class State(Enum):
    """State of a stream: what the peer may still send (protocol.md, section 5)."""

    OPENING = auto()
    OPEN = auto()
    ENDED = auto()
    CLOSED = auto()


# (state, frame from the peer) -> next state. Any other pair is a protocol error.
_RECEIVE = {
    (State.OPENING, FrameType.OPENED): State.OPEN,
    (State.OPENING, FrameType.REFUSED): State.CLOSED,
    (State.OPENING, FrameType.RESET): State.CLOSED,
    (State.OPENING, FrameType.WINDOW): State.OPENING,
    (State.OPEN, FrameType.DATA): State.OPEN,
    (State.OPEN, FrameType.COMPRESSED): State.OPEN,
    (State.OPEN, FrameType.WINDOW): State.OPEN,
    (State.OPEN, FrameType.END): State.ENDED,
    (State.OPEN, FrameType.RESET): State.CLOSED,
    (State.ENDED, FrameType.WINDOW): State.ENDED,
    (State.ENDED, FrameType.RESET): State.CLOSED,
}


class RecvWindow:
    """Credit that this end has granted. It is returned once half a window is consumed.

    A window that is used up within four round trips limits the rate, so it is doubled, up to
    `MAX_WINDOW` (protocol.md, section 6).
    """

    __slots__ = ("_consumed", "_credit", "_returned_at", "size")

    def __init__(self, now: float, size: int = INITIAL_WINDOW) -> None:
        self.size = size
        self._credit = size
        self._consumed = 0
        self._returned_at = now

    def receive(self, count: int) -> None:
        """Use up the credit for `count` bytes from the peer.

        Raises:
            FlowControlError: the peer had less credit.
        """
        self._credit -= count
        if self._credit < 0:
            raise FlowControlError(f"{-self._credit} bytes over the window")

    def consume(self, count: int, now: float, rtt: float, room: int) -> int:
        """Count bytes that the layer above has taken; return the credit to grant now, or 0.

        The window may grow by `room` bytes. A negative `room` makes it shrink again: credit is kept
        back. `rtt` is the round trip in seconds.
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
    """State of one stream; only its Session changes it.

    `owner` belongs to the layer above, for the object that handles the stream's events.
    """

    __slots__ = (
        "credit",
        "end_queued",
        "end_sent",
        "header",
        "id",
        "incompressible",
        "owner",
        "queue",
        "queued",
        "scheduled",
        "shrinks",
        "skip",
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
        """Bytes already taken from the first chunk of `queue`."""
        self.end_queued = False
        self.end_sent = False
        self.scheduled = False
        self.wants_writable = False
        self.shrinks = 1.0
        """How many of its bytes one byte on the wire carries, by its last compressed frame."""
        self.incompressible = 0
        """Bytes to send before the next attempt to compress, and `skip`, how many there were."""
        self.skip = 0
        self.owner: Any = None

    def __repr__(self) -> str:
        return f"<Stream s{self.id} {self.state.name} queued={self.queued} credit={self.credit}>"

    def receive(self, frame_type: int) -> None:
        """Change the state for a frame from the peer.

        Raises:
            ProtocolError: the frame is illegal in this state.
        """
        state = _RECEIVE.get((self.state, FrameType(frame_type)))
        if state is None:
            raise ProtocolError(
                f"{FrameType(frame_type).name} on a stream that is {self.state.name}"
            )
        self.state = state

    def take(self, limit: int) -> Buffer:
        """Take the next queued bytes: at most `limit` (>= 1), from one chunk.

        Part of a chunk of at most MAX_PAYLOAD bytes is copied, and so is the rest of any chunk once
        it is the smaller half: a view would keep the whole chunk in memory, uncounted. Parts of
        larger chunks, which only a client reads, are not copied.
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
        """Queue bytes. Small chunks are joined, as each takes more memory than its bytes."""
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
        """Whether the stream has something to send and credit for it."""
        if self.queue:
            return self.credit > 0
        return self.end_queued and not self.end_sent
