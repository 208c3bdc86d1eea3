"""The agent's lifetime: what keeps it running, and what ends it."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from agent import __main__ as agent_main
from agent import server as module
from agent.__main__ import listen
from agent.server import Server
from agent.settings import Settings
from krelay.wire.errors import ErrorCode
from krelay.wire.frames import HEAD_SIZE, FrameType, encode_frame
from krelay.wire.handshake import OPENING, ClientHandshake
from tests import rig
from tests.agent.peer import header, legacy, session
from tests.agent.test_targets import ask

ROOT = Path(__file__).parents[2]


@asynccontextmanager
async def life(**settings: object) -> AsyncIterator[tuple[Server, asyncio.Task[None]]]:
    """A server that ends by itself."""
    server = Server(Settings(port=0, key=rig.KEY, **settings))  # type: ignore[arg-type]
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(server.run())
        await server.listening.wait()
        yield server, task


def wait(server: Server, idle_timeout: float) -> None:
    """Make the server wait this long for a client."""
    server._settings = dataclasses.replace(server._settings, idle_timeout=idle_timeout)


# -- idleness ----------------------------------------------------------------------------------


async def test_an_agent_ends_if_no_client_connects() -> None:
    async with life(idle_timeout=0.05):
        pass


async def test_an_agent_ends_after_its_last_client_vanished() -> None:
    async with life(grace=0.05) as (server, task):
        client = await session(server)
        wait(server, 0.05)
        async with legacy(server, b"") as other:
            other.writer.close()
        assert not task.done()
        await client.cut()


async def test_a_connected_client_keeps_the_agent() -> None:
    async with life(grace=3600.0) as (server, task):
        client = await session(server)
        assert server._idle_timer is None
        async with legacy(server, b""):
            pass
        await rig.until(lambda: len(server._connections) == 1)
        assert server._idle_timer is None
        await client.cut()
        assert not task.done()
        server.stop("test")


@pytest.mark.parametrize(
    ("idle", "grace", "kept", "ends"),
    [(300.0, 120.0, 120.0, 300.0), (15.0, 120.0, 15.0, 15.0), (0.0, 120.0, 120.0, None)],
)
async def test_an_agent_ends_an_idle_timeout_after_the_last_tunnel(
    idle: float, grace: float, kept: float, ends: float | None
) -> None:
    loop = asyncio.get_running_loop()
    async with life(idle_timeout=idle, grace=grace) as (server, _):
        client = await session(server)
        (session_kept,) = server.sessions._kept.values()
        before = loop.time()
        await client.cut()
        await rig.until(lambda: session_kept.grace and not server._connections)
        after = loop.time()
        assert session_kept.grace is not None
        assert before + kept <= session_kept.grace.when() <= after + kept
        timer = server._idle_timer
        assert (timer is None) is (ends is None)
        if timer is not None and ends is not None:
            assert before + ends <= timer.when() <= after + ends
        server.stop("test")


async def test_a_legacy_connection_keeps_the_agent() -> None:
    server = Server(Settings(port=0))
    async with asyncio.TaskGroup() as tasks, rig.tcp_target(rig.echo) as target:
        task = tasks.create_task(server.run())
        await server.listening.wait()
        async with legacy(server, header(0, rig.HOST, target)) as peer:
            assert await peer.status() == 1
            client = await session(server, key=b"")
            client.leave()
            await rig.until(lambda: len(server.sessions) == 0)
            await rig.until(lambda: not server._connections)
            assert server._idle_timer is None
            peer.writer.write(b"x")
            assert await peer.reader.readexactly(1) == b"x"
            wait(server, 0.05)
        await task


async def test_an_agent_ends_soon_after_the_last_goaway(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LINGER", 0.05)
    async with life(idle_timeout=3600.0) as (server, _):
        clients = [await session(server) for _ in range(2)]
        clients[0].leave()
        await rig.until(lambda: len(server.sessions) == 1)
        assert server._idle_timer is None
        clients[1].leave()


async def test_without_an_idle_timeout_a_goaway_does_not_end_the_agent() -> None:
    async with life(idle_timeout=0.0) as (server, task):
        client = await session(server)
        client.leave()
        await rig.until(lambda: not server._connections)
        assert server._idle_timer is None
        assert not task.done()
        server.stop("test")


async def test_a_pending_connection_keeps_the_agent_after_the_last_goaway(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "LINGER", 0.05)
    async with life(idle_timeout=3600.0) as (server, _):
        last = await session(server)
        reader, writer = await asyncio.open_connection(*server.address)
        shaking = ClientHandshake(rig.KEY, bytes(32))
        writer.write(shaking.data_to_send())
        assert shaking.receive_data(await reader.read(1 << 10)) is None
        last.leave()
        await rig.until(lambda: len(server._connections) == 1)
        assert len(server.sessions) == 0
        assert server._idle_timer is None
        writer.write(shaking.data_to_send())
        assert shaking.receive_data(await reader.read(1 << 10))
        assert len(server.sessions) == 1
        writer.write(encode_frame(FrameType.GOAWAY, 0, b"\0"))
        await reader.read()
        writer.close()


async def test_a_connection_without_a_session_does_not_prolong_the_linger(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "LINGER", 0.05)
    async with life(idle_timeout=3600.0) as (server, _):
        last = await session(server)
        async with legacy(server, b""):
            await rig.until(lambda: len(server._connections) == 2)
            last.leave()
            await rig.until(lambda: len(server._connections) == 1)


async def test_a_session_within_the_linger_keeps_the_agent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "LINGER", 3600.0)
    async with life(idle_timeout=3600.0) as (server, task):
        client = await session(server)
        client.leave()
        await rig.until(lambda: server._idle_timer)
        client = await session(server)
        assert server._idle_timer is None
        client.leave()
        server.stop("enough")
        server.stop("twice is once")
        await task


# -- stopping ----------------------------------------------------------------------------------


async def test_a_stopped_agent_sends_goaway_and_resets_streams() -> None:
    async with rig.tcp_target(rig.hold) as target:
        async with life() as (server, _):
            client = await session(server)
            told: list[ErrorCode] = []
            client.connection.on_go_away = lambda code, message: told.append(code)
            _, seen = ask(client, 0, target)
            await rig.until(lambda: seen.told)
            server.stop("test")
            await rig.until(lambda: told)
        assert set(told) == {ErrorCode.GOING_AWAY}
        await rig.until(lambda: not client.connection.attached)
        client.leave()


async def test_streams_opened_while_the_agent_stops_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_LAST_CALL", 3600.0)
    async with rig.tcp_target(rig.echo) as target, asyncio.TaskGroup() as tasks:
        server = module.Server(Settings(port=0, key=rig.KEY))
        running = tasks.create_task(server.run())
        await server.listening.wait()
        client = await session(server)
        # As if it were on its way when the good-bye was written.
        client.connection.on_go_away = lambda code, message: None
        server.stop("test")
        await rig.until(lambda: client.connection.session.peer_going_away)
        client.connection.session.peer_going_away = False
        _, seen = ask(client, 0, target)
        await rig.until(lambda: seen.told)
        assert seen.told == [ErrorCode.GOING_AWAY]
        client.leave()
        running.cancel()


async def test_a_stopping_agent_waits_for_no_dial() -> None:
    with socket.socket() as full:
        full.bind((rig.HOST, 0))
        full.listen(0)
        socks = [socket.socket() for _ in range(3)]
        for sock in socks:
            sock.setblocking(False)
            sock.connect_ex(full.getsockname())
        async with life(connect_timeout=3600.0) as (server, _):
            client = await session(server)
            ask(client, 0, full.getsockname()[1])
            (kept,) = server.sessions._kept.values()
            await rig.until(lambda: kept.mux.session.streams)
            server.stop("test")
        for sock in socks:
            sock.close()
        client.leave()


async def test_a_stopping_agent_waits_for_no_silent_peer(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_DRAIN", 0.05)
    async with life() as (server, _):
        async with legacy(server, b"") as peer:
            await rig.until(lambda: server._connections)
            (connection,) = server._connections
            # More than the kernel takes: a close has to wait for it.
            connection.transport.write(bytes(32 << 20))
            server.stop("test")
            with suppress(ConnectionResetError):
                while await peer.reader.read(1 << 10):
                    await rig.until(lambda: not server._connections)


async def test_connections_are_limited(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "MAX_LEGACY", 1)
    caplog.set_level(logging.INFO, "krelay.agent")
    async with rig.agent(key=None) as server, rig.tcp_target(rig.echo) as target:
        client = await session(server, key=b"")
        ask = header(0, rig.HOST, target)
        async with legacy(server, ask) as first:
            assert await first.status() == 1
            async with legacy(server, ask) as over:
                assert await over.reader.read() == bytes([2])
        await rig.until(lambda: not server._legacy)
        async with legacy(server, ask) as next:
            assert await next.status() == 1
        assert client.connection.attached
        client.leave()
    assert "refused: a legacy connection: there are 1" in caplog.text


async def test_the_oldest_pending_connection_makes_way(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PENDING", 2)
    async with rig.agent() as server:
        client = await session(server)
        async with legacy(server, b"") as first, legacy(server, b""):
            await rig.until(lambda: len(server._pending) == 2)
            other = await session(server)
            assert await first.reader.read() == b""
            assert client.connection.attached
        client.leave()
        other.leave()


async def test_a_port_in_use_is_an_os_error() -> None:
    async with rig.agent() as server:
        with pytest.raises(OSError, match="in use"):
            await Server(Settings(port=server.address[1])).run()


async def test_an_agent_listens_on_ipv6() -> None:
    try:
        async with rig.agent(bind="::1") as server:
            assert server.address[0] == "::1"
            client = await session(server)
            client.leave()
    except* OSError:
        pytest.skip("no IPv6 here")


# -- the program -------------------------------------------------------------------------------


@asynccontextmanager
async def program(*args: str, **environ: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """`python -m agent`, killed at the end where it still runs."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *("-W", "error", "-m", "agent", *args),
        cwd=ROOT,
        env={**os.environ, **environ},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def listening(process: asyncio.subprocess.Process) -> tuple[str, int]:
    """The address that it prints when it was asked for any port."""
    assert process.stdout is not None
    host, _, port = (await process.stdout.readline()).decode().rpartition(":")
    return host, int(port)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.process
