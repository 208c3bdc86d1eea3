"""The default executor: calls, their errors, and a hung one at the end of a loop."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading

import pytest

from krelay.threads import DaemonExecutor

HUNG = """
import asyncio, threading
from krelay.cli.signals import run_last

async def main():
    begun = threading.Event()
    hang = lambda: (begun.set(), threading.Event().wait())
    task = asyncio.get_running_loop().create_task(asyncio.to_thread(hang))
    await asyncio.to_thread(begun.wait)
    task.cancel()
    return "ended"

print(run_last(main()))
"""


async def test_calls_return_and_raise() -> None:
    asyncio.get_running_loop().set_default_executor(DaemonExecutor())
    assert await asyncio.to_thread(lambda: threading.current_thread().daemon)
    with pytest.raises(ZeroDivisionError):
        await asyncio.to_thread(lambda: 1 // 0)


def test_a_hung_call_does_not_keep_a_command_from_ending() -> None:
    done = subprocess.run([sys.executable, "-c", HUNG], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "ended\n", "")
