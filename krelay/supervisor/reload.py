"""Reloader: read the file whenever it changes, and hand its config to the supervisor.

An edit's way: `config.watch` notices it, `Reloader.load` reads the file, `Supervisor.apply` takes
the config, `diff` makes a plan, `WarmingConfig` warms up what is new, `ActiveConfig.commit` makes
it active, and what the plan removed drains.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import traceback
from pathlib import Path
from typing import Protocol

from krelay.config.changes import Change
from krelay.config.watch import Mode, Offload, watch
from krelay.errors import KrelayError
from krelay.model import Config
from krelay.state.events import ReloadEnded, ReloadStarted
from krelay.supervisor.supervisor import Supervisor
from krelay.supervisor.transitions.edits import ApplyRequest

logger = logging.getLogger("krelay.reload")

DEADLINE = 30.0
"""Seconds in which a file must be read and checked; its own limits end that before."""
_MOST = 4


class ConfigSource(Protocol):
    """Where configs come from."""

    def load(self) -> Config:
        """Return the present config. Blocks. Raises UsageError or ConfigError."""


class Reloader:
    """Hands the newest config of `source` to a supervisor. An invalid file changes nothing."""

    def __init__(self, source: ConfigSource, supervisor: Supervisor) -> None:
        self.source = source
        self._supervisor = supervisor
        self._numbers = itertools.count(1)
        self._loading = asyncio.Lock()
        self._planning = asyncio.Lock()
        self._reads = Offload("reading the file", within=DEADLINE, most=_MOST)
        self._plans = Offload("reading the file of a plan", within=DEADLINE, most=_MOST)

    async def watch(self, mode: Mode) -> None:
        """Reload whenever one of the files changes, until cancelled."""
        async for changed in watch(lambda: self._supervisor.files, mode):
            names = ", ".join(sorted(Path(file).name for file in changed))
            try:
                await self.load(f"{names} changed" if names else "a second look")
            except KrelayError:
                continue  # logged by `load`

    async def load(self, reason: str, *, kubeconfig: bool = False) -> ApplyRequest:
        """Read the file and request that its config is applied, for `reason`; read `kubeconfig`
        too, if asked to.

        Raises:
            UsageError: the file cannot be read.
            ConfigError: the file is invalid. It has been logged, and the active config stays.
        """
        number, bus = next(self._numbers), self._supervisor.bus
        bus.publish(ReloadStarted(number))
        try:
            if kubeconfig:
                await self._supervisor.reread_kubeconfig()
            async with self._loading:
                request = self._supervisor.apply(await self._read(), reason)
        except BaseException:
            bus.publish(ReloadEnded(number))
            raise
        request.when_done(lambda: bus.publish(ReloadEnded(number)))
        return request

    async def reload(self, reason: str) -> list[Change]:
        """Load kubeconfig and the file, wait until the config is applied, and return what changed.

        If a newer request replaces this one, wait for that one.

        Raises:
            KrelayError: the file is invalid, or its config could not be applied (yet).
        """
        changes = await self._supervisor.reread_kubeconfig()
        request: ApplyRequest | None = await self.load(reason)
        while request is not None:
            await request.done.wait()
            if request.failure is not None:
                raise request.failure
            changes += request.changes
            request = request.newer
        return changes

    async def plan(self, source: ConfigSource | None = None) -> list[Change]:
        """Return what `reload` would change, or what the config of another source would. Raises
        what `load` of the source raises."""
        async with self._planning:
            config = await self._plans.run((source or self.source).load)
        return self._supervisor.plan(config)

    async def _read(self) -> Config:
        try:
            return await self._reads.run(self.source.load)
        except KrelayError as exc:
            self._refuse(exc)
            raise
        except Exception as exc:
            # A file that triggers a bug is an invalid file. The message of the error is left out:
            # it may quote the file, and so a secret.
            stack = "".join(traceback.format_tb(exc.__traceback__))
            logger.error("reading the file failed: %s\n%s", type(exc).__name__, stack)
            error = KrelayError(f"internal error: {type(exc).__name__}")
            self._refuse(error)
            raise error from exc

    def _refuse(self, error: KrelayError) -> None:
        if self._supervisor.refuse(error):
            logger.error("%s", "\n".join([*error.report(), "the active config stays"]))
