"""`krelay up` as a service of systemd: the states that it sends, and their datagrams."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from krelay.cli import systemd as module
from krelay.cli.systemd import Notifier, Service
from krelay.config.sources import Selection
from krelay.errors import ConfigError
from krelay.supervisor.reload import Reloader
from krelay.supervisor.supervisor import Supervisor
from tests import rig
from tests.integration.product import command, document, environment, up
from tests.status.manager import Manager
from tests.supervisor.world import text, world


@pytest.fixture
def manager(runtime_directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Manager]:
    """The manager of every krelay that the test starts."""
    made = Manager(str(runtime_directory / f"notify-{secrets.token_hex(4)}"))
    with made.sock:
        monkeypatch.setenv("NOTIFY_SOCKET", made.address)
        monkeypatch.setenv("WATCHDOG_USEC", "400000")
        yield made


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "krelay.yaml"


async def reloaded(manager: Manager) -> None:
    """Expect the beginning and the end of a reload."""
    word, stamp, status = await manager.next()
    assert (word, status) == ("RELOADING=1", "STATUS=reloading")
    name, _, usec = stamp.partition("=")
    assert name == "MONOTONIC_USEC"
    assert 0 < int(usec) <= time.monotonic_ns() // 1000
    assert (await manager.next())[0] == "READY=1"


@pytest.mark.process
async def test_the_manager_follows_a_run_from_start_to_end(manager: Manager, file: Path) -> None:
    async with rig.tcp_target(rig.echo) as target:
        line = f"ip/127.0.0.1 :{target}"
        async with up(file, {"web": line}) as krelay:
            assert (await manager.next())[0] == "READY=1"
            await manager.shows("1 of 1 forwards ready")

            krelay.process.send_signal(signal.SIGHUP)
            await reloaded(manager)

            await asyncio.to_thread(file.write_text, document({"web": line, "more": line}))
            await reloaded(manager)
            await manager.shows("2 of 2 forwards ready")

            await asyncio.to_thread(file.write_text, "targets: [\n")
            await reloaded(manager)
            assert manager.status.startswith("2 of 2 forwards ready; out of sync with the file: ")

            await manager.alive()
            krelay.process.send_signal(signal.SIGTERM)
            assert await manager.next() == ["STOPPING=1", "STATUS=stopping"]
            assert await krelay.process.wait() == 0


@pytest.mark.process
async def test_an_invalid_file_ends_the_reload(manager: Manager, file: Path) -> None:
    async with rig.tcp_target(rig.echo) as target:
        right = document({"web": f"ip/127.0.0.1 :{target}"})
        async with up(file, {"web": f"ip/127.0.0.1 :{target}"}, args=("--no-watch",)) as krelay:
            assert (await manager.next())[0] == "READY=1"
            await asyncio.to_thread(file.write_text, "targets: [\n")
            krelay.process.send_signal(signal.SIGHUP)
            await reloaded(manager)
            assert "out of sync with the file" in manager.status
            await asyncio.to_thread(file.write_text, right)
            krelay.process.send_signal(signal.SIGHUP)
            await reloaded(manager)
            await manager.shows("1 of 1 forwards ready")


async def test_the_status_line_follows_the_forwards(
    manager: Manager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PAUSE", 0.01)
    async with rig.tcp_target(rig.echo) as target:
        line = f"ip/{rig.HOST} :{target}"
        async with world(monkeypatch, tmp_path, text(f"web: {line}")) as made:
            service = Service(Notifier(manager.address), made.supervisor)
            async with asyncio.TaskGroup() as tasks:
                running = tasks.create_task(service.run())
                assert (await manager.next())[0] == "READY=1"
                await manager.shows("1 of 1 forwards ready")
                await made.edit(text(f"web: {line}", f"more: {line}"))
                await manager.shows("2 of 2 forwards ready")
                running.cancel()


@pytest.mark.process
async def test_a_start_that_fails_is_never_ready(manager: Manager, file: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        content = document({"web": f"ip/127.0.0.1 {port}:80"})
        await asyncio.to_thread(file.write_text, content)
        process = await asyncio.create_subprocess_exec(
            *command("up", "-f", str(file)), env=environment(), stderr=asyncio.subprocess.DEVNULL
        )
        assert await process.wait() == 1
    sent = []
    while True:
        try:
            sent.append(manager.read())
        except BlockingIOError:
            break
    assert [lines for lines in sent if lines != ["WATCHDOG=1"]] == []


async def test_reloads_and_the_end_are_notified_in_order(
    manager: Manager, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = (f"{name}: ip/{rig.HOST} :1" for name in ("one", "two"))
    async with asyncio.TaskGroup() as tasks:
        async with world(monkeypatch, tmp_path, text(one)) as made:
            service = Service(Notifier(manager.address), made.supervisor)
            running = tasks.create_task(service.run())
            assert (await manager.next())[0] == "READY=1"
            await made.edit(text(one, two))
            await reloaded(manager)
            assert manager.status == "0 of 2 forwards ready"
            with pytest.raises(ConfigError):
                await made.edit("nonsense")
            await reloaded(manager)
            assert "; out of sync with the file: " in manager.status
            assert "/krelay.yaml:1:1: neither a krelay.yaml nor" in manager.status
        assert await manager.next() == ["STOPPING=1", "STATUS=stopping"]
        running.cancel()


async def test_a_reload_during_the_start_is_not_notified(manager: Manager, file: Path) -> None:
    await asyncio.to_thread(file.write_text, document({"web": "ip/127.0.0.1 :80"}))
    source = Selection(str(file))
    config = await asyncio.to_thread(source.load)
    supervisor = Supervisor(config)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(Service(Notifier(manager.address), supervisor).run())
        await asyncio.sleep(0)
        await Reloader(source, supervisor).load("early")
        await asyncio.sleep(0)
        running.cancel()
    with pytest.raises(BlockingIOError):
        manager.read()


async def test_without_a_manager_nothing_runs(file: Path) -> None:
    await asyncio.to_thread(file.write_text, document({"web": "ip/127.0.0.1 :80"}))
    config = await asyncio.to_thread(Selection(str(file)).load)
    await Service(Notifier(), Supervisor(config)).run()


# -- datagrams -------------------------------------------------------------------------------------


async def test_states_and_a_status_are_one_datagram(manager: Manager) -> None:
    notifier = Notifier(manager.address)
    assert notifier.there
    await notifier.send("READY=1", status="relaying 2 forwards")
    assert manager.read() == ["READY=1", "STATUS=relaying 2 forwards"]
    await notifier.send(status="relaying 1 forward")
    assert manager.read() == ["STATUS=relaying 1 forward"]
    await notifier.send("WATCHDOG=1")
    assert manager.read() == ["WATCHDOG=1"]


@pytest.mark.skipif(sys.platform != "linux", reason="Linux has abstract sockets")
async def test_an_abstract_socket() -> None:
    manager = Manager(f"@krelay-test-{secrets.token_hex(8)}")
    with manager.sock:
        await Notifier(manager.address).send("WATCHDOG=1")
        assert manager.read() == ["WATCHDOG=1"]


async def test_a_status_is_one_line_of_one_message(manager: Manager) -> None:
    await Notifier(manager.address).send(status="bad\nSTOPPING=1\r\n" + "x" * 5000)
    (line,) = manager.read()
    assert line.startswith("STATUS=bad STOPPING=1 xxx")
    assert len(line) < 400


async def test_without_a_manager_nothing_is_sent() -> None:
    notifier = Notifier.from_env({"WATCHDOG_USEC": "1000000"})
    assert not notifier.there
    assert notifier.watchdog is None
    await notifier.send("READY=1")


async def test_an_unknown_kind_of_address_is_ignored() -> None:
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
    await Notifier(manager.address).send("READY=1")
    Path(manager.address).unlink()
    await Notifier(manager.address).send("READY=1")


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


async def test_a_busy_manager_gets_the_datagram_once_it_has_room(manager: Manager) -> None:
    count = fill(manager)
    async with asyncio.TaskGroup() as tasks:
        telling = tasks.create_task(Notifier(manager.address).send("WATCHDOG=1"))
        await asyncio.sleep(0)
        assert not telling.done()
        for _ in range(count):
            assert manager.read() == ["X=1"]
    assert manager.read() == ["WATCHDOG=1"]


async def test_a_manager_that_never_reads_delays_nothing(
    manager: Manager, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_DEADLINE", 0.01)
    count = fill(manager)
    await Notifier(manager.address).send("WATCHDOG=1")
    assert [manager.read() for _ in range(count)] == [["X=1"]] * count
    with pytest.raises(BlockingIOError):
        manager.read()
