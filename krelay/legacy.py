"""Legacy mode (v0): the carrier for an agent that knows no sessions, such as the Go krelay's.

Each stream has a connection to itself (protocol.md, section 3.1), so none outlives its connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
from collections.abc import Awaitable, Callable
from struct import Struct
from typing import cast

from krelay.datapath.agent_link import AgentLink
from krelay.datapath.carrier import QUEUED, TunnelStats
from krelay.errors import EndedError, KrelayError, NotListeningError, PodGoneError, TunnelError
from krelay.mux.log import about
from krelay.mux.sockets import no_delay
from krelay.mux.stream import HIGH_WATER, StreamHandler
from krelay.tasks import TaskGroup
from krelay.wire import header
from krelay.wire.errors import ErrorCode, ProtocolError
from krelay.wire.frames import Buffer
from krelay.wire.header import Header, Status, code_of

logger = logging.getLogger("krelay.legacy")

HEARTBEAT = 20.0
"""Seconds between heartbeats; the agent ends after minutes without a connection."""
ANSWER_TIMEOUT = 30.0
"""Seconds from a stream's Header to the agent's answer: longer than the agent dials."""
MAX_STREAMS = 1_024
WINDOW = 1 << 20
"""Bytes that may wait for a consumer before the connection stops being read."""
SILENCE = 10_000
"""Milliseconds that the other end has to acknowledge what was sent, on Linux (TCP_USER_TIMEOUT).
Keepalive detects a dead connection on which nothing is in flight."""
_MAX_WAITING = 1 << 20
_LENGTH = Struct(">H")
# Errors that ended a connection for certain before the agent had a byte of it.
_NOTHING_ARRIVED = (NotListeningError, PodGoneError)

Dial = Callable[[asyncio.Protocol], Awaitable[asyncio.Transport]]


class LegacyTunnels:
    """The streams to one agent. `run` lasts until the agent is lost or it is cancelled."""

    multiplexed = False
    rtt = None

    def __init__(self, name: str, link: AgentLink, on_idle: Callable[[], None]) -> None:
        """`on_idle` is called when no stream is left."""
        self.name = name
        self.closed = False
        self.streams: set[LegacyStream] = set()
        self.dropped_datagrams = 0
        """Datagrams that waited for a connection that did not come up."""
        self.on_idle = on_idle
        self._dial: Dial = link.dial
        self._log = about(logger, tunnel=name)
        self._tasks: TaskGroup | None = None
        self._lost: asyncio.Future[PodGoneError] = asyncio.get_running_loop().create_future()

    @property
    def ready(self) -> bool:
        return self._tasks is not None and not self.closed

    @property
    def count(self) -> int:
        return len(self.streams)

    load = count
    """Each stream has its own connection, so the number of streams is the load."""

    async def run(self) -> PodGoneError:
        """Carry streams and send heartbeats until the agent is lost, and return why."""
        try:
            async with TaskGroup() as self._tasks:
                heartbeat = self._tasks.create_task(self._send_heartbeats(), name=self.name)
                reason = await self._lost
                heartbeat.cancel()
                self.close(ErrorCode.RESET)
        finally:
            self.close(ErrorCode.RESET)
        return reason

    def open(self, asked: Header, handler: StreamHandler) -> LegacyStream:
        if self._tasks is None or self.closed:
            raise ProtocolError("the agent is gone")
        if len(self.streams) >= MAX_STREAMS:
            raise ProtocolError(f"{MAX_STREAMS} streams are open")
        asked.encode()  # raises ValueError here, and not once the connection is up
        stream = LegacyStream(self, asked, handler)
        stream.task = self._tasks.create_task(self._connect(stream), name=self.name)
        self.streams.add(stream)
        return stream

    def network_changed(self, *, broken: bool) -> None:
        """Give up the live streams if their connections are broken; further ones get new ones."""
        if broken:
            for stream in list(self.streams):
                stream.lose(TunnelError("the network has changed"))

    def add_to(self, stats: TunnelStats) -> None:
        stats.lost_datagrams[QUEUED] += self.dropped_datagrams

    def close(self, code: ErrorCode, message: str = "") -> None:
        self.closed = True
        for stream in list(self.streams):
            stream.fail(code)

    async def _send_heartbeats(self) -> None:
        heartbeat = Header(header.HEARTBEAT, "0.0.0.0", 0).encode()
        while True:
            await asyncio.sleep(HEARTBEAT)
            try:
                transport = await self._dial(asyncio.Protocol())
            except (KrelayError, OSError) as exc:
                self._dial_failed(exc)
            except Exception:
                # A bug in a transport is one missed heartbeat, and must not end every forward.
                self._log.exception("dialling failed")
            else:
                transport.write(heartbeat)
                transport.close()

    async def _connect(self, stream: LegacyStream) -> None:
        # A bug in one stream must not end the others.
        try:
            await self._dial_stream(stream)
        except Exception:
            self._log.exception("a stream failed")
            stream.reset()

    async def _dial_stream(self, stream: LegacyStream) -> None:
        try:
            async with asyncio.timeout(ANSWER_TIMEOUT):
                await self._dial(stream)
                await stream.answered.wait()
        except (KrelayError, OSError) as exc:
            self._dial_failed(exc)
            stream.lose(exc)
        except Exception:
            self._log.exception("dialling failed")
            stream.refuse(ErrorCode.INTERNAL, "internal error")

    def _dial_failed(self, exc: Exception) -> None:
        """Handle a connection that did not come up. If the agent's pod is gone, none ever will."""
        self._log.debug("no tunnel: %s", exc)
        if isinstance(exc, PodGoneError) and not self._lost.done():
            self._lost.set_result(exc)


