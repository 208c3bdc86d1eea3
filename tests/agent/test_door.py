"""The door: an upgrade, then a session by HMAC. Strangers cannot get in, and cost little."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import logging
import os
import resource
import secrets
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

import pytest

from agent import door as module
from agent import server as server_module
from agent.door import Door
from agent.server import Server
from agent.sessions import TUNNEL_COST
from agent.settings import DOOR_PORT, Settings
from krelay.model import AGENT_DOOR_PORT
from krelay.mux.connection import ClientTunnelProtocol, MuxConnection
from krelay.mux.descriptors import open_files
from krelay.wire.errors import ErrorCode, HandshakeError
from krelay.wire.handshake import OPENING, ClientHandshake, Resume, key_digest
from krelay.wire.session import Side
from tests import rig
from tests.agent.peer import Client, header, session
from tests.agent.test_server import program, wait
from tests.agent.test_targets import ask

REQUEST = (
    b"GET / HTTP/1.1\r\nHost: 10.244.0.7:10250\r\nUser-Agent: Go-http-client/1.1\r\n"
    b"Connection: Upgrade\r\nUpgrade: krelay\r\nX-Forwarded-For: 10.99.0.1\r\n\r\n"
)
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: krelay\r\n\r\n"


@asynccontextmanager
async def agent(**settings: Any) -> AsyncIterator[tuple[Server, Door]]:
    """An agent with a door on loopback."""
    async with rig.agent(**{"pod_ip": rig.HOST, "door_port": 0, **settings}) as server:
        assert server.door is not None
        yield server, server.door


@asynccontextmanager
async def knock(
    door: Door, first: bytes = b""
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Connect to the door and send `first`."""
    reader, writer = await asyncio.open_connection(*door.address)
    writer.write(first)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with suppress(OSError):
            await writer.wait_closed()


async def answer(reader: asyncio.StreamReader) -> bytes:
    """Return all that the agent sends until it closes the connection."""
    data = b""
    with suppress(ConnectionResetError):  # closed with bytes unread
        while more := await reader.read(1 << 10):
            data += more
    return data


async def dial(door: Door, protocol: asyncio.Protocol) -> asyncio.Transport:
    """Go through the door."""
    loop = asyncio.get_running_loop()
    sock = socket.socket()
    sock.setblocking(False)
    await loop.sock_connect(sock, door.address)
    await loop.sock_sendall(sock, REQUEST)
    head = b""
    while len(head) < len(SWITCHED):
        data = await loop.sock_recv(sock, len(SWITCHED) - len(head))
        if not data:
            sock.close()
            raise ConnectionResetError("the door is shut")
        head += data
    assert head == SWITCHED
    transport, _ = await loop.create_connection(lambda: protocol, sock=sock)
    return transport


async def enter(
    door: Door,
    *,
    key: bytes = rig.KEY,
    resume: Resume | None = None,
    connection: MuxConnection | None = None,
) -> Client:
    """Open a tunnel through the door, for a new session or one to resume.

    Raises:
        WireError: the agent refused.
    """
    connection = connection or MuxConnection(Side.CLIENT, "test")
    handshake = ClientHandshake(key, secrets.token_bytes(32), resume=resume)
    tunnel = ClientTunnelProtocol(connection, handshake)
    await dial(door, tunnel)
    return Client(connection, await tunnel.welcome, tunnel)


async def echoes(client: Client, target: int) -> None:
    """A stream of the client carries bytes there and back."""
    stream, seen = ask(client, 0, target)
    stream.write(b"hello")
    stream.end()
    await rig.until(lambda: "end" in seen.told)
    assert seen.data == b"hello"


# -- getting in --------------------------------------------------------------------------------


async def test_a_client_with_the_key_opens_a_session() -> None:
    async with agent() as (server, door), rig.tcp_target(rig.echo) as target:
        client = await enter(door)
        await echoes(client, target)
        assert len(server.sessions) == 1
        assert len(door._pending) == 0
        (connection,) = server._connections
        assert connection._deadline is None
        client.leave()


async def test_bytes_that_follow_the_request_are_the_first_of_the_tunnel() -> None:
    async with agent() as (_, door):
        async with knock(door, REQUEST + OPENING) as (reader, _writer):
            assert await reader.readexactly(len(SWITCHED) + 1) == SWITCHED + b"\x01"


async def test_a_wrong_key_is_denied() -> None:
    async with agent() as (server, door):
        with pytest.raises(HandshakeError, match="wrong key"):
            await enter(door, key=b"guess")
        assert len(server.sessions) == 0
        await rig.until(lambda: not len(door._pending))


async def test_a_session_cannot_be_resumed_without_its_key() -> None:
    async with agent() as (server, door):
        client = await session(server)
        stolen = dataclasses.replace(client.resume, session_key=bytes(32))
        with pytest.raises(HandshakeError) as caught:
            await enter(door, resume=stolen)
        assert caught.value.code == ErrorCode.UNKNOWN_SESSION
        assert client.connection.attached
        client.leave()


