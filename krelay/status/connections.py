"""Connections: an application on sockets, where no client can hold up the others, or the end.

On the user's own socket all are trusted. Over TCP every connection begins as a stranger's. `trust`
makes it one of those that have proved themselves, who have places of their own. A stranger's
connection is closed after its answer. Where the places of either kind are full, the one that needs
its place least gives it up to the next: so there is always room for a health check and for the
owner, however many come, and descriptors are left for the relaying.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections.abc import Awaitable, Callable, Iterable

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from krelay.net.accept import AcceptLoop

logger = logging.getLogger("krelay.status")

PATIENCE = 10.0
"""Seconds that a client has for its first request, and to take some of what it is sent."""
KEEP_ALIVE = 75.0
"""Seconds between an answer and the next request."""
YOUNG = 0.25
"""Seconds in which a new connection keeps its place, also where more have come than have one: what
it asks may be on its way. As many as there are places may be too many for this."""
CLOSE_DEADLINE = 1.0
"""Seconds that an answer under way may take at the end, and then that what is written may."""
STRANGERS = 64
"""Connections at a time of those that have shown no token, and twice as many for a moment; without
a token all are strangers."""
TRUSTED = 128
"""Connections at a time of those that have, and of those on the socket of the user."""

BAD_PAYLOAD = (web.RequestPayloadError, web.PayloadAccessError, HttpProcessingError)
"""What aiohttp raises of a body that is not what its headers say."""


def places(most: int) -> int:
    """Return `most`, or fewer where there are few descriptors, which tunnels and forwards need."""
    try:
        import resource
    except ImportError:
        return most  # Windows: sockets are no files there
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return most if soft < 0 else max(1, min(most, soft // 12))


class Connections:
    """Serves `app` until `close`; `open` has its clients' connections.

    `strangers` is the number of connections that strangers may have, `trusted` that of the others;
    without `strangers` all are trusted.
    """

    def __init__(
        self, app: web.Application, *, strangers: int | None = None, trusted: int = sys.maxsize
    ) -> None:
        app.middlewares.insert(0, _heard)
        self.open: set[Connection] = set()
        self._strangers = strangers
        self._trusted = trusted
        self._closing = False
        self._accepts: list[AcceptLoop] = []
        self._runner = web.AppRunner(
            app,
            access_log=None,
            logger=_Complaints(logger),
            shutdown_timeout=CLOSE_DEADLINE,
            handler_cancellation=True,  # nobody waits for the answer any more
            keepalive_timeout=KEEP_ALIVE,
        )

    async def serve(self, socks: Iterable[socket.socket]) -> None:
        """Answer on these, which listen, and are closed by `close`."""
        await self._runner.setup()
        self._accepts = [AcceptLoop("status", sock, self._accept, control=True) for sock in socks]

    async def close(self) -> None:
        """Answer no more, and leave nothing open."""
        for accept in self._accepts:
            accept.close()
        self._closing = True
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

    def arrived(self, connection: Connection) -> None:
        """A connection is there: it takes a place, if need be another's."""
        self.open.add(connection)
        if self._strangers is None:
            self.trust(connection)
        else:
            self._make_room(connection, self._strangers)

    def trust(self, connection: Connection) -> None:
        """Its client has proved itself: it takes a place of those that have."""
        if not connection.trusted:
            connection.trusted = True
            self._make_room(connection, self._trusted)

    def _make_room(self, newest: Connection, most: int) -> None:
        """Cut off the others of its kind that are too many: idle ones before busy ones, and among
        these the oldest."""
        alike = [
            connection
            for connection in self.open
            if connection.trusted is newest.trusted and not connection.evicted
        ]
        if len(alike) <= most:
            return
        others = sorted((c for c in alike if c is not newest), key=Connection.need)
        for number, connection in enumerate(others[: len(alike) - most]):
            if connection.young and len(alike) - number <= 2 * most:
                break
            connection.evicted = True
            connection.transport.abort()

    def _accept(self) -> asyncio.BaseProtocol:
        if self._closing:
            return _Full()
        assert self._runner.server is not None
        return Connection(self._runner.server(), self)


class Connection(asyncio.Protocol):
    """Stands before aiohttp's protocol, to know what that does not tell: that there has been no
    request yet, and that nothing is taken."""

    transport: asyncio.Transport
    _next: asyncio.TimerHandle

    def __init__(self, inner: web.RequestHandler, owner: Connections) -> None:
        self._loop = asyncio.get_running_loop()
        self.heard = False
        """Whether there was a request."""
        self.busy = False
        """Whether one is being answered."""
        self.full = False
        """Whether more is written than is taken."""
        self.trusted = False
        """Whether its client has proved itself."""
        self.evicted = False
        """Whether it was cut off for another's sake."""
        self.lost: asyncio.Future[None] = self._loop.create_future()
        self._since = self._loop.time()
        self._inner = inner
        self._owner = owner
        self._waited = False

    @property
    def young(self) -> bool:
        """Whether it has just come, and has not asked yet."""
        return not self.heard and self._loop.time() < self._since + YOUNG

    def need(self) -> tuple[bool, bool, bool, float]:
        """How much it needs its place, to be compared with others."""
        return self.busy and not self.full, self.busy, self.young, self._since

    def trust(self) -> None:
        """Its client has proved itself."""
        self._owner.trust(self)

    def begin(self) -> None:
        """There is a request."""
        self.heard = self.busy = True

    def end(self) -> None:
        """It is answered."""
        self.busy = False
        self._since = self._loop.time()

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
        self._owner.arrived(self)
        self._next = self._loop.call_later(PATIENCE, self.look)
        self._inner.connection_made(transport)

    def connection_lost(self, exc: Exception | None) -> None:
        self._next.cancel()
        self._owner.open.discard(self)
        self.lost.set_result(None)
        self._inner.connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        try:
            self._inner.data_received(data)
        except Exception as exc:
            # A parser's trouble is this client's alone, and none of the log's.
            logger.debug("a request that is no HTTP: %s", type(exc).__name__)
            self.transport.abort()

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


def connection_of(request: web.Request) -> Connection | None:
    """The connection that a request came by; None if it has gone, or is not one of ours."""
    found = request.transport and request.transport.get_protocol()
    return found if isinstance(found, Connection) else None


@web.middleware
async def _heard(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    connection = connection_of(request)
    if connection is None:
        return await handler(request)
    connection.begin()
    try:
        response = await handler(request)
        if not connection.trusted:
            response.force_close()
        return response
    finally:
        connection.end()


class _Complaints(logging.LoggerAdapter[logging.Logger]):
    """aiohttp's log: what is no HTTP is the client's fault, and no error of this program."""

    def __init__(self, logger: logging.Logger) -> None:
        super().__init__(logger, {})

    def exception(self, msg: object, *args: object, **kwargs: object) -> None:
        error = kwargs.get("exc_info")
        if isinstance(error, BAD_PAYLOAD):
            self.logger.debug("a request that is no HTTP: %s", type(error).__name__)
        else:
            found = error if isinstance(error, BaseException) else True
            self.logger.error(msg, *args, exc_info=found)
