"""TCP and UDP through `krelay up` with an embedded agent, as applications see it."""

from __future__ import annotations

import asyncio
import hashlib
import resource
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import rig
from tests.integration.product import up

pytestmark = pytest.mark.process

MIB = 1 << 20


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "krelay.yaml"


async def test_tcp_and_udp_are_relayed_and_told_of(file: Path) -> None:
    async with rig.tcp_target(rig.echo) as tcp, rig.udp_echo() as udp:
        targets = {
            "web": f"ip/127.0.0.1 :{tcp}",
            "named": f"host/localhost :{tcp}",
            "dns": f"ip/127.0.0.1 :{udp}/udp",
        }
        async with up(file, targets) as krelay:
            assert sorted(krelay.out.splitlines()) == sorted(
                [
                    f"web: 127.0.0.1:{krelay.ports['web']} -> ip/127.0.0.1:{tcp} (tcp)",
                    f"named: 127.0.0.1:{krelay.ports['named']} -> host/localhost:{tcp} (tcp)",
                    f"dns: 127.0.0.1:{krelay.ports['dns']} -> ip/127.0.0.1:{udp} (udp)",
                ]
            )
            for name in ("web", "named"):
                assert await rig.exchange(krelay.ports[name], b"hello") == b"hello"
            async with rig.udp_socket(connect=krelay.ports["dns"]) as client:
                for data in (b"", b"x", rig.noise(65_507)):
                    client.send(data)
                    assert await rig.recv(client) == data
            assert await krelay.stop() == 0


async def test_localhost_is_both_families(file: Path) -> None:
    async with rig.tcp_target(rig.echo) as tcp:
        targets = {"web": f"{{target: ip/127.0.0.1, listen: localhost, ports: [':{tcp}']}}"}
        async with up(file, targets) as krelay:
            await rig.until(lambda: krelay.hosts["web"])
            for host in krelay.hosts["web"]:
                assert await rig.exchange(krelay.ports["web"], b"x", host) == b"x"
            assert krelay.hosts["web"][0] == "127.0.0.1"


async def test_ends_and_resets_are_what_they_are_in_both_directions(file: Path) -> None:
    heard: asyncio.Queue[bytes | type[BaseException]] = asyncio.Queue()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        match await reader.read(1):
            case b"":  # krelay's own probe
                return
            case b"a":  # answer when the client has ended
                writer.write(b"all: " + await reader.read())
            case b"e":  # end first, hear the rest
                writer.write(b"first")
                writer.write_eof()
                heard.put_nowait(await reader.read())
            case b"r":  # reset
                rig.rst(writer)
            case _:  # be reset
                writer.write(b"ready")
                try:
                    heard.put_nowait(await reader.read())
                except ConnectionResetError as exc:
                    heard.put_nowait(type(exc))

    async with rig.tcp_target(serve) as tcp:
        targets = {
            "web": f"ip/127.0.0.1 :{tcp}",
            "closed": f"ip/127.0.0.1 :{rig.closed_port()}",
        }
        async with up(file, targets) as krelay:
            port = krelay.ports["web"]
            assert await rig.exchange(port, b"abc") == b"all: bc"
            async with rig.connect(port) as (reader, writer):
                writer.write(b"e")
                assert await reader.read() == b"first"
                writer.write(b"and the rest")
                writer.write_eof()
                assert await heard.get() == b"and the rest"
            async with rig.connect(port) as (reader, writer):
                writer.write(b"r")
                with pytest.raises(ConnectionResetError):
                    await reader.read()
            async with rig.connect(port) as (reader, writer):
                writer.write(b"w")
                assert await reader.readexactly(5) == b"ready"
                rig.rst(writer)
                assert await heard.get() is ConnectionResetError
            # The reset may arrive before the client sees that it is connected.
            with pytest.raises(ConnectionResetError):
                async with rig.connect(krelay.ports["closed"]) as (reader, writer):
                    await reader.read()
            await krelay.said("closed: connection refused: 127.0.0.1:")


async def test_udp_clients_do_not_hear_each_other_nor_a_dead_target(file: Path) -> None:
    dead = rig.closed_port(socket.SOCK_DGRAM)
    async with rig.udp_echo() as udp:
        targets = {"dns": f"ip/127.0.0.1 :{udp}/udp", "dead": f"ip/127.0.0.1 :{dead}/udp"}
        async with up(file, targets) as krelay:
            async with (
                rig.udp_socket(connect=krelay.ports["dns"]) as one,
                rig.udp_socket(connect=krelay.ports["dns"]) as two,
                rig.udp_socket(connect=krelay.ports["dead"]) as lost,
            ):
                for turn in range(20):
                    lost.send(b"x")
                    one.send(b"1/%d" % turn)
                    two.send(b"2/%d" % turn)
                    assert await rig.recv(two) == b"2/%d" % turn
                    assert await rig.recv(one) == b"1/%d" % turn


