"""Plain mode (v0), for clients of the Go krelay: one connection is one relayed stream."""

from __future__ import annotations

import asyncio
import logging
from struct import Struct

from agent.dial import DialError, dial_tcp, dial_udp
from agent.settings import Settings
from agent.udp import UdpSocket
from krelay.mux.splice import Splice
from krelay.wire import header
from krelay.wire.header import Header, Status, status_of

logger = logging.getLogger("krelay.agent")

UDP_IDLE = 110.0
_LENGTH = Struct(">H")
_BACKLOG = 1 << 20


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
    except Exception:
        # One connection's bug is that connection's alone; let through, it would end the agent.
        logger.exception("plain %s:%d failed", asked.host, asked.port)
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
    try:
        if transport.is_closing():
            return
        client = _Half()
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
    """A flow's client: each datagram behind its length, 2 bytes."""

    def __init__(self, transport: asyncio.Transport) -> None:
        self._loop = asyncio.get_running_loop()
        self._transport = transport
        self._target: UdpSocket | None = None
        self._buffer = bytearray()
        self._active_at = self._loop.time()
        self._timer = self._loop.call_later(UDP_IDLE, self._check_idle)
        self.gone = self._loop.create_future()

    def start(self, target: UdpSocket, early: bytes) -> None:
        """Read datagrams for `target`; `early` are bytes that were read already."""
        self._target = target
        self.data_received(early)
        self._transport.resume_reading()

    def send(self, data: bytes) -> None:
        """Hand a datagram of the target to the client; dropped when too much waits."""
        self._active_at = self._loop.time()
        if self._transport.get_write_buffer_size() < _BACKLOG:
            self._transport.write(_LENGTH.pack(len(data)) + data)

    def finish(self) -> None:
        """The flow is over."""
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
    client = _Framed(transport)
    target = None
    try:
        target = await dial_udp(asked.host, asked.port, timeout, client.send, client.finish)
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
