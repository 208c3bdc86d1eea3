"""Legacy mode, against a v0 peer written from the protocol's text."""

from __future__ import annotations

import asyncio
import socket
from typing import cast

import pytest

from agent import legacy as module
from agent.dial import DialError, Lookups, dial_tcp
from agent.memory import Client, MemoryBudget, ReadBuffer
from agent.udp import dial_udp
from krelay.wire.errors import ErrorCode
from tests import rig
from tests.agent.peer import framed, header, legacy

TCP, UDP, HEARTBEAT = 0, 1, 2
OK, UNKNOWN_ERROR, NO_SUCH_HOST, CONNECT_TIMEOUT, UNKNOWN_PROTOCOL = 1, 2, 3, 5, 6


async def test_tcp_with_early_bytes_and_half_close() -> None:
    data = rig.noise(1 << 20)
    async with rig.agent(key=None) as server, rig.tcp_target(rig.echo) as target:
        async with legacy(server, header(TCP, rig.HOST, target) + b"early ") as peer:
            assert await peer.status() == OK
            peer.writer.write(data)
            peer.writer.write_eof()
            assert await peer.reader.read() == b"early " + data
        await rig.until(lambda: not server._legacy)


async def test_tcp_by_name() -> None:
    async with rig.agent(key=None) as server, rig.tcp_target(rig.echo) as target:
        async with legacy(server, header(TCP, "localhost", target)) as peer:
            assert await peer.status() == OK
            peer.writer.write_eof()
            assert await peer.reader.read() == b""


async def test_a_header_in_pieces() -> None:
    async with rig.agent(key=None) as server, rig.tcp_target(rig.echo) as target:
        async with legacy(server, b"") as peer:
            for byte in header(TCP, rig.HOST, target) + b"x":
                peer.writer.write(bytes([byte]))
                await peer.writer.drain()
                await asyncio.sleep(0)
            assert await peer.status() == OK
            assert await peer.reader.readexactly(1) == b"x"


async def test_a_target_that_ends_first_still_gets_the_client_s_bytes() -> None:
    heard: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def end_at_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"bye")
        writer.write_eof()
        heard.set_result(await reader.read())

    async with rig.agent(key=None) as server, rig.tcp_target(end_at_once) as target:
        async with legacy(server, header(TCP, rig.HOST, target)) as peer:
            assert await peer.status() == OK
            assert await peer.reader.read() == b"bye"
            peer.writer.write(b"still")
            peer.writer.write_eof()
            assert await heard == b"still"
        await rig.until(lambda: not server._legacy)


async def test_resets_are_passed_on_in_both_directions() -> None:
    seen: asyncio.Future[type[BaseException]] = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if await reader.readexactly(1) == b"r":
            rig.rst(writer)
            return
        try:
            await reader.read()
        except ConnectionResetError as exc:
            seen.set_result(type(exc))

    async with rig.agent(key=None) as server, rig.tcp_target(serve) as target:
        async with legacy(server, header(TCP, rig.HOST, target) + b"r") as peer:
            assert await peer.status() == OK
            with pytest.raises(ConnectionResetError):
                await peer.reader.read()
        async with legacy(server, header(TCP, rig.HOST, target) + b"w") as peer:
            assert await peer.status() == OK
            rig.rst(peer.writer)
            assert await seen is ConnectionResetError
        await rig.until(lambda: not server._legacy)


async def test_a_slow_reader_pauses_the_target() -> None:
    sent = 0

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        while True:
            writer.write(bytes(1 << 16))
            await writer.drain()
            sent += 1 << 16

    async with rig.agent(key=None) as server, rig.tcp_target(pour) as target:
        async with legacy(server, header(TCP, rig.HOST, target)) as peer:
            assert await peer.status() == OK
            before = -1
            while sent != before:
                before = sent
                await asyncio.sleep(0.1)
            await peer.reader.readexactly(before + (1 << 20))
            assert sent > before


