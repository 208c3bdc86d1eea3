"""Legacy mode: through an agent without sessions, each stream has its own tunnel."""

from __future__ import annotations

import asyncio
import ctypes
import hashlib
import logging
import math
import socket
import struct
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from krelay import legacy as module
from krelay.datapath.pool import Pool
from krelay.datapath.route import Route
from krelay.datapath.tcp import TcpListener
from krelay.datapath.udp import UdpListener
from krelay.errors import (
    EndedError,
    NotListeningError,
    PodGoneError,
    TunnelError,
    TunnelRefusedError,
)
from krelay.legacy import Dial, LegacyStream, LegacyTunnels
from krelay.model import Endpoint, Protocol, Resolution
from krelay.tasks import TaskGroup
from krelay.wire.errors import ErrorCode, ProtocolError
from krelay.wire.header import Header
from tests import rig
from tests.datapath.v0 import V0Agent, v0_agent


class Place:
    """A pool before a v0 agent, and listeners on it."""

    name = "tcp"
    private = True
    expires = math.inf
    shortcut = None
    shortcut_only = False
    starting = None

    def __init__(self, agent: V0Agent, port: int, tasks: TaskGroup) -> None:
        self.agent = agent
        self.gone = False
        self.dials = 0
        self._port = port
        self._tasks = tasks
        self.pool = Pool("p", [self], rig.KEY, size=1, legacy=LegacyTunnels)
        self.listeners: list[TcpListener | UdpListener] = []

    async def dial(self, protocol: asyncio.Protocol) -> asyncio.Transport:
        self.dials += 1
        if self.gone:
            raise PodGoneError("the pod was deleted")
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_connection(lambda: protocol, rig.HOST, self._port)
        return transport

    def reached(self) -> None:
        """Nothing waits for it."""

    async def reachable_again(self) -> None:
        await asyncio.get_running_loop().create_future()

    async def abandon(self, reason: str) -> None:
        raise AssertionError(reason)

    async def listen(
        self, port: int, protocol: Protocol = Protocol.TCP, host: str = rig.HOST
    ) -> int:
        route = Route(self.pool, followed=False)
        route.update(Resolution(protocol, Endpoint(host, port)))
        make = UdpListener if protocol is Protocol.UDP else TcpListener
        listener = make("web", route, self._tasks, open_timeout=5.0)
        self.listeners.append(listener)
        await listener.open(rig.HOST, 0)
        return rig.port_of(listener)


@asynccontextmanager
async def place() -> AsyncIterator[Place]:
    async with v0_agent() as (agent, port), TaskGroup() as tasks:
        made = Place(agent, port, tasks)
        running = tasks.create_task(made.pool.run())
        await rig.until(made.pool.pick)
        try:
            yield made
        finally:
            for listener in made.listeners:
                listener.cut()
            running.cancel()


