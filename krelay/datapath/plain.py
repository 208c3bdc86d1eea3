"""Plain mode (v0): for an agent that knows no sessions, each stream is a tunnel of its own.

Stands where a session's driver stands (`krelay.mux.driver`), for the Go krelay's agent
(protocol.md, section 3.1).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from struct import Struct
from typing import cast

from krelay.errors import EndedError, KrelayError, PodGoneError
from krelay.mux.sockets import no_delay
from krelay.mux.stream import HIGH_WATER, Handler
from krelay.wire import header
from krelay.wire.errors import ErrorCode, ProtocolError
from krelay.wire.frames import Buffer
from krelay.wire.header import Header, Status, code_of

logger = logging.getLogger("krelay.plain")

HEARTBEAT = 20.0
"""Seconds; the agent ends when it has had no connection for minutes."""
ANSWER_DEADLINE = 30.0
"""Seconds from a stream's Header to the agent's answer: longer than it dials."""
MAX_STREAMS = 1_024
WINDOW = 1 << 20
"""Bytes that may wait for a consumer before the tunnel is read no more."""
_MAX_WAITING = 1 << 20
_LENGTH = Struct(">H")

Dial = Callable[[asyncio.Protocol], Awaitable[asyncio.Transport]]


class PlainDriver:
    """The streams to one agent. `run` lasts until the agent is lost or it is cancelled."""

    attached = True

    def __init__(self, name: str, dial: Dial) -> None:
        self.name = name
        self.closed = False
        self.streams: set[PlainStream] = set()
        self._dial = dial
        self._tasks: asyncio.TaskGroup | None = None
        self._lost: asyncio.Future[PodGoneError] = asyncio.get_running_loop().create_future()

    @property
    def ready(self) -> bool:
        """Whether it takes new streams now."""
        return not self.closed

    @property
    def count(self) -> int:
        """How many streams live on it."""
        return len(self.streams)

    @property
    def load(self) -> int:
        """The same: each has a tunnel of its own."""
        return len(self.streams)

    async def run(self) -> PodGoneError:
        """Carry streams, and keep the agent from being idle, until it is lost: why."""
        try:
            async with asyncio.TaskGroup() as self._tasks:
                beating = self._tasks.create_task(self._beat(), name=self.name)
                reason = await self._lost
                beating.cancel()
                self.close(ErrorCode.RESET)
        finally:
            self.close(ErrorCode.RESET)
        return reason

    def open(self, asked: Header, handler: Handler) -> PlainStream:
        """Open a stream; `handler` learns what becomes of it.

        Raises:
            ProtocolError: too many streams, or there is no agent any more.
        """
        if self._tasks is None or self.closed:
            raise ProtocolError("the agent is gone")
        if len(self.streams) >= MAX_STREAMS:
            raise ProtocolError(f"{MAX_STREAMS} streams are open")
        stream = PlainStream(self, asked, handler)
        stream.task = self._tasks.create_task(self._connect(stream), name=self.name)
        self.streams.add(stream)
        return stream

    def close(self, code: ErrorCode, message: str = "") -> None:
        """Cut every stream."""
        self.closed = True
        for stream in list(self.streams):
            stream.fail(code)

    async def _beat(self) -> None:
        beat = Header(header.HEARTBEAT, "0.0.0.0", 0).encode()
        while True:
            await asyncio.sleep(HEARTBEAT)
            try:
                transport = await self._dial(asyncio.Protocol())
            except (KrelayError, OSError) as exc:
                self._missed(exc)
            else:
                transport.write(beat)
                transport.close()

    async def _connect(self, stream: PlainStream) -> None:
        try:
            async with asyncio.timeout(ANSWER_DEADLINE):
                await self._dial(stream)
                await stream.answered.wait()
        except (KrelayError, OSError) as exc:
            # The next one may find another agent.
            stream.refuse(ErrorCode.GOING_AWAY, str(exc) or "no answer in time")
            self._missed(exc)
        except Exception:
            # One stream's bug is its own; let through, it would end every other.
            logger.exception("%s: dialling failed", self.name)
            stream.refuse(ErrorCode.INTERNAL, "internal error")

    def _missed(self, exc: Exception) -> None:
        """A tunnel did not come up; where the agent's pod is gone, none ever will."""
        logger.debug("%s: no tunnel: %s", self.name, exc)
        if isinstance(exc, PodGoneError) and not self._lost.done():
            self._lost.set_result(exc)


class PlainStream(asyncio.Protocol):
    """One tunnel, with a stream's ways (`krelay.mux.stream.MuxStream`)."""

    def __init__(self, driver: PlainDriver, asked: Header, handler: Handler) -> None:
        self.header = asked
        self.handler: Handler | None = handler
        self.answered = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self._driver = driver
        self._transport: asyncio.Transport | None = None
        self._waiting = bytearray()
        self._ended = False
        self._gone = False
        self._unconsumed = 0
        self._wants_writable = False
        self._paused = False
        self._datagrams = bytearray()

    def __repr__(self) -> str:
        return f"<PlainStream {self.header.host}:{self.header.port}>"

    # -- what the layers above do --------------------------------------------------------------

    def write(self, data: Buffer) -> bool:
        """Send bytes; False when the writer is to wait for `on_writable`."""
        if self._gone:
            asyncio.get_running_loop().call_soon(self.fail, ErrorCode.RESET)
        elif self._transport is None:
            self._waiting += data
            self._wants_writable = len(self._waiting) >= HIGH_WATER
        else:
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
        elif self._transport.get_write_buffer_size() > _MAX_WAITING:
            return False
        else:
            self._transport.write(framed)
        return True

    # -- what the driver does ------------------------------------------------------------------

    def refuse(self, code: ErrorCode, message: str) -> None:
        """There will be no tunnel for it."""
        handler, self.handler = self.handler, None
        self._leave()
        if handler is not None:
            handler.on_refused(code, message)

    def fail(self, code: ErrorCode) -> None:
        """Its tunnel is lost."""
        handler, self.handler = self.handler, None
        self._leave()
        if handler is not None:
            handler.on_reset(code)

    def _leave(self) -> None:
        self._driver.streams.discard(self)
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
        if self.handler is None:
            self._transport.abort()
            return
        self._transport.write(self.header.encode())
        waiting, self._waiting = bytes(self._waiting), bytearray()
        if waiting:
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
        elif not self.answered.is_set():
            self.refuse(ErrorCode.GOING_AWAY, str(exc or "the agent gave no answer"))
        elif exc is not None and not isinstance(exc, EndedError):
            self.fail(ErrorCode.RESET)
        else:
            # Both ways have ended; whoever writes on sees a reset.
            self._gone = True
            self.handler.on_end()
            if self._ended:
                self.reset()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        if self._wants_writable and self.handler is not None:
            self._wants_writable = False
            self.handler.on_writable()

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