@pytest.mark.parametrize(
    ("code", "status"),
    [
        (ErrorCode.NO_SUCH_HOST, 3),
        (ErrorCode.RESOLVE_TIMEOUT, 4),
        (ErrorCode.CONNECT_TIMEOUT, 5),
        (ErrorCode.REFUSED, 2),
        (ErrorCode.UNREACHABLE, 2),
        (ErrorCode.DIAL_FAILED, 2),
    ],
)
@pytest.mark.parametrize("protocol", [TCP, UDP])
async def test_a_target_that_is_not_reached_is_a_status_byte(
    protocol: int, code: ErrorCode, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise DialError(code, "no")

    monkeypatch.setattr(module, "dial_tcp", fail)
    monkeypatch.setattr(module, "dial_udp", fail)
    async with rig.agent(key=None) as server:
        async with legacy(server, header(protocol, "nowhere.test", 80)) as peer:
            assert await peer.reader.read() == bytes([status])


async def test_a_refused_port_is_an_unknown_error() -> None:
    async with rig.agent(key=None) as server:
        async with legacy(server, header(TCP, rig.HOST, rig.closed_port())) as peer:
            assert await peer.reader.read() == bytes([UNKNOWN_ERROR])


@pytest.mark.parametrize("protocol", [3, 74, 255])
async def test_an_unknown_protocol_is_status_6(protocol: int) -> None:
    async with rig.agent(key=None) as server:
        async with legacy(server, header(protocol, rig.HOST, 80)) as peer:
            assert await peer.reader.read() == bytes([UNKNOWN_PROTOCOL])


async def test_a_heartbeat_is_closed_without_an_answer() -> None:
    async with rig.agent(key=None) as server:
        async with legacy(server, header(HEARTBEAT, rig.HOST, 0)) as peer:
            assert await peer.reader.read() == b""


async def test_a_bug_costs_only_its_own_connection(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*_: object) -> None:
        raise ZeroDivisionError

    async with rig.agent(key=None) as server, rig.tcp_target(rig.echo) as target:
        with monkeypatch.context() as patch:
            patch.setattr(module, "dial_tcp", fail)
            async with legacy(server, header(TCP, rig.HOST, target)) as peer:
                assert await peer.reader.read() == b""
        async with legacy(server, header(TCP, rig.HOST, target)) as peer:
            assert await peer.status() == OK
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("protocol", [TCP, UDP])
async def test_a_connection_that_is_lost_during_the_dial_leaves_nothing(
    protocol: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = {TCP: dial_tcp, UDP: dial_udp}[protocol]
    ended = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        ended.set()

    async with rig.agent(key=None) as server, rig.tcp_target(serve) as target:

        async def lose(*args: object) -> object:
            (transport,) = server._legacy
            transport.abort()
            await asyncio.sleep(0)
            return await real(*args)  # type: ignore[operator]

        monkeypatch.setattr(module, "dial_tcp", lose)
        monkeypatch.setattr(module, "dial_udp", lose)
        async with legacy(server, header(protocol, rig.HOST, target)) as peer:
            assert await peer.reader.read() == b""
            await rig.until(lambda: not server._legacy)
            if protocol == TCP:
                await ended.wait()


# -- UDP ---------------------------------------------------------------------------------------


async def test_udp_datagrams_keep_their_boundaries() -> None:
    sent = [b"one", b"", b"x" * 65_507, b"four"]
    async with rig.agent(key=None) as server, rig.udp_echo() as target:
        async with legacy(server, header(UDP, rig.HOST, target) + framed(b"early")) as peer:
            assert await peer.status() == OK
            assert await peer.datagram() == b"early"
            peer.writer.write(framed(*sent))
            assert [await peer.datagram() for _ in sent] == sent
        await rig.until(lambda: not server._legacy)


async def test_udp_frames_in_pieces() -> None:
    async with rig.agent(key=None) as server, rig.udp_echo() as target:
        async with legacy(server, header(UDP, rig.HOST, target)) as peer:
            assert await peer.status() == OK
            for byte in framed(b"ab", b"", b"cde"):
                peer.writer.write(bytes([byte]))
                await peer.writer.drain()
                await asyncio.sleep(0)
            assert [await peer.datagram() for _ in range(3)] == [b"ab", b"", b"cde"]


async def test_udp_to_a_closed_port_ends_the_connection() -> None:
    port = rig.closed_port(socket.SOCK_DGRAM)
    async with rig.agent(key=None) as server:
        async with legacy(server, header(UDP, rig.HOST, port) + framed(b"x")) as peer:
            assert await peer.reader.read() == bytes([OK])
        await rig.until(lambda: not server._legacy)


def resources() -> module.Resources:
    client = Client(MemoryBudget(1 << 20))
    return module.Resources(client, client.reserve(), ReadBuffer(), Lookups(), 5.0)


async def test_an_idle_udp_connection_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UDP_IDLE", 0.05)
    async with rig.agent(key=None) as server, rig.udp_echo() as target:
        async with legacy(server, header(UDP, rig.HOST, target)) as peer:
            assert await peer.reader.read() == bytes([OK])


async def test_datagrams_keep_a_udp_connection_open() -> None:
    loop = asyncio.get_running_loop()
    reader, writer = await asyncio.open_connection(sock=(pair := socket.socketpair())[0])
    client = module._Framed(cast(asyncio.Transport, writer.transport), resources())
    try:
        first = client._timer
        client._active_at -= module.UDP_IDLE
        client.data_received(b"")
        client._check_idle()
        assert client._timer.when() > loop.time()
        assert not client.gone.done()
        first.cancel()
        client._active_at -= module.UDP_IDLE
        client._timer.cancel()
        client._check_idle()
        assert client.gone.done()
    finally:
        writer.close()
        await writer.wait_closed()
        pair[1].close()


async def test_unread_udp_answers_are_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_BACKLOG", 0)
    async with rig.agent(key=None) as server, rig.udp_echo() as target:
        async with legacy(server, header(UDP, rig.HOST, target) + framed(b"x")) as peer:
            assert await peer.status() == OK
            peer.writer.write_eof()
            assert await peer.reader.read() == b""
