"""How streams come to be; what listeners make of it is in their own tests."""

from __future__ import annotations

import asyncio
import struct
from collections.abc import AsyncIterator, Awaitable
from contextlib import asynccontextmanager
from functools import partial

import pytest

from krelay.datapath import connector as module
from krelay.datapath.connector import StreamRequest, client_of, open_now, open_within
from krelay.datapath.tcp import TcpListener
from krelay.model import Endpoint, Protocol, Resolution
from krelay.mux.relay import TcpRelay
from krelay.mux.stream import MuxStream, Stream
from krelay.tasks import TaskGroup
from krelay.wire.errors import ErrorCode, ProtocolError
from krelay.wire.session import Limits
from tests import rig


async def test_a_stream_carries_its_endpoint_in_the_header() -> None:
    async with rig.path() as path:
        for protocol, number in ((Protocol.TCP, 0), (Protocol.UDP, 1)):
            stream = open_now(path.route(80, protocol, "::1"), protocol, TcpRelay())
            assert isinstance(stream, MuxStream)
            header = stream.header
            assert (header.protocol, header.host, header.port) == (number, "::1", 80)
            stream.reset()
        await rig.until(lambda: path.streams == (0, 0))


async def test_without_an_endpoint_or_a_tunnel_no_stream_is_opened() -> None:
    async with rig.path() as path:
        assert open_now(path.route(None), Protocol.TCP, TcpRelay()) is None
        path.link.cut(blocked=True)
        await rig.until(lambda: path.pool.pick() is None)
        assert open_now(path.route(80), Protocol.TCP, TcpRelay()) is None


async def test_a_full_session_is_a_protocol_error_at_once_and_after_a_wait() -> None:
    async with rig.path() as path:
        connection = rig.connection(path.pool)
        connection.session.limits = Limits(streams=0)
        with pytest.raises(ProtocolError) as caught:
            open_now(path.route(80), Protocol.TCP, TcpRelay())
        assert caught.value.code == ErrorCode.LIMIT
        with pytest.raises(ProtocolError):
            await open_within(1.0, path.route(80), Protocol.TCP, TcpRelay())


async def test_waiting_for_a_stream_ends_with_its_timeout() -> None:
    async with rig.path() as path:
        with pytest.raises(TimeoutError):
            await open_within(0.01, path.route(None), Protocol.TCP, TcpRelay())


async def test_an_endpoint_that_goes_while_the_tunnel_comes_is_waited_for_again() -> None:
    async with rig.path() as path, rig.tcp_target(rig.hold) as target:
        route = path.route(rig.closed_port())
        path.link.cut(blocked=True)
        await rig.until(lambda: path.pool.pick() is None)
        async with asyncio.TaskGroup() as tasks:
            waiting_stream = tasks.create_task(open_within(3600.0, route, Protocol.TCP, TcpRelay()))
            await asyncio.sleep(0)
            route.update(Resolution(Protocol.TCP, None, reason="gone"))
            path.link.blocked = False
            await rig.until(path.pool.pick)
            assert not waiting_stream.done()
            route.update(Resolution(Protocol.TCP, Endpoint(rig.HOST, target)))
        assert port_of(waiting_stream.result()) == target
        waiting_stream.result().reset()


async def test_after_a_refusal_another_endpoint_is_dialled_at_once() -> None:
    async with rig.path() as path, rig.tcp_target(rig.hold) as target:
        refused = Endpoint(rig.HOST, 1)
        route = path.route(target)
        stream = await open_within(3600.0, route, Protocol.TCP, TcpRelay(), refused=refused)
        assert port_of(stream) == target
        stream.reset()


def port_of(stream: Stream) -> int:
    assert isinstance(stream, MuxStream)
    return stream.header.port


class StreamRequester(TcpRelay):
    """Records its calls."""

    def __init__(self, error: Exception | None = None) -> None:
        super().__init__()
        self.reason: str | None = None
        self._error = error

    def on_queued(self) -> None:
        """Nothing to do."""

    def on_stream(self, stream: Stream) -> None:
        stream.handler = self
        if self._error is not None:
            raise self._error

    def on_open_failed(self, reason: str) -> None:
        self.reason = reason
        if self._error is not None:
            raise self._error


