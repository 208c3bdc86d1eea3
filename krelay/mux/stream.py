"""A stream as the layers above see it: a handle to act on, and a handler that is told."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from krelay.wire.errors import ErrorCode
from krelay.wire.frames import Buffer
from krelay.wire.header import Header
from krelay.wire.stream import Stream as SessionStream

if TYPE_CHECKING:
    from krelay.mux.connection import MuxConnection

HIGH_WATER = 256 << 10
"""Bytes queued on a stream at which its writer is to stop until `on_writable`."""
SESSION_HIGH_WATER = 16 << 20
"""Bytes queued on all streams of a session from which on each may queue only this much:"""
CROWDED_HIGH_WATER = 16 << 10

_ACCEPT_DELAY = 0.001


class StreamHandler(Protocol):
    """Whoever acts on a stream's events. Plain calls on the loop, which must not block."""

    def on_accepted(self) -> None:
        """The other end reached the target."""

    def on_refused(self, code: ErrorCode, message: str) -> None:
        """It did not; the stream is closed."""

    def on_data(self, data: Buffer) -> None:
        """Bytes; their credit is kept back until `consume`."""

    def on_datagram(self, data: Buffer) -> None:
        """One whole datagram."""

    def on_end(self) -> None:
        """The other end sends no more; this one may go on."""

    def on_reset(self, code: ErrorCode) -> None:
        """The stream was cut, by the other end or with its session."""

    def on_writable(self) -> None:
        """What was queued is nearly gone: write on."""


class Stream(Protocol):
    """What a handler may do with its stream, whatever carries that."""

    handler: StreamHandler | None

    def write(self, data: Buffer) -> bool:
        """Queue bytes; False when the writer is to wait for `on_writable`."""

    def end(self) -> None:
        """Send no more, after what is queued."""

    def reset(self, code: ErrorCode = ErrorCode.CANCELLED) -> None:
        """Cut it now. The handler is not called again."""

    def consume(self, count: int) -> None:
        """`count` received bytes were handed on."""

    def datagram(self, data: Buffer) -> bool:
        """Send one datagram; False when it was dropped."""


class MuxStream:
    """One relayed connection or flow. Every call on a stream that is closed does nothing."""

    __slots__ = ("_driver", "_stream", "handler")

    def __init__(
        self, driver: MuxConnection, stream: SessionStream, handler: StreamHandler | None = None
    ) -> None:
        self._driver = driver
        self._stream = stream
        self.handler = handler
        stream.owner = self

    def __repr__(self) -> str:
        return f"{self._driver.name}/s{self._stream.id}"

    @property
    def header(self) -> Header:
        """Where it goes."""
        return self._stream.header

    def accept(self) -> None:
        """Answer yes to a stream that the other end opened. Nobody waits for it but what is kept
        for a second try, so it goes with the target's first bytes if those come soon."""
        self._driver.session.accept(self._stream)
        self._driver.wake_within(_ACCEPT_DELAY)

    def refuse(self, code: ErrorCode, message: str) -> None:
        """Answer no."""
        self._driver.session.refuse(self._stream, code, message)
        self._driver.wake()

    def write(self, data: Buffer, high_water: int = HIGH_WATER) -> bool:
        """Queue bytes; False when the writer is to wait for `on_writable`, since `high_water` bytes
        are queued."""
        stream = self._stream
        crowded = self._driver.session.write(stream, data) >= SESSION_HIGH_WATER
        self._driver.wake()
        if stream.queued < (min(CROWDED_HIGH_WATER, high_water) if crowded else high_water):
            return True
        stream.wants_writable = True
        return False

    def end(self) -> None:
        """Send no more, after what is queued."""
        self._driver.session.end(self._stream)
        self._driver.wake()

    def reset(self, code: ErrorCode = ErrorCode.CANCELLED) -> None:
        """Cut it now. The handler is not called again."""
        self.handler = None
        self._driver.session.reset(self._stream, code)
        self._driver.wake()

    def consume(self, count: int) -> None:
        """`count` received bytes were handed on; the other end may send as many more."""
        self._driver.consume(self._stream, count)

    def datagram(self, data: Buffer) -> bool:
        """Send one datagram; False when it was dropped."""
        sent = self._driver.session.datagram(self._stream, data)
        self._driver.wake()
        return sent
