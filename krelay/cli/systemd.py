"""Service: what the manager that started `krelay up` (systemd) is told of it, from start to end."""

from __future__ import annotations

import asyncio

from krelay.cli.sd_notify import Notifier
from krelay.model import Config
from krelay.state.snapshot import State
from krelay.supervisor.apply_request import ApplyRequest
from krelay.supervisor.reload import Reloader, Source
from krelay.supervisor.supervisor import Supervisor
from krelay.tasks import TaskGroup

_LOOK = 2.0
"""Seconds between two looks whether the status line has become another one."""


class Service:
    """Tells of one run: ready, reloading, stopping, a line for people, signs of life."""

    def __init__(self, notifier: Notifier, source: Source, supervisor: Supervisor, config: Config):
        self._notifier = notifier
        self._supervisor = supervisor
        self.reloader: Reloader = _Telling(source, supervisor, config, self)
        """What is to be reloaded with, for it to be told of."""
        self._tasks: TaskGroup | None = None
        self._stop = asyncio.Event()
        self._reloads = 0

    async def run(self, stop: asyncio.Event) -> None:
        """Until it is cancelled; `stop` is what ends the relaying."""
        if not self._notifier.there:
            return
        self._stop = stop
        async with TaskGroup() as tasks:
            tasks.create_task(self._starting(), name="notify: start")
            tasks.create_task(self._stopping(), name="notify: stop")
            if self._notifier.watchdog is not None:
                tasks.create_task(self._living(self._notifier.watchdog / 2), name="notify: alive")
            self._tasks = tasks

    def begin(self) -> bool:
        """A reload begins; whether it is to be told of. One during the start is not: the manager
        would take its end for the start's."""
        told = self._tasks is not None and self._supervisor.started.is_set()
        if self._stop.is_set() or not told:
            return False
        self._reloads += 1
        return True

    async def reloading(self) -> None:
        """Tell of what has begun."""
        await self._notifier.reloading()

    def end(self, want: ApplyRequest | None) -> None:
        """It is over when `want` is carried out; None: it came to nothing."""
        if self._tasks is not None:
            self._tasks.create_task(self._reloaded(want), name="notify: reload")

    async def _reloaded(self, want: ApplyRequest | None) -> None:
        if want is not None:
            await want.done.wait()
        self._reloads -= 1
        if not self._reloads and not self._stop.is_set():
            await self._notifier.ready(self._line())

    async def _starting(self) -> None:
        await self._supervisor.started.wait()
        told = self._line()
        await self._notifier.ready(told)
        while not self._stop.is_set():
            await asyncio.sleep(_LOOK)
            line = self._line()
            if line != told and not self._reloads and not self._stop.is_set():
                told = line
                await self._notifier.status(line)

    async def _stopping(self) -> None:
        await self._stop.wait()
        await self._notifier.stopping("stopping")

    async def _living(self, period: float) -> None:
        while True:
            await self._notifier.alive()
            await asyncio.sleep(period)

    def _line(self) -> str:
        forwards = self._supervisor.running.forwards.values()
        ready = sum(forward.health.state is State.READY for forward in forwards)
        line = f"{ready} of {len(forwards)} forwards ready"
        drift = self.reloader.drift
        return line if drift is None else f"{line}; not as the file says: {drift.error}"


class _Telling(Reloader):
    """A Reloader whose every reload the service manager is told of, whoever asked for it."""

    def __init__(
        self, source: Source, supervisor: Supervisor, config: Config, service: Service
    ) -> None:
        super().__init__(source, supervisor, config)
        self._service = service

    async def load(self, reason: str) -> ApplyRequest:
        told = self._service.begin()
        want = None
        try:
            if told:
                await self._service.reloading()
            want = await super().load(reason)
        finally:
            if told:
                self._service.end(want)
        return want
