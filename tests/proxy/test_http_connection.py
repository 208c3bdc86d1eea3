"""HTTP through the proxy port: over real sockets, by real clients, in good and bad conditions."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import select
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from io import BytesIO

import aiohttp
import pytest
import urllib3
import websockets.asyncio.server
from aiohttp import web

from krelay.datapath.connector import Forwarding, connection_queue
from krelay.datapath.pool import Pool
from krelay.datapath.route import Route
from krelay.datapath.tcp import LocalRelay, TcpListener
from krelay.model import Endpoint, Protocol, Resolution, proxy_target
from krelay.mux.sockets import reset_socket
from krelay.proxy import http_connection as module
from krelay.proxy import server as proxy_module
from krelay.proxy.http_connection import HttpConnection
from krelay.proxy.http_relay import Hop, RequestHead
from krelay.proxy.server import ProxyListener
from tests import rig
from tests.proxy.test_server import curl, proxy

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


class Origin:
    """A target that ignores `Connection: close`, and every head that it gets."""

    def __init__(self, response: bytes = OK) -> None:
        self.response = response
        self.heads: list[bytes] = []
        self.connections = 0

    async def __call__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        while True:
            try:
                self.heads.append(await reader.readuntil(b"\r\n\r\n"))
            except asyncio.IncompleteReadError:
                return
            writer.write(self.response)


async def answered(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """The head of the next response, and the body that its Content-Length announces."""
    head = await reader.readuntil(b"\r\n\r\n")
    length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
    return head, await reader.readexactly(int(length or b"0"))


def get(port: int, *headers: str, method: str = "GET") -> bytes:
    lines = [f"{method} http://127.0.0.1:{port}/ HTTP/1.1", "Host: x", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


@asynccontextmanager
async def website() -> AsyncIterator[int]:
    """An aiohttp server: POST / answers with the body's digest, GET /large with 8 MiB."""

    async def digest(request: web.Request) -> web.Response:
        found = hashlib.sha256()
        async for chunk in request.content.iter_any():
            found.update(chunk)
        return web.Response(text=found.hexdigest())

    async def large(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for _ in range(128):
            await response.write(bytes(1 << 16))
        return response

    async def hello(request: web.Request) -> web.Response:
        return web.Response(text=request.headers["Host"], headers={"X-Path": request.raw_path})

    app = web.Application()
    app.router.add_post("/", digest)
    app.router.add_get("/large", large)
    app.router.add_get("/{path:.*}", hello)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        site = web.TCPSite(runner, rig.HOST, 0)
        await site.start()
        yield runner.addresses[0][1]
    finally:
        await runner.cleanup()


# -- by real clients ---------------------------------------------------------------------------


async def test_a_pooled_client_s_requests_reach_each_its_own_host() -> None:
    first, second = Origin(), Origin()
    async with rig.tcp_target(first) as a, rig.tcp_target(second) as b:
        async with proxy(credentials=("me", "proxy-secret")) as (listener, _):
            login = urllib3.make_headers(proxy_basic_auth="me:proxy-secret")
            url = f"http://127.0.0.1:{rig.port_of(listener)}"

            def client() -> None:
                with urllib3.ProxyManager(url, proxy_headers=login) as pool:
                    for _ in range(2):
                        for port, cookie in ((a, "for-a"), (b, "for-b")):
                            answer = pool.request(
                                "GET",
                                f"http://127.0.0.1:{port}/",
                                headers={"Cookie": cookie},
                                retries=False,
                            )
                            assert answer.data == b"hi"

            await asyncio.to_thread(client)
            for origin, cookie in ((first, b"for-a"), (second, b"for-b")):
                assert len(origin.heads) == origin.connections == 2
                for head in origin.heads:
                    assert b"Cookie: %s\r\n" % cookie in head
                    assert b"proxy" not in head.lower()


async def test_aiohttp_sends_and_receives_large_bodies() -> None:
    data = rig.noise(4 << 20)
    async with website() as port, proxy() as (listener, path), aiohttp.ClientSession() as session:
        via = f"http://127.0.0.1:{rig.port_of(listener)}"
        url = f"http://127.0.0.1:{port}"

        async def pieces() -> AsyncIterator[bytes]:
            for at in range(0, len(data), 100_000):
                yield data[at : at + 100_000]

        for body, expect in ((BytesIO(data), False), (pieces(), False), (pieces(), True)):
            async with session.post(url, data=body, proxy=via, expect100=expect) as response:
                assert await response.text() == hashlib.sha256(data).hexdigest()
        async with session.get(f"{url}/large", proxy=via) as response:
            assert await response.read() == bytes(8 << 20)
        async with session.get(f"{url}/x?y", proxy=via) as response:
            assert await response.text() == f"127.0.0.1:{port}"
            assert response.headers["X-Path"] == "/x?y"
        async with session.head(f"{url}/x", proxy=via) as response:
            assert response.headers["Content-Length"] == str(len(f"127.0.0.1:{port}"))
        # One connection served all of them.
        assert listener.live == 1
        await rig.until(lambda: path.streams == (0, 0))
        assert listener.metrics.results == {"ok": 6}


async def test_curl_keeps_one_connection_for_two_hosts() -> None:
    first, second = Origin(), Origin()
    async with rig.tcp_target(first) as a, rig.tcp_target(second) as b, proxy() as (listener, _):
        via = ("-x", f"127.0.0.1:{rig.port_of(listener)}", "-w", " %{num_connects} ", "-b")
        code, out = await curl(
            *(*via, "c=a", f"http://127.0.0.1:{a}/"),
            *("--next", *via, "c=b", f"http://127.0.0.1:{b}/"),
        )
        assert (code, out) == (0, b"hi 1 hi 0 ")
        assert b"c=a" in first.heads[0]
        assert b"c=b" in second.heads[0]
        assert (len(first.heads), len(second.heads)) == (1, 1)


async def test_websocket_in_absolute_form() -> None:
    async def echo(connection: websockets.asyncio.server.ServerConnection) -> None:
        async for message in connection:
            await connection.send(message)

    async with (
        websockets.asyncio.server.serve(echo, rig.HOST, 0) as server,
        proxy() as (listener, path),
        aiohttp.ClientSession() as session,
    ):
        port = next(iter(server.sockets)).getsockname()[1]
        via = f"http://127.0.0.1:{rig.port_of(listener)}"
        async with session.ws_connect(f"ws://127.0.0.1:{port}/", proxy=via) as socket:
            for size in (0, 10, 1 << 20):
                await socket.send_bytes(bytes(size))
                assert await socket.receive_bytes() == bytes(size)
            assert listener.live == 1
        await rig.until(lambda: path.streams == (0, 0))
        # As curl 8 writes it.
        async with rig.connect(rig.port_of(listener)) as (reader, writer):
            writer.write(
                f"GET ws://127.0.0.1:{port}/ HTTP/1.1\r\nHost: 127.0.0.1:{port}\r\n"
                "Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
                "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n".encode()
                + b"\x81\x82\0\0\0\0hi"
            )
            assert (await reader.readuntil(b"\r\n\r\n")).startswith(b"HTTP/1.1 101 ")
            assert await reader.readexactly(4) == b"\x81\x02hi"


async def test_a_refused_upgrade_is_answered_and_ends_the_connection() -> None:
    first, second = Origin(), Origin()
    async with rig.tcp_target(first) as a, rig.tcp_target(second) as b, proxy() as (listener, _):
        async with rig.connect(rig.port_of(listener)) as (reader, writer):
            writer.write(get(a, "Connection: Upgrade", "Upgrade: websocket") + get(b))
            assert (await answered(reader))[1] == b"hi"
            writer.write(get(b))
            assert await reader.read() == b""
        assert (len(first.heads), len(second.heads)) == (1, 0)


@pytest.mark.parametrize("status", [400, 407, 502])
async def test_what_is_sent_into_a_refused_tunnel_is_no_request(status: int) -> None:
    login = "Proxy-Authorization: Basic bWU6cHc="
    place = "nowhere" if status == 400 else f"127.0.0.1:{rig.closed_port()}"
    lines = [f"CONNECT {place} HTTP/1.1", "Host: x", *([login] if status != 407 else [])]
    origin = Origin()
    async with rig.tcp_target(origin) as port, proxy(credentials=("me", "pw")) as (listener, _):
        async with rig.connect(rig.port_of(listener)) as (reader, writer):
            inner = get(port, login)
            writer.write("\r\n".join(lines).encode() + b"\r\n\r\n" + inner)
            head, _body = await answered(reader)
            assert head.split()[1] == str(status).encode()
            assert b"Connection: close\r\n" in head
            for _ in range(20):
                writer.write(inner * 1_000)
                await writer.drain()
            assert await reader.read() == b""
        await rig.until(lambda: not listener.connections)
    assert not origin.heads


# -- refusals reach a client that is still sending ---------------------------------------------


@pytest.mark.parametrize("size", [0, 300_000, 20_000_000])
@pytest.mark.parametrize("status", [400, 407, 502])
async def test_a_refusal_arrives_whatever_is_still_sent(status: int, size: int) -> None:
    login = ("Proxy-Authorization: Basic bWU6cHc=",) if status != 407 else ()
    both = ("Transfer-Encoding: chunked",) if status == 400 else ()
    async with proxy(credentials=("me", "pw")) as (listener, _):
        head = get(rig.closed_port(), *login, *both, f"Content-Length: {size}", method="POST")

        async def ask() -> None:
            async with rig.connect(rig.port_of(listener)) as (reader, writer):
                writer.write(head)
                for _ in range(0, size, 100_000):
                    writer.write(bytes(100_000))
                    await writer.drain()
                assert (await reader.readuntil(b"\r\n")).split()[1] == str(status).encode()
                rest = await reader.readuntil(b"krelay: ")
                assert (b"Connection: close" in rest) is bool(size or status == 400)

        async with asyncio.TaskGroup() as tasks:
            for _ in range(3):
                tasks.create_task(ask())
        await rig.until(lambda: not listener.connections)


async def test_an_early_response_arrives_whatever_is_still_sent() -> None:
    async def refuse(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 413 Too Large\r\nContent-Length: 2\r\n\r\nno")
        await writer.drain()
        writer.write_eof()

    async with rig.tcp_target(refuse) as target, proxy() as (listener, _):
        async with rig.connect(rig.port_of(listener)) as (reader, writer):
            writer.write(get(target, "Content-Length: 5000000", method="POST"))
            for _ in range(50):
                writer.write(bytes(100_000))
                await writer.drain()
            head, body = await answered(reader)
            assert head.startswith(b"HTTP/1.1 413 ")
            assert b"Connection: close\r\n" in head
            assert body == b"no"
            assert await reader.read() == b""


async def test_a_refused_client_may_send_a_bounded_number_of_bytes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "LINGER_BYTES", 1 << 20)
    async with proxy() as (listener, _):
        async with rig.connect(rig.port_of(listener)) as (_, writer):
            writer.write(get(rig.closed_port(), "Content-Length: 99999999", method="POST"))

            async def pour() -> None:
                while True:
                    writer.write(bytes(1 << 16))
                    await writer.drain()

            with pytest.raises(ConnectionError):
                await pour()
        await rig.until(lambda: not listener.connections)


async def test_a_refused_client_that_is_silent_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LINGER_SILENCE", 0.05)
    async with proxy() as (listener, _):
        async with rig.connect(rig.port_of(listener)) as (reader, writer):
            writer.write(get(rig.closed_port(), "Content-Length: 9", method="POST"))
            assert b"502" in await reader.read()
            await rig.until(lambda: not listener.connections)


# -- pace --------------------------------------------------------------------------------------


async def test_a_slow_client_holds_the_target_back() -> None:
    sent = 0

    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal sent
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        for _ in range(1 << 10):
            writer.write(b"10000\r\n" + bytes(1 << 16) + b"\r\n")
            await writer.drain()
            sent += 1 << 16
        writer.write(b"0\r\n\r\n")

    async with rig.tcp_target(pour) as target, proxy() as (listener, _):
        async with rig.connect(rig.port_of(listener)) as (reader, writer):
            writer.write(get(target))
            await rig.until(lambda: sent)
            before = -1
            while before != sent:
                before = sent
                await asyncio.sleep(0.2)
            assert sent < 32 << 20
            (connection,) = listener.connections
            assert connection.transport is not None
            assert connection.transport.get_write_buffer_size() < 8 << 20
            await reader.readuntil(b"\r\n\r\n")
            total = 0
            while line := await reader.readline():
                size = int(line, 16)
                total += len(await reader.readexactly(size + 2)) - 2
                if not size:
                    break
            assert total == 64 << 20
            # The connection serves the next request.
            origin = Origin()
            async with rig.tcp_target(origin) as other:
                writer.write(get(other))
                assert (await answered(reader))[1] == b"hi"


async def test_a_slow_target_holds_the_client_back() -> None:
    go = asyncio.Event()

    async def sip(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        await go.wait()
        digest = hashlib.sha256()
        left = 64 << 20
        while left:
            data = await reader.read(min(left, 1 << 16))
            digest.update(data)
            left -= len(data)
        text = digest.hexdigest().encode()
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s" % (len(text), text))

    async with rig.tcp_target(sip) as target, proxy() as (listener, _):
        async with rig.connect(rig.port_of(listener)) as (reader, writer):
            writer.write(get(target, f"Content-Length: {64 << 20}", method="POST"))
            sent = 0

            async def pour() -> None:
                nonlocal sent
                while sent < 64 << 20:
                    writer.write(bytes(1 << 16))
                    await writer.drain()
                    sent += 1 << 16

            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(pour())
                await rig.until(lambda: sent)
                before = -1
                while before != sent:
                    before = sent
                    await asyncio.sleep(0.2)
                assert sent < 32 << 20
                go.set()
                _, body = await answered(reader)
            assert body == hashlib.sha256(bytes(64 << 20)).hexdigest().encode()


async def test_pipelined_requests_wait_for_a_client_that_reads_nothing() -> None:
    origin = Origin(b"HTTP/1.1 200 OK\r\nContent-Length: 250000\r\n\r\n" + bytes(250_000))
    async with rig.tcp_target(origin) as target, proxy() as (listener, _):
        async with rig.connect(rig.port_of(listener)) as (reader, writer):
            writer.write(get(target) * 120)
            before = -1
            while before != len(origin.heads):
                before = len(origin.heads)
                await asyncio.sleep(0.3)
            assert before < 100
            for _ in range(120):
                assert len((await answered(reader))[1]) == 250_000
        assert len(origin.heads) == 120


async def test_a_body_in_tiny_chunks_does_not_hold_others_up() -> None:
    async def crumble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
        writer.write(b"1\r\nx\r\n" * 30_000 + b"0\r\n\r\n")

    async with rig.tcp_target(crumble) as target, proxy() as (listener, _):
        turns = 0

        async def count() -> None:
            nonlocal turns
            while True:
                await asyncio.sleep(0)
                turns += 1

        async with asyncio.TaskGroup() as tasks:
            counting = tasks.create_task(count())
            code, out = await curl(
                "-x", f"127.0.0.1:{rig.port_of(listener)}", f"http://127.0.0.1:{target}/"
            )
            counting.cancel()
        assert (code, out) == (0, b"x" * 30_000)
        # 30,000 events in turns of `EVENTS_A_TURN`.
        assert turns > 50


# -- ends --------------------------------------------------------------------------------------


@pytest.mark.parametrize("how", ["end", "reset"])
async def test_a_target_that_leaves_within_its_response_cuts_the_client(how: str) -> None:
    async def leave(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nhi")
        await writer.drain()
        await reader.read(1)
        if how == "reset":
            rig.rst(writer)

    async with rig.tcp_target(leave) as target, proxy() as (listener, _):
        async with rig.connect(rig.port_of(listener)) as (reader, writer):
            writer.write(get(target, "Content-Length: 1", method="POST"))
            await reader.readuntil(b"hi")
            writer.write(b"x")
            with pytest.raises(ConnectionResetError):
                await reader.read()


async def test_a_client_that_leaves_frees_its_target() -> None:
    gone = asyncio.Event()

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.readuntil(b"\r\n\r\n")
            assert await reader.read() == b""
        finally:
            gone.set()

    async with rig.tcp_target(wait) as target, proxy() as (listener, path):
        async with rig.connect(rig.port_of(listener)) as (_, writer):
            writer.write(get(target))
            await rig.until(lambda: path.streams == (1, 1))
        await gone.wait()
        await rig.until(lambda: path.streams == (0, 0) and not listener.connections)


async def test_a_client_that_leaves_while_there_is_no_tunnel_leaves_no_connection() -> None:
    async with proxy(open_timeout=60.0) as (listener, path):
        path.link.cut(blocked=True)
        await rig.until(lambda: path.pool.pick() is None)
        async with rig.connect(rig.port_of(listener)) as (reader, writer):
            writer.write(get(80) + get(81))
            await rig.until(lambda: listener.connections and not listener.pending)
            writer.write_eof()
            assert (await reader.read()).count(b"HTTP/1.1 502 ") == 2
        await rig.until(lambda: not listener.connections)
        path.link.blocked = False


@pytest.mark.skipif(not hasattr(select, "epoll"), reason="no epoll here")
async def test_a_client_that_resets_while_its_upload_waits_leaves_no_connection() -> None:
    async with proxy(open_timeout=60.0) as (listener, path):
        path.link.cut(blocked=True)
        await rig.until(lambda: path.pool.pick() is None)
        async with rig.connect(rig.port_of(listener)) as (_, writer):
            writer.write(get(80, "Content-Length: 1048576", method="POST") + bytes(1 << 19))
            await rig.until(lambda: len(connection_queue()) == 1)
            (connection,) = listener.connections
            await rig.until(lambda: not connection.transport.is_reading())  # type: ignore[union-attr]
            reset_socket(writer.transport)
            await rig.until(lambda: not listener.connections)
        assert not len(connection_queue())
        path.link.blocked = False


async def test_a_waiting_connection_that_is_dropped_is_closed() -> None:
    async with proxy(open_timeout=60.0) as (listener, path):
        path.link.cut(blocked=True)
        await rig.until(lambda: path.pool.pick() is None)
        async with rig.connect(rig.port_of(listener)) as (reader, writer):
            writer.write(get(80))
            await rig.until(lambda: len(connection_queue()) == 1)
            (connection,) = listener.connections
            connection.drop("a test")
            with contextlib.suppress(ConnectionResetError):
                await reader.read()
            await rig.until(lambda: not listener.connections)
        assert not len(connection_queue())
        path.link.blocked = False


async def test_an_idle_connection_is_closed_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE", 0.05)
    async with rig.tcp_target(Origin()) as target, proxy() as (listener, _):
        async with rig.connect(rig.port_of(listener)) as (reader, writer):
            writer.write(get(target))
            await answered(reader)
            assert await reader.read() == b""
        await rig.until(lambda: not listener.connections)


async def trickle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send a byte from time to time until the connection ends."""
    async with asyncio.TaskGroup() as tasks:

        async def send() -> None:
            while True:
                writer.write(b"x")
                await asyncio.sleep(0.02)

        sending = tasks.create_task(send())
        try:
            await reader.read()
        finally:
            sending.cancel()


async def test_a_head_that_is_never_whole_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(proxy_module, "REQUEST_TIMEOUT", 0.1)
    async with rig.tcp_target(Origin()) as target, proxy() as (listener, _):
        async with rig.connect(rig.port_of(listener)) as (reader, writer):
            writer.write(get(target) + b"GET http://")
            await answered(reader)
            with pytest.raises(ExceptionGroup) as caught:
                # Each further byte comes in time, the head does not.
                await trickle(reader, writer)
            assert caught.value.subgroup(ConnectionResetError)
        await rig.until(lambda: not listener.connections)


async def test_a_silent_exchange_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENCE", 0.05)
    async with rig.tcp_target(rig.swallow) as target, proxy() as (listener, path):
        async with rig.connect(rig.port_of(listener)) as (reader, writer):
            writer.write(get(target))
            with pytest.raises(ConnectionResetError):
                await reader.read()
        await rig.until(lambda: path.streams == (0, 0) and not listener.connections)


async def test_the_connection_that_is_idle_longest_makes_room(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(proxy_module, "MAX_PENDING", 2)
    async with rig.tcp_target(Origin()) as target, proxy() as (listener, _):
        port = rig.port_of(listener)
        async with rig.connect(port) as first, rig.connect(port) as second:
            for reader, writer in (first, second):
                writer.write(get(target))
                await answered(reader)
            async with rig.connect(port) as (reader, writer):
                writer.write(get(target))
                assert (await answered(reader))[1] == b"hi"
                assert await first[0].read() == b""
                second[1].write(get(target))
                assert (await answered(second[0]))[1] == b"hi"


async def test_draining_ends_each_connection_behind_its_request() -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        begun.set()
        await go.wait()
        writer.write(OK)

    async with rig.tcp_target(Origin()) as quick, rig.tcp_target(wait) as slow:
        async with proxy() as (listener, _):
            port = rig.port_of(listener)
            async with rig.connect(port) as idle, rig.connect(port) as busy:
                idle[1].write(get(quick))
                await answered(idle[0])
                busy[1].write(get(slow) + get(quick))
                await begun.wait()
                async with asyncio.TaskGroup() as tasks:
                    draining = tasks.create_task(listener.drain(3600.0))
                    assert await idle[0].read() == b""
                    go.set()
                    head, body = await answered(busy[0])
                    assert body == b"hi"
                    assert b"Connection: close\r\n" in head
                    assert await busy[0].read() == b""
                    busy[1].close()
                assert draining.done()


async def test_a_target_that_stays_after_its_response_is_reset(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "CLOSE_TIMEOUT", 0.05)
    cut = asyncio.Event()

    async def stay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        try:
            await rig.hold(reader, writer)
        finally:
            cut.set()

    async with rig.tcp_target(stay) as target, proxy() as (listener, path):
        async with rig.connect(rig.port_of(listener)) as (reader, writer):
            writer.write(get(target))
            await answered(reader)
            await rig.until(lambda: path.streams == (0, 0))
            assert listener.metrics.results == {"ok": 1}


async def test_targets_that_stay_do_not_use_up_the_streams() -> None:
    async def stay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(OK)
        await rig.hold(reader, writer)

    async with rig.tcp_target(stay) as target, proxy() as (listener, path):
        async with rig.connect(rig.port_of(listener)) as (reader, writer):
            for _ in range(20):
                writer.write(get(target))
                await answered(reader)
                assert path.streams[0] <= 2


async def test_a_client_with_a_long_last_answer_may_take_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "LINGER_SILENCE", 0.05)
    origin = Origin(b"HTTP/1.1 200 OK\r\nContent-Length: 30000000\r\n\r\n" + bytes(30_000_000))
    async with rig.tcp_target(origin) as target, proxy() as (listener, _):
        async with rig.connect(rig.port_of(listener)) as (reader, writer):
            writer.write(get(target, "Connection: close"))
            await rig.until(lambda: any(found._paused for found in listener.connections))
            await asyncio.sleep(0.2)
            assert len((await answered(reader))[1]) == 30_000_000
            assert await reader.read() == b""
        await rig.until(lambda: not listener.connections)


async def test_a_bug_costs_one_connection(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with rig.tcp_target(Origin()) as target, proxy() as (listener, _):
        with monkeypatch.context() as patch:
            patch.setattr(HttpConnection, "_act", lambda self: 1 / 0)
            async with rig.connect(rig.port_of(listener)) as (reader, writer):
                writer.write(get(target))
                with pytest.raises(ConnectionResetError):
                    await reader.read()
        async with rig.connect(rig.port_of(listener)) as (reader, writer):
            writer.write(get(target))
            assert (await answered(reader))[1] == b"hi"
    assert "proxy: the HTTP relay failed" in caplog.text


# -- with another routing function -------------------------------------------------------------


class Gateway(TcpListener):
    """Routes by the Host header, to routes that follow something."""

    def __init__(self, path: rig.Path, names: dict[bytes, Route]) -> None:
        super().__init__("gateway", path.route(None), path.tasks, open_timeout=5.0)
        self.names = names

    def _accept(self) -> LocalRelay:
        return HttpConnection(self, self.find, self.lead)

    def find(self, head: RequestHead) -> Hop[bytes]:
        (host,) = head.values(b"host")
        return Hop(host, head.target, host)

    def lead(self, place: bytes) -> Forwarding:
        return TcpListener(
            place.decode(),
            self.names[place],
            self.tasks,
            open_timeout=self.open_timeout,
            metrics=self.metrics,
        )


async def test_routing_is_a_function_and_a_refused_dial_is_tried_again() -> None:
    first, second = Origin(), Origin()
    async with rig.tcp_target(first) as a, rig.tcp_target(second) as b, rig.path() as path:
        names = {b"a.test": path.route(a), b"b.test": path.route(rig.closed_port(), followed=True)}
        gateway = Gateway(path, names)
        path.listeners.append(gateway)
        await gateway.open(rig.HOST, 0)
        async with rig.connect(rig.port_of(gateway)) as (reader, writer):
            writer.write(b"GET /x HTTP/1.1\r\nHost: a.test\r\n\r\n")
            assert (await answered(reader))[1] == b"hi"
            assert first.heads[0].startswith(b"GET /x HTTP/1.1\r\nHost: a.test\r\n")
            writer.write(b"POST /y HTTP/1.1\r\nHost: b.test\r\nContent-Length: 4\r\n\r\nbody")
            (connection,) = gateway.connections
            await rig.until(lambda: connection._request._retried)
            names[b"b.test"].update(Resolution(Protocol.TCP, Endpoint(rig.HOST, b)))
            assert (await answered(reader))[1] == b"hi"
            assert second.heads[0].startswith(b"POST /y HTTP/1.1\r\nHost: b.test\r\n")


async def test_a_connection_moves_to_another_pool_with_its_listener() -> None:
    async with rig.tcp_target(Origin()) as target, proxy() as (listener, path):
        assert isinstance(listener, ProxyListener)
        async with rig.agent() as server:
            other = Pool("q", [rig.AgentLink(server)], rig.KEY, size=1)
            async with rig.running(other):
                path.link.cut(blocked=True)
                await rig.until(lambda: path.pool.pick() is None)
                async with rig.connect(rig.port_of(listener)) as (reader, writer):
                    writer.write(get(target))
                    await rig.until(lambda: listener.connections and not listener.pending)
                    listener.route.move(other)
                    listener.update(proxy_target("proxy"), 5.0)
                    assert (await answered(reader))[1] == b"hi"
                    writer.write(get(target))
                    assert (await answered(reader))[1] == b"hi"
                path.link.blocked = False
