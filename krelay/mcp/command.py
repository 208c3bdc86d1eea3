"""Commands that a model runs: bounded in number, time and output, and ended with the server."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from krelay.errors import KrelayError, UsageError
from krelay.tasks import TaskGroup, shield_cleanup
from krelay.text import many_lines
from krelay.threads import in_thread

MOST_COMMANDS = 4
MOST_OUTPUT = 32_000
"""Bytes of the output that are kept: the first quarter, and the end."""
_HEAD = MOST_OUTPUT // 4
_LATE_OUTPUT = 0.5
"""Seconds after its end in which a command's output is still read: a child may hold the pipe."""

_Steps = Sequence[tuple[signal.Signals, float]]
"""Signals that end a command, each with the seconds that it may take."""
_KILL: signal.Signals = getattr(signal, "SIGKILL", signal.SIGTERM)  # Windows has none
_TIMED_OUT: _Steps = ((signal.SIGTERM, 5.0), (_KILL, 1.0))
_TIMED_OUT_RELAYING: _Steps = ((signal.SIGTERM, 5.0), (signal.SIGTERM, 10.0), (_KILL, 1.0))
# Clients kill a server that still runs after two seconds.
_ABANDONED: _Steps = ((signal.SIGTERM, 0.4), (_KILL, 0.2))
_ABANDONED_RELAYING: _Steps = ((signal.SIGTERM, 0.4), (signal.SIGTERM, 0.0))


@dataclass(frozen=True, slots=True)
class Job:
    """A command line. `relaying`: it is a `krelay run`, which passes signals on to its command, and
    deletes its agent by itself."""

    argv: Sequence[str]
    directory: str
    environ: Mapping[str, str]
    timeout: float
    relaying: bool = False


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended. `left_out` counts the bytes that are missing in the middle of `output`.

    `exit_code` is as a shell's, and None if the command did not end in time.
    """

    exit_code: int | None
    seconds: float
    output: str
    left_out: int


class Commands:
    """Runs commands, a limited number at a time."""

    def __init__(self) -> None:
        self._running = 0

    async def run(self, job: Job) -> Ended:
        """Run a command without a terminal or input; a cancellation ends it.

        Raises:
            UsageError: the program does not exist or cannot be executed.
            KrelayError: too many commands run, or no thread can be started.
        """
        if self._running >= MOST_COMMANDS:
            raise KrelayError(f"{MOST_COMMANDS} commands run already", hint="wait for one to end")
        self._running += 1
        try:
            return await _run(job)
        finally:
            self._running -= 1


class _Child:
    """A child process, and the beginning and the end of its output.

    Threads read the output and wait for the end. asyncio's own transport of a child kills it when
    it is collected, which would keep a `krelay run` from deleting its agent.
    """

    def __init__(self, job: Job) -> None:
        self.left_out = 0
        self._job = job
        self._process: subprocess.Popen[bytes] | None = None
        self._sent: tuple[signal.Signals, bool] | None = None
        self._started = threading.Event()
        self._head = bytearray()
        self._tail = bytearray()

    @property
    def runs(self) -> bool:
        """Whether it has not ended."""
        return self._process is None or self._process.returncode is None

    @property
    def code(self) -> int:
        """The exit code after the end, as a shell's."""
        assert self._process is not None
        code: int = self._process.returncode
        return code if code >= 0 else 128 - code

    def run(self) -> None:
        """Run the process to its end. Blocks. Raises UsageError if it cannot be started."""
        try:
            self._process = subprocess.Popen(
                self._job.argv,
                cwd=self._job.directory,
                env=self._job.environ,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # signals to its process group reach its children too
            )
        except (OSError, ValueError) as exc:
            reason = exc.strerror if isinstance(exc, OSError) else exc
            raise UsageError(f"cannot run {self._job.argv[0]!r}: {reason}") from exc
        finally:
            self._started.set()
        if self._sent is not None:  # while the process was being started
            number, to_children = self._sent
            self.send(number, to_children=to_children)
        self._process.wait()

    def read(self) -> None:
        """Read the output to its end. Blocks."""
        self._started.wait()
        if self._process is None:
            return
        assert self._process.stdout is not None
        with self._process.stdout as pipe:
            while data := os.read(pipe.fileno(), 1 << 16):
                self._keep(data)

    def output(self) -> str:
        """Return the output as text that is safe to show; a line stands for a missing middle."""
        gap = f"\n… {self.left_out} bytes left out …\n".encode() if self.left_out else b""
        text = (bytes(self._head) + gap + bytes(self._tail)).decode(errors="replace")
        return "\n".join(many_lines(text, most=MOST_OUTPUT)) if text else ""

    def send(self, number: signal.Signals, *, to_children: bool) -> None:
        """Send a signal to the process, or to all that are left of it and its children.

        A process that is being started gets the last signal once it runs.
        """
        self._sent = number, to_children
        if self._process is None:
            return
        if not to_children:
            self._process.send_signal(number)
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, number)

    def _keep(self, data: bytes) -> None:
        room = _HEAD - len(self._head)
        self._head += data[:room]
        self._tail += data[room:]
        excess = len(self._tail) - (MOST_OUTPUT - _HEAD)
        if excess > 0:
            del self._tail[:excess]
            self.left_out += excess


async def _run(job: Job) -> Ended:
    """Run a command to its end, and cause that after the timeout or a cancellation."""
    child = _Child(job)
    began = time.monotonic()
    async with TaskGroup() as tasks:
        ended = tasks.create_task(in_thread(child.run))
        silent = tasks.create_task(in_thread(child.read))
        try:
            in_time, _ = await asyncio.wait({ended}, timeout=job.timeout)
            if not in_time:
                steps = _TIMED_OUT_RELAYING if job.relaying else _TIMED_OUT
                await _end(child, ended, steps, job)
            seconds = time.monotonic() - began
            await asyncio.wait({silent}, timeout=_LATE_OUTPUT)
            child.send(_KILL, to_children=True)
            silent.cancel()
        except asyncio.CancelledError:
            steps = _ABANDONED_RELAYING if job.relaying else _ABANDONED
            await shield_cleanup(_end(child, ended, steps, job))
            raise
    code = child.code if in_time else None
    return Ended(code, round(seconds, 1), child.output(), child.left_out)


async def _end(child: _Child, ended: asyncio.Task[None], steps: _Steps, job: Job) -> None:
    for number, seconds in steps:
        child.send(number, to_children=not job.relaying or number is _KILL)
        await asyncio.wait({ended}, timeout=seconds)
        if not child.runs:
            break
    if not job.relaying:
        child.send(_KILL, to_children=True)
