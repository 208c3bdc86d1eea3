"""The host monitor, on a clock that a test sets and on routes of a network namespace."""

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


async def test_a_wall_clock_that_ran_ahead_means_sleep(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    monkeypatch.setattr(host_monitor, "_CHECK_EVERY", 0.01)
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
        slept = 0.0  # set back: that is no sleep
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
    print("changed")

asyncio.run(main())
"""


@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or not shutil.which("unshare"),
    reason="creates a network namespace: Linux, root",
)
@pytest.mark.process
async def test_a_changed_link_is_reported() -> None:
    process = await asyncio.create_subprocess_exec(
        "unshare", "--net", sys.executable, "-c", SCRIPT, stdout=asyncio.subprocess.PIPE
    )
    try:
        out, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert out == b"changed\n"


async def test_without_a_route_socket_the_watch_returns(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object) -> socket.socket:
        raise OSError("not permitted")

    monkeypatch.setattr(socket, "socket", refuse)
    await watch_routes(lambda: None)