async def test_the_door_opens_once_the_key_is_known() -> None:
    async with (
        agent(key=None, key_sha256=key_digest(rig.KEY)) as (server, door),
        rig.tcp_target(rig.echo) as target,
    ):
        async with knock(door, REQUEST) as (reader, _writer):
            refused = await answer(reader)
            assert refused.startswith(b"HTTP/1.1 503 Service Unavailable\r\n")
            assert b"\r\nConnection: close\r\n" in refused
            assert refused.endswith(b"\r\n\r\nthe agent does not know the key yet\n")
        first = await session(server, private=True)
        second = await enter(door)
        await echoes(second, target)
        first.leave()
        second.leave()


def through_both(path: rig.Path, door: Door) -> None:
    """Let the tunnels of a path take the door and the loopback port in turn."""
    loopback = path.link.dial

    async def alternate(protocol: asyncio.Protocol) -> asyncio.Transport:
        if path.link.dials % 2:
            path.link.dials += 1
            path.link.transports.append(await dial(door, protocol))
            return path.link.transports[-1]
        return await loopback(protocol)

    path.link.dial = alternate  # type: ignore[method-assign]


@pytest.mark.parametrize("cut", [True, False], ids=["cut", "moved"])
async def test_a_session_moves_between_both_listeners_with_bytes_in_flight(cut: bool) -> None:
    async with (
        rig.path(pod_ip=rig.HOST, door_port=0) as path,
        rig.tcp_target(rig.echo) as target,
    ):
        door = path.server.door
        assert door is not None
        through_both(path, door)
        port = rig.port_of(await path.tcp(target))
        (tunnel,) = path.pool.tunnels
        move = path.link.cut if cut else lambda: path.pool.network_changed(broken=True)
        await rig.echoed(port, (4 if cut else 8) << 20, move)
        assert path.link.dials >= 4
        assert tunnel.stats.connects == 1 + tunnel.stats.resumed
        assert len(path.server.sessions) == 1
        assert len(door._pending) == 0


# -- strangers ---------------------------------------------------------------------------------


REFUSED = [
    (b"GET / HTTP/1.1\r\nHost: a\r\n\r\n", b"426 Upgrade Required"),
    (b"GET / HTTP/1.0\r\n\r\n", b"426 Upgrade Required"),
    (b"GET /metrics HTTP/1.1\r\nHost: a\r\n\r\n", b"404 Not Found"),
    (REQUEST.replace(b"GET", b"POST"), b"400 Bad Request"),
    (REQUEST[:-2] + b"Content-Length: 5\r\n\r\nhello", b"400 Bad Request"),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\r\n" * 40, b"400 Bad Request"),
    (b"a" * 5_000, b"400 Bad Request"),
]


@pytest.mark.parametrize(("first", "status"), REFUSED, ids=lambda value: repr(value[:16]))
async def test_any_other_request_is_answered_and_closed(first: bytes, status: bytes) -> None:
    async with agent() as (_, door):
        async with knock(door, first) as (reader, _writer):
            refused = await answer(reader)
        assert refused.startswith(b"HTTP/1.1 " + status + b"\r\n")
        assert b"\r\nConnection: close\r\n" in refused
        await rig.until(lambda: not len(door._pending))


@pytest.mark.parametrize(
    ("more", "said"),
    [
        (REQUEST, b""),
        (header(0, rig.HOST, 80), b"\x02"),
        (header(1, rig.HOST, 80), b"\x02"),
        (header(2, rig.HOST, 0), b""),
    ],
    ids=["another request", "legacy TCP", "legacy UDP", "a heartbeat"],
)
async def test_only_sessions_are_served_after_the_upgrade(more: bytes, said: bytes) -> None:
    async with agent() as (server, door):
        async with knock(door, REQUEST + more) as (reader, _writer):
            assert await answer(reader) == SWITCHED + said
        await rig.until(lambda: not len(door._pending))
        assert not server._legacy


@pytest.mark.parametrize("first", [b"", b"GET", REQUEST[:-2], REQUEST, REQUEST + OPENING])
async def test_request_and_handshake_have_one_deadline(
    first: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "DEADLINE", 0.1)
    async with agent() as (_, door):
        async with knock(door, first) as (reader, _writer):
            assert (await answer(reader))[: len(SWITCHED)] == (
                SWITCHED if REQUEST in first else b""
            )
        await rig.until(lambda: not len(door._pending))


