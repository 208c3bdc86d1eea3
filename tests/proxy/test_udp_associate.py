"""SOCKS5's UDP: datagrams that say themselves where they go."""

from __future__ import annotations

import asyncio
import os
import socket
import struct
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager

import pytest

from krelay.datapath import udp
from krelay.datapath.pool import Pool
from krelay.model import proxy_target
from krelay.mux.descriptors import open_files, reserve
from krelay.net import accept
from krelay.proxy import udp_associate as module
from krelay.proxy.server import ProxyConnection, ProxyListener
from krelay.proxy.socks5 import read_datagram, write_datagram
from tests import rig
from tests.net.test_accept import limited
from tests.proxy.test_server import HELLO, proxy

ASSOCIATE = b"\5\3\0\1\0\0\0\0\0\0"


@asynccontextmanager
async def associated(
    listener: ProxyListener,
) -> AsyncIterator[tuple[socket.socket, asyncio.StreamWriter]]:
    """A UDP socket that is led to an association, and the connection that holds it."""
    async with rig.connect(rig.port_of(listener)) as (reader, writer):
        writer.write(HELLO + ASSOCIATE)
        answer = await reader.readexactly(12)
        assert answer[:6] == b"\5\0\5\0\0\1"
        assert answer[6:10] == b"\x7f\0\0\1"
        async with rig.udp_socket(connect=int.from_bytes(answer[10:], "big")) as sock:
            yield sock, writer


async def ask(sock: socket.socket, host: str, port: int, data: bytes) -> tuple[str, int, bytes]:
    sock.send(write_datagram(host, port, data))
    found = read_datagram(await rig.recv(sock))
    assert found is not None
    return found


async def test_datagrams_to_several_places() -> None:
    async with rig.udp_echo(b"a") as a, rig.udp_echo(b"b") as b, proxy() as (listener, path):
        async with associated(listener) as (sock, writer):
            for data in (b"", b"x", rig.noise(60_000)):
                assert await ask(sock, rig.HOST, a, data) == (rig.HOST, a, b"a" + data)
                # The answer has the name that was asked for.
                assert await ask(sock, "localhost", b, data) == ("localhost", b, b"b" + data)
            assert path.streams == (2, 2)
            writer.write(b"ignored")
            await writer.drain()
            assert await ask(sock, rig.HOST, a, b"y") == (rig.HOST, a, b"ay")
        await rig.until(lambda: path.streams == (0, 0) and not listener.connections)


async def test_an_association_ends_with_its_connection() -> None:
    async with rig.udp_echo() as target, proxy() as (listener, path):
        async with associated(listener) as (sock, writer):
            await ask(sock, rig.HOST, target, b"x")
            writer.write_eof()
            await rig.until(lambda: path.streams == (0, 0) and not listener.connections)
            sock.send(b"x")
            with pytest.raises(ConnectionRefusedError):
                await rig.recv(sock)


async def test_fragments_nonsense_and_strangers_are_dropped() -> None:
    async with rig.udp_echo() as target, proxy() as (listener, path):
        async with associated(listener) as (sock, _):
            good = write_datagram(rig.HOST, target, b"x")
            sock.send(good[:2] + b"\1" + good[3:])
            sock.send(b"\0\0")
            await ask(sock, rig.HOST, target, b"mine")
            async with rig.udp_socket() as stranger:
                stranger.sendto(write_datagram(rig.HOST, target, b"theirs"), sock.getpeername())
                assert await ask(sock, rig.HOST, target, b"still") == (rig.HOST, target, b"still")
            assert path.streams == (1, 1)


async def test_a_named_port_is_the_only_one_that_is_served() -> None:
    async with rig.udp_echo() as target, proxy() as (listener, path):
        async with rig.connect(rig.port_of(listener)) as (reader, writer), rig.udp_socket() as mine:
            port = mine.getsockname()[1]
            writer.write(HELLO + ASSOCIATE[:-2] + port.to_bytes(2, "big"))
            relay = (rig.HOST, int.from_bytes((await reader.readexactly(12))[10:], "big"))
            async with rig.udp_socket() as stranger:
                stranger.sendto(write_datagram(rig.HOST, target, b"first"), relay)
                mine.connect(relay)
                assert await ask(mine, rig.HOST, target, b"x") == (rig.HOST, target, b"x")
                stranger.sendto(write_datagram("localhost", target, b"later"), relay)
                await ask(mine, rig.HOST, target, b"y")
            assert path.streams == (1, 1)


@pytest.mark.skipif(
    not sys.platform.startswith("linux") or os.getuid() != 0, reason="needs another user on Linux"
)
@pytest.mark.process
async def test_another_user_s_datagrams_are_dropped() -> None:
    script = (
        "import os, socket, sys; os.setuid(65534); s = socket.socket(2, 2);"
        "[s.sendto(bytes.fromhex(sys.argv[2]), ('127.0.0.1', int(sys.argv[1]))) for _ in range(3)];"
        "print('sent', flush=True); sys.stdin.read()"
    )
    async with rig.udp_echo() as target, proxy() as (listener, path):
        async with associated(listener) as (sock, _):
            stranger = await asyncio.create_subprocess_exec(
                *(sys.executable, "-I", "-S", "-c", script, str(sock.getpeername()[1])),
                write_datagram("localhost", target, b"theirs").hex(),
                stdin=-1,
                stdout=-1,
            )
            assert stranger.stdin is not None
            assert stranger.stdout is not None
            assert await stranger.stdout.readline() == b"sent\n"
            assert await ask(sock, rig.HOST, target, b"mine") == (rig.HOST, target, b"mine")
            assert path.streams == (1, 1)
            stranger.stdin.close()
            await stranger.wait()