async def test_a_signal_ends_the_program_with_0(number: signal.Signals) -> None:
    async with program("--port=0", KRELAY_KEY=rig.KEY.hex()) as process:
        host, port = await listening(process)
        reader, writer = await asyncio.open_connection(host, port)
        process.send_signal(number)
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()
        _, log = await process.communicate()
        assert process.returncode == 0
        assert f"ending: {number.name}" in log.decode()
        assert rig.KEY.hex() not in log.decode()


@pytest.mark.process
@pytest.mark.parametrize("traces", ["wire", ""])
async def test_the_program_logs_each_frame_if_the_environment_asks_for_it(traces: str) -> None:
    async with program("--port=0", KRELAY_TRACE=traces) as process:
        host, port = await listening(process)
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(OPENING)
        assert (await reader.readexactly(1 + HEAD_SIZE))[:2] == b"\x01\x20"
        writer.close()
        await writer.wait_closed()
        process.terminate()
        _, log = await process.communicate()
        assert ("> HELLO s0 size=35" in log.decode()) == bool(traces)


@pytest.mark.process
async def test_idleness_ends_the_program_with_0() -> None:
    async with program("--port=0", "--idle-timeout=10ms") as process:
        _, log = await process.communicate()
        assert process.returncode == 0
        assert "idle for 0.01 s" in log.decode()


