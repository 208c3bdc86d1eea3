"""The default executor: calls, their errors, and a hung one at the end of a loop."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest

from krelay.errors import UnreachableError
from krelay.threads import in_thread, in_thread_or_here, use_daemons

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


async def test_calls_return_and_raise() -> None:
    use_daemons(asyncio.get_running_loop())
    assert await asyncio.to_thread(lambda: threading.current_thread().daemon)
    with pytest.raises(ZeroDivisionError):
        await asyncio.to_thread(lambda: 1 // 0)


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


def test_where_no_thread_can_be_had_a_command_ends_all_the_same() -> None:
    done = subprocess.run([sys.executable, "-c", NONE], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ended\n", "")


async def test_no_thread_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
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
