"""How `krelay up` starts, ends, and gets over what happens to its agent."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
from pathlib import Path

import psutil
import pytest

from tests import rig
from tests.integration.product import alive, command, document, environment, listens, up

pytestmark = pytest.mark.process


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "krelay.yaml"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_ends_it_with_0_and_leaves_nothing(
    number: signal.Signals, file: Path
) -> None:
    async with rig.tcp_target(rig.echo) as target:
        async with up(file, {"web": f"ip/127.0.0.1 :{target}"}) as krelay:
            assert await rig.exchange(krelay.ports["web"], b"x") == b"x"
            agent = krelay.agent
            assert alive(agent)
            assert await krelay.stop(number) == 0
            assert not alive(agent)
            assert not listens(krelay.ports["web"])
        assert f"{number.name}: stopping" in krelay.err


async def test_an_interrupt_that_was_ignored_ends_nothing(file: Path) -> None:
    """`krelay up &` in a script: Ctrl-C is for what the script has in front. SIGHUP reloads."""
    async with rig.tcp_target(rig.echo) as target:
        web = f"ip/127.0.0.1 :{target}"
        await asyncio.to_thread(file.write_text, document({"web": web}))
        process = await asyncio.create_subprocess_exec(
            *("sh", "-c", "trap '' INT HUP; exec \"$@\"", "sh"),
            *command("up", "-f", str(file), "--no-watch"),
            env=environment(),
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
        )
        assert process.stderr is not None
        log = b""
        try:
            while b"web: ready" not in log:
                log += await process.stderr.readuntil()
            await asyncio.to_thread(file.write_text, document({"web": web, "more": web}))
            process.send_signal(signal.SIGINT)
            process.send_signal(signal.SIGHUP)
            while b"more: ready" not in log:
                log += await process.stderr.readuntil()
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0
        finally:
            if process.returncode is None:
                process.kill()
            log += (await process.communicate())[1]
        assert b"SIGINT" not in log, log.decode()


async def test_live_connections_finish_and_new_ones_are_refused(file: Path) -> None:
    async with rig.tcp_target(rig.echo) as target:
        async with up(file, {"web": f"ip/127.0.0.1 :{target}"}) as krelay:
            port = krelay.ports["web"]
            async with rig.connect(port) as (reader, writer):
                writer.write(b"a")
                assert await reader.readexactly(1) == b"a"
                krelay.process.send_signal(signal.SIGINT)
                await krelay.said("draining 1 connection ")
                await rig.until(lambda: not listens(port))
                writer.write(b"b")
                writer.write_eof()
                assert await reader.read() == b"b"
            assert await krelay.process.wait() == 0


async def test_draining_ends_in_time(file: Path) -> None:
    async with rig.tcp_target(rig.hold) as target:
        targets = {"web": f"ip/127.0.0.1 :{target}"}
        async with up(file, targets, "tunnel: {drain: 100ms}") as krelay:
            async with rig.connect(krelay.ports["web"]) as (reader, writer):
                writer.write(b"x")
                krelay.process.send_signal(signal.SIGINT)
                with pytest.raises(ConnectionResetError):
                    await reader.read()
            assert await krelay.process.wait() == 0


async def test_a_second_interrupt_stops_at_once_with_130(file: Path) -> None:
    async with rig.tcp_target(rig.hold) as target:
        async with up(file, {"web": f"ip/127.0.0.1 :{target}"}) as krelay:
            async with rig.connect(krelay.ports["web"]) as (reader, writer):
                writer.write(b"x")
                agent = krelay.agent
                krelay.process.send_signal(signal.SIGINT)
                await krelay.said("draining 1 connection ")
                assert await krelay.stop() == 130
                with pytest.raises(ConnectionResetError):
                    await reader.read()
                assert not alive(agent)


async def test_a_killed_krelay_leaves_an_agent_that_ends_by_itself(file: Path) -> None:
    async with up(file, {"web": "ip/127.0.0.1 :9"}) as krelay:
        agent = krelay.agent
        assert await krelay.stop(signal.SIGKILL) == -signal.SIGKILL
        await rig.until(lambda: not alive(agent))


async def test_a_killed_krelay_resets_what_it_carries(file: Path) -> None:
    """The application must not take what is cut short for the whole."""
    async with rig.tcp_target(rig.echo) as target:
        async with up(file, {"web": f"ip/127.0.0.1 :{target}"}) as krelay:
            async with rig.connect(krelay.ports["web"]) as (reader, writer):
                writer.write(b"a")
                assert await reader.readexactly(1) == b"a"
                assert await krelay.stop(signal.SIGKILL) == -signal.SIGKILL
                with pytest.raises(ConnectionResetError):
                    await reader.read()


async def test_a_killed_agent_resets_its_targets(file: Path) -> None:
    there = asyncio.Event()
    ended: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    async def listen(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if not await reader.read(1 << 16):
            return  # a probe
        there.set()
        try:
            while await reader.read(1 << 16):
                pass
        except ConnectionError as exc:
            ended.set_result(exc)
        else:
            ended.set_result(None)

    async with rig.tcp_target(listen) as target:
        async with up(file, {"web": f"ip/127.0.0.1 :{target}"}) as krelay:
            async with rig.connect(krelay.ports["web"]) as (reader, writer):
                writer.write(b"a part of it")
                await there.wait()
                os.kill(krelay.agent, signal.SIGKILL)
                with pytest.raises(ConnectionResetError):
                    await reader.read()
            assert isinstance(await ended, ConnectionResetError)


async def test_a_killed_agent_is_replaced_without_a_hand(file: Path) -> None:
    async with rig.tcp_target(rig.echo) as target:
        async with up(file, {"web": f"ip/127.0.0.1 :{target}"}) as krelay:
            port = krelay.ports["web"]
            for count in (2, 3):
                async with rig.connect(port) as (reader, writer):
                    writer.write(b"a")
                    assert await reader.readexactly(1) == b"a"
                    os.kill(krelay.agent, signal.SIGKILL)
                    with pytest.raises(ConnectionResetError):
                        await reader.read()
                assert await rig.exchange(port, b"on") == b"on"
                await krelay.agents(count)
            agent = krelay.agent
            assert await krelay.stop() == 0
            assert not alive(agent)


async def test_a_stopped_agent_does_not_hold_up_the_end(file: Path) -> None:
    """An agent that ends by itself while a connection waits: the connection gets the next one."""
    async with rig.tcp_target(rig.echo) as target:
        async with up(file, {"web": f"ip/127.0.0.1 :{target}"}) as krelay:
            os.kill(krelay.agent, signal.SIGTERM)
            assert await rig.exchange(krelay.ports["web"], b"on") == b"on"
            assert await krelay.stop() == 0


async def test_a_port_in_use_stops_that_forward_alone(file: Path) -> None:
    async with rig.tcp_target(rig.echo) as target:
        with socket.create_server((rig.HOST, 0)) as taken:
            port = taken.getsockname()[1]
            targets = {
                "taken": f"ip/127.0.0.1 {port}:{target}",
                "free": f"ip/127.0.0.1 :{target}",
            }
            async with up(file, targets, lines=1) as krelay:
                assert await rig.exchange(krelay.ports["free"], b"x") == b"x"
                assert list(krelay.ports) == ["free"]
                await krelay.said(
                    f"error: taken: cannot listen on 127.0.0.1:{port}: Address already in use"
                    f" by {psutil.Process().name()} (pid {os.getpid()});"
                    " hint: stop the program that uses it"
                )
                # krelay tries again, and binds the port once it is free.
                taken.close()
                await rig.until(lambda: "taken" in krelay.ports)
                assert await rig.exchange(port, b"x") == b"x"
                assert await krelay.stop() == 0


async def test_a_reader_that_goes_away_does_not_end_it(file: Path) -> None:
    """`krelay up | head -1`: what cannot be told is not told, and the relaying goes on."""
    async with rig.tcp_target(rig.echo) as target:
        targets = {"web": f"ip/127.0.0.1 :{target}", "other": f"ip/127.0.0.1 :{target}"}
        await asyncio.to_thread(file.write_text, document(targets))
        reader, writer = os.pipe()
        process = await asyncio.create_subprocess_exec(
            *command("up", "-f", str(file)),
            env=environment(),
            stdout=writer,
            stderr=asyncio.subprocess.PIPE,
        )
        os.close(writer)
        os.close(reader)
        assert process.stderr is not None
        log = b""
        while b"tunnel up" not in log:
            log += await process.stderr.readline()
        process.send_signal(signal.SIGINT)
        log += await process.stderr.read()
        assert b"Traceback" not in log, log.decode()
        assert b"BrokenPipe" not in log, log.decode()
        assert await process.wait() == 0
