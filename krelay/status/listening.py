"""Listening: the status service over TCP, where the file says so, while it says so."""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING

from krelay.bind import bind
from krelay.errors import ListenError
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
        except ListenError as exc:
            await self.close()
            where, cause = Endpoint(*config.listen), exc.__cause__
            logger.warning(
                "status is not served on %s, until the next change of the file: %s",
                where,
                cause.strerror if isinstance(cause, OSError) and cause.strerror else exc,
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
        for sock in bind(address, port, socket.SOCK_STREAM):
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
