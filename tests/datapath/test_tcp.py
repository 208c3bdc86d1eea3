"""The TCP listener before a whole data path on real sockets."""

from __future__ import annotations

import asyncio
import socket
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from krelay.datapath import connector
from krelay.datapath import tcp as module
from krelay.datapath.tcp import LocalRelay, TcpListener
from krelay.errors import ListenError
from krelay.model import Endpoint, Protocol, Resolution
from krelay.net.bind import bind
from krelay.tasks import TaskGroup
from krelay.wire.session import Limits
from tests import rig


async def assert_reset(port: int, data: bytes = b"") -> None:
    """Connect, send `data`, and expect a reset, never an empty answer."""
    async with rig.connect(port) as (reader, writer):
        writer.write(data)
        with pytest.raises(ConnectionResetError):
            await reader.read()


async def test_bytes_go_both_ways_and_the_end_is_an_end() -> None:
    data = rig.noise(3 << 20)
    async with rig.path() as path, rig.tcp_target(rig.echo) as target:
        listener = await path.tcp(target)
        assert await rig.exchange(rig.port_of(listener), data) == data
        await rig.until(lambda: not listener.connections)
        await rig.until(lambda: path.streams == (0, 0))


async def test_a_client_that_ends_first_still_gets_its_answer() -> None:
    async def answer_at_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked = await reader.read()
        writer.write(b"you said " + asked)

    async with rig.path() as path, rig.tcp_target(answer_at_the_end) as target:
        port = rig.port_of(await path.tcp(target))
        assert await rig.exchange(port, b"hello") == b"you said hello"


async def test_a_target_that_ends_first_still_receives_the_client_s_bytes() -> None:
    heard: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def end_at_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"bye")
        writer.write_eof()
        heard.set_result(await reader.read())

    async with rig.path() as path, rig.tcp_target(end_at_once) as target:
        port = rig.port_of(await path.tcp(target))
        async with rig.connect(port) as (reader, writer):
            assert await reader.read() == b"bye"
            writer.write(b"and still")
            writer.write_eof()
            assert await heard == b"and still"


async def test_a_refused_dial_is_a_reset(caplog: pytest.LogCaptureFixture) -> None:
    async with rig.path() as path:
        listener = await path.tcp(rig.closed_port())
        await assert_reset(rig.port_of(listener))
        await assert_reset(rig.port_of(listener), b"GET / HTTP/1.0\r\n\r\n")
        await rig.until(lambda: not listener.connections)
        await rig.until(lambda: path.streams == (0, 0))
    assert "web: connection refused: 127.0.0.1:" in caplog.text


