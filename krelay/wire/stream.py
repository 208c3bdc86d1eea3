"""One stream of a session: its state, its credit both ways, and what waits to be sent."""

from __future__ import annotations

from collections import deque
from enum import Enum, auto
from typing import Any

from krelay.wire.errors import ProtocolError
from krelay.wire.frames import Buffer, FrameType
from krelay.wire.header import Header
from krelay.wire.window import INITIAL_WINDOW, RecvWindow


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
        """The next queued bytes, at most `limit` (>= 1) and never joined: no copy is made."""
        chunk = self.queue[0]
        if len(chunk) <= limit:
            self.queue.popleft()
        else:
            view = memoryview(chunk)
            self.queue[0] = view[limit:]
            chunk = view[:limit]
        self.queued -= len(chunk)
        return chunk

    @property
    def sendable(self) -> bool:
        """Whether it has something to send that its credit allows."""
        if self.queue:
            return self.credit > 0
        return self.end_queued and not self.end_sent
