"""Pipe: a forwarded port as an asyncio transport, from the upgraded connection to the mux.

It has callbacks only. Bytes pass in the turn of the loop in which they arrived. The connection's
own transport paces the writer; the pipe buffers nothing.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Any, cast

from krelay.errors import TunnelError
from krelay.transport import spdy
from krelay.transport.spdy import DATA_STREAM, ERROR_STREAM, Buffer
from krelay.transport.upgrade import Carrier, stream_error

logger = logging.getLogger("krelay.transport")

CLOSE_DEADLINE = 2.0  # seconds that `close` gives the connection to take what was written

# asyncio's TLS decrypts reads of 256 KiB. With room for a record that the last read cut in two, one
# call takes all of it.
_READ_SIZE = 272 << 10
_TEXT_LIMIT = 4 << 10  # bytes of the error stream that are kept
_TEXT_DEADLINE = 0.25
"""Seconds from the end of the data stream in which the error stream may say why."""
_REPLIES_LIMIT = 1 << 20  # unsent bytes above which pings get no reply


class Pipe(asyncio.Transport, asyncio.BufferedProtocol):
    """The transport of the protocol above, and the protocol of the connection's transport below.

    Received bytes land in the pipe's own buffer, into which asyncio's TLS decrypts, and are copied
    once, joined, for the protocol above.
    """

    _below: asyncio.Transport

    def __init__(self, protocol: asyncio.Protocol, carrier: Carrier, port: int) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self.carrier = carrier.name
        self._protocol = protocol
        self._carrier = carrier
        self._port = port
        self._decoder = spdy.Decoder()
        self._view = memoryview(bytearray(_READ_SIZE))
        self._error_text = b""
        self._reason: TunnelError | None = None
        self._closing = False
        self._timer: asyncio.TimerHandle | None = None

    # -- the transport of the protocol above ---------------------------------------------------

    def write(self, data: Buffer) -> None:
        if not self._closing:
            for frame in spdy.data_frames(DATA_STREAM, data):
                self._below.write(self._carrier.wrap(frame))

    def close(self) -> None:
        """Close the connection when the written bytes are sent, or after `CLOSE_DEADLINE`."""
        if not self._closing:
            self._closing = True
            self._arm(CLOSE_DEADLINE, self._below.abort)
            self._below.close()

    def abort(self) -> None:
        """Close the connection at once."""
        self._closing = True
        self._below.abort()

    def is_closing(self) -> bool:
        return self._closing

    def pause_reading(self) -> None:
        if not self._below.is_closing():
            self._below.pause_reading()

    def resume_reading(self) -> None:
        if not self._below.is_closing():
            self._below.resume_reading()

    def is_reading(self) -> bool:
        return not self._below.is_closing() and self._below.is_reading()

    def can_write_eof(self) -> bool:
        """Return True, although the container runtime ends both directions a second later."""
        return True

    def write_eof(self) -> None:
        if not self._closing:
            self._below.write(self._carrier.wrap(spdy.end_frame(DATA_STREAM)))

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = cast(asyncio.Protocol, protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._below.set_write_buffer_limits(high, low)

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._below.get_write_buffer_limits()

    def get_write_buffer_size(self) -> int:
        return self._below.get_write_buffer_size()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._below.get_extra_info(name, default)

    # -- the protocol of the transport below ---------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._below = cast(asyncio.Transport, transport)
        self._below.write(self._carrier.wrap(spdy.open_streams(self._port)))
        self._protocol.connection_made(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        self.received(self._view[:nbytes])

    def pause_writing(self) -> None:
        self._protocol.pause_writing()

    def resume_writing(self) -> None:
        self._protocol.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        reason = self._reason
        if reason is None and self._error_text and not self._closing:
            reason = self._stream_error()
        elif reason is None and not self._closing:
            reason = TunnelError(f"the connection to the API server was lost: {exc or 'it ended'}")
            reason.__cause__ = exc
        self._closing = True
        self._protocol.connection_lost(reason)

    # -- received bytes ------------------------------------------------------------------------

    def received(self, data: Buffer) -> None:
        """Take bytes of the connection, also those that arrived before the pipe took it over."""
        if self._closing:
            return
        pieces: list[Buffer] = []
        end: TunnelError | None = None
        ended = False
        try:
            for part in self._carrier.unwrap(data):
                for event in self._decoder.receive_data(part):
                    if isinstance(event, spdy.Data) and event.stream_id == DATA_STREAM:
                        pieces.append(event.payload)
                    else:
                        ended |= self._handle(event)
        except spdy.SpdyError as exc:
            end = TunnelError(f"the API server does not speak SPDY: {exc}")
        if replies := self._carrier.replies():
            self._reply(replies)
        if ended or self._error_text and self._carrier.ended:
            end = self._stream_error()
        elif end is None and (why := self._carrier.ended):
            end = TunnelError(why)
        if pieces:
            self._protocol.data_received(b"".join(pieces))
        if end is not None:
            self._end(end)

    def _handle(self, event: spdy.Event) -> bool:
        """Return whether the error stream has ended.

        The data stream ends first. The error stream follows with the reason, if there is one;
        often in another read, and sometimes never.
        """
        if isinstance(event, spdy.Ping):
            self._reply(self._carrier.wrap(event.frame))
            return False
        if isinstance(event, spdy.Data):
            self._error_text = (self._error_text + event.payload)[:_TEXT_LIMIT]
        elif not isinstance(event, spdy.End):
            return False
        elif event.stream_id == ERROR_STREAM:
            return True
        if self._timer is None:
            self._arm(_TEXT_DEADLINE, lambda: self._end(self._stream_error()))
        return False

    def _stream_error(self) -> TunnelError:
        return stream_error(self._error_text.decode("utf-8", "replace"))

    def _end(self, reason: TunnelError) -> None:
        if not self._closing:
            logger.debug("the pipe to port %d ended: %s", self._port, reason)
            self._reason = reason
            self.abort()

    def _reply(self, data: bytes) -> None:
        # A peer that sends pings without reading the replies gets no more of them.
        if self._below.get_write_buffer_size() < _REPLIES_LIMIT:
            self._below.write(data)

    def _arm(self, delay: float, callback: Callable[[], object]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(delay, callback)
