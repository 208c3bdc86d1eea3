"""`krelay run`: relay while a command runs, and end with it."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import os
import shutil
import signal
from collections.abc import Sequence
from typing import Any

from krelay.cli.output_queue import queued_output
from krelay.cli.signals import on_signal, run_to_exit
from krelay.cli.terminal.screen import in_foreground
from krelay.config.sources import Selection
from krelay.errors import KrelayError
from krelay.model import Config
from krelay.mux.descriptors import raise_file_limit
from krelay.platforms import signals
from krelay.processes import end, send
from krelay.state.states import ForwardState
from krelay.state.variables import ports_of, prefixes, variables
from krelay.supervisor.contexts import Contexts
from krelay.supervisor.supervisor import Supervisor
from krelay.tasks import TaskGroup

logger = logging.getLogger("krelay.cli")

_NOT_RUN = "the command was not run"
_NOT_EXECUTABLE, _NOT_FOUND, _BY_SIGNAL = 126, 127, 128
_DRAIN = 2.0
"""Seconds for connections to finish after the command: mostly those of its children."""
_KILL_AFTER = 5.0

PASSED = signals("SIGINT", "SIGTERM", "SIGHUP", "SIGQUIT")
TYPED = signals("SIGINT", "SIGQUIT")
"""Signals that a key of the terminal sends to the command as well; a handler cannot tell whether a
key sent one."""


class CommandError(KrelayError):
    """The command cannot be run; the exit code is the one of a shell."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


def run(
    source: Selection,
    command: Sequence[str],
    *,
    timeout: float,
    contexts: Contexts | None = None,
) -> int:
    """Relay, run the command once all forwards are ready, and return its exit code.

    API clients come from `contexts`.

    Raises:
        CommandError: the command cannot be run.
        NotReadyError: a forward is not ready within `timeout` seconds.
        KrelayError: the start failed.
    """
    config = source.load()
    prefixes(ports_of(config))
    find(command[0])
    raise_file_limit()
    tunnel = dataclasses.replace(config.tunnel, drain=min(_DRAIN, config.tunnel.drain))
    config = dataclasses.replace(config, tunnel=tunnel)
    with queued_output():
        return run_to_exit(_Run(config, command, timeout, contexts).run())


def find(name: str) -> None:
    """Check that the program exists, before anything is started for it."""
    if shutil.which(name) is None:
        if os.path.dirname(name) and os.path.exists(name):
            raise CommandError(f"{name}: not executable", _NOT_EXECUTABLE)
        raise CommandError(f"{name}: command not found", _NOT_FOUND)


class _Run:
    def __init__(
        self, config: Config, command: Sequence[str], timeout: float, contexts: Contexts | None
    ) -> None:
        self._config = config
        self._command = command
        self._timeout = timeout
        # strict: a forward that cannot bind or resolve is an error at once, not after the timeout.
        self._supervisor = Supervisor(config, contexts=contexts, strict=True)
        self._child: asyncio.subprocess.Process | None = None
        self._signalled = asyncio.Event()
        self._number: signal.Signals | None = None
        self._task: asyncio.Task[Any] | None = None
        self._code: int | None = None

    async def run(self) -> int:
        """Start, run the command, clean up; return the exit code."""
        self._task = asyncio.current_task()
        for number in PASSED:
            on_signal(number, self._signal, number)  # the command inherits ignored ones
        stop = asyncio.Event()
        try:
            async with TaskGroup() as tasks:
                tasks.create_task(self._supervisor.run(stop), name="relay")
                # A signal ends the wait at once.
                waiting = tasks.create_task(
                    self._supervisor.wait_ready(self._timeout, then=_NOT_RUN), name="ready"
                )
                signalled = tasks.create_task(self._signalled.wait(), name="signals")
                await asyncio.wait({waiting, signalled}, return_when=asyncio.FIRST_COMPLETED)
                if self._code is None:
                    self._code = await self._run(waiting.result())
                else:
                    waiting.cancel()
                signalled.cancel()
                stop.set()
        except asyncio.CancelledError:
            logger.info("stopping at once")
        assert self._code is not None
        return self._code

    async def _run(self, forwards: Sequence[ForwardState]) -> int:
        """Run the command and return its exit code."""
        name = self._command[0]
        environ = {**os.environ, **variables(ports_of(self._config), forwards)}
        try:
            # The command inherits descriptors that krelay was given, as for `<(…)` or make's
            # jobserver, and none that krelay opened (PEP 446).
            child = await asyncio.create_subprocess_exec(
                *self._command, env=environ, close_fds=False
            )
        except FileNotFoundError as exc:
            raise CommandError(f"{name}: command not found", _NOT_FOUND) from exc
        except OSError as exc:
            raise CommandError(f"{name}: {exc.strerror}", _NOT_EXECUTABLE) from exc
        self._child = child
        if self._number is not None:  # it arrived during the start
            send(child, self._number)
        try:
            code = await child.wait()
        finally:
            self._child = None
            # Without forwards, the command is of no use.
            await end(child, grace=_KILL_AFTER)
        logger.info("the command exited with %d", code)
        return code if code >= 0 else _BY_SIGNAL - code

    def _signal(self, number: signal.Signals) -> None:
        if self._child is not None:
            if not (number in TYPED and _typed()):
                send(self._child, number)
        elif self._code is None:
            # Recorded at once: a second signal may arrive before the task wakes.
            self._number, self._code = number, _BY_SIGNAL + number
            self._signalled.set()
        elif self._task is not None:
            self._task.cancel()


def _typed() -> bool:
    """Return whether this process is in the foreground of its terminal, as is the command."""
    try:
        terminal = os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        return in_foreground(terminal)
    finally:
        os.close(terminal)