async def test_a_target_that_resets_resets_the_client() -> None:
    async def slam(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        rig.rst(writer)

    async with rig.path() as path, rig.tcp_target(slam) as target:
        await assert_reset(rig.port_of(await path.tcp(target)), b"x")


async def test_a_client_that_resets_resets_the_target() -> None:
    seen: asyncio.Future[BaseException] = asyncio.get_running_loop().create_future()

    async def wait(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"ready")
        try:
            await reader.read()
        except ConnectionResetError as exc:
            seen.set_result(exc)

    async with rig.path() as path, rig.tcp_target(wait) as target:
        port = rig.port_of(await path.tcp(target))
        async with rig.connect(port) as (reader, writer):
            assert await reader.readexactly(5) == b"ready"
            rig.rst(writer)
            assert isinstance(await seen, ConnectionResetError)


# -- parking -----------------------------------------------------------------------------------


async def test_a_connection_waits_for_its_route() -> None:
    async with rig.path() as path, rig.tcp_target(rig.echo) as target:
        route = path.route(None)
        listener = await path.tcp(route)
        async with asyncio.TaskGroup() as tasks:
            answer = tasks.create_task(rig.exchange(rig.port_of(listener), b"early"))
            await rig.until(lambda: listener.connections)
            assert path.streams == (0, 0)
            route.update(Resolution(Protocol.TCP, Endpoint(rig.HOST, target)))
        assert answer.result() == b"early"


async def test_a_connection_waits_for_a_tunnel() -> None:
    async with rig.path() as path, rig.tcp_target(rig.echo) as target:
        listener = await path.tcp(target)
        path.link.cut(blocked=True)
        await rig.until(lambda: path.pool.pick() is None)
        async with asyncio.TaskGroup() as tasks:
            answer = tasks.create_task(rig.exchange(rig.port_of(listener), b"early"))
            await rig.until(lambda: listener.connections)
            path.link.blocked = False
        assert answer.result() == b"early"


MISSING = Resolution(Protocol.TCP, None, 'service "web" not found', missing=True)


async def test_a_connection_to_what_does_not_exist_is_reset_at_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with rig.path() as path, rig.tcp_target(rig.echo) as target:
        route = path.route(None, followed=True)
        listener = await path.tcp(route, open_timeout=3600.0)
        port = rig.port_of(listener)
        async with rig.connect(port) as (reader, _):
            await rig.until(lambda: listener.connections)
            # One that waits for the first answer is reset with it.
            route.update(MISSING)
            with pytest.raises(ConnectionResetError):
                await reader.read()
        await assert_reset(port)
        assert caplog.text.count('web: connection reset: service "web" not found') == 2
        assert listener.metrics.results == {"no_stream": 2}
        route.update(Resolution(Protocol.TCP, Endpoint(rig.HOST, target)))
        assert await rig.exchange(port, b"x") == b"x"


async def test_a_connection_waits_for_what_existed_and_may_come_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with rig.path() as path, rig.tcp_target(rig.echo) as target:
        there = Resolution(Protocol.TCP, Endpoint(rig.HOST, target))
        route = path.route(target, followed=True)
        listener = await path.tcp(route, open_timeout=3600.0)
        route.update(MISSING)
        async with rig.connect(rig.port_of(listener)) as (reader, writer):
            writer.write(b"x")
            await rig.until(lambda: len(connector.connection_queue()) == 1)
            route.update(there)
            assert await reader.readexactly(1) == b"x"
        monkeypatch.setattr("krelay.datapath.route.REAPPEARS", 0.0)
        route.update(MISSING)
        await assert_reset(rig.port_of(listener))


@pytest.mark.parametrize("tunnel", [True, False])
async def test_a_connection_that_waited_long_enough_is_reset(
    tunnel: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with rig.path() as path:
        if tunnel:
            route = path.route(None)
            route.update(Resolution(Protocol.TCP, None, reason="no ready pod"))
        else:
            route = path.route(1)
            path.link.cut(blocked=True)
            await rig.until(lambda: path.pool.pick() is None)
        listener = await path.tcp(route, open_timeout=0.1)
        await assert_reset(rig.port_of(listener), b"x")
        await rig.until(lambda: not listener.connections)
    why = "no ready pod" if tunnel else "no tunnel to the agent"
    assert f"web: connection reset: waited 0.1 s: {why}" in caplog.text


async def test_a_client_that_goes_while_it_waits_is_forgotten() -> None:
    async with rig.path() as path, rig.tcp_target(rig.swallow) as target:
        route = path.route(None)
        listener = await path.tcp(route)
        async with rig.connect(rig.port_of(listener)) as (_, writer):
            await rig.until(lambda: listener.connections)
            rig.rst(writer)
        route.update(Resolution(Protocol.TCP, Endpoint(rig.HOST, target)))
        await rig.until(lambda: not listener.connections)
        await rig.until(lambda: path.streams == (0, 0))


async def test_a_full_session_resets_the_connection_with_a_reason(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig.path() as path, rig.tcp_target(rig.hold) as target:
        connection = rig.connection(path.pool)
        connection.session.limits = Limits(streams=1)
        port = rig.port_of(await path.tcp(target))
        async with rig.connect(port):
            await rig.until(lambda: path.streams == (1, 1))
            await assert_reset(port)
    assert "web: connection reset: 1 streams are open" in caplog.text


async def test_a_bug_in_opening_costs_one_connection(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    async with rig.path() as path, rig.tcp_target(rig.echo) as target:
        listener = await path.tcp(path.route(None))
        with monkeypatch.context() as patch:
            patch.setattr(connector, "open_within", broken)
            await assert_reset(rig.port_of(listener))
        assert await rig.exchange(rig.port_of(await path.tcp(target)), b"on") == b"on"
    assert "ZeroDivisionError" in caplog.text


# -- one more try ------------------------------------------------------------------------------


async def test_a_refused_dial_is_tried_once_more_on_a_fresh_endpoint() -> None:
    data = rig.noise(200_000)
    async with rig.path() as path, rig.tcp_target(rig.echo) as target:
        route = path.route(rig.closed_port(), followed=True)
        listener = await path.tcp(route)
        async with asyncio.TaskGroup() as tasks:
            answer = tasks.create_task(rig.exchange(rig.port_of(listener), data))
            await rig.until(lambda: any(c._request._retried for c in listener.connections))
            route.update(Resolution(Protocol.TCP, Endpoint(rig.HOST, target)))
        assert answer.result() == data


async def test_a_dial_refused_twice_is_a_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connector, "RETRY_WAIT", 0.01)
    dials = 0

    async with rig.path() as path:
        port = rig.port_of(await path.tcp(path.route(rig.closed_port(), followed=True)))
        carrier = path.pool.pick()
        assert carrier is not None
        opened = carrier.open

        def count(*args: object) -> object:
            nonlocal dials
            dials += 1
            return opened(*args)  # type: ignore[arg-type]

        monkeypatch.setattr(carrier, "open", count)
        await assert_reset(port, b"x")
    assert dials == 2


async def test_an_endpoint_that_has_just_appeared_may_refuse_for_a_while(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """kube-proxy learns of it later than krelay does."""
    monkeypatch.setattr(connector, "RETRY_WAIT", 0.01)
    async with rig.path() as path, rig.tcp_target(rig.echo) as target:
        late = rig.closed_port()
        route = path.route(late, followed=True)
        route.update(Resolution(Protocol.TCP, None, "no ready endpoint"))
        listener = await path.tcp(route)
        carrier = path.pool.pick()
        assert carrier is not None
        opened, dials = carrier.open, 0

        def count(*args: object) -> object:
            nonlocal dials
            dials += 1
            return opened(*args)  # type: ignore[arg-type]

        monkeypatch.setattr(carrier, "open", count)
        async with asyncio.TaskGroup() as tasks:
            answer = tasks.create_task(rig.exchange(rig.port_of(listener), b"x"))
            route.update(Resolution(Protocol.TCP, Endpoint(rig.HOST, late)))
            await rig.until(lambda: dials > 4)
            route.update(Resolution(Protocol.TCP, Endpoint(rig.HOST, target)))
        assert answer.result() == b"x"


async def test_a_dial_on_a_route_that_cannot_change_is_not_retried() -> None:
    async with rig.path() as path:
        listener = await path.tcp(path.route(rig.closed_port()))
        await assert_reset(rig.port_of(listener))
        assert not any(c._request._retried for c in listener.connections)


async def test_a_client_that_leaves_between_two_dials_is_forgotten() -> None:
    async with rig.path() as path:
        listener = await path.tcp(path.route(rig.closed_port(), followed=True))
        async with rig.connect(rig.port_of(listener)) as (_, writer):
            await rig.until(lambda: any(c._request._retried for c in listener.connections))
            rig.rst(writer)
        await rig.until(lambda: not listener.connections)
        await rig.until(lambda: path.streams == (0, 0))


# -- the end -----------------------------------------------------------------------------------


async def test_draining_lets_live_connections_finish_and_takes_no_new_ones() -> None:
    async with rig.path() as path, rig.tcp_target(rig.echo) as target:
        listener = await path.tcp(target)
        port = rig.port_of(listener)
        async with rig.connect(port) as (reader, writer), asyncio.TaskGroup() as tasks:
            writer.write(b"a")
            assert await reader.readexactly(1) == b"a"
            drained = tasks.create_task(listener.drain(30.0))
            await rig.until(lambda: not listener.accepting)
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(rig.HOST, port)
            assert not drained.done()
            writer.write(b"b")
            writer.write_eof()
            assert await reader.read() == b"b"
        assert drained.done()


async def test_draining_cuts_what_does_not_finish(caplog: pytest.LogCaptureFixture) -> None:
    async with rig.path() as path, rig.tcp_target(rig.echo) as target:
        listener = await path.tcp(target)
        async with rig.connect(rig.port_of(listener)) as (reader, writer):
            writer.write(b"a")
            assert await reader.readexactly(1) == b"a"
            await listener.drain(0.01)
            with pytest.raises(ConnectionResetError):
                await reader.read()
        await rig.until(lambda: path.streams == (0, 0))
    assert "web: 1 connections are cut" in caplog.text


def quieten(listener: TcpListener) -> None:
    """Let all connections have moved nothing for a long time."""
    for connection in listener.connections:
        connection.moved_at -= 3600.0


@asynccontextmanager
async def ending(listener: TcpListener) -> AsyncIterator[asyncio.Task[None]]:
    """A drain that ends quiet connections; it has to end by itself."""
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(listener.drain(3600.0))
        await rig.until(lambda: not listener.accepting)
        listener.end_quiet()
        yield task


async def test_a_stop_resets_quiet_connections_at_once_and_waits_for_the_others() -> None:
    async with rig.path() as path, rig.tcp_target(rig.echo) as target:
        listener = await path.tcp(target)
        port = rig.port_of(listener)
        async with rig.connect(port) as quiet:
            quiet[1].write(b"a")
            assert await quiet[0].readexactly(1) == b"a"
            assert listener.moving == 1
            quieten(listener)
            async with rig.connect(port) as (reader, writer):
                writer.write(b"b")
                assert await reader.readexactly(1) == b"b"
                assert (listener.live, listener.moving) == (2, 1)
                async with ending(listener) as draining:
                    with pytest.raises(ConnectionResetError):
                        await quiet[0].read()
                    assert not draining.done()
                    writer.write(b"c")
                    writer.write_eof()
                    assert await reader.read() == b"c"


async def test_a_stop_resets_a_connection_once_it_becomes_quiet(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "QUIET", 0.05)
    async with rig.path() as path, rig.tcp_target(rig.echo) as target:
        listener = await path.tcp(target)
        async with rig.connect(rig.port_of(listener)) as (reader, writer):
            writer.write(b"a")
            assert await reader.readexactly(1) == b"a"
            async with ending(listener):
                with pytest.raises(ConnectionResetError):
                    await reader.read()


async def test_a_stop_waits_for_a_slow_reader() -> None:
    """Little of it moves, and nothing for seconds, but the reader has not got it all."""
    size = 3 << 20

    async def send(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(bytes(size))
        await writer.drain()
        writer.write_eof()

    async with rig.path() as path, rig.tcp_target(send) as target:
        listener = await path.tcp(target)
        loop = asyncio.get_running_loop()
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            sock.setblocking(False)
            await loop.sock_connect(sock, (rig.HOST, rig.port_of(listener)))
            await rig.until(lambda: any(c.sent_bytes for c in listener.connections))
            quieten(listener)
            assert listener.moving == 1
            async with ending(listener) as draining:
                received = 0
                while data := await loop.sock_recv(sock, 1 << 16):
                    received += len(data)
                assert received == size
                assert not draining.done()
                sock.close()


async def test_a_stop_waits_for_what_a_busy_target_has_not_read() -> None:
    go = asyncio.Event()

    async def read_late(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await go.wait()
        count = 0
        while data := await reader.read(1 << 20):
            count += len(data)
        writer.write(str(count).encode())

    async with rig.path() as path, rig.tcp_target(read_late) as target:
        listener = await path.tcp(target)
        async with rig.connect(rig.port_of(listener)) as (reader, writer):
            size = 24 << 20
            writer.write(bytes(size))
            writer.write_eof()
            await rig.until(lambda: listener.connections)
            (connection,) = listener.connections
            await rig.until(lambda: connection.transport and not connection.transport.is_reading())
            quieten(listener)
            async with ending(listener):
                go.set()
                assert await reader.read() == str(size).encode()


async def test_a_stop_closes_a_connection_whose_target_has_ended_in_good_order() -> None:
    async def send(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"all of it")

    async with rig.path() as path, rig.tcp_target(send) as target:
        listener = await path.tcp(target)
        with socket.create_connection((rig.HOST, rig.port_of(listener))) as sock:
            sock.setblocking(False)
            await rig.until(lambda: any(c._remote_ended for c in listener.connections))
            (connection,) = listener.connections
            quieten(listener)
            await rig.until(lambda: connection.is_quiet(time.monotonic()))
            async with ending(listener):
                pass
            loop = asyncio.get_running_loop()
            assert await loop.sock_recv(sock, 100) == b"all of it"
            assert await loop.sock_recv(sock, 100) == b""
        await rig.until(lambda: path.streams == (0, 0))


async def test_draining_resets_connections_without_a_stream_at_once() -> None:
    async with rig.path() as path:
        listener = await path.tcp(path.route(None))
        async with rig.connect(rig.port_of(listener)) as (reader, _):
            await rig.until(lambda: listener.connections)
            await listener.drain(3600.0)
            with pytest.raises(ConnectionResetError):
                await reader.read()


async def test_a_connection_that_comes_as_the_listener_closes_is_reset() -> None:
    async with rig.path() as path:
        listener = await path.tcp(rig.closed_port())
        listener.close()
        loop = asyncio.get_running_loop()
        server = await loop.create_server(lambda: LocalRelay(listener), rig.HOST, 0)
        await assert_reset(server.sockets[0].getsockname()[1])
        server.close()
        assert not listener.connections


@pytest.mark.parametrize("turns", range(5))
async def test_a_connection_accepted_as_the_listener_closes_is_reset(turns: int) -> None:
    loop = asyncio.get_running_loop()
    async with rig.path() as path:
        listener = await path.tcp(rig.closed_port())

        def close(left: int) -> None:
            if left:
                loop.call_soon(close, left - 1)
            else:
                listener.cut()

        with socket.create_connection(listener.addresses[0]) as client:
            client.setblocking(False)
            close(turns)
            with pytest.raises(ConnectionResetError):
                await loop.sock_recv(client, 1)
        await rig.until(lambda: not listener.connections)


async def test_a_connection_that_comes_as_krelay_ends_is_reset() -> None:
    async with rig.path() as path:
        async with TaskGroup() as ended:
            pass
        listener = TcpListener("web", path.route(None), ended, open_timeout=30.0)
        await listener.open(rig.HOST, 0)
        await assert_reset(rig.port_of(listener))
        listener.cut()


async def test_an_address_in_use_is_a_listen_error() -> None:
    async with rig.path() as path:
        port = rig.port_of(await path.tcp(1))
        listener = TcpListener("web", path.route(1), path.tasks, open_timeout=1.0)
        with pytest.raises(ListenError, match=f"cannot listen on 127.0.0.1:{port}: Address"):
            await listener.open(rig.HOST, port)
        assert not listener.accepting


async def test_localhost_answers_in_both_families() -> None:
    if len(bound := bind("localhost", 0, socket.SOCK_STREAM)) < 2:
        pytest.skip("no IPv6 here")
    for sock in bound:
        sock.close()
    async with rig.path() as path, rig.tcp_target(rig.echo) as target:
        listener = TcpListener("web", path.route(target), path.tasks, open_timeout=30.0)
        await listener.open("localhost", 0)
        (four, port), (six, other) = listener.addresses
        assert (four, six, port) == ("127.0.0.1", "::1", other)
        assert await rig.exchange(port, b"4", four) == b"4"
        assert await rig.exchange(port, b"6", six) == b"6"
        listener.cut()
