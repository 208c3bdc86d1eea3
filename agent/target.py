"""Target: what the agent makes of a stream that a session opens: a TCP relay or a UDP flow."""

from __future__ import annotations

import asyncio
import logging
from collections import deque

from agent.dial import DialError, dial_tcp, dial_udp
from agent.room import Room, Share
from agent.udp import UdpSocket
from krelay.mux.relay import TcpRelay
from krelay.mux.sockets import reset_socket
from krelay.mux.stream import MuxStream
from krelay.wire import header
from krelay.wire.errors import ErrorCode
from krelay.wire.frames import Buffer

logger = logging.getLogger("krelay.agent")

# For what waits for all targets together, in bytes. A stream past it is refused, since nothing of
# it may be lost; of datagrams the newest is.
EARLY_STREAMS = 32 << 20
EARLY_DATAGRAMS = 1 << 20
_MOST_EARLY_DATAGRAMS = 64
# Longer than the client's own expiry of a flow, which says so; this one is for a lost client.
UDP_IDLE = 150.0


class Targets:
    """Makes the targets of an agent's streams."""

    def __init__(self, tasks: asyncio.TaskGroup, timeout: float) -> None:
        """Each dial is a task of `tasks`, and has `timeout` seconds."""
        self._tasks = tasks
        self._timeout = timeout
        self._streams = Room(EARLY_STREAMS)
        self._datagrams = Room(EARLY_DATAGRAMS)

    def open(self, stream: MuxStream) -> None:
        """Start what `stream`'s Header asks for."""
        target: TargetRelay | TargetFlow
        if stream.header.protocol == header.TCP:
            target = TargetRelay(stream, self._streams.share())
        elif stream.header.protocol == header.UDP:
            target = TargetFlow(stream, self._datagrams.share())
        else:
            stream.refuse(ErrorCode.UNKNOWN_PROTOCOL, f"protocol {stream.header.protocol}")
            return
        stream.handler = target
        target.dialling = self._tasks.create_task(_dial(stream, target, self._timeout))


async def _dial(stream: MuxStream, target: TargetRelay | TargetFlow, timeout: float) -> None:
    asked = stream.header
    try:
        await target.dial(asked.host, asked.port, timeout)
    except DialError as exc:
        code, message = exc.code, str(exc)
        logger.info("%r: %s: %s", stream, code.text, message)
    except Exception:
        # One stream's bug is that stream's alone; let through, it would end the agent.
        logger.exception("%r: the dial failed", stream)
        code, message = ErrorCode.INTERNAL, ""
    else:
        target.begin(stream)
        return
    finally:
        target.dialling = None
    stream.handler = None
    stream.refuse(code, message)
    target.on_reset(code)


class TargetRelay(TcpRelay):
    """A TCP relay whose socket is still being dialled; a reset ends the dial."""

    def __init__(self, stream: MuxStream, share: Share) -> None:
        super().__init__()
        self.stream: MuxStream | None = stream
        self._share = share
        self.dialling: asyncio.Task[None] | None = None

    async def dial(self, host: str, port: int, timeout: float) -> None:
        """Reach the target. Raises DialError."""
        await dial_tcp(host, port, timeout, lambda: self)

    def begin(self, stream: MuxStream) -> None:
        """The target is reached."""
        if self.stream is None:
            # Reset while the connection came up: whoever asked has gone.
            self.on_reset(ErrorCode.CANCELLED)
            return
        stream.accept()
        self.start(stream)

    def keep(self, data: Buffer) -> None:
        if self._share.take(len(data)):
            super().keep(data)
            return
        assert self.stream is not None
        self.stream.refuse(ErrorCode.LIMIT, "too much waits for targets that are being dialled")
        self.on_reset(ErrorCode.LIMIT)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._share.give_all()
        super().connection_made(transport)
        if self.stream is None:
            # Reset during the dial, which was cancelled too late.
            reset_socket(transport)

    def on_reset(self, code: ErrorCode) -> None:
        self._share.give_all()
        if self.dialling is not None:
            self.dialling.cancel()
        super().on_reset(code)


class TargetFlow:
    """One UDP flow: a connected socket on this side, a stream on the other."""

    def __init__(self, stream: MuxStream, share: Share) -> None:
        self.dialling: asyncio.Task[None] | None = None
        self._loop = asyncio.get_running_loop()
        self._stream: MuxStream | None = stream
        self._socket: UdpSocket | None = None
        self._share = share
        self._early: deque[bytes] = deque()
        self._active_at = self._loop.time()
        self._timer = self._loop.call_later(UDP_IDLE, self._check_idle)

    async def dial(self, host: str, port: int, timeout: float) -> None:
        """Find the target. Raises DialError."""
        # ICMP: nothing listens there. The flow ends; the client's next datagram opens another.
        self._socket = await dial_udp(
            host, port, timeout, self._receive, lambda: self.close(ErrorCode.REFUSED)
        )

    def begin(self, stream: MuxStream) -> None:
        """The socket is there."""
        stream.accept()
        self._share.give_all()
        while self._early:
            self.on_datagram(self._early.popleft())

    def close(self, code: ErrorCode) -> None:
        """End the flow and tell the client."""
        self._timer.cancel()
        self._share.give_all()
        self._early.clear()
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.reset(code)
        if self.dialling is not None:
            self.dialling.cancel()
        if self._socket is not None:
            self._socket.close()

    def on_datagram(self, data: Buffer) -> None:
        self._active_at = self._loop.time()
        if self._socket is not None:
            self._socket.send(data)
            return
        if len(self._early) == _MOST_EARLY_DATAGRAMS:
            self._share.give(len(self._early.popleft()))
        if self._share.take(len(data)):
            self._early.append(bytes(data))

    def on_end(self) -> None:
        self.close(ErrorCode.NONE)

    def on_reset(self, code: ErrorCode) -> None:
        self.close(code)

    def on_data(self, data: Buffer) -> None:
        """Stream bytes on a flow are nobody's: the window bounds them."""

    def on_accepted(self) -> None:
        """Only an opener is told."""

    def on_refused(self, code: ErrorCode, message: str) -> None:
        """Only an opener is told."""

    def on_writable(self) -> None:
        """Datagrams are dropped rather than held."""

    def _receive(self, data: bytes) -> None:
        self._active_at = self._loop.time()
        if self._stream is not None:
            self._stream.datagram(data)

    def _check_idle(self) -> None:
        idle = self._loop.time() - self._active_at
        if idle >= UDP_IDLE:
            self.close(ErrorCode.IDLE)
        else:
            self._timer = self._loop.call_later(UDP_IDLE - idle, self._check_idle)