@pytest.mark.process
async def test_a_port_in_use_ends_the_program_with_1() -> None:
    async with rig.agent() as server, program(f"--port={server.address[1]}") as process:
        _, log = await process.communicate()
        assert process.returncode == 1
        assert "cannot listen" in log.decode()
        assert "Traceback" not in log.decode()


@pytest.mark.process
async def test_a_usage_error_ends_the_program_with_2() -> None:
    async with program("--bind=0.0.0.0") as process:
        _, log = await process.communicate()
        assert process.returncode == 2
        assert "requires a key" in log.decode()


@pytest.mark.process
async def test_the_program_is_standard_library_only() -> None:
    script = (
        "import sys; sys.path.insert(0, '.'); import agent.program, json;"
        "print(json.dumps(sorted({n.partition('.')[0] for n in sys.modules})))"
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-I", "-S", "-c", script), cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    out, _ = await process.communicate()
    foreign = set(json.loads(out)) - set(sys.stdlib_module_names) - {"agent", "krelay"}
    assert foreign <= {"__main__", "__mp_main__"}


@pytest.mark.process
async def test_the_program_listens_before_it_is_loaded(tmp_path: Path) -> None:
    """A client that connects meanwhile waits, and is served."""
    gate = tmp_path / "gate"
    os.mkfifo(gate)
    script = (
        "import runpy, sys, threading; import agent; agent.PORT = int(sys.argv.pop(1));"
        "gate = sys.argv.pop(1); import importlib.abc\n"
        "class Slow(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'agent.program': open(gate).read()\n"
        "sys.meta_path.insert(0, Slow())\n"
        "runpy.run_module('agent', run_name='__main__', alter_sys=True)\n"
    )
    port = rig.closed_port()
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", script, str(port), str(gate)), cwd=ROOT
    )
    try:
        reader, writer = await connected(port)
        writer.write(OPENING)
        gate.write_text("")
        assert (await reader.readexactly(1 + HEAD_SIZE))[:2] == b"\x01\x20"
        writer.close()
        await writer.wait_closed()
    finally:
        process.kill()
        await process.wait()


async def connected(port: int) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Return a connection to `port` as soon as something listens there."""
    while True:
        try:
            return await asyncio.open_connection(rig.HOST, port)
        except ConnectionRefusedError:
            await asyncio.sleep(0.01)


def test_an_address_on_the_command_line_is_left_to_the_program() -> None:
    for args in (["--port=0"], ["--port", "1"], ["--bind=::1"]):
        assert listen(args) is None


def test_an_address_in_use_is_left_to_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server((rig.HOST, 0)) as sock:
        monkeypatch.setattr(agent_main, "PORT", sock.getsockname()[1])
        assert listen([]) is None
