"""Keep the service manager that started `krelay up` (systemd) informed about the run."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Mapping

from krelay.state.error_codec import from_json
from krelay.state.events import Ending, ReloadEnded, ReloadStarted, Started
from krelay.state.snapshot import Snapshot
from krelay.state.states import State, is_ready
from krelay.supervisor.supervisor import Supervisor
from krelay.tasks import TaskGroup
from krelay.text import one_line

logger = logging.getLogger("krelay.status")

_DEADLINE = 1.0
"""Seconds that the manager may take to have room for a datagram."""
_LONGEST = 300
"""Characters of a status line."""
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
            await self._notifier.send("STOPPING=1", status="stopping")
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
            now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
            states = "RELOADING=1", f"MONOTONIC_USEC={now}"
            await self._notifier.send(*states, status="reloading")

    async def _ready(self) -> None:
        self._shown = _status_line(self._supervisor.snapshot())
        await self._notifier.send("READY=1", status=self._shown)

    async def _keep_status(self) -> None:
        """Send the status line whenever it changes, but for reloads, which have their own."""

        def outdated(snapshot: Snapshot) -> bool:
            idle = self._started and not self._reloads and not snapshot.ending
            return idle and _status_line(snapshot) != self._shown

        while True:
            self._shown = _status_line(await self._supervisor.bus.wait_for(outdated))
            await self._notifier.send(status=self._shown)
            await asyncio.sleep(_PAUSE)

    async def _keep_alive(self, period: float) -> None:
        while True:
            await self._notifier.send("WATCHDOG=1")
            await asyncio.sleep(period)


def _status_line(snapshot: Snapshot) -> str:
    active = [forward for forward in snapshot.forwards if forward.state is not State.DRAINING]
    line = f"{sum(map(is_ready, active))} of {len(active)} forwards ready"
    if not snapshot.file.error:
        return line
    error = from_json(snapshot.file.error)
    first, *_ = *error.details(), error.message
    return f"{line}; out of sync with the file: {first}"


class Notifier:
    """Sends states to the service manager by the datagrams of sd_notify(3), if there is one.

    `watchdog` is the period in seconds within which the manager expects a sign of life, or None.
    """

    def __init__(self, address: str | None = None, watchdog: float | None = None) -> None:
        """`address` is the path of a socket, or `@` and the name of an abstract one (Linux)."""
        if address is not None and address[:1] not in ("/", "@"):
            logger.debug("the service manager's socket is of an unknown kind: %s", address)
            address = None
        self._address = address
        self.watchdog = watchdog if address is not None else None

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Notifier:
        """Make a notifier by NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID."""
        usec, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID")
        wanted = usec.isdecimal() and int(usec) > 0 and pid in (None, "", str(os.getpid()))
        address = environ.get("NOTIFY_SOCKET") or None
        return cls(address, int(usec) / 1e6 if wanted else None)

    @property
    def there(self) -> bool:
        """Whether a service manager listens."""
        return self._address is not None

    async def send(self, *states: str, status: str = "") -> None:
        """Send a datagram of `states` and a status line for people.

        A manager that does not take it is neither an error nor waited for.
        """
        if self._address is None:
            return
        lines = [*states, *([f"STATUS={one_line(status, _LONGEST)}"] if status else [])]
        address = self._address
        if address.startswith("@"):
            address = "\0" + address[1:]
        try:
            async with asyncio.timeout(_DEADLINE):
                with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                    sock.setblocking(False)
                    # Connected, so that it is writable when the manager's queue has room.
                    sock.connect(address)
                    await asyncio.get_running_loop().sock_sendall(sock, "\n".join(lines).encode())
        except OSError as exc:  # a TimeoutError is one
            logger.debug("%s did not reach the service manager: %s", lines[0], exc or "no room")
