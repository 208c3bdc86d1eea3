"""Refusals: what the log says of connections that are refused, however many there are."""

from __future__ import annotations

import asyncio
import logging

logger = logging.getLogger("krelay.agent")

EVERY = 60.0
"""Seconds between two lines."""


class Refusals:
    """Says the first one at once, then how many more there were. Strangers that connect again and
    again fill no log; each refusal is said at the level debug."""

    def __init__(self) -> None:
        self._count = 0
        self._last = ""
        self._timer: asyncio.TimerHandle | None = None

    def add(self, why: str) -> None:
        """One connection is refused."""
        if self._timer is None:
            logger.info("refused: %s", why)
            self._wait()
            return
        logger.debug("refused: %s", why)
        self._count += 1
        self._last = why

    def close(self) -> None:
        """Say what has not been said yet."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self._tell()

    def _wait(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(EVERY, self._due)

    def _due(self) -> None:
        self._timer = None
        if self._tell():
            self._wait()

    def _tell(self) -> bool:
        count, self._count = self._count, 0
        if count:
            logger.info("refused %d more; the last one: %s", count, self._last)
        return count > 0
