"""`krelay up`: a supervisor, kept at what the file says, and signals that end it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Protocol

from krelay.cli.output import hush, say
from krelay.cli.service import Service
from krelay.config.watch import Mode, mode_from_env
from krelay.errors import KrelayError, first_error
from krelay.model import Config
from krelay.mux.files import raise_file_limit
from krelay.status.notify import Notifier
from krelay.status.place import socket_path
from krelay.status.server import AlreadyRunningError, serve
from krelay.supervisor.contexts import Contexts
from krelay.supervisor.control import Control
from krelay.supervisor.forward import Forward
from krelay.supervisor.reload import Reloader
from krelay.supervisor.supervisor import Supervisor

logger = logging.getLogger("krelay.cli")

_INTERRUPTED = 130


class Source(Protocol):
    """Where a config comes from, as often as it is asked for."""

    @property
    def file(self) -> str | None:
        """The path to watch; None where there is nothing to watch."""

    def load(self) -> Config:
        """What it says now. Blocks. Raises UsageError or ConfigError."""


def run(
    source: Source,
    *,
    announce: Callable[[Forward], None] | None = None,
    contexts: Contexts | None = None,
    watch: bool = True,
    strict: bool = False,
    must_exist: bool = False,
) -> int:
    """Relay until a signal; the exit code. `strict`, `must_exist` and `contexts` are the
    supervisor's; `announce` is told of each forward that is ready.

    Raises:
        KrelayError: it could not start.
    """
    file = source.file
    mode = mode_from_env(os.environ) if watch and file else None
    config = source.load()
    raise_file_limit()
    supervisor = Supervisor(
        config, announce or tell, contexts=contexts, strict=strict, must_exist=must_exist
    )
    service = Service(Notifier.from_env(os.environ), source, supervisor, config)
    place = socket_path(file) if file else None
    control = Control(supervisor, service.reloader)
    return asyncio.run(_run(supervisor, service, mode, control, place))


async def _run(
    supervisor: Supervisor,
    service: Service,
    mode: Mode | None,
    control: Control,
    place: Path | None,
) -> int:
    signals = _Signals()
    reloader = service.reloader
    code = 0
    try:
        async with AsyncExitStack() as stack:
            if place is not None:
                await _open_control(stack, control, place)
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            reloading = [tasks.create_task(_reload_on(signals.hangup, reloader), name="SIGHUP")]
            if mode is not None:
                reloading.append(tasks.create_task(reloader.watch(mode), name="watch"))
            reloading.append(tasks.create_task(service.run(signals.stop), name="service manager"))
            await supervisor.run(signals.stop)
            for task in reloading:
                task.cancel()
    except* KrelayError as group:
        raise first_error(group) from None
    except* asyncio.CancelledError:
        code = _INTERRUPTED
    return code


class _Signals:
    """SIGINT and SIGTERM end the run, the second one at once; SIGHUP is a wish to reload, or the
    end of the terminal."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.hangup = asyncio.Event()
        self._task = asyncio.current_task()
        self._had_terminal = _has_terminal()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, self._end, number)
        loop.add_signal_handler(signal.SIGHUP, self._hangup)

    def _end(self, number: signal.Signals) -> None:
        if self.stop.is_set():
            logger.info("%s again: stopping at once", number.name)
            assert self._task is not None
            self._task.cancel()
        else:
            logger.info("%s: stopping", number.name)
            self.stop.set()

    def _hangup(self) -> None:
        if self._had_terminal and not _has_terminal():
            self.stop.set()
        else:
            self.hangup.set()


def _has_terminal() -> bool:
    """Whether a terminal controls this process, and is still there."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


async def _reload_on(hangup: asyncio.Event, reloader: Reloader) -> None:
    while True:
        await hangup.wait()
        hangup.clear()
        with contextlib.suppress(KrelayError):  # it was told
            await reloader.load("SIGHUP")


async def _open_control(stack: AsyncExitStack, control: Control, place: Path) -> None:
    """Let other commands ask; where that cannot be had, relaying matters more."""
    try:
        await stack.enter_async_context(serve(place, control.handlers()))
    except AlreadyRunningError:
        raise
    except KrelayError as exc:
        logger.warning("other krelay commands cannot reach this one: %s", exc)


def tell(forward: Forward) -> None:
    """Say that a forward is ready, if anybody still listens: `krelay up | head -1` relays on."""
    try:
        for line in forward.describe():
            say(line)
    except BrokenPipeError:
        hush()
