"""What the system tells: a clock that a test sets, and routes of a network namespace of its own."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import sys

import pytest

from krelay.net import host_monitor
from krelay.net.host_monitor import watch_routes, watch_sleep
from tests import rig


async def test_a_clock_that_ran_on_alone_means_sleep(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(host_monitor, "_LOOK_EVERY", 0.01)
    clock = asyncio.get_running_loop().time
    slept, woken, looks = 0.0, 0, 0

    def wall() -> float:
        nonlocal looks
        looks += 1
        return clock() + 1e9 + slept

    def wake() -> None:
        nonlocal woken
        woken += 1

    async with asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(watch_sleep(wake, wall=wall))
        await rig.until(lambda: looks > 3)
        assert woken == 0
        slept = 2.0  # a clock that was set
        before = looks
        await rig.until(lambda: looks > before + 2)
        assert woken == 0
        slept = 3_602.0
        await rig.until(lambda: woken)
        slept = 0.0  # back: nobody sleeps backwards
        before = looks
        await rig.until(lambda: looks > before + 2)
        assert woken == 1
        watching.cancel()
    assert "asleep for 3600 s" in caplog.text


SCRIPT = """
import asyncio, subprocess
from krelay.net.host_monitor import watch_routes

async def main():
    changed = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(watch_routes(changed.set))
        await asyncio.sleep(0)
        await (await asyncio.create_subprocess_exec("ip", "link", "set", "lo", "up")).wait()
        await changed.wait()
        watching.cancel()
    print("told")

asyncio.run(main())
"""


@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or not shutil.which("unshare"),
    reason="makes a network namespace of its own: Linux, root",
)
async def test_a_change_of_the_network_is_told_by_the_system() -> None:
    process = await asyncio.create_subprocess_exec(
        "unshare", "--net", sys.executable, "-c", SCRIPT, stdout=asyncio.subprocess.PIPE
    )
    try:
        out, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert out == b"told\n"


async def test_where_nothing_is_told_nothing_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> socket.socket:
        raise OSError("not permitted")

    monkeypatch.setattr(socket, "socket", refuse)
    await watch_routes(lambda: None)
