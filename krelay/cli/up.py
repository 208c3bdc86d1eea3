"""`krelay up`: run a supervisor, follow the file, and end on a signal."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import signal
import sys
from collections.abc import Callable, Coroutine, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from krelay.cli.background.child import Report
from krelay.cli.output import echo, echo_event, in_json, keep_log, note, silence_stdout
from krelay.cli.output_queue import queued_output
from krelay.cli.signals import is_ignored, on_signal, run_to_exit
from krelay.cli.systemd import Notifier, Service
from krelay.config.watch import Mode, mode_from_env
from krelay.diagnostics import dump
from krelay.errors import KrelayError, UsageError
from krelay.model import Config, StatusConfig
from krelay.mux.descriptors import raise_file_limit
from krelay.state.bus import EventBus
from krelay.state.events import (
    AgentProgress,
    ConfigApplied,
    Ending,
    ForwardBound,
    ForwardChanged,
    Started,
)
from krelay.state.states import State
from krelay.status import Handler
from krelay.status.servers import AlreadyRunningError, TcpServer, serve_unix
from krelay.status.socket_path import socket_path
from krelay.supervisor.contexts import Contexts
from krelay.supervisor.control import Control
from krelay.supervisor.reload import ConfigSource, Reloader
from krelay.supervisor.supervisor import Supervisor
from krelay.tasks import TaskGroup, keep
from krelay.threads import in_thread

if TYPE_CHECKING:
    from krelay.cli.terminal.live import Live
    from krelay.doctor import Finding

logger = logging.getLogger("krelay.cli")

_INTERRUPTED = 130
_SLOW_START = 3.0
"""Seconds that a start may take before a person at a terminal learns what it waits for."""


class FileSource(ConfigSource, Protocol):
    """A source of configs that may be a file."""

    @property
    def file(self) -> str | None:
        """The path to watch; None if there is no file."""


def run(
    source: FileSource,
    *,
    announce: Callable[[ForwardBound], None] | None = None,
    contexts: Contexts | None = None,
    watch: bool = True,
    strict: bool = False,
    must_exist: bool = False,
    pod_running_timeout: float | None = None,
    live: bool = False,
    as_kubectl: bool = False,
    report: Report | None = None,
) -> int:
    """Relay until a signal, and return the exit code.

    Args:
        announce: called with each forward that is bound; by default a line says so.
        as_kubectl: end on SIGINT even if it was ignored at the start, as kubectl does in a script.
        contexts, strict, must_exist, pod_running_timeout: as for `Supervisor`.
        watch: follow edits of the file.
        live: show the live table instead of lines, if there is a terminal for it.
        report: krelay is in the background; tell the command that started it about the start.
    """
    file = source.file
    watch_mode = mode_from_env(os.environ)
    config = source.load()
    raise_file_limit()
    live = live and _can_be_live(config)
    contexts = contexts or Contexts()
    supervisor = Supervisor(
        config,
        contexts=contexts,
        strict=strict,
        must_exist=must_exist,
        pod_running_timeout=pod_running_timeout,
        watch_mode=watch_mode,
    )
    _announce(supervisor, announce, report, live=live)
    quiet = as_kubectl and sys.stderr.isatty() and not logger.isEnabledFor(logging.INFO)
    if quiet:
        # What a person waits for belongs on a terminal, though the log has no place for it.
        supervisor.bus.on(Ending, _say_ending)
    with keep_log() as ring, queued_output():
        relaying = _Relaying(
            supervisor,
            Reloader(source, supervisor),
            config,
            contexts,
            file=file,
            socket=socket_path(file) if file else None,
            watch=watch_mode if watch and file else None,
            logs=ring.answer,
            live=live,
            as_kubectl=as_kubectl,
            says_start=quiet,
            report=report,
        )
        return run_to_exit(relaying.run())


def _announce(
    supervisor: Supervisor,
    announce: Callable[[ForwardBound], None] | None,
    report: Report | None,
    *,
    live: bool,
) -> None:
    """Have each bound forward announced where the user looks for it."""
    if announce is not None:
        supervisor.bus.on(ForwardBound, announce)
    elif report is not None:
        supervisor.bus.on(ForwardBound, log_bound)
        _report_failures(supervisor, report)
    elif not live:
        supervisor.bus.on(ForwardBound, announce_bound)


@dataclass(frozen=True, slots=True)
class _Relaying:
    """A supervisor, and what runs beside it: the services, the watches, and what tells the user.

    `socket` is where other commands find this one. `watch` is how to watch the file, if at all.
    `logs` answers `GET /v1/logs`. `says_start`: tell a person what a slow start waits for.
    """

    supervisor: Supervisor
    reloader: Reloader
    config: Config
    contexts: Contexts
    file: str | None
    socket: Path | None
    watch: Mode | None
    logs: Handler
    live: bool
    as_kubectl: bool
    says_start: bool
    report: Report | None

    async def run(self) -> int:
        """Relay until a signal, and return the exit code."""
        signals = _Signals(reloads=self.file is not None, even_ignored=self.as_kubectl)
        control = Control(self.supervisor, self.reloader)
        try:
            async with AsyncExitStack() as stack:
                status = await self._serve(stack, control, signals)
                tasks = await stack.enter_async_context(TaskGroup())
                running = [
                    # A failure beside the relaying must not end it.
                    tasks.create_task(keep(work, name), name=name)
                    for name, work in self._beside(control, signals, status).items()
                ]
                await self.supervisor.run(signals.stop)
                for task in running:
                    task.cancel()
        except asyncio.CancelledError:
            return _INTERRUPTED
        return 0

    async def _serve(self, stack: AsyncExitStack, control: Control, signals: _Signals) -> TcpServer:
        """Serve on the control socket; return the status service, which does not listen yet."""
        public: dict[tuple[str, str], Handler] = {
            **control.handlers(),
            ("POST", "/v1/stop"): partial(_stop, signals, self.supervisor),
        }
        if self.file is not None and self.socket is not None:
            # The log is for the user alone: on the socket, not over TCP.
            private = {**public, ("GET", "/v1/logs"): self.logs, ("GET", "/v1/tasks"): _tasks}
            needed = self.report is not None
            await _open_control(
                stack, self.supervisor, control, private, self.socket, self.file, needed=needed
            )
        status = TcpServer(public, snapshot=control.snapshot, bus=self.supervisor.bus)
        stack.push_async_callback(status.aclose)
        return status

    def _beside(
        self, control: Control, signals: _Signals, status: TcpServer
    ) -> dict[str, Callable[[], Coroutine[Any, Any, None]]]:
        """Return what runs beside the supervisor, by name."""
        supervisor, bus, report = self.supervisor, self.supervisor.bus, self.report
        work: dict[str, Callable[[], Coroutine[Any, Any, None]]] = {
            "SIGHUP": partial(_reload_on, signals, self.reloader),
            "the status service": partial(_serve_on_tcp, status, self.config.status, supervisor),
            "the service manager": Service(Notifier.from_env(os.environ), supervisor).run,
        }
        if not self.as_kubectl:
            examined = partial(_warn_of_this_machine, self.config, self.contexts, bus)
            work["the look at this machine"] = examined
        if self.says_start:
            work["the slow start"] = partial(_say_slow_start, bus)
        if report is not None:
            work["the slow start"] = partial(_say_slow_start, bus, report.step)
            work["the report"] = partial(_report_ready, bus, report)
        if self.watch is not None:
            work["the watch of the file"] = partial(self.reloader.watch, self.watch)
        if self.live:
            work["the live table"] = _live_table(control, signals, bus).run
        return work


def _live_table(control: Control, signals: _Signals, bus: EventBus) -> Live:
    from krelay.cli.terminal.live import Action, Live

    actions = {
        "r": Action(partial(signals.reload, "r"), "reload", "r applies the file as it is now."),
        "q": Action(partial(signals.end, "q"), "quit", "q quits; a second q skips the drain."),
    }
    return Live(lambda: control.status({}), actions, bus)


async def _stop(
    signals: _Signals, supervisor: Supervisor, body: Mapping[str, Any]
) -> dict[str, Any]:
    """Answer `POST /v1/stop`: end as for SIGTERM, and as for a second one if `now` is true.

    The answer has the number of connections that move data, and the seconds that they get to
    finish.
    """
    now = body.get("now", False)
    if not isinstance(now, bool):
        raise UsageError("`now` is true or false")
    if not signals.stop.is_set():
        signals.end("stop request")
    if now:
        signals.end("stop request")
    config, forwards = supervisor.active.config, supervisor.active.forwards.values()
    return {
        "pid": os.getpid(),
        "stopping": True,
        "live": sum(forward.moving for forward in forwards),
        "drain": config.tunnel.drain if config else 0.0,
    }


async def _tasks(body: Mapping[str, Any]) -> dict[str, Any]:
    """Answer `GET /v1/tasks`: where each task and each thread stands, for a bug report."""
    return {"text": dump(asyncio.get_running_loop())}


class _Signals:
    """Turns signals into requests.

    SIGINT and SIGTERM end the run, the second one at once. SIGHUP reloads the file, or ends the
    run if there is no file or the terminal has gone. Signals that were ignored when krelay started
    (`nohup`, a shell's `&`) end nothing.
    """

    def __init__(self, *, reloads: bool, even_ignored: bool) -> None:
        """`reloads`: there is a file to reload. `even_ignored`: SIGINT ends the run in any case."""
        self.stop = asyncio.Event()
        self.hangup = asyncio.Event()
        self.reason = "SIGHUP"
        self._task = asyncio.current_task()
        self._reloads = reloads
        self._hangup_ends = not is_ignored(signal.SIGHUP)
        self._needs_terminal = self._hangup_ends and _has_terminal()
        for number in (signal.SIGINT, signal.SIGTERM):
            on_signal(number, self.end, number.name, even_ignored=even_ignored)
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._hangup)

    def end(self, name: str) -> None:
        """End; the second time, end at once. `name` is what asked for it."""
        if self.stop.is_set():
            logger.info("%s again: stopping at once", name)
            assert self._task is not None
            self._task.cancel()
        else:
            logger.info("%s: stopping", name)
            self.stop.set()

    def reload(self, reason: str) -> None:
        """Request a reload of the file."""
        self.reason = reason
        self.hangup.set()

    def _hangup(self) -> None:
        if self._reloads and not (self._needs_terminal and not _has_terminal()):
            self.reload("SIGHUP")
        elif self._hangup_ends and not self.stop.is_set():
            # A closed terminal may send more than one.
            self.end("SIGHUP")


def _has_terminal() -> bool:
    """Return whether a terminal controls this process, and is still there."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC))
    except OSError:
        return False
    return True


async def _reload_on(signals: _Signals, reloader: Reloader) -> None:
    while True:
        await signals.hangup.wait()
        signals.hangup.clear()
        with contextlib.suppress(KrelayError):  # logged by `load`
            await reloader.load(signals.reason, kubeconfig=True)


async def _serve_on_tcp(server: TcpServer, status: StatusConfig, supervisor: Supervisor) -> None:
    """Keep the status service where the active config says."""
    with supervisor.bus.subscribe(ConfigApplied) as applied:
        await server.apply(status)
        while True:
            await applied.next()
            config = supervisor.active.config
            await server.apply(config.status if config else status)


async def _open_control(
    stack: AsyncExitStack,
    supervisor: Supervisor,
    control: Control,
    handlers: Mapping[tuple[str, str], Handler],
    path: Path,
    file: str,
    *,
    needed: bool,
) -> None:
    """Let other commands reach this one; relaying does not depend on it, unless it is `needed`."""
    try:
        service = serve_unix(
            path,
            handlers,
            file=file,
            snapshot=control.snapshot,
            bus=supervisor.bus,
            begin=partial(_start_has_time, supervisor),
        )
        await stack.enter_async_context(service)
    except AlreadyRunningError:
        raise
    except KrelayError as exc:
        if needed:
            raise  # else no command could end it
        logger.warning("other krelay commands cannot reach this one: %s", exc)


async def _start_has_time(supervisor: Supervisor) -> None:
    """Return when the start waits for the cluster, or after a second."""
    with contextlib.suppress(TimeoutError), supervisor.bus.subscribe(AgentProgress) as steps:
        async with asyncio.timeout(1.0):
            await steps.next()


def announce_bound(event: ForwardBound) -> None:
    """Print a line for each address that a forward is bound to.

    A reader that goes away (`krelay up | head -1`, a closed terminal) does not end krelay.
    """
    target = event.forward.target
    try:
        for line in event.forward.routes():
            if in_json():
                logger.info("%s", line, extra={"target": target})
                echo_event(line, target)
            else:
                echo(line)
    except OSError:
        silence_stdout()


def log_bound(event: ForwardBound) -> None:
    """Log a line for each address that a forward is bound to."""
    for line in event.forward.routes():
        logger.info("%s", line, extra={"target": event.forward.target})


def _say_ending(event: Ending) -> None:
    """Say how many connections krelay waits for, if any."""
    if event.moving:
        note(event.line)


def _report_failures(supervisor: Supervisor, report: Report) -> None:
    """Report each forward that fails, once the start is over: before, it may be what ends it."""

    def started(_: Started) -> None:
        for forward in supervisor.snapshot().forwards:
            if forward.state is State.FAILED:
                report.problem(str(forward))

    def changed(event: ForwardChanged) -> None:
        if supervisor.started.is_set() and event.state is State.FAILED:
            report.problem(event.text)

    supervisor.bus.on(Started, started)
    supervisor.bus.on(ForwardChanged, changed)


async def _report_ready(bus: EventBus, report: Report) -> None:
    """Report that every forward is ready."""
    await bus.wait_for(lambda snapshot: snapshot.ready)
    report.ready()


def _say_step(step: str) -> None:
    note(f"agent: {step}")


async def _say_slow_start(bus: EventBus, say: Callable[[str], None] = _say_step) -> None:
    """Say what the start waits for once it has taken a while, and each further step of it."""
    with bus.subscribe(AgentProgress, Started) as events:
        last: AgentProgress | Started | None = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SLOW_START):
                while not isinstance(last, Started):
                    last = await events.next()
        while not isinstance(last, Started):
            if last is not None:
                say(last.step)
            last = await events.next()


async def _warn_of_this_machine(config: Config, contexts: Contexts, bus: EventBus) -> None:
    """Warn of what `krelay doctor` would find on this machine, once the start is over.

    Ports are not among it: each forward says itself why it is not bound.
    """

    def look() -> list[Finding]:
        from krelay.doctor.local import faults

        return faults(config, contexts.logins(), contexts.dates())

    with bus.subscribe(Started) as started:
        await started.next()
    for fault in await in_thread(look):
        hint = f"; hint: {fault.hint}" if fault.hint else ""
        logger.warning("%s%s", fault.text, hint)


def _can_be_live(config: Config) -> bool:
    """Return whether a terminal can show the table, undisturbed by a verbose embedded agent."""
    from krelay.cli.terminal.screen import supports_live_table

    verbose = config.agent.embedded and logging.getLogger("krelay.agent").isEnabledFor(
        logging.DEBUG
    )
    return supports_live_table() and not verbose
