"""Connections: an application on sockets, where no client can hold up the others, or the end."""

from __future__ import annotations

import asyncio
import socket
import sys
from collections.abc import Awaitable, Callable, Iterable

from aiohttp import web

from krelay.accept import Accept

PATIENCE = 10.0
"""Seconds that a client has for its first request, and to take some of what it is sent."""
KEEP_ALIVE = 75.0
"""Seconds between an answer and the next request."""
CLOSE_DEADLINE = 1.0
"""Seconds that an answer under way may take at the end, and then that what is written may."""


class Connections:
    """Serves `app` to `most` clients at a time, until `close`; `open` has their connections."""

    def __init__(self, app: web.Application, *, most: int = sys.maxsize) -> None:
        app.middlewares.insert(0, _heard)
        self.open: set[Connection] = set()
        self._most = most
        self._accepts: list[Accept] = []
        self._runner = web.AppRunner(
            app,
            access_log=None,
            shutdown_timeout=CLOSE_DEADLINE,
            handler_cancellation=True,  # nobody waits for the answer any more
            keepalive_timeout=KEEP_ALIVE,
        )

    async def serve(self, socks: Iterable[socket.socket]) -> None:
        """Answer on these, which listen, and are closed by `close`."""
        await self._runner.setup()
        self._accepts = [Accept("status", sock, self._accept, control=True) for sock in socks]

    async def close(self) -> None:
        """Answer no more, and leave nothing open."""
        for accept in self._accepts:
            accept.close()
        self._most = 0
        await asyncio.sleep(0)  # one that got its protocol a moment ago is connected now
        try:
            await self._runner.cleanup()
            # What is closed has yet to be taken, and its client need not.
            if self.open:
                lost = [connection.lost for connection in self.open]
                await asyncio.wait(lost, timeout=CLOSE_DEADLINE)
        finally:
            for connection in self.open:
                connection.transport.abort()

    def _accept(self) -> asyncio.BaseProtocol:
        if len(self.open) >= self._most:
            return _Full()
        assert self._runner.server is not None
        return Connection(self._runner.server(), self.open)


class Connection(asyncio.Protocol):
    """Stands before aiohttp's protocol, to know what that does not tell: that there has been no
    request yet, and that nothing is taken."""

    transport: asyncio.Transport
    _next: asyncio.TimerHandle

    def __init__(self, inner: web.RequestHandler, others: set[Connection]) -> None:
        self._loop = asyncio.get_running_loop()
        self.heard = False
        """Whether there was a request."""
        self.full = False
        """Whether more is written than is taken."""
        self.lost: asyncio.Future[None] = self._loop.create_future()
        self._inner = inner
        self._others = others
        self._waited = False

    def look(self) -> None:
        """Cut it off where its client only takes up room; else look again after a while."""
        self._next.cancel()
        waits = self.full or self.transport.is_closing()
        if not self.heard or (waits and self._waited):
            self.transport.abort()
            return
        self._waited = waits
        self._next = self._loop.call_later(PATIENCE, self.look)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._others.add(self)
        self._next = self._loop.call_later(PATIENCE, self.look)
        self._inner.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._next.cancel()
        self._others.discard(self)
        self.lost.set_result(None)
        self._inner.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        self._inner.data_received(data)

    def eof_received(self) -> None:
        self._inner.eof_received()

    def pause_writing(self) -> None:
        self.full = True
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self.full = self._waited = False
        self._inner.resume_writing()


class _Full(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.abort()


@web.middleware
async def _heard(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    connection = request.transport and request.transport.get_protocol()
    if isinstance(connection, Connection):
        connection.heard = True
    return await handler(request)
