"""Streams for the layers above: MuxStream acts on one, a StreamHandler gets its events."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Protocol

from krelay.wire.errors import ErrorCode
from krelay.wire.frames import Buffer
from krelay.wire.header import Header
from krelay.wire.stream import Stream as SessionStream

if TYPE_CHECKING:
    from krelay.mux.connection import MuxConnection

HIGH_WATER = 256 << 10
"""Bytes queued on a stream at which its writer stops until `on_writable`."""
SESSION_HIGH_WATER = 16 << 20
"""Bytes queued on a whole session from which on the lower mark below applies to its streams."""
CROWDED_HIGH_WATER = 16 << 10
"""`HIGH_WATER` of each stream of a session that has SESSION_HIGH_WATER queued."""

_ACCEPT_DELAY = 0.001


class StreamHandler(Protocol):
    """Callbacks for the events of one stream. They run on the event loop and must not block."""

    def on_accepted(self) -> None:
        """The peer reached the target of a stream that this end opened."""

    def on_refused(self, code: ErrorCode, message: str) -> None:
        """The peer did not reach the target; the stream is closed."""

    def on_data(self, data: Buffer) -> None:
        """Bytes arrived. The peer gets their credit back with `consume`."""

    def on_datagram(self, data: Buffer) -> None:
        """A whole datagram arrived."""

    def on_end(self) -> None:
        """The peer sends no more (half-close); this end may go on."""

    def on_reset(self, code: ErrorCode) -> None:
        """The peer, or the end of the session, has reset the stream."""

    def on_writable(self) -> None:
        """The queue has drained: writing may go on."""


class Stream(Protocol):
    """What a handler may do with its stream, in any mode of the agent."""

    handler: StreamHandler | None

    def write(self, data: Buffer) -> bool:
        """Queue bytes; return False if the writer must wait for `on_writable`."""

    def end(self) -> None:
        """Send no more after the queued bytes."""

    def reset(self, code: ErrorCode = ErrorCode.CANCELLED) -> None:
        """Cut the stream now. No callback follows."""

    def consume(self, count: int) -> None:
        """Return the credit for `count` received bytes."""

    def datagram(self, data: Buffer) -> bool:
        """Send one datagram; return False if it was dropped."""


class MuxStream:
    """One relayed connection or flow of a session. On a closed stream every call does nothing."""

    __slots__ = ("_connection", "_stream", "handler")

    def __init__(
        self,
        connection: MuxConnection,
        stream: SessionStream,
        handler: StreamHandler | None = None,
    ) -> None:
        self._connection = connection
        self._stream = stream
        self.handler = handler
        stream.owner = self

    def __repr__(self) -> str:
        return f"{self._connection.name}/s{self._stream.id}"

    @property
    def header(self) -> Header:
        """The Header that the stream was opened with."""
        return self._stream.header

    def accept(self) -> None:
        """Tell the peer that the target was reached.

        The answer is not urgent: only a client that might dial again waits for it. So it goes with
        the target's first bytes if those arrive soon.
        """
        self._connection.session.accept(self._stream)
        self._connection.wake_within(_ACCEPT_DELAY)

    def refuse(self, code: ErrorCode, message: str) -> None:
        """Tell the peer that the target was not reached."""
        self._connection.session.refuse(self._stream, code, message)
        self._connection.wake()

    def write(self, data: Buffer, high_water: int = HIGH_WATER) -> bool:
        """Queue bytes; return False if `high_water` bytes are queued, so that the writer must wait
        for `on_writable`."""
        return self.write_pieces((data,), high_water)

    def write_pieces(self, pieces: Iterable[Buffer], high_water: int = HIGH_WATER) -> bool:
        """Queue several pieces together, as `write`."""
        stream, session = self._stream, self._connection.session
        queued = 0
        for data in pieces:
            queued = session.write(stream, data)
        crowded = queued >= SESSION_HIGH_WATER
        self._connection.wake()
        if stream.queued < (min(CROWDED_HIGH_WATER, high_water) if crowded else high_water):
            return True
        stream.wants_writable = True
        return False

    def end(self) -> None:
        """Send no more after the queued bytes."""
        self._connection.session.end(self._stream)
        self._connection.wake()

    def reset(self, code: ErrorCode = ErrorCode.CANCELLED) -> None:
        """Cut the stream now. No callback follows."""
        self.handler = None
        self._connection.session.reset(self._stream, code)
        self._connection.wake()

    def consume(self, count: int) -> None:
        """Return the credit for `count` received bytes."""
        self._connection.consume(self._stream, count)

    def datagram(self, data: Buffer) -> bool:
        """Send one datagram; return False if it was dropped."""
        sent = self._connection.session.datagram(self._stream, data)
        self._connection.wake()
        return sent