async def test_senders_that_wait_for_proof_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_MAX_SENDERS", 2)
    go = threading.Event()
    seen: list[list[tuple[str, int]]] = []

    def slow(client: tuple[str, int], senders: list[tuple[str, int]]) -> set[tuple[str, int]]:
        go.wait()
        seen.append(senders)
        return set()

    monkeypatch.setattr(module, "same_user", slow)
    async with rig.udp_echo() as target, proxy() as (listener, path):
        async with associated(listener) as (sock, _):
            async with AsyncExitStack() as stack:
                (connection,) = listener.connections
                assert isinstance(connection, ProxyConnection)
                association = connection._association
                assert association is not None
                data = write_datagram(rig.HOST, target, b"x")
                first = await stack.enter_async_context(rig.udp_socket())
                first.sendto(data, sock.getpeername())
                await rig.until(lambda: association._proving and not association._unproven)
                for _ in range(5):
                    other = await stack.enter_async_context(rig.udp_socket())
                    for _ in range(9):
                        other.sendto(data, sock.getpeername())
                await rig.until(lambda: len(association._unproven) == 2)
                assert max(map(len, association._unproven.values())) <= 4
                go.set()
                await rig.until(lambda: association._proving is None)
            assert path.streams == (0, 0)
    assert all(len(senders) <= 2 for senders in seen)


async def test_the_least_used_destination_makes_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_DESTINATIONS", 2)
    async with rig.udp_echo() as a, rig.udp_echo() as b, rig.udp_echo() as c:
        async with proxy() as (listener, path), associated(listener) as (sock, _):
            for port in (a, b, a, c):
                await ask(sock, rig.HOST, port, b"x")
            (connection,) = listener.connections
            assert isinstance(connection, ProxyConnection)
            assert connection._association is not None
            assert list(connection._association.flows) == [(rig.HOST, a), (rig.HOST, c)]
            await rig.until(lambda: path.streams == (2, 2))


async def test_idle_destinations_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(udp, "IDLE", 0.1)
    async with rig.udp_echo() as target, proxy() as (listener, path):
        async with associated(listener) as (sock, _):
            await ask(sock, rig.HOST, target, b"x")
            await rig.until(lambda: path.streams == (0, 0))
            await ask(sock, rig.HOST, target, b"again")


async def test_an_association_moves_to_another_pool() -> None:
    async with rig.udp_echo() as target, proxy() as (listener, path), rig.agent() as server:
        other = Pool("q", [rig.AgentLink(server)], rig.KEY, size=1)
        async with rig.running(other), associated(listener) as (sock, _):
            await ask(sock, rig.HOST, target, b"x")
            listener.route.move(other)
            listener.update(proxy_target("proxy"), 5.0)
            (connection,) = listener.connections
            assert isinstance(connection, ProxyConnection)
            assert connection._association is not None
            flows = connection._association.flows.values()
            assert len(flows) == 1
            assert all(flow.route.pool is other for flow in flows)
            # What lives stays where it is; another destination goes there.
            await ask(sock, rig.HOST, target, b"x")
            await ask(sock, "localhost", target, b"x")
            assert path.streams == (1, 1)
            assert other.streams == 1


async def test_an_association_without_a_socket_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    async def none(association: module.Association, host: str) -> int:
        raise OSError("no room")

    monkeypatch.setattr(module.Association, "open", none)
    async with proxy() as (listener, _):
        async with rig.connect(rig.port_of(listener)) as (reader, writer):
            writer.write(HELLO + ASSOCIATE)
            assert (await reader.read())[2:4] == b"\5\1"


async def test_associations_leave_the_reserve_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """A client gets its association while others leave enough; then it learns that there is none,
    and can have one when another has ended."""
    monkeypatch.setattr(accept, "_COUNT_VALID", 0.0)
    monkeypatch.setattr(accept, "_COUNTING_SHARE", 0)
    async with proxy() as (listener, _), AsyncExitStack() as stack:
        async with rig.connect(rig.port_of(listener)) as (last, asking):
            port = rig.port_of(listener)
            ends = [await stack.enter_async_context(rig.connect(port)) for _ in range(24)]
            await rig.until(lambda: len(listener.connections) == 25)
            with limited(40) as limit:
                refused = 0
                for reader, writer in ends:
                    writer.write(HELLO + ASSOCIATE)
                    answer = await reader.readexactly(12)
                    assert answer[3] in (0, 1)
                    refused += answer[3]
                    used = open_files()
                    assert used is not None
                    assert limit - used >= min(reserve(), 24)
                assert 0 < refused < 24
                for _, writer in ends:
                    writer.close()
                await rig.until(lambda: len(listener.connections) == 1)
                asking.write(HELLO + ASSOCIATE)
                assert (await last.readexactly(12))[3] == 0


@pytest.mark.parametrize("turns", range(6))
async def test_a_connection_that_ends_while_it_binds_leaves_no_socket(turns: int) -> None:
    async with proxy() as (listener, _):
        before = open_files()
        async with rig.connect(rig.port_of(listener)) as (_, writer):
            await rig.until(lambda: len(listener.connections) == 1)
            writer.write(HELLO + ASSOCIATE)
            (connection,) = listener.connections
            assert isinstance(connection, ProxyConnection)
            await rig.until(lambda: connection._association)
            for _ in range(turns):
                await asyncio.sleep(0)
            connection.cut()
        await rig.until(lambda: not listener.connections and open_files() == before)


async def test_a_client_that_is_gone_when_it_is_accepted_is_cut_quietly(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with proxy() as (listener, _):
        # The loop accepts nothing before the reset.
        with socket.create_connection((rig.HOST, rig.port_of(listener))) as client:
            client.sendall(HELLO + ASSOCIATE)
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        async with associated(listener):
            pass
        await rig.until(lambda: not listener.connections)
    assert not caplog.messages
