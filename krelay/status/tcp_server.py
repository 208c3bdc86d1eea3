"""Listening: the status service over TCP, where the file says so, while it says so."""

from __future__ import annotations

import logging
import socket
from collections.abc import Awaitable, Callable, Mapping
from types import TracebackType
from typing import TYPE_CHECKING

from krelay.errors import ListenError
from krelay.model import Endpoint, StatusConfig
from krelay.net.bind import bind
from krelay.state.bus import EventBus
from krelay.state.snapshot import Snapshot
from krelay.status.unix_server import Handler

if TYPE_CHECKING:
    from krelay.status.connections import Connections

logger = logging.getLogger("krelay.status")


class Listening:
    """Follows the `status` section by `apply`. What cannot be bound is told and left until the
    next change: relaying never depends on it."""

    def __init__(
        self,
        handlers: Mapping[tuple[str, str], Handler],
        *,
        snapshot: Callable[[], Awaitable[Snapshot]],
        bus: EventBus,
    ) -> None:
        self._handlers = handlers
        self._snapshot = snapshot
        self._bus = bus
        self._config = StatusConfig()
        self._connections: Connections | None = None
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
        connections, self._connections = self._connections, None
        if connections is not None:
            await connections.close()

    async def _open(self, config: StatusConfig, address: str, port: int) -> None:
        from krelay.status.app import application
        from krelay.status.auth import Guard
        from krelay.status.connections import STRANGERS, TRUSTED, Connections, places

        app = application(
            self._handlers, snapshot=self._snapshot, bus=self._bus, guard=Guard(config)
        )
        socks = bind(address, port, socket.SOCK_STREAM)
        self._connections = Connections(app, strangers=places(STRANGERS), trusted=places(TRUSTED))
        await self._connections.serve(socks)
        self.addresses = [Endpoint(*sock.getsockname()[:2]) for sock in socks]
