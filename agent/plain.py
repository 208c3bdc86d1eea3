"""Plain mode (v0), for clients of the Go krelay: one connection is one relayed stream."""

from __future__ import annotations

import asyncio
import logging
from struct import Struct
from typing import Any, cast

from agent.dial import DialError, dial_tcp, dial_udp
from agent.settings import Settings
from krelay.mux.splice import Splice
from krelay.wire import header
from krelay.wire.header import Header, Status, status_of

logger = logging.getLogger("krelay.agent")

UDP_IDLE = 110.0
_LENGTH = Struct(">H")
_UDP_BACKLOG = 1 << 20


async def serve_plain(
    asked: Header, early: bytes, transport: asyncio.Transport, settings: Settings
) -> None:
    """Answer one v0 connection and relay it until it has ended.

    `transport` is paused and its Header is read; `early` came behind that.
    """
    try:
        if asked.protocol == header.TCP:
            await _serve_tcp(asked, early, transport, settings.connect_timeout)
        elif asked.protocol == header.UDP:
            await _serve_udp(asked, early, transport, settings.connect_timeout)
        else:
            transport.write(bytes([Status.UNKNOWN_PROTOCOL]))
    except DialError as exc:
        logger.info("plain %s:%d: %s: %s", asked.host, asked.port, exc.code.text, exc)
        transport.write(bytes([status_of(exc.code)]))
    finally:
        transport.close()


class _Half(Splice):
    """A half that tells when it has gone."""

    def __init__(self) -> None:
        super().__init__()
        self.gone = asyncio.get_running_loop().create_future()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if not self.gone.done():
            self.gone.set_result(None)


async def _serve_tcp(
    asked: Header, early: bytes, transport: asyncio.Transport, timeout: float
) -> None:
    target = await dial_tcp(asked.host, asked.port, timeout, _Half)
    client = _Half()
    client.connection_made(transport)
    transport.set_protocol(client)
    transport.write(bytes([Status.OK]))
    client.join(target, early)
    try:
        await client.gone
        await target.gone
    finally:
        if target.transport is not None:
            target.transport.abort()


class _Flow(asyncio.DatagramProtocol):
    """The target's side of a v0 flow."""

    def __init__(self) -> None:
        self.transport: Any = None
        self.client: _Framed | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def datagram_received(self, data: bytes, addr: object) -> None:
        if self.client is not None:
            self.client.send(data)

    def error_received(self, exc: Exception) -> None:
        if self.client is not None:
            self.client.finish()


class _Framed(asyncio.Protocol):
    """The client's side: each datagram behind its length, 2 bytes."""

    def __init__(self, transport: asyncio.Transport, flow: _Flow) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport = transport
        self._flow = flow
        self._buffer = bytearray()
        self._active_at = self._loop.time()
        self._timer = self._loop.call_later(UDP_IDLE, self._check_idle)
        self.gone = self._loop.create_future()

    def send(self, data: bytes) -> None:
        """Hand a datagram of the target to the client; dropped when too much waits."""
        self._active_at = self._loop.time()
        if self._transport.get_write_buffer_size() < _UDP_BACKLOG:
            self._transport.write(_LENGTH.pack(len(data)) + data)

    def finish(self) -> None:
        """The flow is over."""
        self._timer.cancel()
        if not self.gone.done():
            self.gone.set_result(None)

    def data_received(self, data: bytes) -> None:
        self._active_at = self._loop.time()
        self._buffer += data
        while len(self._buffer) >= _LENGTH.size:
            end = _LENGTH.size + _LENGTH.unpack_from(self._buffer)[0]
            if len(self._buffer) < end:
                break
            datagram = bytes(self._buffer[_LENGTH.size : end])
            del self._buffer[:end]
            if self._flow.transport.get_write_buffer_size() < _UDP_BACKLOG:
                self._flow.transport.sendto(datagram)

    def connection_lost(self, exc: Exception | None) -> None:
        self.finish()

    def _check_idle(self) -> None:
        idle = self._loop.time() - self._active_at
        if idle >= UDP_IDLE:
            self.finish()
        else:
            self._timer = self._loop.call_later(UDP_IDLE - idle, self._check_idle)


async def _serve_udp(
    asked: Header, early: bytes, transport: asyncio.Transport, timeout: float
) -> None:
    flow = await dial_udp(asked.host, asked.port, timeout, _Flow)
    client = flow.client = _Framed(transport, flow)
    try:
        transport.set_protocol(cast(asyncio.BaseProtocol, client))
        transport.write(bytes([Status.OK]))
        client.data_received(early)
        transport.resume_reading()
        await client.gone
    finally:
        client.finish()
        flow.transport.abort()
