"""`krelay up`: a supervisor, kept at what the file says, and signals that end it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from krelay.cli.output import echo, echo_event, in_json, keep_log, silence_stdout
from krelay.cli.sd_notify import Notifier
from krelay.cli.signals import is_ignored, on_signal, run_to_exit
from krelay.cli.systemd import Service
from krelay.config.watch import Mode, mode_from_env
from krelay.errors import KrelayError, UsageError
from krelay.model import Config, StatusConfig
from krelay.mux.descriptors import raise_file_limit
from krelay.status.socket_path import socket_path
from krelay.status.tcp_server import Listening
from krelay.status.unix_server import AlreadyRunningError, Handler, serve
from krelay.supervisor.contexts import Contexts
from krelay.supervisor.control import Control
from krelay.supervisor.forward import Forward
from krelay.supervisor.reload import Reloader
from krelay.supervisor.supervisor import Supervisor
from krelay.tasks import TaskGroup, keep

logger = logging.getLogger("krelay.cli")

_INTERRUPTED = 130
_LOGS = ("GET", "/v1/logs")
"""For the user alone: on the socket, not over TCP."""


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
    live: bool = False,
) -> int:
    """Relay until a signal; the exit code. `strict`, `must_exist` and `contexts` are the
    supervisor's; `announce` is told of each forward that is ready. `live`: where there is a
    terminal for it, a table takes its place.

    Raises:
        KrelayError: it could not start.
    """
    file = source.file
    mode = mode_from_env(os.environ) if watch and file else None
    config = source.load()
    raise_file_limit()
    live = live and _can_be_live(config)
    if announce is None:
        announce = _show if live else tell
    supervisor = Supervisor(
        config, announce, contexts=contexts, strict=strict, must_exist=must_exist
    )
    service = Service(Notifier.from_env(os.environ), source, supervisor, config)
    place = socket_path(file) if file else None
    control = Control(supervisor, service.reloader)
    with keep_log() as ring:
        handlers = {**control.handlers(), _LOGS: ring.answer}
        return run_to_exit(
            _run(supervisor, service, mode, control, handlers, place, config.status, live=live)
        )


async def _run(
    supervisor: Supervisor,
    service: Service,
    mode: Mode | None,
    control: Control,
    handlers: Mapping[tuple[str, str], Handler],
    place: Path | None,
    status: StatusConfig,
    *,
    live: bool,
) -> int:
    signals = _Signals()

    async def stop(body: Mapping[str, Any]) -> dict[str, Any]:
        """`POST /v1/stop`: as SIGTERM; where `now` is true, as the second one. What lives, and the
        seconds that it gets to finish."""
        now = body.get("now", False)
        if not isinstance(now, bool):
            raise UsageError("`now` is true or false")
        if not signals.stop.is_set():
            signals.end("asked to end")
        if now:
            signals.end("asked to end")
        config, forwards = supervisor.running.config, supervisor.running.forwards.values()
        return {
            "pid": os.getpid(),
            "stopping": True,
            "live": sum(forward.live for forward in forwards),
            "drain": config.tunnel.drain if config else 0.0,
        }

    handlers = {**handlers, ("POST", "/v1/stop"): stop}
    reloader = service.reloader
    code = 0
    try:
        async with AsyncExitStack() as stack:
            if place is not None:
                await _open_control(stack, supervisor, control, handlers, place)
            public = {asked: handler for asked, handler in handlers.items() if asked != _LOGS}
            listening = await stack.enter_async_context(
                Listening(public, snapshot=control.snapshot, bus=supervisor.bus)
            )
            tasks = await stack.enter_async_context(TaskGroup())
            beside: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
                "SIGHUP": partial(_reload_on, signals, reloader),
                "the status service": partial(_serve_on_tcp, listening, status, supervisor),
                "the service manager": partial(service.run, signals.stop),
            }
            if mode is not None:
                beside["the watch of the file"] = partial(reloader.watch, mode)
            if live:
                from krelay.cli.live import Live

                keys = {"r": partial(signals.reload, "r"), "q": partial(signals.end, "q")}
                beside["the live table"] = Live(lambda: control.status({}), keys).run
            running = [
                # What goes wrong beside the relaying must not end it.
                tasks.create_task(keep(work, name), name=name)
                for name, work in beside.items()
            ]
            await supervisor.run(signals.stop)
            for task in running:
                task.cancel()
    except asyncio.CancelledError:
        code = _INTERRUPTED
    return code


class _Signals:
    """SIGINT and SIGTERM end the run, the second one at once; SIGHUP is a wish to reload, or the
    end of the terminal. What was ignored when krelay started (`nohup`, a shell's `&`) never ends
    it."""

    def __init__(self) -> None:
        self.stop = asyncio.Event()
        self.hangup = asyncio.Event()
        self.reason = "SIGHUP"
        self._task = asyncio.current_task()
        self._needs_terminal = not is_ignored(signal.SIGHUP) and _has_terminal()
        for number in (signal.SIGINT, signal.SIGTERM):
            on_signal(number, self.end, number.name)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._hangup)

    def end(self, name: str) -> None:
        """End, or end at once; `name` is what says so."""
        if self.stop.is_set():
            logger.info("%s again: stopping at once", name)
            assert self._task is not None
            self._task.cancel()
        else:
            logger.info("%s: stopping", name)
            self.stop.set()

    def reload(self, reason: str) -> None:
        """Have the file carried out."""
        self.reason = reason
        self.hangup.set()

    def _hangup(self) -> None:
        if self._needs_terminal and not _has_terminal():
            self.stop.set()
        else:
            self.reload("SIGHUP")


def _has_terminal() -> bool:
    """Whether a terminal controls this process, and is still there."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


async def _reload_on(signals: _Signals, reloader: Reloader) -> None:
    while True:
        await signals.hangup.wait()
        signals.hangup.clear()
        with contextlib.suppress(KrelayError):  # it was told
            await reloader.load(signals.reason)


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
        service = serve(place, handlers, snapshot=control.snapshot, bus=supervisor.bus)
        await stack.enter_async_context(service)
    except AlreadyRunningError:
        raise
    except KrelayError as exc:
        logger.warning("other krelay commands cannot reach this one: %s", exc)


def tell(forward: Forward) -> None:
    """Say that a forward is ready, if anybody still listens: `krelay up | head -1` relays on, and
    so does one whose terminal has gone."""
    try:
        for line in forward.describe():
            if in_json():
                logger.info("%s", line, extra={"target": forward.spec.target.name})
                echo_event(line, forward.spec.target.name)
            else:
                echo(line)
    except OSError:
        silence_stdout()


def _can_be_live(config: Config) -> bool:
    """Whether there is a terminal for a table, and nobody else writes there: an embedded agent
    does, where all is to be said."""
    from krelay.cli.screen import supports_live_table

    chatty = config.agent.embedded and logging.getLogger("krelay.agent").isEnabledFor(logging.DEBUG)
    return supports_live_table() and not chatty


def _show(forward: Forward) -> None:
    """The table has it already."""
