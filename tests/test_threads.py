"""Daemon threads: blocking calls, their errors, and a loop in a thread."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, contextmanager

import pytest

from krelay.errors import KrelayError, NotReadyError, TunnelError, UnreachableError
from krelay.threads import DaemonExecutor, LoopThread, in_thread, in_thread_or_here, use_daemons

HUNG = """
import asyncio, threading
from krelay.cli.signals import run_to_exit

async def main():
    begun = threading.Event()
    hang = lambda: (begun.set(), threading.Event().wait())
    task = asyncio.get_running_loop().create_task(asyncio.to_thread(hang))
    await asyncio.to_thread(begun.wait)
    task.cancel()
    return "ended"

print(run_to_exit(main()))
"""


async def test_calls_in_daemon_threads_return_and_raise() -> None:
    use_daemons(asyncio.get_running_loop())
    assert await asyncio.to_thread(lambda: threading.current_thread().daemon)
    with pytest.raises(ZeroDivisionError):
        await asyncio.to_thread(lambda: 1 // 0)


@pytest.mark.process
def test_a_hung_call_does_not_keep_a_command_from_ending() -> None:
    done = subprocess.run([sys.executable, "-c", HUNG], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ended\n", "")


NONE = """
import asyncio, signal, threading
from krelay.cli.signals import run_to_exit

async def main():
    await asyncio.to_thread(int)
    def start(thread):
        raise RuntimeError("can't start new thread")
    threading.Thread.start = start
    return "ended"

print(run_to_exit(main()))
"""


@pytest.mark.process
def test_a_command_ends_although_no_thread_can_be_started() -> None:
    done = subprocess.run([sys.executable, "-c", NONE], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ended\n", "")


async def test_a_call_without_a_thread_fails_or_runs_on_the_loop(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    def fail() -> None:
        raise RuntimeError("its own")

    use_daemons(asyncio.get_running_loop())
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        with pytest.raises(UnreachableError, match="^no thread can be started$"):
            await in_thread(lambda: 1, UnreachableError)
        assert await in_thread_or_here(threading.get_ident) == threading.get_ident()
    assert await in_thread(threading.get_ident) != threading.get_ident()
    assert await in_thread_or_here(threading.get_ident) != threading.get_ident()
    for run in in_thread, in_thread_or_here:
        with pytest.raises(RuntimeError, match="its own"):
            await run(fail)


class Runs(AbstractAsyncContextManager[int, None]):
    """Starts and ends as a test says, and records its calls."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.waits = False
        self.fails = False
        self.hangs = threading.Event()
        self.hangs.set()
        self.begun = threading.Event()

    async def __aenter__(self) -> int:
        self.begun.set()
        self.hangs.wait()  # the whole loop, where it is not set
        if self.fails:
            raise TunnelError("no")
        try:
            if self.waits:
                await asyncio.Event().wait()
        except asyncio.CancelledError:
            self.calls.append("cancelled")
            raise
        return threading.get_ident()

    async def __aexit__(self, kind: type[BaseException] | None, *rest: object) -> None:
        self.hangs.wait()
        self.calls.append("end" if kind is None else "cut")
        if self.fails:
            raise TunnelError("no")


@contextmanager
def loop_thread(runs: Runs, grace: float = 5.0) -> Iterator[LoopThread[int]]:
    """A LoopThread whose thread has ended at the end of the block."""
    made = LoopThread(runs, grace=grace)
    try:
        yield made
    finally:
        runs.hangs.set()
        made._thread.join(5)
        assert not made._thread.is_alive()
        assert made._loop.is_closed()


def test_a_part_runs_in_another_thread_until_it_is_ended() -> None:
    runs = Runs()
    with loop_thread(runs) as thread:
        assert thread.start(5) == thread._thread.ident != threading.get_ident()
        assert runs.calls == []
        thread.end(cut=False)
        assert not thread._thread.is_alive()
    assert runs.calls == ["end"]


def test_a_cut_end_cuts_the_part() -> None:
    runs = Runs()
    with loop_thread(runs) as thread:
        thread.start(5)
        thread.end(cut=True)
    assert runs.calls == ["cut"]


def test_a_failure_at_the_start_is_raised() -> None:
    runs = Runs()
    runs.fails = True
    with loop_thread(runs) as thread, pytest.raises(TunnelError):
        thread.start(5)


def test_a_failure_at_the_end_is_raised_unless_it_is_cut() -> None:
    for cut in (False, True):
        runs = Runs()
        with loop_thread(runs) as thread:
            thread.start(5)
            runs.fails = True
            if cut:
                thread.end(cut=True)
            else:
                with pytest.raises(TunnelError):
                    thread.end(cut=False)


@pytest.mark.usefixtures("blocking_calls")
def test_a_loop_that_hangs_at_the_start_is_given_up() -> None:
    runs = Runs()
    runs.hangs.clear()
    with loop_thread(runs, grace=0.05) as thread:
        with pytest.raises(NotReadyError, match="no answer from the relaying thread within 0.15 s"):
            thread.start(0.1)


@pytest.mark.usefixtures("blocking_calls")
def test_a_loop_that_hangs_at_the_end_is_given_up() -> None:
    runs = Runs()
    with loop_thread(runs, grace=0.1) as thread:
        thread.start(5)
        runs.hangs.clear()
        with pytest.raises(KrelayError, match="did not end in 0.1 s"):
            thread.end(cut=False)


def test_an_interrupted_start_ends_the_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runs = Runs()
    runs.waits = True
    with loop_thread(runs) as thread:

        def interrupted(timeout: float) -> int:
            runs.begun.wait()
            raise KeyboardInterrupt

        monkeypatch.setattr(thread._started, "result", interrupted)
        with pytest.raises(KeyboardInterrupt):
            thread.start(5)
        assert not thread._thread.is_alive()
    assert runs.calls == ["cancelled"]


def test_a_part_cancelled_before_its_start_never_starts() -> None:
    runs = Runs()
    with loop_thread(runs) as thread:
        thread._call(thread._cancel)
        with pytest.raises(KrelayError, match="ended before it was ready"):
            thread.start(5)
    assert not runs.begun.is_set()


def test_a_second_end_does_nothing() -> None:
    runs = Runs()
    with loop_thread(runs) as thread:
        thread.start(5)
        thread.end(cut=False)
        thread.end(cut=True)
    assert runs.calls == ["end"]


@pytest.mark.parametrize(
    ("reason", "runs"),
    [("can't create new thread at interpreter shutdown", True), ("can't start new thread", False)],
)
def test_a_call_runs_on_the_loop_while_the_interpreter_ends(
    reason: str, runs: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: threading.Thread) -> None:
        raise RuntimeError(reason)

    monkeypatch.setattr(threading.Thread, "start", fail)
    executor = DaemonExecutor()
    if runs:
        assert executor.submit(threading.current_thread).result() is threading.current_thread()
    else:
        with pytest.raises(RuntimeError, match="can't start"):
            executor.submit(threading.current_thread)