async def test_an_agent_that_refuses_the_session_protocol_is_a_legacy_agent(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with place() as p:
        assert not p.pool.tunnels[0].multiplexed
        # Version 0, 16 bytes, an id, protocol 75: what a session opens with.
        assert p.agent.headers[0][8] == 75
        await rig.until(lambda: caplog.text.count("the agent does not support sessions"))
        assert caplog.text.count("the agent does not support sessions") == 1


async def test_a_pool_without_a_legacy_carrier_refuses_such_an_agent() -> None:
    async with v0_agent() as (_, port):
        link = rig.AgentLink(None)

        async def dial(protocol: asyncio.Protocol) -> asyncio.Transport:
            loop = asyncio.get_running_loop()
            return (await loop.create_connection(lambda: protocol, rig.HOST, port))[0]

        link.dial = dial  # type: ignore[method-assign]
        pool = Pool("p", [link], rig.KEY, size=1)
        async with rig.running(pool, up=False):
            await pool.wait_change()
            assert isinstance(pool.failure, TunnelRefusedError)
            assert str(pool.failure) == "the agent does not support sessions"
            assert pool.pick() is None


async def test_the_header_is_the_go_krelay_s_byte_for_byte() -> None:
    async with rig.tcp_target(rig.echo) as target, place() as p:
        assert await rig.exchange(await p.listen(target), b"hello") == b"hello"
        head = p.agent.headers[-1]
        port = target.to_bytes(2, "big")
        assert (head[:3], head[8:]) == (b"\0\0\x10", b"\0" + port + b"\0\x7f\0\0\1")
        assert await rig.exchange(await p.listen(target, host="localhost"), b"x") == b"x"
        assert p.agent.headers[-1][8:] == b"\0" + port + b"\1localhost"


async def test_bytes_and_ends_pass_in_both_directions() -> None:
    data = rig.noise(8 << 20)

    async def digest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # The whole is read to its end before the answer: the half-close crosses.
        writer.write(hashlib.sha256(await reader.read()).digest() + data)
        await writer.drain()

    async with rig.tcp_target(digest) as target, place() as p:
        answer = await rig.exchange(await p.listen(target), data)
        assert answer == hashlib.sha256(data).digest() + data
        await rig.until(lambda: not p.pool.streams and not p.agent.live)


async def test_a_legacy_pool_is_idle_when_its_last_stream_ends() -> None:
    async with rig.tcp_target(rig.hold) as target, place() as p:
        async with rig.connect(await p.listen(target)), TaskGroup() as tasks:
            await rig.until(lambda: p.pool.streams)
            idle = tasks.create_task(p.pool.wait_idle())
            await asyncio.sleep(0.01)
            assert not idle.done()
            p.listeners[0].cut()
        assert p.pool.streams == 0


async def test_many_at_once() -> None:
    async with rig.tcp_target(rig.echo) as target, place() as p:
        port = await p.listen(target)
        asked = [rig.noise(5_000) for _ in range(100)]
        assert await asyncio.gather(*(rig.exchange(port, data) for data in asked)) == asked
        await rig.until(lambda: not p.pool.streams)


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (2, "refused"),
        (3, "no such host"),
        (4, "resolution timed out"),
        (5, "connect"),
        (6, "unknown protocol"),
        (99, "refused"),
    ],
)
async def test_a_refused_stream_is_reset_and_logged(
    status: int, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with place() as p:
        port = await p.listen(1)
        p.agent.status = status
        with pytest.raises(ConnectionResetError):
            await rig.exchange(port, b"x")
        await rig.until(lambda: not p.pool.streams)
    assert text in caplog.text.lower()


async def test_a_slow_reader_holds_the_tunnel_back() -> None:
    async def pour(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(64):
            writer.write(bytes(1 << 20))
            await writer.drain()
        writer.write_eof()

    async with rig.tcp_target(pour) as target, place() as p:
        async with rig.connect(await p.listen(target)) as (reader, _):
            (stream,) = await streams(p)
            await rig.until(lambda: stream._unconsumed > module.WINDOW)
            assert stream._unconsumed < module.WINDOW + (1 << 20)
            assert len(await reader.read()) == 64 << 20


def made(dial: Dial, on_idle: Callable[[], None] = lambda: None) -> LegacyTunnels:
    link = rig.AgentLink(None)
    link.dial = dial  # type: ignore[assignment,method-assign]
    return LegacyTunnels("p", link, on_idle)


async def streams(p: Place) -> list[LegacyStream]:
    tunnels = p.pool.tunnels[0].carrier
    assert isinstance(tunnels, LegacyTunnels)
    await rig.until(lambda: tunnels.streams)
    return list(tunnels.streams)


async def test_datagrams_of_two_clients_come_back_whole() -> None:
    async with rig.udp_echo() as target, place() as p:
        port = await p.listen(target, Protocol.UDP)
        async with rig.udp_socket(connect=port) as one, rig.udp_socket(connect=port) as two:
            for size in (0, 1, 1_400, 60_000):
                for sock in (one, two):
                    data = rig.noise(size)
                    sock.send(data)
                    assert await rig.recv(sock) == data
            assert len(p.agent.headers) == 3


async def test_heartbeats_keep_the_agent_alive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "HEARTBEAT", 0.01)
    async with place() as p:
        await rig.until(lambda: p.agent.heartbeats >= 3)


async def test_a_bug_in_a_dial_is_one_missed_heartbeat(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "HEARTBEAT", 0.01)
    async with place() as p:
        tunnels = p.pool.tunnels[0].carrier
        assert isinstance(tunnels, LegacyTunnels)
        real, broken = tunnels._dial, 0

        async def dial(protocol: asyncio.Protocol) -> asyncio.Transport:
            nonlocal broken
            broken += 1
            if broken == 1:
                raise ZeroDivisionError
            return await real(protocol)

        tunnels._dial = dial
        await rig.until(lambda: broken)
        before = p.agent.heartbeats
        await rig.until(lambda: p.agent.heartbeats > before)
    assert "dialling failed" in caplog.text


async def test_a_lost_agent_resets_its_streams_and_is_dialled_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "HEARTBEAT", 0.01)
    async with rig.tcp_target(rig.echo) as target, place() as p:
        port = await p.listen(target)
        async with rig.connect(port) as (reader, writer):
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
            p.gone = True
            with pytest.raises(ConnectionResetError):
                await reader.read()
        await rig.until(lambda: not p.pool.pick())
        async with asyncio.TaskGroup() as tasks:
            waiting = tasks.create_task(rig.exchange(port, b"y"))
            p.gone = False
        assert waiting.result() == b"y"


