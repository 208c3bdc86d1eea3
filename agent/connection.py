"""AgentConnection: read the Header of each accepted connection and hand it to what it asks for."""

from __future__ import annotations

import asyncio
from typing import Protocol

from agent.budget import Reservation
from agent.client import READ, ReadBuffer
from agent.refusals import Refusals
from agent.sessions import TUNNEL_COST, Kept, Sessions
from krelay.mux.connection import TunnelProtocol
from krelay.wire import header
from krelay.wire.errors import WireError
from krelay.wire.handshake import AgentHandshake, deny
from krelay.wire.header import Header, Status, decode_header, header_length

DEADLINE = 10.0
_FIRST_READ = 4 << 10
"""Bytes of one read of a connection that has yet to say what it is."""


class Host(Protocol):
    """Who keeps count of the connections, and serves the plain ones."""

    sessions: Sessions
    buffer: ReadBuffer
    refusals: Refusals

    def arrived(self, entrance: AgentConnection) -> None:
        """A connection is there."""

    def proven(self, entrance: AgentConnection) -> None:
        """It carries a session now."""

    def left(self, entrance: AgentConnection) -> None:
        """It is gone."""

    def take_over(self, entrance: AgentConnection, asked: Header, early: bytes) -> None:
        """It is a plain one: its Header, what came behind it; its transport is paused."""


class AgentConnection(TunnelProtocol, asyncio.BufferedProtocol):
    """Reads the Header, then either shakes hands for a session or hands over to plain mode.

    Until then it is a stranger: it has DEADLINE seconds, and keeps no more than a claim needs.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self.source = ""
        """The address of its peer."""
        self._buffer = b""
        self._handshake: AgentHandshake | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._kept: Kept | None = None
        self._cost: Reservation | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        peer = transport.get_extra_info("peername")
        self.source = str(peer[0]) if peer else ""
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(DEADLINE, self.transport.abort)
        self._host.arrived(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._host.buffer.part(_FIRST_READ if self._kept is None else READ)

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(bytes(self._host.buffer.part(nbytes)))

    def data_received(self, data: bytes) -> None:
        if self._kept is not None:
            self._kept.driver.receive(self.transport, data)
            self._host.sessions.settle(self._kept)
            return
        try:
            if self._handshake is None:
                self._read_header(self._buffer + data)
            else:
                self._shake_hands(data)
        except WireError as exc:
            self._host.refusals.add(str(exc))
            if self._handshake is not None:
                self.transport.write(deny(exc.code, str(exc)))
            # Its deadline ends it where it does not take that.
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._decided()
        super().connection_lost(exc)
        if self._cost is not None:
            self._cost.release()
        self._host.left(self)

    def _decided(self) -> None:
        """It is known what this connection becomes."""
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _read_header(self, data: bytes) -> None:
        self._buffer = data
        length = header_length(data)
        if length is None or len(data) < length:
            return
        asked, early = decode_header(data[:length]), data[length:]
        self._buffer = b""
        if asked.protocol == header.SESSION:
            self._handshake = self._host.sessions.greet()
            self.transport.write(self._handshake.hello())
            if early:
                self._shake_hands(early)
            return
        self._decided()
        if asked.protocol == header.HEARTBEAT:
            self.transport.close()
        elif self._host.sessions.secured:
            self._host.refusals.add("a plain connection, which cannot prove a key")
            self.transport.write(bytes([Status.UNKNOWN_ERROR]))
            self.transport.close()
        else:
            self.transport.pause_reading()
            self._host.take_over(self, asked, early)

    def _shake_hands(self, data: bytes) -> None:
        assert self._handshake is not None
        auth = self._handshake.receive_data(data)
        if auth is None:
            return
        kept = self._kept = self._host.sessions.admit(self._handshake, auth, self)
        self.driver = kept.driver
        self._cost = kept.client.reserve()
        self._cost.fix(TUNNEL_COST)
        self._decided()
        self._host.proven(self)
        if auth.rest:
            self.data_received(auth.rest)
