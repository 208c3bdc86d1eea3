"""What a service manager gets, on real datagram sockets."""

from __future__ import annotations

import asyncio
import os
import secrets
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from krelay.cli import sd_notify
from krelay.cli.sd_notify import Notifier
from tests.status.manager import Manager


@pytest.fixture
def manager(runtime_directory: Path) -> Iterator[Manager]:
    made = Manager(str(runtime_directory / f"notify-{secrets.token_hex(4)}"))
    yield made
    made.sock.close()


async def test_each_thing_that_is_told(manager: Manager) -> None:
    notifier = Notifier(manager.address)
    assert notifier.there
    await notifier.ready("relaying 2 forwards")
    assert manager.read() == ["READY=1", "STATUS=relaying 2 forwards"]
    before = time.monotonic_ns() // 1000
    await notifier.reloading()
    word, stamp, status = manager.read()
    assert (word, status) == ("RELOADING=1", "STATUS=reloading")
    name, _, usec = stamp.partition("=")
    assert name == "MONOTONIC_USEC"
    assert before <= int(usec) <= time.monotonic_ns() // 1000
    await notifier.stopping("draining")
    assert manager.read() == ["STOPPING=1", "STATUS=draining"]
    await notifier.status("relaying 1 forward")
    assert manager.read() == ["STATUS=relaying 1 forward"]
    await notifier.alive()
    assert manager.read() == ["WATCHDOG=1"]


@pytest.mark.skipif(sys.platform != "linux", reason="Linux has abstract sockets")
async def test_an_abstract_socket() -> None:
    manager = Manager(f"@krelay-test-{secrets.token_hex(8)}")
    with manager.sock:
        await Notifier(manager.address).alive()
        assert manager.read() == ["WATCHDOG=1"]


async def test_a_status_is_one_line_and_no_other_message(manager: Manager) -> None:
    await Notifier(manager.address).status("bad\nSTOPPING=1\r\n" + "x" * 5000)
    (line,) = manager.read()
    assert line.startswith("STATUS=bad STOPPING=1 xxx")
    assert len(line) < 400


async def test_nobody_to_tell() -> None:
    notifier = Notifier.from_env({"WATCHDOG_USEC": "1000000"})
    assert not notifier.there
    assert notifier.watchdog is None
    await notifier.ready("x")


async def test_an_address_of_another_kind_is_nobody() -> None:
    notifier = Notifier.from_env({"NOTIFY_SOCKET": "vsock:2:1234", "WATCHDOG_USEC": "1000000"})
    assert not notifier.there
    assert notifier.watchdog is None


@pytest.mark.parametrize(
    ("environ", "watchdog"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": str(os.getpid())}, 0.5),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": str(os.getpid() + 1)}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "-5"}, None),
    ],
)
def test_the_watchdog_of_the_environment(environ: dict[str, str], watchdog: float | None) -> None:
    notifier = Notifier.from_env({"NOTIFY_SOCKET": "/run/x", **environ})
    assert notifier.there
    assert notifier.watchdog == watchdog


async def test_a_manager_that_is_gone_is_no_error(manager: Manager) -> None:
    manager.sock.close()
    await Notifier(manager.address).ready("x")
    Path(manager.address).unlink()
    await Notifier(manager.address).ready("x")


def fill(manager: Manager) -> int:
    """Fill the manager's queue; how many messages it holds."""
    count = 0
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.setblocking(False)
        sock.connect(manager.address)
        while True:
            try:
                sock.send(b"X=1")
            except BlockingIOError:
                return count
            count += 1


async def test_a_manager_that_is_busy_is_told_once_it_has_room(manager: Manager) -> None:
    count = fill(manager)
    async with asyncio.TaskGroup() as tasks:
        telling = tasks.create_task(Notifier(manager.address).alive())
        await asyncio.sleep(0)
        assert not telling.done()
        for _ in range(count):
            assert manager.read() == ["X=1"]
    assert manager.read() == ["WATCHDOG=1"]


async def test_a_manager_that_never_reads_holds_nothing_up(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sd_notify, "_DEADLINE", 0.01)
    count = fill(manager)
    await Notifier(manager.address).alive()
    assert [manager.read() for _ in range(count)] == [["X=1"]] * count
    with pytest.raises(BlockingIOError):
        manager.read()
