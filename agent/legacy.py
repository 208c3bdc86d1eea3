"""Legacy mode (v0), for clients of the Go krelay: one connection is one relayed stream."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from struct import Struct
from typing import cast

from agent.dial import DialError, Lookups, dial_tcp
from agent.memory import CONNECTION_COST, PIECE, READ, Client, ReadBuffer, Reservation
from agent.udp import Losses, UdpSocket, dial_udp
from krelay.mux.sockets import end_socket, no_delay, reset_socket
from krelay.wire import header
from krelay.wire.header import Header, Status, status_of

logger = logging.getLogger("krelay.agent")

UDP_IDLE = 110.0
"""Seconds without a datagram after which a flow ends."""
CLOSING = 5.0
"""Seconds that a connection has to take its last bytes."""
_LENGTH = Struct(">H")
_BACKLOG = 1 << 20


@dataclass(frozen=True, slots=True)
class Resources:
    """What one legacy connection may use. Its dial has `timeout` seconds.

    All legacy connections share one client's part of the budget; each has a reservation of
    CONNECTION_COST at least.
    """

    client: Client
    reservation: Reservation
    buffer: ReadBuffer
    lookups: Lookups
    timeout: float

    def hold(self, size: int) -> None:
        """Hold `size` bytes besides the cost of the connection."""
        self.reservation.set(CONNECTION_COST + size)


async def serve_legacy(
    request: Header, early: bytes, transport: asyncio.Transport, resources: Resources
) -> None:
    """Answer one v0 connection and relay it until it ends.

    `transport` is paused, and its Header was read; `early` are the bytes behind that.
    """
    try:
        if request.protocol == header.TCP:
            await _serve_tcp(request, early, transport, resources)
        elif request.protocol == header.UDP:
            await _serve_udp(request, early, transport, resources)
        else:
            transport.write(bytes([Status.UNKNOWN_PROTOCOL]))
    except DialError as exc:
        logger.info("legacy %s:%d: %s: %s", request.host, request.port, exc.code.text, exc)
        transport.write(bytes([status_of(exc.code)]))
    except Exception:
        # Otherwise a bug that one connection meets would end the agent.
        logger.exception("legacy %s:%d failed", request.host, request.port)
    finally:
        transport.close()
        # A client that does not read would keep the written bytes in memory.
        asyncio.get_running_loop().call_later(CLOSING, transport.abort)


class _Half(asyncio.BufferedProtocol):
    """One of two coupled TCP sockets. Ends and resets are passed on to the other.

    Bytes that arrive before `join` wait in the socket. Reads are as large as the memory allows.
    """

    def __init__(self, resources: Resources) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: _Half | None = None
        self.ended = False
        self.waiting = 0
        """Bytes that wait for this half's socket."""
        self.gone = asyncio.get_running_loop().create_future()
        self._resources = resources

    def join(self, other: _Half, early: bytes) -> None:
        """Couple both halves; `early` are bytes that were read from this one before."""
        self.other, other.other = other, self
        self._forward(early)
        for half in (self, other):
            if half.transport is not None:
                half.transport.resume_reading()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.pause_reading()
        self.transport.set_write_buffer_limits(high=0)
        no_delay(transport)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._resources.buffer.part(READ if self._resources.client.allows(READ) else PIECE)

    def buffer_updated(self, nbytes: int) -> None:
        self._forward(bytes(self._resources.buffer.part(nbytes)))

    def eof_received(self) -> bool:
        self.ended = True
        if self.other is None or self.other.transport is None:
            return False
        if self.other.ended:
            self.other.transport.close()
            return False
        end_socket(self.other.transport)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        other, self.other = self.other, None
        if other is not None and other.transport is not None:
            if exc is not None or not self.ended:
                reset_socket(other.transport)
            else:
                other.transport.close()
        if not self.gone.done():
            self.gone.set_result(None)

    def pause_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.pause_reading()
        if self.transport is not None:
            self._count(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        self._count(0)
        if self.other is not None and self.other.transport is not None:
            self.other.transport.resume_reading()

    def _forward(self, data: bytes) -> None:
        if data and self.other is not None and self.other.transport is not None:
            self.other.transport.write(data)

    def _count(self, waiting: int) -> None:
        self.waiting = waiting
        self._resources.hold(waiting + (self.other.waiting if self.other is not None else 0))


async def _serve_tcp(
    request: Header, early: bytes, transport: asyncio.Transport, resources: Resources
) -> None:
    target = await dial_tcp(
        request.host,
        request.port,
        resources.timeout,
        lambda: _Half(resources),
        resources.lookups,
        resources.client,
    )
    try:
        if transport.is_closing():
            return
        client = _Half(resources)
        client.connection_made(transport)
        transport.set_protocol(client)
        transport.write(bytes([Status.OK]))
        client.join(target, early)
        await client.gone
        await target.gone
    finally:
        if target.transport is not None:
            target.transport.abort()


class _Framed(asyncio.Protocol):
    """The client's end of a flow: each datagram follows its length (2 bytes)."""

    def __init__(self, transport: asyncio.Transport, resources: Resources) -> None:
        self._loop = asyncio.get_running_loop()
        self._resources = resources
        self._transport = transport
        self._target: UdpSocket | None = None
        self._buffer = bytearray()
        self._active_at = self._loop.time()
        self._timer = self._loop.call_later(UDP_IDLE, self._check_idle)
        self.gone = self._loop.create_future()

    def start(self, target: UdpSocket, early: bytes) -> None:
        """Read datagrams for `target`; `early` are bytes that were read before."""
        self._target = target
        self.data_received(early)
        self._transport.resume_reading()

    def send(self, data: bytes) -> None:
        """Send a datagram of the target to the client; drop it if too much waits."""
        self._active_at = self._loop.time()
        waiting = self._transport.get_write_buffer_size()
        self._resources.hold(len(self._buffer) + waiting)
        if waiting < _BACKLOG and (not waiting or self._resources.client.allows(len(data))):
            self._transport.write(_LENGTH.pack(len(data)) + data)

    def finish(self) -> None:
        """End the flow."""
        self._timer.cancel()
        if not self.gone.done():
            self.gone.set_result(None)

    def data_received(self, data: bytes) -> None:
        self._active_at = self._loop.time()
        self._buffer += data
        at = 0
        while len(self._buffer) - at >= _LENGTH.size:
            begin = at + _LENGTH.size
            end = begin + _LENGTH.unpack_from(self._buffer, at)[0]
            if len(self._buffer) < end:
                break
            if self._target is not None:
                self._target.send(self._buffer[begin:end])
            at = end
        del self._buffer[:at]
        if len(self._buffer) > PIECE and not self._resources.client.allows(len(self._buffer)):
            logger.info("a legacy flow ends: the agent has no memory left for it")
            self.finish()
            self._buffer.clear()
        self._resources.hold(len(self._buffer) + self._transport.get_write_buffer_size())

    def connection_lost(self, exc: Exception | None) -> None:
        self.finish()

    def _check_idle(self) -> None:
        idle = self._loop.time() - self._active_at
        if idle >= UDP_IDLE:
            self.finish()
        else:
            self._timer = self._loop.call_later(UDP_IDLE - idle, self._check_idle)


async def _serve_udp(
    request: Header, early: bytes, transport: asyncio.Transport, resources: Resources
) -> None:
    client = _Framed(transport, resources)
    target = None
    try:
        target = await dial_udp(
            request.host,
            request.port,
            resources.timeout,
            client.send,
            client.finish,
            Losses(),
            resources.lookups,
            resources.client,
        )
        if transport.is_closing():
            return
        transport.set_protocol(client)
        transport.write(bytes([Status.OK]))
        client.start(target, early)
        await client.gone
    finally:
        client.finish()
        if target is not None:
            target.close()
