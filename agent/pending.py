"""Connections whose handshake is not over, and the log of those that were refused."""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

logger = logging.getLogger("krelay.agent")

REFUSALS_EVERY = 60.0
"""Seconds between two log lines about refused connections."""


class PendingConnection(Protocol):
    """A connection as Pending sees it."""

    source: str
    transport: asyncio.Transport


class Pending:
    """The pending connections of one listener, at most `limit`.

    The oldest makes way for the next, so that attackers cannot lock out honest clients. It is one
    of the address with the most of them, so that other addresses keep theirs.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._by_source: dict[str, dict[PendingConnection, None]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def add(self, connection: PendingConnection) -> None:
        """Count a connection; abort the oldest one if there are too many."""
        if self._count >= self._limit:
            crowd = max(self._by_source.values(), key=len)
            oldest = next(iter(crowd))
            self.discard(oldest)
            oldest.transport.abort()
        self._by_source.setdefault(connection.source, {})[connection] = None
        self._count += 1

    def discard(self, connection: PendingConnection) -> None:
        """Count a connection no longer, if it was counted."""
        crowd = self._by_source.get(connection.source, {})
        if connection in crowd:
            del crowd[connection]
            self._count -= 1
            if not crowd:
                del self._by_source[connection.source]

    def abort(self) -> None:
        """Abort all of them."""
        for connection in [each for crowd in self._by_source.values() for each in crowd]:
            self.discard(connection)
            connection.transport.abort()


class RefusalLog:
    """Logs the first refusal at once, then their number once a minute.

    So clients that connect again and again cannot fill the log. Each refusal is logged at DEBUG.
    `where` names the listener.
    """

    def __init__(self, where: str = "") -> None:
        self._where = where and f" {where}"
        self._count = 0
        self._last = ""
        self._timer: asyncio.TimerHandle | None = None

    def add(self, reason: str) -> None:
        """Count one refused connection."""
        if self._timer is None:
            logger.info("refused%s: %s", self._where, reason)
            self._wait()
            return
        logger.debug("refused%s: %s", self._where, reason)
        self._count += 1
        self._last = reason

    def close(self) -> None:
        """Log the refusals that are not logged yet."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._flush()

    def _wait(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(REFUSALS_EVERY, self._due)

    def _due(self) -> None:
        self._timer = None
        if self._flush():
            self._wait()

    def _flush(self) -> bool:
        count, self._count = self._count, 0
        if count:
            logger.info("refused%s %d more; the last one: %s", self._where, count, self._last)
        return count > 0