async def test_a_request_in_single_bytes_is_cut(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "krelay.agent")
    async with agent() as (_, door):
        async with knock(door) as (reader, writer):
            await rig.until(lambda: len(door._pending))
            with suppress(ConnectionError):
                for byte in REQUEST:
                    writer.write(bytes([byte]))
                    await asyncio.sleep(0.001)
                    if not len(door._pending):
                        break
            assert await answer(reader) == b""
    assert "refused at the door: too many small reads" in caplog.text


async def test_the_oldest_stranger_makes_way_whoever_it_was_forwarded_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "MAX_PENDING", 2)
    first, second = (REQUEST.replace(b"10.99.0.1", b"10.9.0.%d" % n) for n in (1, 2))
    async with agent() as (server, door):
        async with knock(door, first) as (oldest, _), knock(door, second) as (reader, _):
            for each in (oldest, reader):
                assert await each.readexactly(len(SWITCHED)) == SWITCHED
            assert list(door._pending._by_source) == [rig.HOST]
            client = await enter(door)
            assert await answer(oldest) == b""
            assert len(door._pending) == 1
            assert len(server._pending) == 0
            client.leave()


async def test_refusals_at_the_door_have_their_own_log(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, "krelay.agent")
    async with agent() as (server, door):
        for _ in range(3):
            async with knock(door, b"GET /\x1b HTTP/1.1\r\n") as (reader, _writer):
                await answer(reader)
        reader, writer = await asyncio.open_connection(*server.address)
        writer.write(b"\xff" * 64)
        await answer(reader)
        writer.close()
    refused = [each.getMessage() for each in caplog.records if "refused" in each.getMessage()]
    assert refused[0] == "refused at the door: a malformed request line"
    assert refused[1].startswith("refused: ")
    assert refused[2:] == ["refused at the door 2 more; the last one: a malformed request line"]


async def test_the_door_accepts_so_many_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BURST", 2)
    monkeypatch.setattr(module, "INTERVAL", 3600.0)
    async with agent() as (server, door):
        async with knock(door) as _, knock(door) as _, knock(door) as _:
            await rig.until(lambda: door._retry)
            assert len(door._pending) == 2
            client = await session(server)
            client.leave()


async def test_the_door_accepts_again_after_a_moment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "BURST", 1)
    async with agent() as (_, door):
        for _ in range(5):
            async with knock(door, REQUEST) as (reader, _writer):
                assert await reader.readexactly(len(SWITCHED)) == SWITCHED


# -- short of memory or descriptors ------------------------------------------------------------


async def test_the_door_is_the_first_to_refuse_when_memory_is_short() -> None:
    async with agent() as (server, door):
        budget = server.budget
        held = budget.free - TUNNEL_COST + 1
        budget.left -= held
        async with knock(door, REQUEST) as (reader, _writer):
            assert (await answer(reader)).endswith(b"\r\nthe agent is short of memory\n")
        client = await session(server)
        budget.left += held
        client.leave()


def lowest_free_file() -> int:
    """Return the descriptor that the next file gets."""
    with socket.socket() as sock:
        return sock.fileno()