async def test_a_dial_that_fails_is_tried_once_more(caplog: pytest.LogCaptureFixture) -> None:
    async with rig.tcp_target(rig.echo) as target, place() as p:
        port = await p.listen(target)
        real, fails = p.dial, 1

        async def once(protocol: asyncio.Protocol) -> asyncio.Transport:
            nonlocal fails
            if fails:
                fails -= 1
                raise ConnectionRefusedError("not now")
            return await real(protocol)

        tunnels = p.pool.tunnels[0].carrier
        assert isinstance(tunnels, LegacyTunnels)
        tunnels._dial = once
        assert await rig.exchange(port, b"x") == b"x"
        fails = 2
        with pytest.raises(ConnectionResetError):
            await rig.exchange(port, b"x")


async def test_a_bug_in_a_dial_costs_one_stream(caplog: pytest.LogCaptureFixture) -> None:
    async with rig.tcp_target(rig.echo) as target, place() as p:
        port = await p.listen(target)
        tunnels = p.pool.tunnels[0].carrier
        assert isinstance(tunnels, LegacyTunnels)

        async def broken(protocol: asyncio.Protocol) -> asyncio.Transport:
            raise ZeroDivisionError

        tunnels._dial, real = broken, tunnels._dial
        with pytest.raises(ConnectionResetError):
            await rig.exchange(port, b"x")
        tunnels._dial = real
        assert await rig.exchange(port, b"x") == b"x"
    assert "p t1: dialling failed".replace(" ", "") in caplog.text.replace(" ", "")


# -- a stream by itself ------------------------------------------------------------------------


class Recorder:
    """A handler that keeps its events."""

    def __init__(self) -> None:
        self.events: list[object] = []

    def __getattr__(self, name: str) -> object:
        if not name.startswith("on_"):
            raise AttributeError(name)

        def note(*args: object) -> None:
            self.events.append((name[3:], *args))

        return note