@pytest.mark.parametrize("wait", [False, True])
async def test_a_bug_in_opening_fails_the_request(
    wait: bool, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Neither is a connection left open, nor does the listener's group end."""
    async with rig.path() as path:
        route = path.route(None if wait else 80)
        forwarding = TcpListener("web", route, path.tasks, open_timeout=3600.0)
        carrier = path.pool.pick()
        assert carrier is not None

        def fail(*_: object) -> None:
            raise struct.error("a bug")

        monkeypatch.setattr(carrier, "open", fail)
        opener = StreamRequester()
        StreamRequest(forwarding, Protocol.TCP, opener).start()
        if wait:
            await asyncio.sleep(0)
            route.update(Resolution(Protocol.TCP, Endpoint(rig.HOST, 80)))
            await rig.until(lambda: opener.reason)
        assert opener.reason == "internal error"
    assert "struct.error: a bug" in caplog.text


@pytest.mark.parametrize("wait", [False, True])
async def test_a_requester_that_fails_loses_its_stream(
    wait: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with rig.path() as path, rig.tcp_target(rig.hold) as target:
        route = path.route(None if wait else target)
        forwarding = TcpListener("web", route, path.tasks, open_timeout=3600.0)
        opener = StreamRequester(ZeroDivisionError())
        StreamRequest(forwarding, Protocol.TCP, opener).start()
        if wait:
            await asyncio.sleep(0)
            route.update(Resolution(Protocol.TCP, Endpoint(rig.HOST, target)))
            await rig.until(lambda: opener.reason)
        assert opener.reason == "internal error"
        await rig.until(lambda: path.streams == (0, 0))
    assert "ZeroDivisionError" in caplog.text


async def test_a_queued_request_fails_when_the_task_group_ends() -> None:
    async with rig.path() as path:
        opener = StreamRequester()

        async def ends() -> None:
            async with TaskGroup() as tasks:
                forwarding = TcpListener("web", path.route(None), tasks, open_timeout=3600.0)
                StreamRequest(forwarding, Protocol.TCP, opener).start()
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError):
            await ends()
        await asyncio.sleep(0)
        assert opener.reason == "krelay is stopping"


@pytest.mark.parametrize(
    ("host", "port", "why"),
    [
        ("10.0.0.1", 70_000, "a port is at most 65535: 70000"),
        ("10.0.0.1", 0, "port 0"),
        ("x" * 300, 80, "a host name has 1 to 255 bytes"),
        ("", 80, "a host name has 1 to 255 bytes"),
        ("web\n", 80, "a host name has no control characters"),
    ],
)
async def test_a_request_fails_at_once_for_an_endpoint_that_no_header_can_carry(
    host: str, port: int, why: str
) -> None:
    async with rig.path() as path:
        route = path.route(None)
        async with asyncio.TaskGroup() as tasks:
            opening = open_within(3600.0, route, Protocol.TCP, TcpRelay())
            waiting = tasks.create_task(asyncio.wait([tasks.create_task(fails(opening))]))
            await asyncio.sleep(0)
            route.update(Resolution(Protocol.TCP, Endpoint(host, port)))
        assert waiting.done()
        assert route.endpoint is None
        assert why in route.reason
        with pytest.raises(ProtocolError, match=why):
            open_now(route, Protocol.TCP, TcpRelay())
        route.update(Resolution(Protocol.TCP, Endpoint(rig.HOST, 80)))
        stream = open_now(route, Protocol.TCP, TcpRelay())
        assert stream is not None
        stream.reset()


async def fails(work: Awaitable[object]) -> None:
    with pytest.raises(ProtocolError):
        await work


# -- several endpoints, and none that is ready -------------------------------------------------


@asynccontextmanager
async def listening(path: rig.Path, found: Resolution, wait: float) -> AsyncIterator[TcpListener]:
    route = path.route(None, followed=True)
    route.update(found)
    yield await path.tcp(route, open_timeout=wait)


async def test_a_connection_falls_back_after_its_wait_and_the_next_at_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with rig.path() as path, rig.tcp_target(rig.echo) as target:
        unready = Resolution(Protocol.TCP, Endpoint(rig.HOST, target), via="pod a")
        found = Resolution(Protocol.TCP, reason="pod a is not ready", fallback=unready)
        async with listening(path, found, 0.01) as listener:
            port = listener.addresses[0][1]
            assert await rig.exchange(port, b"one") == b"one"
            listener.open_timeout = 3600.0
            assert await rig.exchange(port, b"two") == b"two"
    assert "web: waited 0.01 s: pod a is not ready; using pod a" in caplog.text


async def test_a_cluster_ip_that_refuses_is_passed_over(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "RETRY_WAIT", 0.0)
    caplog.set_level("INFO", "krelay.listener")
    async with rig.path() as path, rig.tcp_target(rig.echo) as target:
        refusing = Endpoint(rig.HOST, rig.closed_port())
        endpoints = (Endpoint(rig.HOST, target),)
        found = Resolution(Protocol.TCP, refusing, via="clusterIP", endpoints=endpoints)
        async with listening(path, found, 5.0) as listener:
            port = listener.addresses[0][1]
            assert await rig.exchange(port, b"one") == b"one"
            assert listener.route.endpoint == endpoints[0]
            assert await rig.exchange(port, b"two") == b"two"
    assert caplog.text.count("new connections go there") == 1


async def test_the_connections_of_one_client_share_an_endpoint() -> None:
    async def serve(
        name: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        writer.write(name)
        writer.close()

    async with (
        rig.path() as path,
        rig.tcp_target(partial(serve, b"a")) as one,
        rig.tcp_target(partial(serve, b"b")) as two,
    ):
        endpoints = tuple(Endpoint(rig.HOST, port) for port in (one, two))
        for affinity, names in ((False, 2), (True, 1)):
            found = Resolution(Protocol.TCP, endpoints[0], endpoints=endpoints, affinity=affinity)
            async with listening(path, found, 5.0) as listener:
                port = listener.addresses[0][1]
                answers = set()
                for _ in range(4):
                    async with rig.connect(port) as (reader, _writer):
                        answers.add(await reader.read())
                assert len(answers) == names


def test_loopback_is_one_client() -> None:
    addresses = [("127.0.0.1", 1), ("::1", 1, 0, 0), None, ("192.0.2.1", 5)]
    assert [client_of(address) for address in addresses] == ["", "", "", "192.0.2.1"]
