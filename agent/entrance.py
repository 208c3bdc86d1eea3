"""Entrance: every connection to the agent begins here, and its Header decides what it becomes."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from agent.sessions import Sessions
from krelay.mux.link import Link
from krelay.wire import header
from krelay.wire.errors import ProtocolError, WireError
from krelay.wire.handshake import AgentHandshake, deny
from krelay.wire.header import Header, decode_header, header_length

logger = logging.getLogger("krelay.agent")

DEADLINE = 10.0


class Plain(Protocol):
    """Takes a v0 connection over: its Header, what came behind it, its paused transport."""

    def __call__(self, asked: Header, early: bytes, transport: asyncio.Transport) -> None: ...


class Entrance(Link):
    """Reads the Header, then either shakes hands for a session or hands over to plain mode."""

    def __init__(
        self, sessions: Sessions, plain: Plain | None, on_gone: Callable[[Entrance], None]
    ) -> None:
        """`plain` is None where a key is asked for, which plain mode cannot give."""
        self._sessions = sessions
        self._plain = plain
        self._on_gone = on_gone
        self._buffer = b""
        self._handshake: AgentHandshake | None = None
        self._deadline: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        loop = asyncio.get_running_loop()
        self._deadline = loop.call_later(DEADLINE, self.transport.abort)

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
            self._leave()
            self.transport.close()

    def connection_lost(self, exc: Exception | None) -> None:
        self._leave()
        super().connection_lost(exc)
        self._on_gone(self)

    def _leave(self) -> None:
        """It is decided what this connection becomes."""
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
            self._handshake = self._sessions.greet()
            self.transport.write(self._handshake.hello())
            if early:
                self._shake_hands(early)
        elif asked.protocol == header.HEARTBEAT:
            self._leave()
            self.transport.close()
        elif self._plain is None:
            raise ProtocolError("a plain connection, which cannot prove a key")
        else:
            self._leave()
            self.transport.pause_reading()
            self._plain(asked, early, self.transport)

    def _shake_hands(self, data: bytes) -> None:
        assert self._handshake is not None
        auth = self._handshake.receive_data(data)
        if auth is None:
            return
        self.driver = self._sessions.admit(self._handshake, auth, self.transport)
        self._leave()
        if auth.rest:
            self.driver.receive(self.transport, auth.rest)
