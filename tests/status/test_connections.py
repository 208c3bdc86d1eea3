"""Clients that take up places: silent ones, and those that read nothing."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress

import pytest
from aiohttp import web

from krelay.net.bind import bind
from krelay.status import connections as module
from krelay.status.connections import Connection, Connections, connection_of
from tests import rig

BIG = b"x" * (1 << 16)
ASK = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"

Answer = Callable[[web.Request], Awaitable[web.StreamResponse]]


async def big(request: web.Request) -> web.Response:
    return web.Response(body=BIG)


async def own(request: web.Request) -> web.Response:
    connection = connection_of(request)
    assert connection is not None
    connection.mark_trusted()
    return web.Response(text="own")


@asynccontextmanager
async def serving(answer: Answer = big, **most: int) -> AsyncIterator[Connections]:
    """Serve on loopback; a request of `/own` makes its connection trusted."""
    app = web.Application()
    app.router.add_get("/", answer)
    app.router.add_get("/own", own)
    made = Connections(app, **most)
    await made.serve(bind(rig.HOST, 0, socket.SOCK_STREAM))
    try:
        yield made
    finally:
        await made.close()


def address(made: Connections) -> tuple[str, int]:
    (accept,) = made._accepts
    found: tuple[str, int] = accept._sock.getsockname()
    return found


async def client(made: Connections, ask: bytes = b"") -> tuple[socket.socket, Connection]:
    """Return a client with small buffers that has sent `ask`, and its connection."""
    before = set(made.open)
    sock = socket.socket()
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    sock.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(sock, address(made))
    await loop.sock_sendall(sock, ask)
    await rig.until(lambda: made.open - before)
    (connection,) = made.open - before
    return sock, connection


async def until_full(connection: Connection, sock: socket.socket) -> None:
    """Send requests without reading until the connection is blocked."""
    while not connection.blocked:
        await asyncio.get_running_loop().sock_sendall(sock, ASK)
        await asyncio.sleep(0)


async def ended(sock: socket.socket) -> None:
    """Wait until the other end has closed."""
    with suppress(ConnectionResetError):
        while await rig.recv(sock):
            pass
    sock.close()


# -- room --------------------------------------------------------------------------------------


@pytest.mark.parametrize("said", [b"", ASK[:-2]])
async def test_a_client_that_sends_no_request_is_dropped(
    said: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "PATIENCE", 0.05)
    async with serving() as made:
        sock, loop = socket.socket(), asyncio.get_running_loop()
        sock.setblocking(False)
        await loop.sock_connect(sock, address(made))
        with suppress(ConnectionError):
            await loop.sock_sendall(sock, said)
        await ended(sock)
        assert not made.open


async def test_a_client_that_disconnects_leaves_no_timer() -> None:
    async with serving() as made:
        sock, connection = await client(made)
        sock.close()
        await connection.lost
        assert connection._next.cancelled()


async def test_a_client_that_has_sent_a_request_may_wait_for_its_answer() -> None:
    asked, free = asyncio.Event(), asyncio.Event()

    async def slow(request: web.Request) -> web.Response:
        asked.set()
        await free.wait()
        return web.Response(text="done")

    async with serving(slow) as made:
        sock, connection = await client(made, ASK)
        await asked.wait()
        for _ in range(3):
            connection.check_progress()
        free.set()
        assert (await rig.recv(sock)).startswith(b"HTTP/1.1 200 OK")
        for _ in range(3):
            connection.check_progress()
        assert made.open == {connection}
        sock.close()


async def test_a_client_that_reads_nothing_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    async with serving() as made:
        sock, connection = await client(made, ASK)
        await until_full(connection, sock)
        monkeypatch.setattr(module, "PATIENCE", 0.01)
        connection.check_progress()  # and from then on by itself
        await connection.lost
        await ended(sock)


async def test_a_slow_reader_is_not_dropped() -> None:
    async with serving() as made:
        sock, connection = await client(made, ASK)
        for _ in range(3):
            await until_full(connection, sock)
            connection.check_progress()
            while connection.blocked:
                assert await rig.recv(sock)
        assert made.open == {connection}
        sock.close()


async def test_a_client_that_leaves_the_end_of_an_answer_unread_is_dropped() -> None:
    async with serving() as made:
        sock, connection = await client(made, ASK)
        await until_full(connection, sock)
        connection.transport.close()
        connection.check_progress()
        assert made.open == {connection}
        connection.check_progress()
        await connection.lost
        sock.close()


# -- places ------------------------------------------------------------------------------------

OWN = b"GET /own HTTP/1.1\r\nHost: x\r\n\r\n"


async def answer_of(made: Connections, ask: bytes = ASK) -> bytes:
    """Return what a new client receives until it is closed; b"" if it is dropped."""
    sock, loop = socket.socket(), asyncio.get_running_loop()
    sock.setblocking(False)
    await loop.sock_connect(sock, address(made))
    got = b""
    with suppress(ConnectionError):
        await loop.sock_sendall(sock, ask)
        while data := await rig.recv(sock):
            got += data
    sock.close()
    return got


async def small(request: web.Request) -> web.Response:
    return web.Response(text="small")


async def test_only_a_stranger_s_connection_closes_after_its_answer() -> None:
    async with serving(small, strangers=1) as made:
        got = await answer_of(made, ASK + ASK)
        assert got.count(b"HTTP/1.1 200 OK") == 1
        assert b"Connection: close" in got
        sock, connection = await client(made, OWN + ASK)
        got = b""
        while got.count(b"HTTP/1.1 200 OK") < 2:
            got += await rig.recv(sock)
        assert connection.trusted
        assert b"Connection: close" not in got
        sock.close()


@pytest.mark.parametrize("said", [b"", ASK[:-2], b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n"])
async def test_idle_strangers_give_way_to_new_ones(
    said: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "GRACE", 0.0)
    async with serving(small, strangers=3) as made:
        writers = []
        for _ in range(3):
            _, writer = await asyncio.open_connection(*address(made))
            writer.write(said)
            writers.append(writer)
        for _ in range(5):
            assert (await answer_of(made)).endswith(b"small")
        assert len(made.open) <= 3
        for writer in writers:
            writer.close()


async def test_a_new_connection_keeps_its_place_for_a_moment() -> None:
    async with serving(small, strangers=2) as made:
        first, connection = await client(made)
        others = [(await client(made))[0] for _ in range(3)]
        assert not connection.evicted
        await asyncio.get_running_loop().sock_sendall(first, ASK)
        assert (await rig.recv(first)).startswith(b"HTTP/1.1 200 OK")
        for sock in (first, *others):
            sock.close()


async def test_new_connections_give_way_beyond_twice_the_limit() -> None:
    async with serving(small, strangers=2) as made:
        clients = [await client(made) for _ in range(4)]
        last, _ = await client(made)
        assert [connection.evicted for _, connection in clients] == [True, False, False, False]
        for sock, _ in clients:
            sock.close()
        last.close()


async def test_busy_connections_are_dropped_after_idle_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "GRACE", 0.0)
    asked, free = asyncio.Event(), asyncio.Event()

    async def slow(request: web.Request) -> web.Response:
        asked.set()
        await free.wait()
        return web.Response(text="done")

    async with serving(slow, strangers=2) as made:
        busy, waiting = await client(made, ASK)
        await asked.wait()
        second, idle = await client(made)
        third, _ = await client(made)
        assert (waiting.evicted, idle.evicted) == (False, True)
        free.set()
        assert (await rig.recv(busy)).startswith(b"HTTP/1.1 200 OK")
        for sock in (busy, second, third):
            sock.close()


async def test_a_blocked_connection_is_dropped_before_other_busy_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "GRACE", 0.0)

    async def endless(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(BIG)

    async with serving(endless, strangers=1) as made:
        sock, connection = await client(made, ASK)
        await rig.until(lambda: connection.blocked)
        other, _ = await client(made)
        await connection.lost
        assert connection.evicted
        sock.close()
        other.close()


async def test_strangers_take_no_place_of_trusted_connections() -> None:
    async with serving(small, strangers=2, trusted=1) as made:
        mine, connection = await client(made, OWN)
        assert (await rig.recv(mine)).endswith(b"own")
        socks = [(await client(made, ASK[:-2]))[0] for _ in range(9)]
        await asyncio.get_running_loop().sock_sendall(mine, ASK)
        assert (await rig.recv(mine)).endswith(b"small")
        # of those that have, the idle one makes room for the next
        next_one, _ = await client(made, OWN)
        assert (await rig.recv(next_one)).endswith(b"own")
        await connection.lost
        assert connection.evicted
        for sock in (*socks, mine, next_one):
            sock.close()


# -- the end -----------------------------------------------------------------------------------


@pytest.mark.parametrize("turns", range(7))
async def test_a_connection_accepted_during_the_close_is_aborted(turns: int) -> None:
    """At any stage of its connection."""
    async with serving() as made:
        with socket.create_connection(address(made)) as sock:
            sock.setblocking(False)
            sock.send(ASK)
            for _ in range(turns):
                await asyncio.sleep(0)
            await made.close()
            assert not made.open
            await ended(sock)


async def test_a_client_that_reads_nothing_does_not_delay_the_close(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "CLOSE_DEADLINE", 0.05)
    async with serving() as made:
        sock, connection = await client(made, ASK)
        await until_full(connection, sock)
        await made.close()
        await connection.lost
        assert not made.open
        await ended(sock)


async def test_a_closing_connection_with_unread_output_does_not_delay_the_close(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "CLOSE_DEADLINE", 0.05)
    async with serving() as made:
        sock, connection = await client(made, ASK)
        await until_full(connection, sock)
        connection.transport.close()
        await made.close()
        await connection.lost
        await ended(sock)


async def test_an_answer_being_read_arrives_whole_at_the_close(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "CLOSE_DEADLINE", 60.0)
    asked = asyncio.Event()

    async def late(request: web.Request) -> web.Response:
        asked.set()
        await asyncio.sleep(0)
        return web.Response(body=BIG)

    async with serving(late) as made:
        sock, _ = await client(made, ASK)
        await asked.wait()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(made.close())
            got = b""
            while data := await rig.recv(sock):
                got += data
        assert got.endswith(b"\r\n\r\n" + BIG)
        sock.close()
