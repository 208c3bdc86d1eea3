"""Children that end, that do not, and whose own children hold their pipes."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from krelay.processes import end

ROOT = Path(__file__).parents[1]


async def shell(script: str) -> asyncio.subprocess.Process:
    pipe = asyncio.subprocess.PIPE
    return await asyncio.create_subprocess_exec("sh", "-c", script, stdout=pipe, stderr=pipe)


@pytest.fixture
async def holder() -> AsyncIterator[asyncio.subprocess.Process]:
    """A shell that waits for its child, which holds its pipes."""
    child = await shell("sleep 600 & echo $!; wait")
    assert child.stdout is not None
    number = int(await child.stdout.readline())
    yield child
    os.kill(number, signal.SIGKILL)


async def test_ending_a_child_does_not_wait_for_pipes_that_grandchildren_hold(
    holder: asyncio.subprocess.Process,
) -> None:
    await end(holder)
    assert holder.returncode == -signal.SIGKILL
    assert holder.stdout is not None
    assert holder.stdout.at_eof()


async def test_an_ended_child_keeps_its_exit_code() -> None:
    child = await shell("exit 3")
    await child.wait()
    await end(child, grace=5)
    assert child.returncode == 3


async def test_a_child_that_handles_sigterm_is_not_killed() -> None:
    child = await shell("trap 'exit 4' TERM; echo; while :; do sleep 0.01; done")
    assert child.stdout is not None
    await child.stdout.readline()
    await end(child, grace=60)
    assert child.returncode == 4


async def test_a_child_that_ignores_sigterm_is_killed_after_its_grace() -> None:
    child = await shell("trap '' TERM; echo; while :; do sleep 0.01; done")
    assert child.stdout is not None
    await child.stdout.readline()
    await end(child, grace=0.05)
    assert child.returncode == -signal.SIGKILL


async def test_a_cancellation_is_raised_after_the_child_has_ended(
    holder: asyncio.subprocess.Process,
) -> None:
    task = asyncio.get_running_loop().create_task(end(holder))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait([task])
    assert task.cancelled()
    assert holder.returncode == -signal.SIGKILL


SCRIPT = """
import asyncio, os, signal, sys
from krelay.processes import end

async def main():
    pipe = asyncio.subprocess.PIPE
    command = ("sh", "-c", "sleep 600 & echo $!; wait")
    child = await asyncio.create_subprocess_exec(*command, stdout=pipe, stderr=pipe)
    number = int(await child.stdout.readline())
    await end(child)
    return number

number = asyncio.run(main())
os.kill(number, signal.SIGKILL)
"""


@pytest.mark.process
def test_an_ended_child_leaves_nothing_for_the_end_of_the_loop() -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT], cwd=ROOT, capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stderr) == (0, "")
