"""Block: what one `with krelay.relay(...)` relays, from its start to its end."""

from __future__ import annotations

import asyncio
import dataclasses
import logging

from krelay.model import Config
from krelay.mux.descriptors import raise_file_limit
from krelay.state.snapshot import ForwardState
from krelay.supervisor.ready import wait_ready
from krelay.supervisor.reload import Source
from krelay.supervisor.supervisor import Supervisor
from krelay.tasks import TaskGroup, shield_cleanup

logger = logging.getLogger("krelay.block")

_DRAIN = 1.0
"""Seconds that connections get to finish once the block has ended."""
_HINT = "`timeout=` gives it longer"

Found = tuple[ForwardState, ...]


class Run:
    """What one block relays, in a task of its own: it may be ended from another than began it."""

    def __init__(self, config: Config, timeout: float) -> None:
        self._config = config
        self._timeout = timeout
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @classmethod
    def of(cls, source: Source, timeout: float) -> Run:
        """One of what `source` says; every forward has to be ready within `timeout` seconds.

        Raises:
            UsageError: it cannot be read.
            ConfigError: it is wrong.
        """
        config = source.load()
        raise_file_limit()
        if not config.agent.embedded:
            # Else this is imported on the loop, which is somebody else's.
            from krelay.cluster import api, resolve  # noqa: F401
        tunnel = dataclasses.replace(config.tunnel, drain=min(_DRAIN, config.tunnel.drain))
        return cls(dataclasses.replace(config, tunnel=tunnel), timeout)

    async def start(self) -> Found:
        """The forwards, each of them ready.

        Raises:
            KrelayError: it cannot be had. Then, as when this is cancelled, agents are removed, or
                named in the log.
        """
        loop = asyncio.get_running_loop()
        ready: asyncio.Future[Found] = loop.create_future()
        task = self._task = loop.create_task(self._relay(ready), name="krelay")
        try:
            await asyncio.wait((ready, task), return_when=asyncio.FIRST_COMPLETED)
        except asyncio.CancelledError:
            await self.end(cut=True)
            raise
        if not ready.done():
            task.result()  # raises
        return ready.result()

    async def end(self, *, cut: bool) -> None:
        """Let connections finish, for a moment, or `cut` them; then nothing is left.

        Raises:
            KrelayError: it had ended before, by an error.
        """
        assert self._task is not None
        self._stop.set()
        if cut:
            self._task.cancel()
        try:
            await asyncio.wait({self._task})
        except asyncio.CancelledError:
            self._task.cancel()
            await shield_cleanup(self._over())
            raise
        if not cut:
            self._task.result()
        elif not self._task.cancelled() and (failure := self._task.exception()):
            logger.debug("ended by an error: %s", failure)

    async def _over(self) -> None:
        assert self._task is not None
        await asyncio.wait({self._task})

    async def _relay(self, ready: asyncio.Future[Found]) -> None:
        # What cannot be bound or followed is told at once, not when the time is over.
        supervisor = Supervisor(self._config, lambda forward: None, strict=True)
        async with TaskGroup() as tasks:
            tasks.create_task(supervisor.run(self._stop), name="relay")
            found = await wait_ready(supervisor, self._config, self._timeout, hint=_HINT)
            ready.set_result(found)