async def test_64_mib_each_way_at_once(file: Path) -> None:
    data = rig.noise(MIB)
    count = 64

    async def upload(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        digest, size = hashlib.sha256(), 0
        while chunk := await reader.read(MIB):
            digest.update(chunk)
            size += len(chunk)
        writer.write(b"%d %s" % (size, digest.hexdigest().encode()))

    async def download(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for number in range(count):
            writer.write(number.to_bytes(4) + data[4:])
            await writer.drain()

    expected = hashlib.sha256()
    for number in range(count):
        expected.update(number.to_bytes(4) + data[4:])
    summary = b"%d %s" % (count * MIB, expected.hexdigest().encode())

    async def send(port: int) -> bytes:
        async with rig.connect(port) as (reader, writer):
            for number in range(count):
                writer.write(number.to_bytes(4) + data[4:])
                await writer.drain()
            writer.write_eof()
            return await reader.read()

    async def receive(port: int) -> bytes:
        digest, size = hashlib.sha256(), 0
        async with rig.connect(port) as (reader, _):
            while chunk := await reader.read(MIB):
                digest.update(chunk)
                size += len(chunk)
        return b"%d %s" % (size, digest.hexdigest().encode())

    async with rig.tcp_target(upload) as into, rig.tcp_target(download) as from_:
        targets = {"up": f"ip/127.0.0.1 :{into}", "down": f"ip/127.0.0.1 :{from_}"}
        async with up(file, targets) as krelay, asyncio.TaskGroup() as tasks:
            there = tasks.create_task(send(krelay.ports["up"]))
            back = tasks.create_task(receive(krelay.ports["down"]))
        assert (there.result(), back.result()) == (summary, summary)


async def test_a_paused_reader_holds_its_window_and_nobody_else(file: Path) -> None:
    sent = 0

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        while True:
            writer.write(bytes(1 << 16))
            await writer.drain()
            sent += 1 << 16

    async def fast(port: int) -> None:
        """One transfer of 8 MiB, there and back."""
        data = rig.noise(8 * MIB)
        async with asyncio.TaskGroup() as tasks:
            answer = tasks.create_task(rig.exchange(port, data))
        assert answer.result() == data

    async with rig.tcp_target(pour) as slow, rig.tcp_target(rig.echo) as quick:
        targets = {"slow": f"ip/127.0.0.1 :{slow}", "quick": f"ip/127.0.0.1 :{quick}"}
        # One session: both ride on it.
        async with up(file, targets, "tunnel: {sessions: 1}") as krelay:
            loop = asyncio.get_running_loop()
            with socket.socket() as paused:
                paused.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 16)
                paused.setblocking(False)
                await loop.sock_connect(paused, (rig.HOST, krelay.ports["slow"]))
                before = -1
                while sent != before:
                    before = sent
                    await fast(krelay.ports["quick"])
                # Its window, and what the kernel's own buffers at four socket ends take.
                assert sent < 24 * MIB
                got = 0
                while got < before + MIB:
                    got += len(await loop.sock_recv(paused, 1 << 20))
                await rig.until(lambda: sent > before)


@pytest.fixture
def many_files() -> Iterator[None]:
    """Both ends of a thousand connections are in this process."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < 4096:
        pytest.skip(f"only {hard} open files")
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, 4096), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.usefixtures("many_files")
async def test_a_thousand_streams_at_once(file: Path) -> None:
    async with rig.tcp_target(rig.echo) as target:
        async with up(file, {"web": f"ip/127.0.0.1 :{target}"}, files=256) as krelay:
            port = krelay.ports["web"]
            everyone = asyncio.Barrier(1000)

            async def one(number: int) -> None:
                async with rig.connect(port) as (reader, writer):
                    for turn in range(2):
                        data = b"%d/%d;" % (number, turn)
                        writer.write(data)
                        assert await reader.readexactly(len(data)) == data
                        await everyone.wait()
                    writer.write_eof()
                    assert await reader.read() == b""

            async with asyncio.TaskGroup() as tasks:
                for number in range(1000):
                    tasks.create_task(one(number))
            assert await krelay.stop() == 0


async def test_an_http_connection_to_a_proxy_serves_several_hosts_until_the_end(file: Path) -> None:
    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, name: bytes) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        assert head.count(b"\r\nCookie: %s\r\n" % name) == 1
        # It keeps the connection alive, whatever it was asked.
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n" + name)
        assert await reader.read() == b""

    unprobed = "{{target: ip/127.0.0.1, ports: [':{}'], check: none}}"
    async with (
        rig.tcp_target(lambda reader, writer: say(reader, writer, b"a")) as a,
        rig.tcp_target(lambda reader, writer: say(reader, writer, b"b")) as b,
        up(file, {"web": unprobed.format(a)}, "proxies: {px: {port: 0}}", lines=2) as krelay,
        rig.connect(krelay.ports["px"]) as (reader, writer),
    ):
        for port, name in ((a, "a"), (b, "b"), (a, "a")):
            head = f"GET http://127.0.0.1:{port}/ HTTP/1.1\r\nHost: x\r\nCookie: {name}\r\n\r\n"
            writer.write(head.encode())
            await reader.readuntil(b"\r\n\r\n")
            assert await reader.readexactly(1) == name.encode()
        assert await krelay.stop() == 0
        assert await reader.read() == b""
