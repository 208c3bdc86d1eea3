"""Entrance: every connection to the agent begins here, and its Header decides what it becomes."""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

from agent.sessions import Sessions
from krelay.mux.link import Link
from krelay.wire import header
from krelay.wire.errors import WireError
from krelay.wire.handshake import AgentHandshake, deny
from krelay.wire.header import Header, Status, decode_header, header_length

logger = logging.getLogger("krelay.agent")

DEADLINE = 10.0


class Host(Protocol):
    """Who keeps count of the connections, and serves the plain ones."""

    sessions: Sessions

    def arrived(self, entrance: Entrance) -> None:
        """A connection is there."""

    def left(self, entrance: Entrance) -> None:
        """It is gone."""

    def take_over(self, entrance: Entrance, asked: Header, early: bytes) -> None:
        """It is a plain one: its Header, what came behind it; its transport is paused."""


class Entrance(Link):
    """Reads the Header, then either shakes hands for a session or hands over to plain mode."""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._buffer = b""
        self._handshake: AgentHandshake | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(DEADLINE, self.transport.abort)
        self._host.arrived(self)

    def data_received(self, data: bytes) -> None:
        if self.driver is not None:
            self.driver.receive(self.transport, data)
            return
        try:
            if self._handshake is None:
                self._read_header(self._buffer + data)
            else:
                self._shake_hands(data)
        except WireError as exc:
            logger.info("refused: %s", exc)
            if self._handshake is not None:
                self.transport.write(deny(exc.code, str(exc)))
            self._decided()
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._decided()
        super().connection_lost(exc)
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
            logger.info("refused: a plain connection, which cannot prove a key")
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
        self.driver = self._host.sessions.admit(self._handshake, auth, self.transport)
        self._decided()
        if auth.rest:
            self.driver.receive(self.transport, auth.rest)
