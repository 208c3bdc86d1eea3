"""Relay: one TCP socket coupled to one stream, with TCP's semantics in both directions.

Bytes go from one callback straight to the next. While the socket is slow, the stream gets no credit
back; while the stream is slow, the socket is not read. Ends and resets are passed on as such.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import cast

from krelay.mux.log import about
from krelay.mux.sockets import (
    end_socket,
    fin_on_close,
    no_delay,
    reset_on_close,
    reset_socket,
)
from krelay.mux.stream import Stream
from krelay.wire.errors import ErrorCode
from krelay.wire.frames import Buffer

logger = logging.getLogger("krelay.relay")

_WRITE_HIGH_WATER = 256 << 10


class TcpRelay(asyncio.Protocol):
    """The socket's protocol and the stream's handler in one.

    A client has the socket first, and reads it from `start` on. An agent has the stream first, and
    keeps its bytes (one window at most) until the target is reached. `on_closed` is called once,
    when the socket has closed.
    """

    write_high_water = _WRITE_HIGH_WATER
    """Bytes that may wait for the socket before the stream gets no more credit."""

    def __init__(self, on_closed: Callable[[TcpRelay], None] | None = None) -> None:
        self.transport: asyncio.Transport | None = None
        self.stream: Stream | None = None
        self.received_bytes = 0
        self.sent_bytes = 0
        self._on_closed = on_closed
        self._early: list[Buffer] = []
        self._held = 0
        self._paused = False
        self._local_ended = False
        self._remote_ended = False

    # -- the socket's side ---------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.pause_reading()
        self.transport.set_write_buffer_limits(high=self.write_high_water)
        no_delay(transport)
        reset_on_close(transport)
        early, self._early = self._early, []
        for data in early:
            self.on_data(data)
        if self._remote_ended:
            self._end_socket(self.transport)

    def start(self, stream: Stream) -> None:
        """Couple the socket to `stream` and read it."""
        self.stream = stream
        stream.handler = self
        if self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        if self.stream is None:
            return
        self.received_bytes += len(data)
        if not self.stream.write(data) and self.transport is not None:
            self.transport.pause_reading()

    def eof_received(self) -> bool:
        self._local_ended = True
        if self.stream is not None:
            self.stream.end()
        if self._remote_ended and self.transport is not None:
            self._close_socket(self.transport)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        stream, self.stream = self.stream, None
        self.transport = None
        if stream is not None:
            if not (self._local_ended and self._remote_ended) or exc is not None:
                stream.reset(ErrorCode.RESET if exc is not None else ErrorCode.CANCELLED)
            stream.handler = None
        if self._on_closed is not None:
            on_closed, self._on_closed = self._on_closed, None
            on_closed(self)

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self._remote_ended and self.transport is not None:
            fin_on_close(self.transport)
        if self._held and self.stream is not None:
            held, self._held = self._held, 0
            self.stream.consume(held)

    # -- the stream's side ---------------------------------------------------------------------

    def on_accepted(self) -> None:
        """Do nothing: the socket is read already."""

    def on_refused(self, code: ErrorCode, message: str) -> None:
        """Reset the socket, so that its peer never takes the failure for an empty answer."""
        about(logger, stream=repr(self.stream)).debug("refused: %s %s", code.text, message)
        self.on_reset(code)

    def on_data(self, data: Buffer) -> None:
        if self.stream is None:
            return
        if self.transport is None:
            self.keep(data)
            return
        size = len(data)
        self.sent_bytes += size
        self.transport.write(data)
        if self._paused:
            self._held += size
        else:
            self.stream.consume(size)

    def keep(self, data: Buffer) -> None:
        """Keep bytes until the socket is there."""
        self._early.append(data)

    def on_datagram(self, data: Buffer) -> None:
        """Ignore a datagram on a TCP stream."""

    def on_end(self) -> None:
        self._remote_ended = True
        if self.transport is None:
            return
        if self._local_ended:
            self._close_socket(self.transport)
        elif self.transport.can_write_eof():
            self._end_socket(self.transport)

    def on_reset(self, code: ErrorCode) -> None:
        self.stream = None
        if self.transport is not None:
            reset_socket(self.transport)

    def on_writable(self) -> None:
        if self.transport is not None and not self.transport.is_closing():
            self.transport.resume_reading()

    def _end_socket(self, transport: asyncio.Transport) -> None:
        """Send FIN after the written bytes, and let a close from then on be no reset.

        The option is set early, since macOS takes none once both ends have ended.
        """
        self._fin_after_writes(transport)
        end_socket(transport)

    def _close_socket(self, transport: asyncio.Transport) -> None:
        """Close a socket whose both ends have ended, after the written bytes."""
        self._fin_after_writes(transport)
        transport.close()

    def _fin_after_writes(self, transport: asyncio.Transport) -> None:
        """Let a close be no reset once the written bytes are sent, and not before."""
        transport.set_write_buffer_limits(high=0)
        if not self._paused:
            fin_on_close(transport)
