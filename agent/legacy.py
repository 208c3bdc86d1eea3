"""Plain mode (v0), for clients of the Go krelay: one connection is one relayed stream."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from struct import Struct

from agent.budget import Reservation
from agent.client import CONNECTION_COST, PIECE, READ, Client, ReadBuffer
from agent.dial import dial_tcp, dial_udp
from agent.dns import Lookups
from agent.errors import DialError
from agent.losses import Losses
from agent.udp import UdpSocket
from krelay.mux.splice import Splice
from krelay.wire import header
from krelay.wire.header import Header, Status, status_of

logger = logging.getLogger("krelay.agent")

UDP_IDLE = 110.0
CLOSING = 5.0
"""Seconds that a connection has to take its last bytes."""
_LENGTH = Struct(">H")
_BACKLOG = 1 << 20


@dataclass(frozen=True, slots=True)
class Holding:
    """What one plain connection may hold: its reservation has CONNECTION_COST at least. All plain
    connections share one client's part of the budget."""

    client: Client
    reservation: Reservation
    buffer: ReadBuffer

    def more(self, size: int) -> None:
        """It holds `size` bytes besides what every connection has."""
        self.reservation.set(CONNECTION_COST + size)


async def serve_plain(
    asked: Header,
    early: bytes,
    transport: asyncio.Transport,
    timeout: float,
    lookups: Lookups,
    holding: Holding,
) -> None:
    """Answer one v0 connection and relay it until it has ended. The dial has `timeout` seconds.

    `transport` is paused and its Header is read; `early` came behind that.
    """
    try:
        if asked.protocol == header.TCP:
            await _serve_tcp(asked, early, transport, timeout, lookups, holding)
        elif asked.protocol == header.UDP:
            await _serve_udp(asked, early, transport, timeout, lookups, holding)
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
        # A client that does not read would keep what was written for ever.
        asyncio.get_running_loop().call_later(CLOSING, transport.abort)


class _Half(Splice, asyncio.BufferedProtocol):
    """A half that tells when it has gone, and reads as much as there is room for."""

    write_high_water = 0

    def __init__(self, holding: Holding) -> None:
        super().__init__()
        self.waiting = 0
        """Bytes that wait for this half's socket."""
        self._holding = holding
        self.gone = asyncio.get_running_loop().create_future()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if not self.gone.done():
            self.gone.set_result(None)

    def get_buffer(self, sizehint: int) -> memoryview:
        roomy = self._holding.client.allows(READ)
        return self._holding.buffer.part(READ if roomy else PIECE)

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(bytes(self._holding.buffer.part(nbytes)))

    def pause_writing(self) -> None:
        super().pause_writing()
        if self.transport is not None:
            self._wait_for(self.transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        self._wait_for(0)
        super().resume_writing()

    def _wait_for(self, size: int) -> None:
        self.waiting = size
        other = self.other
        self._holding.more(size + (other.waiting if isinstance(other, _Half) else 0))


async def _serve_tcp(
    asked: Header,
    early: bytes,
    transport: asyncio.Transport,
    timeout: float,
    lookups: Lookups,
    holding: Holding,
) -> None:
    target = await dial_tcp(
        asked.host, asked.port, timeout, lambda: _Half(holding), lookups, holding.client
    )
    try:
        if transport.is_closing():
            return
        client = _Half(holding)
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

    def __init__(self, transport: asyncio.Transport, holding: Holding) -> None:
        self._loop = asyncio.get_running_loop()
        self._holding = holding
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
        waiting = self._transport.get_write_buffer_size()
        self._holding.more(len(self._buffer) + waiting)
        if waiting < _BACKLOG and (not waiting or self._holding.client.allows(len(data))):
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
        if len(self._buffer) > PIECE and not self._holding.client.allows(len(self._buffer)):
            logger.info("a plain flow ends: the agent has no memory left for it")
            self.finish()
            self._buffer.clear()
        self._holding.more(len(self._buffer) + self._transport.get_write_buffer_size())

    def connection_lost(self, exc: Exception | None) -> None:
        self.finish()

    def _check_idle(self) -> None:
        idle = self._loop.time() - self._active_at
        if idle >= UDP_IDLE:
            self.finish()
        else:
            self._timer = self._loop.call_later(UDP_IDLE - idle, self._check_idle)


async def _serve_udp(
    asked: Header,
    early: bytes,
    transport: asyncio.Transport,
    timeout: float,
    lookups: Lookups,
    holding: Holding,
) -> None:
    client = _Framed(transport, holding)
    target = None
    try:
        target = await dial_udp(
            asked.host,
            asked.port,
            timeout,
            client.send,
            client.finish,
            Losses(),
            lookups,
            holding.client,
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
