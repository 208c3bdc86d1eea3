"""`krelay up`: a supervisor, kept at what the file says, and signals that end it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any, Protocol

from krelay.cli.output import hush, say
from krelay.config.watch import Mode, mode_from_env
from krelay.errors import KrelayError, first_error
from krelay.model import Config, StatusConfig
from krelay.mux.files import raise_file_limit
from krelay.status.listening import Listening
from krelay.status.place import socket_path
from krelay.status.server import AlreadyRunningError, Handler, serve
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
    reloader = Reloader(source, supervisor, config)
    place = socket_path(file) if file else None
    control = Control(supervisor, reloader)
    return asyncio.run(_run(supervisor, reloader, mode, control, place, config.status))


async def _run(
    supervisor: Supervisor,
    reloader: Reloader,
    mode: Mode | None,
    control: Control,
    place: Path | None,
    status: StatusConfig,
) -> int:
    signals = _Signals()
    handlers = {**control.handlers(), ("POST", "/v1/stop"): signals.asked}
    code = 0
    try:
        async with AsyncExitStack() as stack:
            if place is not None:
                await _open_control(stack, supervisor, control, handlers, place)
            listening = await stack.enter_async_context(
                Listening(handlers, report=control.report, feed=supervisor.feed)
            )
            tasks = await stack.enter_async_context(asyncio.TaskGroup())
            reloading = [tasks.create_task(_reload_on(signals.hangup, reloader), name="SIGHUP")]
            if mode is not None:
                reloading.append(tasks.create_task(reloader.watch(mode), name="watch"))
            serving = _serve_on_tcp(listening, status, supervisor)
            reloading.append(tasks.create_task(serving, name="status"))
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

    async def asked(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """`POST /v1/stop`: as SIGTERM; where `now` is true, as the second one."""
        logger.info("asked to stop%s", " at once" if body.get("now") is True else "")
        self.stop.set()
        if body.get("now") is True:
            assert self._task is not None
            self._task.cancel()
        return {"pid": os.getpid(), "stopping": True}

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


async def _serve_on_tcp(listening: Listening, status: StatusConfig, supervisor: Supervisor) -> None:
    """Keep the status service where what runs says."""
    await listening.apply(status)
    while True:
        await supervisor.applied.wait()
        supervisor.applied.clear()
        config = supervisor.running.config
        await listening.apply(config.status if config else status)


async def _open_control(
    stack: AsyncExitStack,
    supervisor: Supervisor,
    control: Control,
    handlers: Mapping[tuple[str, str], Handler],
    place: Path,
) -> None:
    """Let other commands ask; where that cannot be had, relaying matters more."""
    try:
        service = serve(place, handlers, report=control.report, feed=supervisor.feed)
        await stack.enter_async_context(service)
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