async def test_a_handler_that_fails_costs_one_stream(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def shut(protocol: asyncio.Protocol) -> asyncio.Transport:
        raise TunnelError("shut")

    class Broken(Recorder):
        def on_refused(self, *_: object) -> None:
            raise ZeroDivisionError

    tunnels = made(shut)
    asked = Header(0, rig.HOST, 1)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(tunnels.run())
        await asyncio.sleep(0)
        other = Recorder()
        tunnels.open(asked, Broken())  # type: ignore[arg-type]
        tunnels.open(asked, other)  # type: ignore[arg-type]
        await rig.until(lambda: not tunnels.streams)
        assert other.events == [("refused", ErrorCode.GOING_AWAY, "shut")]
        assert not running.done()
        tunnels._lost.set_result(PodGoneError("gone"))
    assert "ZeroDivisionError" in caplog.text


async def test_a_legacy_carrier_refuses_what_exceeds_its_limits(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def never(protocol: asyncio.Protocol) -> asyncio.Transport:
        await asyncio.get_running_loop().create_future()
        raise AssertionError

    tunnels = made(never)
    asked = Header(0, rig.HOST, 1)
    with pytest.raises(ProtocolError, match="the agent is gone"):
        tunnels.open(asked, Recorder())  # type: ignore[arg-type]
    monkeypatch.setattr(module, "MAX_STREAMS", 2)
    monkeypatch.setattr(module, "_MAX_WAITING", 10)
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(tunnels.run())
        await asyncio.sleep(0)
        with pytest.raises(ValueError, match="a port"):
            tunnels.open(Header(0, rig.HOST, 70_000), Recorder())  # type: ignore[arg-type]
        seen = [Recorder(), Recorder()]
        one, two = (tunnels.open(asked, recorder) for recorder in seen)  # type: ignore[arg-type]
        with pytest.raises(ProtocolError, match="2 streams are open"):
            tunnels.open(asked, Recorder())  # type: ignore[arg-type]
        assert one.datagram(b"12345")
        assert not one.datagram(b"12345")
        assert two.write(b"x")
        assert not two.write(bytes(1 << 20))
        assert repr(one) == "<LegacyStream 127.0.0.1:1>"
        one.reset()
        assert seen[0].events == []
        tunnels._lost.set_result(PodGoneError("gone"))
    assert str(running.result()) == "gone"
    assert seen[1].events == [("reset", ErrorCode.RESET)]
    assert not tunnels.streams


def lose(stream: LegacyStream, exc: Exception | None) -> None:
    """The stream's tunnel is gone, and why."""
    transport, stream._transport = stream._transport, None
    assert transport is not None
    transport.set_protocol(asyncio.Protocol())
    transport.abort()
    stream.connection_lost(exc)


async def test_writing_on_after_the_end_is_a_reset() -> None:
    async with place() as p:
        (tunnels,) = (tunnel.carrier for tunnel in p.pool.tunnels)
        assert isinstance(tunnels, LegacyTunnels)
        async with rig.tcp_target(rig.hold) as target:
            for end in ("write", "end"):
                recorder = Recorder()
                stream = tunnels.open(Header(0, rig.HOST, target), recorder)  # type: ignore[arg-type]
                await rig.until(lambda recorder=recorder: recorder.events == [("accepted",)])
                # As a port-forward ends: both ways at once.
                lose(stream, EndedError("the agent ended the connection"))
                assert recorder.events[1:] == [("end",)]
                if end == "write":
                    assert stream.write(b"x")
                    await rig.until(lambda recorder=recorder: len(recorder.events) == 3)
                    assert recorder.events[2] == ("reset", ErrorCode.RESET)
                else:
                    stream.end()
                    assert len(recorder.events) == 2
            assert not tunnels.streams


async def test_a_stream_without_an_answer_is_refused() -> None:
    async with place() as p, rig.tcp_target(rig.hold) as silent:
        p._port = silent
        recorder = Recorder()
        (tunnels,) = (tunnel.carrier for tunnel in p.pool.tunnels)
        assert isinstance(tunnels, LegacyTunnels)
        stream = tunnels.open(Header(0, rig.HOST, 1), recorder)  # type: ignore[arg-type]
        await rig.until(lambda: stream._transport)
        lose(stream, None)
        assert recorder.events == [("refused", ErrorCode.GOING_AWAY, "the agent gave no answer")]


async def opened(p: Place, port: int, recorder: Recorder, data: bytes) -> LegacyStream:
    """A stream that has a tunnel, on which `data` was written."""
    (tunnels,) = (tunnel.carrier for tunnel in p.pool.tunnels)
    assert isinstance(tunnels, LegacyTunnels)
    stream = tunnels.open(Header(0, rig.HOST, port), recorder)  # type: ignore[arg-type]
    if data:
        stream.write(data)
    await rig.until(lambda: stream._transport)
    return stream


@pytest.mark.parametrize(
    ("exc", "expected"),
    [
        (None, ("reset", ErrorCode.RESET)),
        (TunnelError("the connection was lost"), ("reset", ErrorCode.RESET)),
        (EndedError("the agent ended the connection"), ("reset", ErrorCode.RESET)),
        (NotListeningError("not yet"), ("refused", ErrorCode.GOING_AWAY, "not yet")),
        (PodGoneError("evicted"), ("refused", ErrorCode.GOING_AWAY, "evicted")),
    ],
)
async def test_a_lost_stream_is_refused_only_if_nothing_arrived(
    exc: Exception | None, expected: tuple[object, ...]
) -> None:
    async with place() as p, rig.tcp_target(rig.hold) as silent:
        p._port = silent
        seen = Recorder()
        lose(await opened(p, 1, seen, b"POST /order"), exc)
        assert seen.events == [expected]


async def test_bytes_that_may_have_arrived_are_not_sent_twice() -> None:
    """The agent hands on what came, and its answer is lost."""
    got: list[bytes] = []

    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.append(await reader.readuntil(b"order"))
        rig.rst(writer)

    async with place() as p, rig.tcp_target(cut) as port:
        p._port, local = port, await p.listen(1)
        async with rig.connect(local) as (reader, writer):
            writer.write(b"order")
            with pytest.raises(ConnectionResetError):
                await reader.read()
        assert len(got) == 1


async def test_a_broken_network_resets_live_streams_and_restarts_dials() -> None:
    async with rig.tcp_target(rig.echo) as target, place() as p:
        port = await p.listen(target)
        tunnels = p.pool.tunnels[0].carrier
        assert isinstance(tunnels, LegacyTunnels)
        real, hung = p.dial, asyncio.Event()

        async def hangs(protocol: asyncio.Protocol) -> asyncio.Transport:
            assert isinstance(tunnels, LegacyTunnels)
            tunnels._dial = real
            hung.set()
            await asyncio.get_running_loop().create_future()
            raise AssertionError

        async with rig.connect(port) as (reader, writer), asyncio.TaskGroup() as tasks:
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
            tunnels._dial = hangs
            dialling = tasks.create_task(rig.exchange(port, b"y"))
            await hung.wait()
            p.pool.network_changed(broken=False)
            assert p.pool.streams == 2
            p.pool.network_changed(broken=True)
            with pytest.raises(ConnectionResetError):
                await reader.read()
            assert await dialling == b"y"
        assert p.pool.tunnels[0].carrier is tunnels


class _Filter(ctypes.Structure):
    """linux/filter.h: struct sock_filter."""

    _fields_ = (
        ("code", ctypes.c_ushort),
        ("jt", ctypes.c_ubyte),
        ("jf", ctypes.c_ubyte),
        ("k", ctypes.c_uint),
    )


def deafen(sock: socket.socket) -> None:
    """A black hole: from now on the kernel drops what comes for this socket, unacknowledged."""
    nothing = _Filter(6, 0, 0, 0)  # BPF_RET, 0 bytes
    program = struct.pack("HL", 1, ctypes.addressof(nothing))
    sock.setsockopt(socket.SOL_SOCKET, 26, program)  # SO_ATTACH_FILTER


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can tell")
async def test_a_stream_whose_peer_falls_silent_is_reset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENCE", 200)

    async def falls_silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(100)
        writer.write(b"\1a")
        await reader.readexactly(1)
        deafen(writer.get_extra_info("socket"))
        writer.write(b"b")
        await asyncio.get_running_loop().create_future()

    async with place() as p, rig.tcp_target(falls_silent) as port:
        p._port, local = port, await p.listen(1)
        async with rig.connect(local) as (reader, writer):
            assert await reader.readexactly(1) == b"a"
            writer.write(b"x")
            assert await reader.readexactly(1) == b"b"
            writer.write(b"y")
            with pytest.raises(ConnectionResetError):
                await reader.read()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux can tell")
async def test_a_target_that_takes_nothing_is_not_taken_for_dead() -> None:
    def patience(stream: LegacyStream) -> int:
        assert stream._transport is not None
        sock: socket.socket = stream._transport.get_extra_info("socket")
        return sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT)

    async def takes_nothing(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\1")
        await asyncio.get_running_loop().create_future()

    async with place() as p, rig.tcp_target(takes_nothing) as port:
        p._port, recorder = port, Recorder()
        stream = await opened(p, 1, recorder, b"x")
        await rig.until(lambda: recorder.events)
        assert patience(stream) == 10_000
        await rig.until(lambda: not stream.write(bytes(1 << 20)))
        assert patience(stream) == 0
        stream.reset()


async def test_a_stream_whose_connection_breaks_is_reset() -> None:
    async with place() as p, rig.tcp_target(rig.hold) as target:
        (tunnels,) = (tunnel.carrier for tunnel in p.pool.tunnels)
        assert isinstance(tunnels, LegacyTunnels)
        recorder = Recorder()
        stream = tunnels.open(Header(0, rig.HOST, target), recorder)  # type: ignore[arg-type]
        await rig.until(lambda: recorder.events)
        lose(stream, ConnectionResetError())
        assert recorder.events == [("accepted",), ("reset", ErrorCode.RESET)]


async def test_a_stream_that_works_is_not_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    async with rig.tcp_target(rig.echo) as target, place() as p:
        caplog.clear()
        assert await rig.exchange(await p.listen(target), b"x") == b"x"
    assert not caplog.records
