"""AgentConnection: an accepted connection, from its Header to a session or to legacy mode."""

from __future__ import annotations

import asyncio
from typing import Protocol

from agent.memory import READ, ReadBuffer, Reservation
from agent.pending import RefusalLog
from agent.sessions import TUNNEL_COST, KeptSession, Sessions
from krelay.mux.connection import TunnelProtocol
from krelay.mux.trace import wire_trace
from krelay.wire import header
from krelay.wire.errors import WireError
from krelay.wire.handshake import AgentHandshake, deny
from krelay.wire.header import Header, Status, decode_header, header_length

_FIRST_READ = 4 << 10
"""Bytes of one read before the handshake is over."""


class Host(Protocol):
    """The listener as its connections see it."""

    refusals: RefusalLog
    deadline: float
    """Seconds that a connection has until its handshake is over."""

    @property
    def buffer(self) -> ReadBuffer:
        """The buffer that connections read into."""

    @property
    def sessions(self) -> Sessions:
        """The sessions that connections open and resume."""

    def connected(self, connection: AgentConnection) -> None:
        """Count a new connection."""

    def authenticated(self, connection: AgentConnection) -> None:
        """Note that the connection carries a session now."""

    def disconnected(self, connection: AgentConnection) -> None:
        """Forget a connection that has ended."""

    def serve_legacy(self, connection: AgentConnection, request: Header, early: bytes) -> None:
        """Take over a legacy connection, whose transport is paused; `early` followed `request`."""


class AgentConnection(TunnelProtocol, asyncio.BufferedProtocol):
    """Reads the Header, then does the handshake of a session or hands over to legacy mode.

    Until the handshake is over its time is limited, and it keeps no more bytes than that needs.
    """

    def __init__(self, host: Host) -> None:
        self._host = host
        self.source = ""
        """IP address of the peer; empty if unknown."""
        self._buffer = b""
        self._handshake: AgentHandshake | None = None
        self._deadline: asyncio.TimerHandle | None = None
        self._kept: KeptSession | None = None
        self._cost: Reservation | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        peer = transport.get_extra_info("peername")
        self.source = str(peer[0]) if peer else ""
        # HELLO comes after the status byte.
        self._trace = wire_trace(f"{peer[0]}:{peer[1]}" if peer else "peer", skip_sent=1)
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(self._host.deadline, self.transport.abort)
        self._host.connected(self)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._host.buffer.part(_FIRST_READ if self._kept is None else READ)

    def buffer_updated(self, nbytes: int) -> None:
        self.data_received(bytes(self._host.buffer.part(nbytes)))

    def data_received(self, data: bytes) -> None:
        if self._kept is not None:
            self._kept.mux.receive_data(self.transport, data)
            self._host.sessions.settle(self._kept)
            return
        try:
            self._read_opening(data)
        except WireError as exc:
            self._host.refusals.add(str(exc))
            if self._handshake is not None:
                self.send(deny(exc.code, str(exc)))
            # The deadline ends a connection whose peer does not take that.
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._cancel_deadline()
        super().connection_lost(exc)
        if self._cost is not None:
            self._cost.release()
        self._host.disconnected(self)

    def send(self, data: bytes) -> None:
        """Write frames of the handshake."""
        if self._trace is not None:
            self._trace.sent(data)
        self.transport.write(data)

    def _cancel_deadline(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None

    def _read_opening(self, data: bytes) -> None:
        """Read what comes before the session."""
        if self._handshake is None:
            self._read_header(self._buffer + data)
        else:
            self._read_handshake(self._handshake, data)

    def _read_header(self, data: bytes) -> None:
        self._buffer = data
        length = header_length(data)
        if length is None or len(data) < length:
            return
        request, early = decode_header(data[:length]), data[length:]
        self._buffer = b""
        if request.protocol == header.SESSION:
            self._handshake = self._host.sessions.begin_handshake()
            self.send(self._handshake.hello())
            if early:
                self._read_handshake(self._handshake, early)
            return
        self._cancel_deadline()
        if request.protocol == header.HEARTBEAT:
            self.transport.close()
        elif self._host.sessions.secured:
            self._host.refusals.add("a legacy connection, which cannot prove a key")
            self.transport.write(bytes([Status.UNKNOWN_ERROR]))
            self.transport.close()
        else:
            self.transport.pause_reading()
            self._host.serve_legacy(self, request, early)

    def _read_handshake(self, handshake: AgentHandshake, data: bytes) -> None:
        if self._trace is not None:
            self._trace.received(data)
        auth = handshake.receive_data(data)
        if auth is None:
            return
        kept = self._kept = self._host.sessions.accept(handshake, auth, self)
        self.connection = kept.mux
        self._cost = kept.client.reserve()
        self._cost.fix(TUNNEL_COST)
        self._cancel_deadline()
        self._host.authenticated(self)
        if auth.rest:
            self.data_received(auth.rest)
