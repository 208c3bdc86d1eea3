"""Target: what the agent makes of a stream that a session opens: a TCP relay or a UDP flow."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from typing import Any

from agent.dial import DialError, dial_tcp, dial_udp
from krelay.mux.relay import TcpRelay
from krelay.mux.stream import MuxStream
from krelay.wire import header
from krelay.wire.errors import ErrorCode
from krelay.wire.frames import Buffer

logger = logging.getLogger("krelay.agent")

_EARLY_DATAGRAMS = 64
_UDP_BACKLOG = 1 << 20
# Longer than the client's own expiry of a flow, which says so; this one is for a lost client.
UDP_IDLE = 150.0


class TargetRelay(TcpRelay):
    """A TCP relay whose socket is still being dialled; a reset ends the dial."""

    dialling: asyncio.Task[None] | None = None

    def on_reset(self, code: ErrorCode) -> None:
        if self.transport is None and self.dialling is not None:
            self.dialling.cancel()
        super().on_reset(code)


class TargetFlow(asyncio.DatagramProtocol):
    """One UDP flow: a connected socket on this side, a stream on the other."""

    def __init__(self, stream: MuxStream) -> None:
        self._loop = asyncio.get_running_loop()
        self._stream: MuxStream | None = stream
        # A DatagramTransport; typeshed does not know that it tells its buffer's size.
        self._transport: Any = None
        self._early: deque[Buffer] = deque(maxlen=_EARLY_DATAGRAMS)
        self._active_at = self._loop.time()
        self._timer = self._loop.call_later(UDP_IDLE, self._check_idle)
        self.dialling: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        while self._early:
            self.on_datagram(self._early.popleft())

    def datagram_received(self, data: bytes, addr: object) -> None:
        self._active_at = self._loop.time()
        if self._stream is not None:
            self._stream.datagram(data)

    def error_received(self, exc: Exception) -> None:
        # ICMP: nothing listens there. The flow ends; the client's next datagram opens another.
        self.close(ErrorCode.REFUSED)

    def connection_lost(self, exc: Exception | None) -> None:
        self.close(ErrorCode.CANCELLED)

    def close(self, code: ErrorCode) -> None:
        """End the flow and tell the client."""
        stream, self._stream = self._stream, None
        if stream is not None:
            stream.reset(code)
        self._timer.cancel()
        if self._transport is not None:
            self._transport.abort()
        elif self.dialling is not None:
            self.dialling.cancel()

    def on_datagram(self, data: Buffer) -> None:
        self._active_at = self._loop.time()
        if self._transport is None:
            self._early.append(bytes(data))
        elif self._transport.get_write_buffer_size() < _UDP_BACKLOG:
            self._transport.sendto(data)

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

    def _check_idle(self) -> None:
        idle = self._loop.time() - self._active_at
        if idle >= UDP_IDLE:
            self.close(ErrorCode.IDLE)
        else:
            self._timer = self._loop.call_later(UDP_IDLE - idle, self._check_idle)


def open_target(stream: MuxStream, tasks: asyncio.TaskGroup, timeout: float) -> None:
    """Start what `stream`'s Header asks for; the dial is a task of `tasks`."""
    asked = stream.header
    if asked.protocol == header.TCP:
        relay = TargetRelay()
        relay.stream = stream
        stream.handler = relay
        relay.dialling = tasks.create_task(_dial_tcp(stream, relay, timeout))
    elif asked.protocol == header.UDP:
        flow = TargetFlow(stream)
        stream.handler = flow
        flow.dialling = tasks.create_task(_dial_udp(stream, flow, timeout))
    else:
        stream.refuse(ErrorCode.UNKNOWN_PROTOCOL, f"protocol {asked.protocol}")


async def _dial_tcp(stream: MuxStream, relay: TargetRelay, timeout: float) -> None:
    asked = stream.header
    try:
        await dial_tcp(asked.host, asked.port, timeout, lambda: relay)
    except DialError as exc:
        logger.info("%r: %s: %s", stream, exc.code.text, exc)
        stream.handler = None
        stream.refuse(exc.code, str(exc))
        return
    finally:
        relay.dialling = None
    if relay.stream is None:
        # Reset while the connection came up: whoever asked has gone.
        relay.on_reset(ErrorCode.CANCELLED)
        return
    stream.accept()
    relay.start(stream)


async def _dial_udp(stream: MuxStream, flow: TargetFlow, timeout: float) -> None:
    asked = stream.header
    try:
        await dial_udp(asked.host, asked.port, timeout, lambda: flow)
    except DialError as exc:
        logger.info("%r: %s: %s", stream, exc.code.text, exc)
        stream.refuse(exc.code, str(exc))
        flow.close(exc.code)
        return
    finally:
        flow.dialling = None
    stream.accept()
