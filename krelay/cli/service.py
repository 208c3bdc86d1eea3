"""Service: what the manager that started `krelay up` (systemd) is told of it, from start to end."""

from __future__ import annotations

import asyncio

from krelay.errors import KrelayError
from krelay.status.notify import Notifier
from krelay.supervisor.reload import Reloader
from krelay.supervisor.supervisor import Supervisor, Want

_LOOK = 5.0
"""Seconds between two looks at whether the status line is another one."""


class Service:
    """Tells `notifier` of one run: ready, reloading, stopping, a status line, signs of life."""

    def __init__(self, notifier: Notifier, supervisor: Supervisor, reloader: Reloader) -> None:
        self._notifier = notifier
        self._supervisor = supervisor
        self._reloader = reloader
        self._stop: asyncio.Event | None = None
        self._reloads = 0
        if notifier.there:
            reloader.around = self._around

    async def run(self, stop: asyncio.Event) -> None:
        """Until it is cancelled; `stop` is what ends the relaying."""
        if not self._notifier.there:
            return
        self._stop = stop
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(self._phases(stop), name="phases")
            tasks.create_task(self._lines(stop), name="status line")
            if self._notifier.watchdog is not None:
                tasks.create_task(self._live(self._notifier.watchdog / 2), name="watchdog")
