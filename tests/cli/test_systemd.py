"""`krelay up` as a service: what its manager is told, from a process of its own."""

from __future__ import annotations

import asyncio
import secrets
import signal
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from krelay.cli import systemd as module
from krelay.cli.sd_notify import Notifier
from krelay.cli.systemd import Service
from krelay.config.sources import Selection
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
    """A reload has been told of, its beginning and its end."""
    word, stamp, status = await manager.next()
    assert (word, status) == ("RELOADING=1", "STATUS=reloading")
    assert int(stamp.removeprefix("MONOTONIC_USEC=")) > 0
    assert (await manager.next())[0] == "READY=1"


@pytest.mark.process
async def test_a_life(manager: Manager, file: Path) -> None:
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
            assert manager.status.startswith("2 of 2 forwards ready; not as the file says: ")

            await manager.alive()
            krelay.process.send_signal(signal.SIGTERM)
            assert await manager.next() == ["STOPPING=1", "STATUS=stopping"]
            assert await krelay.process.wait() == 0


@pytest.mark.process
async def test_a_file_that_is_wrong_ends_the_reload_that_was_asked_for(
    manager: Manager, file: Path
) -> None:
    async with rig.tcp_target(rig.echo) as target:
        right = document({"web": f"ip/127.0.0.1 :{target}"})
        async with up(file, {"web": f"ip/127.0.0.1 :{target}"}, args=("--no-watch",)) as krelay:
            assert (await manager.next())[0] == "READY=1"
            await asyncio.to_thread(file.write_text, "targets: [\n")
            krelay.process.send_signal(signal.SIGHUP)
            await reloaded(manager)
            assert "not as the file says" in manager.status
            await asyncio.to_thread(file.write_text, right)
            krelay.process.send_signal(signal.SIGHUP)
            await reloaded(manager)
            await manager.shows("1 of 1 forwards ready")


async def test_the_line_for_people_follows_what_is_true(
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
    told = []
    while True:
        try:
            told.append(manager.read())
        except BlockingIOError:
            break
    assert [lines for lines in told if lines != ["WATCHDOG=1"]] == []


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
