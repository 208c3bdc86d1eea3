"""Trying: when a tunnel is dialled: at once at first, ever later, or when there is reason to."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable

from krelay.datapath.backoff import Backoff
from krelay.datapath.way import Way
from krelay.errors import KrelayError, UnreachableError
from krelay.tasks import TaskGroup

logger = logging.getLogger("krelay.tunnel")


class Trying:
    """The tries of one tunnel, one after the other."""

    def __init__(self, name: str, way: Way) -> None:
        self._name = name
        self._way = way
        self._backoff = Backoff()
        self._reason = asyncio.Event()
        self._under_way: asyncio.Timeout | None = None

    def nudge(self) -> None:
        """There is reason to look again."""
        self._reason.set()

    def settle(self) -> None:
        """Whatever reason there was is none any more."""
        self._reason.clear()

    def worked(self) -> None:
        """The next pause is none."""
        self._backoff.reset()

    async def dialled(self, dial: Callable[[], Awaitable[None]]) -> None:
        """Dial; and anew whenever `restart` says so. Raises as `dial`."""
        while True:
            under_way = self._under_way = asyncio.timeout(None)
            try:
                async with under_way:
                    return await dial()
            except TimeoutError:
                if not under_way.expired():
                    raise
                logger.debug("%s: the dial is begun anew", self._name)
            finally:
                self._under_way = None

    def restart(self) -> None:
        """What is being dialled leads nowhere any more."""
        if self._under_way is not None and not self._under_way.expired():
            self._under_way.reschedule(0.0)

    async def pause(self, failure: Exception | None) -> None:
        """Until the next try: less where the way that `failure` said is shut is seen open."""
        async with TaskGroup() as tasks:
            looking = tasks.create_task(self._look(failure), name=self._name)
            await self.nudged(self._backoff.delay())
            looking.cancel()

    async def nudged(self, timeout: float) -> None:
        """Return when there is reason to look again, or after `timeout` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._reason.wait()
        self._reason.clear()

    async def _look(self, failure: Exception | None) -> None:
        if isinstance(failure, UnreachableError):
            try:
                await self._way.reopened()
            except (KrelayError, OSError) as exc:
                logger.debug("%s: cannot tell whether the way is open: %s", self._name, exc)
            else:
                self.nudge()
