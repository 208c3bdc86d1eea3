"""The TCP listener before a whole data path on real sockets."""

from __future__ import annotations

import asyncio
import socket

import pytest

from krelay.datapath import connector
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
