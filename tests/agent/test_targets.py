"""What becomes of a stream at the agent's end; `open` and `reset` come from a session's client."""

from __future__ import annotations

import asyncio
import socket

import pytest

from agent import targets as module
from agent.dial import DialError
from agent.memory import CONNECTION_COST
from agent.udp import dial_udp
from krelay.mux.stream import MuxStream
from krelay.wire.errors import ErrorCode
from krelay.wire.frames import Buffer
from krelay.wire.header import Header
from tests import rig
from tests.agent.peer import Client, session

TCP, UDP = 0, 1


class Seen:
    """A handler that records its events."""

    def __init__(self) -> None:
        self.told: list[object] = []
        self.data = b""

    def on_accepted(self) -> None:
        self.told.append("accepted")

    def on_refused(self, code: ErrorCode, message: str) -> None:
        self.told.append(code)

    def on_data(self, data: Buffer) -> None:
        self.data += data

    def on_datagram(self, data: Buffer) -> None:
        self.told.append(bytes(data))

    def on_end(self) -> None:
        self.told.append("end")

    def on_reset(self, code: ErrorCode) -> None:
        self.told.append(code)

    def on_writable(self) -> None:
        self.told.append("writable")


def ask(client: Client, protocol: int, port: int, host: str = rig.HOST) -> tuple[MuxStream, Seen]:
    """Open a stream to a target."""
    seen = Seen()
    return client.connection.open(Header(protocol, host, port), seen), seen


async def settled(client: Client) -> None:
    """Everything sent so far has been handled at the other end, and its answer here."""
    stream, seen = ask(client, 99, 1)
    await rig.until(lambda: seen.told)
    assert seen.told == [ErrorCode.UNKNOWN_PROTOCOL]


async def test_an_unknown_protocol_is_refused() -> None:
    async with rig.agent() as server:
        client = await session(server)
        _, seen = ask(client, 75, 1)
        await rig.until(lambda: seen.told)
        assert seen.told == [ErrorCode.UNKNOWN_PROTOCOL]
        client.leave()


async def test_early_bytes_and_an_early_end_reach_the_target() -> None:
    async with rig.agent() as server, rig.tcp_target(rig.echo) as port:
        client = await session(server)
        stream, seen = ask(client, TCP, port)
        stream.write(b"early")
        stream.end()
        await rig.until(lambda: "end" in seen.told)
        assert seen.told == ["accepted", "end"]
        assert seen.data == b"early"
        client.leave()


