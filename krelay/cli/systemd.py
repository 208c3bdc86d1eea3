"""Service: keep the service manager that started `krelay up` (systemd) informed about the run."""

from __future__ import annotations

import asyncio

from krelay.cli.sd_notify import Notifier
from krelay.state.events import Ending, ReloadEnded, ReloadStarted, Started
from krelay.state.snapshot import Snapshot
from krelay.state.states import State, is_ready
from krelay.supervisor.supervisor import Supervisor
from krelay.tasks import TaskGroup

_PAUSE = 1.0
"""Seconds between two status lines, at least."""


class Service:
    """Notifies the manager of one run: ready, reloading, stopping, a status line, watchdog."""

    def __init__(self, notifier: Notifier, supervisor: Supervisor) -> None:
        self._notifier = notifier
        self._supervisor = supervisor
        self._started = False
        self._ending = False
        self._reloads: set[int] = set()
        self._shown = ""

    async def run(self) -> None:
        """Notify the manager, if there is one, until cancelled."""
        if not self._notifier.there:
            return
        async with TaskGroup() as tasks:
            tasks.create_task(self._keep_status(), name="notify: status")
            if self._notifier.watchdog is not None:
                tasks.create_task(self._keep_alive(self._notifier.watchdog / 2), name="watchdog")
            kinds = Started, ReloadStarted, ReloadEnded, Ending
            with self._supervisor.bus.subscribe(*kinds) as events:
                if self._supervisor.started.is_set():
                    await self._handle(Started())
                while not self._ending:
                    await self._handle(await events.next())

    async def _handle(self, event: Started | ReloadStarted | ReloadEnded | Ending) -> None:
        if isinstance(event, Ending):
            self._ending = True
            await self._notifier.stopping("stopping")
        elif isinstance(event, Started):
            self._started = True
            await self._ready()
        elif isinstance(event, ReloadEnded):
            if event.reload in self._reloads:
                self._reloads.discard(event.reload)
                if not self._reloads:
                    await self._ready()
        elif self._started:
            # The manager would take the end of a reload during the start for the end of the start.
            self._reloads.add(event.reload)
            await self._notifier.reloading()

    async def _ready(self) -> None:
        self._shown = _status_line(self._supervisor.snapshot())
        await self._notifier.ready(self._shown)

    async def _keep_status(self) -> None:
        """Send the status line whenever it changes, but for reloads, which have their own."""

        def outdated(snapshot: Snapshot) -> bool:
            idle = self._started and not self._reloads and not snapshot.ending
            return idle and _status_line(snapshot) != self._shown

        while True:
            self._shown = _status_line(await self._supervisor.bus.wait_for(outdated))
            await self._notifier.status(self._shown)
            await asyncio.sleep(_PAUSE)

    async def _keep_alive(self, period: float) -> None:
        while True:
            await self._notifier.alive()
            await asyncio.sleep(period)


def _status_line(snapshot: Snapshot) -> str:
    active = [forward for forward in snapshot.forwards if forward.state is not State.DRAINING]
    line = f"{sum(map(is_ready, active))} of {len(active)} forwards ready"
    error = snapshot.file.error
    return f"{line}; not as the file says: {error['message']}" if error else line
