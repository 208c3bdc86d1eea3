"""Listening: the status service over TCP, where the file says so, while it says so."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING

from krelay.model import Endpoint, StatusConfig
from krelay.status.feed import Feed
from krelay.status.report import Report
from krelay.status.server import CLOSE_DEADLINE, Handler

if TYPE_CHECKING:
    from aiohttp import web

logger = logging.getLogger("krelay.status")

MAX_CONNECTIONS = 128


class Listening:
    """Follows the `status` section by `apply`. What cannot be bound is told and left until the
    next change: relaying never depends on it."""

    def __init__(
        self,
        handlers: Mapping[tuple[str, str], Handler],
        *,
        report: Callable[[], Awaitable[Report]],
        feed: Feed,
    ) -> None:
        self._handlers = handlers
        self._report = report
        self._feed = feed
        self._config = StatusConfig()
        self._runner: web.AppRunner | None = None
        self._servers: list[asyncio.Server] = []
        self.addresses: list[Endpoint] = []
        """Where it answers now."""

    async def __aenter__(self) -> Listening:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    async def apply(self, config: StatusConfig) -> None:
        """Serve as `config` says; what is open and stays as it is is not touched."""
        if config == self._config and (self.addresses or config.listen is None):
            return
        await self.close()
        self._config = config
        if config.listen is None:
            return
        try:
            await self._open(config, *config.listen)
        except OSError as exc:
            await self.close()
            where = Endpoint(*config.listen)
            logger.warning(
                "status is not served on %s, until the next change of the file: %s",
                where,
                exc.strerror or exc,
            )
            return
        logger.info("status: http://%s/", self.addresses[0])

    async def close(self) -> None:
        """Serve nothing over TCP; who listens to events is cut off."""
        self.addresses = []
        servers, self._servers = self._servers, []
        for server in servers:
            server.close()
        runner, self._runner = self._runner, None
        if runner is not None:
            await runner.cleanup()
        for server in servers:
            await server.wait_closed()

    async def _open(self, config: StatusConfig, address: str, port: int) -> None:
        from aiohttp import web

        from krelay.status.application import application
        from krelay.status.guard import Guard

        app = application(self._handlers, report=self._report, feed=self._feed, guard=Guard(config))
        runner = self._runner = web.AppRunner(
            app, access_log=None, shutdown_timeout=CLOSE_DEADLINE, handler_cancellation=True
        )
        await runner.setup()
        assert runner.server is not None
        loop = asyncio.get_running_loop()
        for sock in _bind(address, port):
            server = await loop.create_server(_bounded(runner.server), sock=sock)
            self._servers.append(server)
            host, bound = sock.getsockname()[:2]
            self.addresses.append(Endpoint(host, bound))


def _bounded(server: web.Server) -> Callable[[], asyncio.BaseProtocol]:
    """One more connection, or none where there are too many."""

    def accept() -> asyncio.BaseProtocol:
        return server() if len(server.connections) < MAX_CONNECTIONS else _Full()

    return accept


class _Full(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.abort()


def _bind(address: str, port: int) -> list[socket.socket]:
    """Sockets for the address; for `localhost` in both families, where there are both."""
    if address != "localhost":
        return [_socket(address, port)]
    first = _socket("127.0.0.1", port)
    try:
        return [first, _socket("::1", first.getsockname()[1])]
    except OSError as exc:
        if exc.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
            return [first]
        first.close()
        raise


def _socket(address: str, port: int) -> socket.socket:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    found = socket.getaddrinfo(
        address, port, family, socket.SOCK_STREAM, flags=socket.AI_NUMERICHOST
    )
    sock = socket.socket(family, socket.SOCK_STREAM)
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind(found[0][4])
        sock.setblocking(False)
    except OSError:
        sock.close()
        raise
    return sock