@pytest.mark.parametrize("protocol", [TCP, UDP])
async def test_a_target_that_is_not_reached_is_refused_with_the_reason(
    protocol: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise DialError(ErrorCode.UNREACHABLE, "no way")

    monkeypatch.setattr(module, "begin", lambda host, port: None)
    monkeypatch.setattr(module, "dial_tcp", fail)
    monkeypatch.setattr(module, "dial_udp", fail)
    async with rig.agent() as server:
        client = await session(server)
        _, seen = ask(client, protocol, 80)
        await rig.until(lambda: seen.told)
        assert seen.told == [ErrorCode.UNREACHABLE]
        assert not client.connection.session.streams
        client.leave()


@pytest.mark.parametrize("protocol", [TCP, UDP])
async def test_a_bug_in_a_dial_costs_only_its_own_stream(
    protocol: int, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(module, "begin", lambda host, port: None)
    monkeypatch.setattr(module, "dial_tcp", fail)
    monkeypatch.setattr(module, "dial_udp", fail)
    async with rig.agent() as server:
        client = await session(server)
        _, seen = ask(client, protocol, 80)
        await rig.until(lambda: seen.told)
        assert seen.told == [ErrorCode.INTERNAL]
        await settled(client)
        client.leave()
    assert "ZeroDivisionError" in caplog.text


@pytest.mark.parametrize("protocol", [TCP, UDP])
async def test_a_reset_cancels_the_dial(protocol: int, monkeypatch: pytest.MonkeyPatch) -> None:
    dialling, ended = asyncio.Event(), asyncio.Event()

    async def never(*_: object) -> None:
        dialling.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.set()

    monkeypatch.setattr(module, "begin", lambda host, port: None)
    monkeypatch.setattr(module, "dial_tcp", never)
    monkeypatch.setattr(module, "dial_udp", never)
    async with rig.agent() as server:
        client = await session(server)
        stream, seen = ask(client, protocol, 80)
        await dialling.wait()
        stream.reset()
        await ended.wait()
        await settled(client)
        assert seen.told == []
        client.leave()


async def test_a_stream_opened_together_with_goaway_is_not_dialled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dialled: list[object] = []

    async def note(*asked: object) -> None:
        dialled.append(asked)
        raise DialError(ErrorCode.UNREACHABLE, "no way")

    monkeypatch.setattr(module, "begin", lambda host, port: None)
    monkeypatch.setattr(module, "dial_tcp", note)
    async with rig.agent() as server:
        client, other = await session(server), await session(server)
        ask(client, TCP, 80)
        client.leave()
        await rig.until(lambda: len(server.sessions) == 1)
        await settled(other)
        assert dialled == []
        other.leave()


async def test_a_connection_that_comes_up_as_its_stream_is_reset_is_reset() -> None:
    seen: asyncio.Future[type[BaseException]] = asyncio.get_running_loop().create_future()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read()
        except ConnectionResetError as exc:
            seen.set_result(type(exc))

    async with rig.agent() as server, rig.tcp_target(serve) as port:
        client = await session(server)
        stream, _ = ask(client, TCP, port)
        (kept,) = server.sessions._kept.values()
        await rig.until(lambda: kept.mux.session.streams)
        (there,) = kept.mux.session.streams.values()
        relay = there.owner.handler
        await rig.until(lambda: relay.transport)
        relay.stream.reset()
        relay.stream = None
        relay.begin(there.owner)
        assert await seen is ConnectionResetError
        stream.reset()
        client.leave()


async def test_a_target_that_resets_at_once_resets_the_stream() -> None:
    async def slam(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        rig.rst(writer)

    async with rig.agent() as server, rig.tcp_target(slam) as port:
        client = await session(server)
        for _ in range(20):
            _, seen = ask(client, TCP, port)
            await rig.until(lambda seen=seen: seen.told and seen.told[-1] != "accepted")
            assert seen.told[-1] in (ErrorCode.RESET, ErrorCode.REFUSED)
        assert not client.connection.session.streams
        client.leave()


# -- what waits for targets --------------------------------------------------------------------


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every dial hangs."""

    async def never(*_: object) -> None:
        await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(module, "begin", lambda host, port: None)
    monkeypatch.setattr(module, "dial_tcp", never)
    monkeypatch.setattr(module, "dial_udp", never)


async def test_streams_whose_targets_are_dialled_hold_no_more_than_their_client_s_share(
    nowhere: None,
) -> None:
    """Each may bring its first window: all of them would be more than an agent may have."""
    async with rig.agent(memory=1) as server:
        client, other = await session(server), await session(server)
        asked = [ask(client, TCP, 80) for _ in range(80)]
        for stream, _ in asked:
            stream.write(bytes(60_000))
        waiting = client.connection.session
        await rig.until(lambda: not waiting.queued and not waiting.unacknowledged)
        await settled(client)
        refused = [seen for _, seen in asked if seen.told == [ErrorCode.LIMIT]]
        assert 20 < len(refused) < 70
        assert all(seen.told in ([], [ErrorCode.LIMIT]) for _, seen in asked)
        assert server.budget.left > server.budget.size // 3
        # Another client's streams have their place.
        stream, seen = ask(other, TCP, 80)
        stream.write(bytes(60_000))
        await settled(other)
        assert seen.told == []
        # Those that end make room.
        for stream, _ in asked:
            stream.reset()
        await rig.until(lambda: server.budget.left > server.budget.size * 2 // 3)
        another, seen = ask(client, TCP, 80)
        another.write(bytes(60_000))
        await settled(client)
        assert seen.told == []
        client.leave()
        other.leave()
        await rig.until(lambda: server.budget.left == server.budget.size)


async def test_targets_that_take_nothing_leave_room_for_the_next_client() -> None:
    async with rig.agent(memory=1) as server, rig.tcp_target(rig.hold) as port:
        client = await session(server)
        asked = [ask(client, TCP, port) for _ in range(100)]
        await rig.until(lambda: all(seen.told for _, seen in asked))
        (kept,) = server.sessions._kept.values()
        for stream in list(kept.mux.session.streams.values()):
            taken = stream.owner.handler.transport.get_extra_info("socket")
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
        for asking, _ in asked:
            asking.write(bytes(1 << 20))
        await rig.until(lambda: any(ErrorCode.LIMIT in seen.told for _, seen in asked))
        await rig.until(lambda: client.connection.session.unacknowledged == 0)
        await settled(client)
        assert server.budget.free >= 0
        other = await session(server)
        await rig.until(lambda: len(server.sessions) == 2)
        _, seen = ask(other, TCP, port)
        await rig.until(lambda: seen.told)
        assert seen.told == ["accepted"]
        client.leave()
        other.leave()


async def test_datagrams_that_wait_for_targets_are_bounded_and_counted(nowhere: None) -> None:
    async with rig.agent() as server:
        client = await session(server)
        (kept,) = server.sessions._kept.values()
        for _ in range(40):
            stream, _ = ask(client, UDP, 53)
            for _ in range(3):
                stream.datagram(bytes(60_000))
            await settled(client)
        kept_datagrams = module.EARLY_DATAGRAMS // 60_128
        assert kept.targets.early_datagrams == kept_datagrams * 60_128
        assert kept.targets.losses.early == 120 - kept_datagrams
        # What waits for a stream is none of it.
        stream, seen = ask(client, TCP, 80)
        stream.write(bytes(60_000))
        await settled(client)
        assert seen.told == []
        client.leave()
        await rig.until(lambda: server.budget.left == server.budget.size)
        assert kept.targets.early_datagrams == 0


async def test_memory_of_early_data_is_released_once_the_target_is_reached() -> None:
    async with rig.agent() as server, rig.tcp_target(rig.echo) as port, rig.udp_echo() as udp:
        client = await session(server)
        (kept,) = server.sessions._kept.values()
        (stream, seen), (flow, told) = ask(client, TCP, port), ask(client, UDP, udp)
        stream.write(b"early")
        flow.datagram(b"early")
        await rig.until(lambda: seen.data and b"early" in told.told)
        streams = kept.mux.session.streams.values()
        assert [s.owner.handler._reservation.size for s in streams] == [CONNECTION_COST] * 2
        client.leave()
        await rig.until(lambda: server.budget.left == server.budget.size)


# -- flows -------------------------------------------------------------------------------------


async def test_a_few_early_datagrams_wait_for_the_socket(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "_MOST_EARLY_DATAGRAMS", 2)
    real, go = dial_udp, asyncio.Event()

    async def later(*args: object) -> object:
        await go.wait()
        return await real(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "dial_udp", later)
    async with rig.agent() as server, rig.udp_echo() as port:
        client = await session(server)
        stream, seen = ask(client, UDP, port)
        for data in (b"lost", b"", b"kept"):
            stream.datagram(data)
        await settled(client)
        go.set()
        await rig.until(lambda: len(seen.told) == 3)
        assert seen.told == ["accepted", b"", b"kept"]
        client.leave()


async def test_an_absent_udp_target_resets_the_flow() -> None:
    async with rig.agent() as server:
        client = await session(server)
        stream, seen = ask(client, UDP, rig.closed_port(socket.SOCK_DGRAM))
        stream.datagram(b"x")
        await rig.until(lambda: len(seen.told) == 2)
        assert seen.told == ["accepted", ErrorCode.REFUSED]
        client.leave()


async def test_an_idle_flow_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "UDP_IDLE", 0.05)
    async with rig.agent() as server, rig.udp_echo() as port:
        client = await session(server)
        _, seen = ask(client, UDP, port)
        await rig.until(lambda: seen.told and seen.told[-1] == ErrorCode.IDLE)
        client.leave()


async def test_datagrams_of_either_end_keep_a_flow_open() -> None:
    async with rig.agent() as server, rig.udp_socket() as target:
        client = await session(server)
        stream, seen = ask(client, UDP, target.getsockname()[1])
        stream.datagram(b"question")
        _, address = await asyncio.get_running_loop().sock_recvfrom(target, 100)
        (kept,) = server.sessions._kept.values()
        (there,) = kept.mux.session.streams.values()
        flow = there.owner.handler
        flow._active_at -= module.UDP_IDLE
        target.sendto(b"answer", address)
        await rig.until(lambda: b"answer" in seen.told)
        before = flow._timer
        flow._check_idle()
        before.cancel()
        flow._active_at -= module.UDP_IDLE
        stream.datagram(b"question")
        await asyncio.get_running_loop().sock_recvfrom(target, 100)
        flow._timer.cancel()
        flow._check_idle()
        assert seen.told == ["accepted", b"answer"]
        flow._timer.cancel()
        flow._active_at -= module.UDP_IDLE
        flow._check_idle()
        await rig.until(lambda: seen.told[-1] == ErrorCode.IDLE)
        client.leave()


async def test_an_end_ends_a_flow() -> None:
    async with rig.agent() as server, rig.udp_echo() as port:
        client = await session(server)
        stream, seen = ask(client, UDP, port)
        await rig.until(lambda: seen.told)
        stream.write(b"stray bytes")
        stream.end()
        await rig.until(lambda: len(seen.told) == 2)
        assert seen.told == ["accepted", ErrorCode.NONE]
        client.leave()


async def test_events_for_an_opener_are_ignored() -> None:
    async with rig.agent() as server, rig.udp_echo() as port:
        client = await session(server)
        stream, seen = ask(client, UDP, port)
        (kept,) = server.sessions._kept.values()
        await rig.until(lambda: seen.told)
        (there,) = kept.mux.session.streams.values()
        flow = there.owner.handler
        flow.on_accepted()
        flow.on_refused(ErrorCode.NONE, "")
        flow.on_writable()
        flow.close(ErrorCode.NONE)
        flow._receive(b"not told")
        await rig.until(lambda: len(seen.told) == 2)
        assert seen.told == ["accepted", ErrorCode.NONE]
        client.leave()
