"""LegacyStream: one tunnel to an agent that knows no sessions, with the ways of a session's stream
(`krelay.mux.stream`)."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from struct import Struct
from typing import TYPE_CHECKING, cast

from krelay.errors import EndedError, NotListeningError, PodGoneError
from krelay.mux.sockets import no_delay
from krelay.mux.stream import HIGH_WATER, StreamHandler
from krelay.wire import header
from krelay.wire.errors import ErrorCode
from krelay.wire.frames import Buffer
from krelay.wire.header import Header, Status, code_of

if TYPE_CHECKING:
    from krelay.legacy.tunnels import LegacyTunnels

logger = logging.getLogger("krelay.plain")

WINDOW = 1 << 20
"""Bytes that may wait for a consumer before the tunnel is read no more."""
SILENCE = 10_000
"""Milliseconds that the other end of a tunnel has to acknowledge what was sent, where the system
can be told (Linux); keepalive finds the death of one on which nothing is under way."""
_MAX_WAITING = 1 << 20
_LENGTH = Struct(">H")
_UNHEARD = (NotListeningError, PodGoneError)
"""What is certain to have ended a tunnel before the agent had a byte of it."""


class LegacyStream(asyncio.Protocol):
    """A tunnel from its dial on; `_spoken`: bytes of the application may have left on it."""

    def __init__(self, driver: LegacyTunnels, asked: Header, handler: StreamHandler) -> None:
        self.header = asked
        self.handler: StreamHandler | None = handler
        self.answered = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self._driver = driver
        self._transport: asyncio.Transport | None = None
        self._waiting = bytearray()
        self._datagrams_waiting = 0
        self._ended = False
        self._gone = False
        self._spoken = False
        self._unconsumed = 0
        self._wants_writable = False
        self._paused = False
        self._datagrams = bytearray()

    def __repr__(self) -> str:
        return f"<LegacyStream {self.header.host}:{self.header.port}>"

    # -- what the layers above do --------------------------------------------------------------

    def write(self, data: Buffer) -> bool:
        """Send bytes; False when the writer is to wait for `on_writable`."""
        if self._gone:
            asyncio.get_running_loop().call_soon(self.fail, ErrorCode.RESET)
        elif self._transport is None:
            self._waiting += data
            self._wants_writable = len(self._waiting) >= HIGH_WATER
        else:
            self._spoken = True
            self._transport.write(data)
            self._wants_writable = self._paused
        return not self._wants_writable

    def end(self) -> None:
        """Send no more, after what was written."""
        self._ended = True
        if self._gone:
            self.reset()
        elif self._transport is not None and not self._transport.is_closing():
            self._transport.write_eof()

    def reset(self, code: ErrorCode = ErrorCode.CANCELLED) -> None:
        """Cut it now. The handler is not called again."""
        self.handler = None
        self._leave()

    def consume(self, count: int) -> None:
        """`count` received bytes were handed on."""
        before, self._unconsumed = self._unconsumed, self._unconsumed - count
        if before > WINDOW // 2 >= self._unconsumed and self._transport is not None:
            self._transport.resume_reading()

    def datagram(self, data: Buffer) -> bool:
        """Send one datagram; False when it was dropped."""
        framed = _LENGTH.pack(len(data)) + data
        if self._transport is None:
            if len(self._waiting) + len(framed) > _MAX_WAITING:
                return False
            self._waiting += framed
            self._datagrams_waiting += 1
        elif self._transport.get_write_buffer_size() > _MAX_WAITING:
            return False
        else:
            self._spoken = True
            self._transport.write(framed)
        return True

    # -- what the driver does ------------------------------------------------------------------

    def refuse(self, code: ErrorCode, message: str) -> None:
        """There will be no tunnel for it."""
        handler, self.handler = self.handler, None
        self._leave()
        if handler is not None:
            handler.on_refused(code, message)

    def lose(self, exc: Exception) -> None:
        """Its tunnel is lost, or did not come up. Unanswered, it is worth another try, on which the
        next agent may be found; but not where what the application sent may have arrived."""
        logger.debug("%r: tunnel lost: %s", self, exc)
        if self.answered.is_set() or self._spoken and not isinstance(exc, _UNHEARD):
            self.fail(ErrorCode.RESET)
        else:
            self.refuse(ErrorCode.GOING_AWAY, str(exc) or "no answer in time")

    def fail(self, code: ErrorCode) -> None:
        """Cut it, and say so."""
        handler, self.handler = self.handler, None
        self._leave()
        if handler is not None:
            handler.on_reset(code)

    def _leave(self) -> None:
        self._driver.streams.discard(self)
        self._driver.forgotten_datagrams += self._datagrams_waiting
        self._datagrams_waiting = 0
        task, self.task = self.task, None
        if task is not None and not self.answered.is_set():
            task.cancel()
        self.answered.set()
        if self._transport is not None:
            self._transport.abort()

    # -- what the tunnel does ------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        no_delay(transport)
        self._be_patient(SILENCE)
        if self.handler is None:
            self._transport.abort()
            return
        self._transport.write(self.header.encode())
        waiting, self._waiting = bytes(self._waiting), bytearray()
        self._datagrams_waiting = 0
        if waiting:
            self._spoken = True
            self._transport.write(waiting)
        if self._ended:
            self._transport.write_eof()
        self.resume_writing()

    def data_received(self, data: bytes) -> None:
        if not self.answered.is_set():
            status, data = data[0], data[1:]
            if status != Status.OK:
                self.refuse(code_of(status), "")
                return
            self.answered.set()
            if self.handler is not None:
                self.handler.on_accepted()
        if not data or self.handler is None:
            return
        if self.header.protocol == header.UDP:
            self._cut_datagrams(data)
            return
        self._unconsumed += len(data)
        if self._unconsumed > WINDOW and self._transport is not None:
            self._transport.pause_reading()
        self.handler.on_data(data)

    def eof_received(self) -> bool:
        if self.handler is not None and self.answered.is_set():
            self.handler.on_end()
        return not self._ended

    def connection_lost(self, exc: Exception | None) -> None:
        self._transport = None
        if self.handler is None:
            self._leave()
        elif not self.answered.is_set() or exc is not None and not isinstance(exc, EndedError):
            self.lose(exc or EndedError("the agent gave no answer"))
        else:
            # Both ways have ended; whoever writes on sees a reset.
            self._gone = True
            self.handler.on_end()
            if self._ended:
                self.reset()

    def pause_writing(self) -> None:
        self._paused = True
        # From now on it may be a slow target that keeps the other end from taking more, and the
        # kernel tells no such silence from death (tcp(7), TCP_USER_TIMEOUT).
        self._be_patient(0)

    def resume_writing(self) -> None:
        self._paused = False
        if self._wants_writable and self.handler is not None:
            self._wants_writable = False
            self.handler.on_writable()

    def _be_patient(self, milliseconds: int) -> None:
        sock = self._transport.get_extra_info("socket") if self._transport is not None else None
        if sock is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
            with contextlib.suppress(OSError):  # it has ended meanwhile; or it is no TCP
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)

    def _cut_datagrams(self, data: bytes) -> None:
        self._datagrams += data
        at = 0
        while len(self._datagrams) - at >= _LENGTH.size:
            begin = at + _LENGTH.size
            end = begin + _LENGTH.unpack_from(self._datagrams, at)[0]
            if len(self._datagrams) < end:
                break
            if self.handler is not None:
                self.handler.on_datagram(bytes(self._datagrams[begin:end]))
            at = end
        del self._datagrams[:at]