class LegacyStream(asyncio.Protocol):
    """One stream and its connection to the agent: a `krelay.mux.stream.Stream`."""

    def __init__(
        self, tunnels: LegacyTunnels, asked: Header, handler: StreamHandler | None
    ) -> None:
        self.header = asked
        self.handler = handler
        self.answered = asyncio.Event()
        self.task: asyncio.Task[None] | None = None
        self._tunnels = tunnels
        self._transport: asyncio.Transport | None = None
        self._waiting = bytearray()
        self._datagrams_waiting = 0
        self._ended = False
        self._gone = False
        self._sent_any = False
        """Whether bytes of the application may have left on the connection."""
        self._unconsumed = 0
        self._wants_writable = False
        self._paused = False
        self._datagrams = bytearray()

    def __repr__(self) -> str:
        return f"<LegacyStream {self.header.host}:{self.header.port}>"

    # -- called by the layers above: the interface of Stream -----------------------------------

    def write(self, data: Buffer) -> bool:
        if self._gone:
            asyncio.get_running_loop().call_soon(self.fail, ErrorCode.RESET)
        elif self._transport is None:
            self._waiting += data
            self._wants_writable = len(self._waiting) >= HIGH_WATER
        else:
            self._sent_any = True
            self._transport.write(data)
            self._wants_writable = self._paused
        return not self._wants_writable

    def end(self) -> None:
        self._ended = True
        if self._gone:
            self.reset()
        elif self._transport is not None and not self._transport.is_closing():
            self._transport.write_eof()

    def reset(self, code: ErrorCode = ErrorCode.CANCELLED) -> None:
        self._leave()

    def consume(self, count: int) -> None:
        before, self._unconsumed = self._unconsumed, self._unconsumed - count
        if before > WINDOW // 2 >= self._unconsumed and self._transport is not None:
            self._transport.resume_reading()

    def datagram(self, data: Buffer) -> bool:
        framed = _LENGTH.pack(len(data)) + data
        if self._transport is None:
            if len(self._waiting) + len(framed) > _MAX_WAITING:
                return False
            self._waiting += framed
            self._datagrams_waiting += 1
        elif self._transport.get_write_buffer_size() > _MAX_WAITING:
            return False
        else:
            self._sent_any = True
            self._transport.write(framed)
        return True

    # -- called by LegacyTunnels ---------------------------------------------------------------

    def refuse(self, code: ErrorCode, message: str) -> None:
        """End the stream with a refusal."""
        if (handler := self._leave()) is not None:
            handler.on_refused(code, message)

    def lose(self, exc: Exception) -> None:
        """End the stream after its connection was lost, or did not come up.

        A stream without an answer is refused, so that the layers above try once more and find the
        next agent; but it is reset if what the application sent may have arrived.
        """
        logger.debug("%r: tunnel lost: %s", self, exc)
        if self.answered.is_set() or self._sent_any and not isinstance(exc, _NOTHING_ARRIVED):
            self.fail(ErrorCode.RESET)
        else:
            self.refuse(ErrorCode.GOING_AWAY, str(exc) or "no answer in time")

    def fail(self, code: ErrorCode) -> None:
        """End the stream with a reset."""
        if (handler := self._leave()) is not None:
            handler.on_reset(code)

    def _leave(self) -> StreamHandler | None:
        """Give up the connection, and return the handler, which gets one more call at most."""
        handler, self.handler = self.handler, None
        tunnels = self._tunnels
        tunnels.streams.discard(self)
        tunnels.dropped_datagrams += self._datagrams_waiting
        self._datagrams_waiting = 0
        if not tunnels.streams:
            tunnels.on_idle()
        task, self.task = self.task, None
        if task is not None and not self.answered.is_set():
            task.cancel()
        self.answered.set()
        if self._transport is not None:
            self._transport.abort()
        return handler

    # -- called by the transport ---------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)
        no_delay(transport)
        self._set_user_timeout(SILENCE)
        if self.handler is None:
            self._transport.abort()
            return
        self._transport.write(self.header.encode())
        waiting, self._waiting = bytes(self._waiting), bytearray()
        self._datagrams_waiting = 0
        if waiting:
            self._sent_any = True
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
            self._datagrams_received(data)
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
            # Both directions have ended; a writer that goes on sees a reset.
            self._gone = True
            self.handler.on_end()
            if self._ended:
                self.reset()

    def pause_writing(self) -> None:
        self._paused = True
        # From now on a slow target may keep the other end from taking more. The kernel cannot tell
        # that silence from a dead peer (tcp(7), TCP_USER_TIMEOUT).
        self._set_user_timeout(0)

    def resume_writing(self) -> None:
        self._paused = False
        if self._wants_writable and self.handler is not None:
            self._wants_writable = False
            self.handler.on_writable()

    def _set_user_timeout(self, milliseconds: int) -> None:
        sock = self._transport.get_extra_info("socket") if self._transport is not None else None
        if sock is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
            with contextlib.suppress(OSError):  # the socket has been closed, or is not a TCP socket
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)

    def _datagrams_received(self, data: bytes) -> None:
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
