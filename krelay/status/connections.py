"""The connections of a listener, bounded so that no client can block others or the shutdown.

On the user's own socket every connection is trusted. Over TCP a connection starts as a stranger's,
and becomes trusted once it authenticates. A stranger's connection closes after its answer. Each
kind has its own number of places. If they are full, the connection that needs its place least is
dropped for a new one. So a health check and the owner always get in, and enough descriptors remain
for relaying.
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
"""Seconds that a client has to send its first request, and to read some of its answer."""
KEEP_ALIVE = 75.0
"""Seconds between an answer and the next request."""
GRACE = 0.25
"""Seconds in which a new connection keeps its place beyond the limit, since its request may be on
its way. At most as many connections as there are places exceed the limit in this way."""
CLOSE_DEADLINE = 1.0
"""Seconds that a request may take at shutdown, and again that its answer may take to be read."""
STRANGERS = 64
"""Places for connections that have not authenticated, twice as many for a moment. Without a token,
no connection can authenticate."""
TRUSTED = 128
"""Places for connections that have authenticated, and for those on the unix socket."""

BAD_PAYLOAD = (web.RequestPayloadError, web.PayloadAccessError, HttpProcessingError)
"""Exceptions that aiohttp raises for a body that does not match its headers."""


def connection_limit(most: int) -> int:
    """Return `most`, or less if the process may open few descriptors."""
    try:
        import resource
    except ImportError:
        return most  # Windows, where sockets are not files
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return most if soft < 0 else max(1, min(most, soft // 12))


class Connections:
    """Serves an application, and bounds its connections.

    `strangers` and `trusted` are the numbers of places; without `strangers`, all are trusted.
    """

    def __init__(
        self, app: web.Application, *, strangers: int | None = None, trusted: int = sys.maxsize
    ) -> None:
        app.middlewares.insert(0, _track_request)
        self.open: set[Connection] = set()
        """The connections of clients."""
        self._strangers = strangers
        self._trusted = trusted
        self._closing = False
        self._accepts: list[AcceptLoop] = []
        self._runner = web.AppRunner(
            app,
            access_log=None,
            logger=_AiohttpLogger(logger),
            shutdown_timeout=CLOSE_DEADLINE,
            handler_cancellation=True,  # when the client disconnects
            keepalive_timeout=KEEP_ALIVE,
        )

    async def serve(self, socks: Iterable[socket.socket]) -> None:
        """Accept connections on listening sockets; `close` closes them."""
        await self._runner.setup()
        self._accepts = [AcceptLoop("status", sock, self._accept, control=True) for sock in socks]

    async def close(self) -> None:
        """Stop accepting, and close every connection."""
        for accept in self._accepts:
            accept.close()
        self._closing = True
        await asyncio.sleep(0)  # a connection just accepted is made now
        try:
            await self._runner.cleanup()
            # A closed connection may still have output that its client does not read.
            if self.open:
                lost = [connection.lost for connection in self.open]
                await asyncio.wait(lost, timeout=CLOSE_DEADLINE)
        finally:
            for connection in self.open:
                connection.transport.abort()

    def add(self, connection: Connection) -> None:
        """Give a new connection a place, if necessary that of another."""
        self.open.add(connection)
        if self._strangers is None:
            self.mark_trusted(connection)
        else:
            self._make_room(connection, self._strangers)

    def mark_trusted(self, connection: Connection) -> None:
        """Give a connection that has authenticated a place among the trusted ones."""
        if not connection.trusted:
            connection.trusted = True
            self._make_room(connection, self._trusted)

    def _make_room(self, newest: Connection, limit: int) -> None:
        """Drop connections of the same kind beyond the limit: idle ones before busy ones, and
        older ones first."""
        alike = [
            connection
            for connection in self.open
            if connection.trusted is newest.trusted and not connection.evicted
        ]
        if len(alike) <= limit:
            return
        others = sorted((c for c in alike if c is not newest), key=Connection.priority)
        for number, connection in enumerate(others[: len(alike) - limit]):
            if connection.in_grace and len(alike) - number <= 2 * limit:
                break
            connection.evicted = True
            connection.transport.abort()

    def _accept(self) -> asyncio.BaseProtocol:
        if self._closing:
            return _Refused()
        assert self._runner.server is not None
        return Connection(self._runner.server(), self)


class Connection(asyncio.Protocol):
    """Wraps aiohttp's protocol, to see clients that send no request, or do not read the answer.

    `requested` says whether it has sent a request, `busy` whether it waits for an answer, `blocked`
    whether its client does not read what it is sent, `trusted` whether its client has
    authenticated, and `evicted` whether it was dropped for another connection.
    """

    transport: asyncio.Transport
    _next: asyncio.TimerHandle

    def __init__(self, inner: web.RequestHandler, owner: Connections) -> None:
        self._loop = asyncio.get_running_loop()
        self.requested = self.busy = self.blocked = self.trusted = self.evicted = False
        self.lost: asyncio.Future[None] = self._loop.create_future()
        self.since = self._loop.time()
        self._inner = inner
        self._owner = owner
        self._was_blocked = False

    @property
    def in_grace(self) -> bool:
        """Whether it is new and has not sent a request yet."""
        return not self.requested and self._loop.time() < self.since + GRACE

    def priority(self) -> tuple[bool, bool, bool, float]:
        """Return how much it needs its place, for comparison with others."""
        return self.busy and not self.blocked, self.busy, self.in_grace, self.since

    def mark_trusted(self) -> None:
        """Record that its client has authenticated."""
        self._owner.mark_trusted(self)

    def check_progress(self) -> None:
        """Drop it if its client sends no request or reads nothing; else check again later."""
        self._next.cancel()
        blocked = self.blocked or self.transport.is_closing()
        if not self.requested or (blocked and self._was_blocked):
            self.transport.abort()
            return
        self._was_blocked = blocked
        self._next = self._loop.call_later(PATIENCE, self.check_progress)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self._owner.add(self)
        self._next = self._loop.call_later(PATIENCE, self.check_progress)
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
            # An error in the parser concerns this client alone, and not the user.
            logger.debug("malformed request: %s", type(exc).__name__)
            self.transport.abort()

    def eof_received(self) -> None:
        self._inner.eof_received()

    def pause_writing(self) -> None:
        self.blocked = True
        self._inner.pause_writing()

    def resume_writing(self) -> None:
        self.blocked = self._was_blocked = False
        self._inner.resume_writing()


class _Refused(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.abort()


def connection_of(request: web.Request) -> Connection | None:
    """Return the connection of a request; None if it is closed, or not one of `Connections`."""
    found = request.transport and request.transport.get_protocol()
    return found if isinstance(found, Connection) else None


@web.middleware
async def _track_request(
    request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
) -> web.StreamResponse:
    connection = connection_of(request)
    if connection is None:
        return await handler(request)
    connection.requested = connection.busy = True
    try:
        response = await handler(request)
        if not connection.trusted:
            response.force_close()
        return response
    finally:
        connection.busy, connection.since = False, asyncio.get_running_loop().time()


class _AiohttpLogger(logging.LoggerAdapter[logging.Logger]):
    """aiohttp's log, where a malformed request is not an error of this program."""

    def __init__(self, logger: logging.Logger) -> None:
        super().__init__(logger, {})

    def exception(self, msg: object, *args: object, **kwargs: object) -> None:
        error = kwargs.get("exc_info")
        if isinstance(error, BAD_PAYLOAD):
            self.logger.debug("malformed request: %s", type(error).__name__)
        else:
            found = error if isinstance(error, BaseException) else True
            self.logger.error(msg, *args, exc_info=found)
