"""Reconnector: decide when a tunnel is dialled: at once, after a growing delay, or on a hint."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Awaitable, Callable

from krelay.datapath.agent_link import AgentLink
from krelay.errors import KrelayError, UnreachableError
from krelay.retry import Backoff
from krelay.tasks import TaskGroup

logger = logging.getLogger("krelay.tunnel")


HASTE = 1.0
"""Seconds that a try is waited for at most while connections wait for the tunnel."""


class Reconnector:
    """The tries of one tunnel, one after the other."""

    def __init__(self, name: str, way: AgentLink, wanted: Callable[[], bool] | None = None) -> None:
        """`wanted` says whether a connection waits for the tunnel."""
        self._name = name
        self._way = way
        self._backoff = Backoff()
        self._reason = asyncio.Event()
        self._wanted = wanted or (lambda: False)
        self._under_way: asyncio.Timeout | None = None
        self._pausing: asyncio.Timeout | None = None
        self._hastened = False

    def retry_now(self) -> None:
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

    def dial_soon(self) -> None:
        """A connection waits: make the pause a short one, once."""
        pausing = self._pausing
        if pausing is None or self._hastened or pausing.expired():
            return
        self._hastened = True
        sooner = asyncio.get_running_loop().time() + self._short()
        when = pausing.when()
        if when is not None and sooner < when:
            pausing.reschedule(sooner)

    async def pause(self, failure: Exception | None) -> None:
        """Until the next try: less where the way that `failure` said is shut is seen open, or where
        a connection waits."""
        delay = self._backoff.delay()
        self._hastened = self._wanted()
        if self._hastened:
            delay = min(delay, self._short())
        async with TaskGroup() as tasks:
            looking = tasks.create_task(self._look(failure), name=self._name)
            try:
                async with asyncio.timeout(delay) as self._pausing:
                    await self._reason.wait()
            except TimeoutError:
                pass
            finally:
                self._pausing = None
            self._reason.clear()
            looking.cancel()

    async def nudged(self, timeout: float) -> None:
        """Return when there is reason to look again, or after `timeout` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._reason.wait()
        self._reason.clear()

    @staticmethod
    def _short() -> float:
        return random.uniform(HASTE / 2, HASTE)

    async def _look(self, failure: Exception | None) -> None:
        if isinstance(failure, UnreachableError):
            try:
                await self._way.reachable_again()
            except (KrelayError, OSError) as exc:
                logger.debug("%s: cannot tell whether the way is open: %s", self._name, exc)
            except Exception:
                # Only a look; let through, it would end every forward.
                logger.exception("%s: cannot tell whether the way is open", self._name)
            else:
                self.retry_now()
