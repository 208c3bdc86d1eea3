"""Listener: first stage of the data path; bound TCP sockets, and a relay for each connection."""

from __future__ import annotations

import asyncio
import logging
import socket

from krelay.datapath.bind import bind
from krelay.datapath.opening import RETRIED, open_now, open_parked
from krelay.datapath.route import Route
from krelay.model import Endpoint, Protocol
from krelay.mux.relay import TcpRelay, reset_socket
from krelay.mux.stream import MuxStream
from krelay.wire.errors import ErrorCode, ProtocolError

logger = logging.getLogger("krelay.listener")

BACKLOG = 512


class TcpListener:
    """A TCP forward's local end. `open` binds it, `close` stops accepting, `drain` ends it."""

    def __init__(self, name: str, route: Route, tasks: asyncio.TaskGroup, *, park: float) -> None:
        """`name` is for people; `park` is how long, in seconds, a connection may wait."""
        self.name = name
        self.route = route
        self.park = park
        self.tasks = tasks
        self.addresses: list[tuple[str, int]] = []
        self.connections: set[LocalRelay] = set()
        self._servers: list[asyncio.Server] = []
        self._empty = asyncio.Event()

    async def open(self, address: str, port: int) -> None:
        """Bind and accept.

        Raises:
            ListenError: the address cannot be bound.
        """
        sockets = bind(address, port, socket.SOCK_STREAM)
        loop = asyncio.get_running_loop()
        for sock in sockets:
            server = await loop.create_server(lambda: LocalRelay(self), sock=sock, backlog=BACKLOG)
            self._servers.append(server)
        self.addresses = [sock.getsockname()[:2] for sock in sockets]

    def close(self) -> None:
        """Accept no more; live connections go on."""
        for server in self._servers:
            server.close()
        self._servers.clear()

    async def drain(self, timeout: float) -> None:
        """Close, let live connections finish within `timeout` seconds, then reset them."""
        self.close()
        try:
            async with asyncio.timeout(timeout):
                while self.connections:
                    self._empty.clear()
                    await self._empty.wait()
        finally:
            self.cut()

    def cut(self) -> None:
        """Reset every live connection."""
        self.close()
        for connection in list(self.connections):
            connection.on_reset(ErrorCode.CANCELLED)

    def left(self, connection: LocalRelay) -> None:
        """A connection is gone."""
        self.connections.discard(connection)
        if not self.connections:
            self._empty.set()


class LocalRelay(TcpRelay):
    """One accepted connection. Until its stream is accepted it keeps what the application sent,
    so that a dial which an endpoint refused while it went away can be tried on a fresh one."""

    def __init__(self, listener: TcpListener) -> None:
        super().__init__()
        self._listener = listener
        self._route = listener.route
        self._endpoint: Endpoint | None = None
        self._sent: list[bytes] | None = []
        self._retried = False
        self._opening: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._listener.connections.add(self)
        try:
            stream = open_now(self._route, Protocol.TCP, self)
        except ProtocolError as exc:
            logger.warning("%s: %s", self._listener.name, exc)
            self.on_reset(exc.code)
            return
        if stream is not None:
            self._begin(stream)
        else:
            self._open_later(None)

    def data_received(self, data: bytes) -> None:
        if self._sent is not None:
            self._sent.append(data)
        super().data_received(data)

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        if self._opening is not None:
            self._opening.cancel()
        self._listener.left(self)

    def on_accepted(self) -> None:
        self._sent = None

    def on_refused(self, code: ErrorCode, message: str) -> None:
        if self._route.followed and not self._retried and code in RETRIED:
            self._retried = True
            self.stream = None
            if self.transport is not None:
                self.transport.pause_reading()
            logger.debug("%s: %s; trying once more", self._listener.name, message)
            self._open_later(self._endpoint)
            return
        logger.warning("%s: %s%s", self._listener.name, code.text, message and f": {message}")
        self.on_reset(code)

    def _begin(self, stream: MuxStream) -> None:
        self._endpoint = self._route.endpoint
        for data in self._sent or ():
            stream.write(data)
        self.start(stream)
        if self._local_ended:
            stream.end()

    def _open_later(self, after: Endpoint | None) -> None:
        listener = self._listener
        self._opening = listener.tasks.create_task(self._open(after), name=listener.name)

    async def _open(self, after: Endpoint | None) -> None:
        listener = self._listener
        stream = await open_parked(self._route, Protocol.TCP, self, listener.park, after=after)
        self._opening = None
        if stream is not None:
            self._begin(stream)
            return
        logger.warning(
            "%s: connection reset after %g s: %s",
            listener.name,
            listener.park,
            self._route.reason if self._route.endpoint is None else "no tunnel to the agent",
        )
        if self.transport is not None:
            reset_socket(self.transport)