@contextmanager
def files_allowed(count: int) -> Iterator[None]:
    """Allow this process to have so many files open."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (count, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)


async def test_the_door_leaves_the_last_descriptors_to_others(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "krelay.agent")
    async with agent() as (server, door):
        used = open_files()
        assert used is not None
        with files_allowed(used + 6):
            while "refused at the door: the agent is short of file descriptors" not in caplog.text:
                async with knock(door) as (reader, writer):
                    await rig.until(lambda: len(door._pending) or reader.at_eof())
            client = await session(server)
            client.leave()


async def test_a_door_that_cannot_accept_tries_again(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_RETRY_AFTER", 0.01)
    caplog.set_level(logging.INFO, "krelay.agent")
    async with agent() as (_, door):
        loop = asyncio.get_running_loop()
        with socket.socket() as sock:
            sock.setblocking(False)
            with files_allowed(lowest_free_file()):
                await loop.sock_connect(sock, door.address)
                await rig.until(lambda: "refused at the door" in caplog.text)
            await loop.sock_sendall(sock, REQUEST)
            assert await loop.sock_recv(sock, 1 << 10) == SWITCHED


# -- idleness and the end ----------------------------------------------------------------------


@asynccontextmanager
async def life(**settings: Any) -> AsyncIterator[tuple[Server, Door, asyncio.Task[None]]]:
    """An agent with a door, which ends by itself."""
    server = Server(Settings(port=0, key=rig.KEY, pod_ip=rig.HOST, door_port=0, **settings))
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(server.run())
        await server.listening.wait()
        assert server.door is not None
        yield server, server.door, task


async def test_strangers_do_not_touch_the_idle_timer() -> None:
    async with life(idle_timeout=3600.0) as (server, door, _):
        timer = server._idle_timer
        assert timer is not None
        for first in (b"", REQUEST, b"x\r\n"):
            async with knock(door, first):
                await rig.until(lambda: len(door._pending))
            await rig.until(lambda: not len(door._pending))
            assert server._idle_timer is timer
            assert not timer.cancelled()
        server.stop("test")


async def test_an_idle_agent_ends_while_a_stranger_waits() -> None:
    async with life(idle_timeout=3600.0) as (server, door, task):
        async with knock(door, REQUEST) as (reader, _writer):
            await reader.readexactly(len(SWITCHED))
            server._cancel_idle_timer()
            wait(server, 0.05)
            server._start_idle_timer()
            await task
            assert await answer(reader) == b""


async def test_an_agent_ends_after_a_good_bye_while_a_stranger_waits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server_module, "LINGER", 0.05)
    async with life(idle_timeout=3600.0) as (server, door, task):
        client = await session(server)
        async with knock(door, REQUEST):
            await rig.until(lambda: len(door._pending))
            client.leave()
            await task


async def test_a_stranger_does_not_undo_a_good_bye(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "LINGER", 3600.0)
    async with life(idle_timeout=3600.0) as (server, door, _):
        client = await session(server)
        client.leave()
        await rig.until(lambda: server._idle_timer)
        timer = server._idle_timer
        async with knock(door, REQUEST) as (reader, _writer):
            await reader.readexactly(len(SWITCHED))
            assert server._idle_timer is timer
            assert server._said_goodbye
        server.stop("test")


async def test_a_session_of_the_door_keeps_the_agent_until_its_good_bye(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server_module, "LINGER", 0.05)
    async with life(idle_timeout=3600.0) as (server, door, _task):
        first = await enter(door)
        assert server._idle_timer is None
        first.leave()


async def test_a_client_at_the_door_within_the_linger_keeps_the_agent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(server_module, "LINGER", 3600.0)
    async with life(idle_timeout=3600.0) as (server, door, task):
        client = await session(server)
        client.leave()
        await rig.until(lambda: server._idle_timer)
        client = await enter(door)
        assert server._idle_timer is None
        assert not server._said_goodbye
        client.leave()
        server.stop("enough")
        await task


async def test_a_stopping_agent_says_good_bye_at_the_door_and_cuts_strangers() -> None:
    async with life() as (server, door, task):
        client = await enter(door)
        told: list[ErrorCode] = []
        client.connection.on_go_away = lambda code, message: told.append(code)
        async with knock(door, REQUEST) as (reader, _writer):
            await reader.readexactly(len(SWITCHED))
            server.stop("test")
            assert await answer(reader) == b""
        await rig.until(lambda: told)
        await task
        with pytest.raises(ConnectionError):
            await asyncio.open_connection(*door.address)
        await rig.until(lambda: not client.connection.attached)
        client.leave()


# -- where it opens ----------------------------------------------------------------------------


async def test_client_and_agent_mean_the_same_port() -> None:
    assert Settings().door_port == DOOR_PORT == AGENT_DOOR_PORT


@pytest.mark.parametrize(
    "settings", [{"key": None, "pod_ip": rig.HOST}, {"pod_ip": ""}], ids=["no key", "no address"]
)
async def test_without_a_key_or_an_address_no_door_opens(settings: dict[str, Any]) -> None:
    async with rig.agent(door_port=0, **settings) as server:
        assert server.door is None


async def test_an_agent_goes_on_without_a_door_that_cannot_be_bound(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "krelay.agent")
    async with agent() as (_, first):
        port = first.address[1]
        async with agent(door_port=port) as (server, second):
            assert second._sock is None
            client = await session(server)
            client.leave()
        lines = [each.getMessage() for each in caplog.records if "no door" in each.getMessage()]
        assert lines == [f"no door on 127.0.0.1 port {port}: {os.strerror(errno.EADDRINUSE)}"]


async def test_the_door_opens_on_ipv6() -> None:
    try:
        async with agent(pod_ip="::1") as (_, door):
            if door._sock is None:
                pytest.skip("no IPv6 here")
            async with knock(door, REQUEST) as (reader, _writer):
                assert await reader.readexactly(len(SWITCHED)) == SWITCHED
            assert door.address[0] == "::1"
    except* OSError:
        pytest.skip("no IPv6 here")


@pytest.mark.process
async def test_the_program_takes_the_door_s_address_from_its_environment() -> None:
    environ = {"KRELAY_KEY": rig.KEY.hex(), "KRELAY_POD_IP": rig.HOST, "KRELAY_DOOR_PORT": "0"}
    async with program("--port=0", **environ) as process:
        assert process.stderr is not None
        while b"the door is on 127.0.0.1 port " not in (line := await process.stderr.readline()):
            assert line
        reader, writer = await asyncio.open_connection(rig.HOST, int(line.split()[-1]))
        writer.write(REQUEST)
        assert await reader.readexactly(len(SWITCHED)) == SWITCHED
        writer.close()
        await writer.wait_closed()
