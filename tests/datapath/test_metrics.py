"""The counts: each stream ends in one result, bytes only grow, and live ones count."""

from __future__ import annotations

import asyncio
import socket
import sys
from contextlib import AsyncExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krelay.datapath import metrics
from krelay.datapath import udp as udp_module
from krelay.datapath.metrics import BUCKETS, OK, RESET, ForwardMetrics, Histogram, StreamMetrics
from krelay.model import Endpoint, Protocol, Resolution
from krelay.wire.errors import ErrorCode
from tests import rig


async def gone(path: rig.Path) -> None:
    await rig.until(lambda: path.streams == (0, 0))


# -- TCP ---------------------------------------------------------------------------------------


async def test_bytes_count_while_a_connection_lives_and_after() -> None:
    async with rig.path() as path, rig.tcp_target(rig.echo) as target:
        listener = await path.tcp(target)
        counts = listener.metrics
        async with rig.connect(rig.port_of(listener)) as (reader, writer):
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            assert (counts.to_remote_bytes, counts.to_local_bytes) == (5, 5)
            assert (counts.opened, counts.results) == (1, {})
            writer.write(b"!")
            writer.write_eof()
            assert await reader.read() == b"!"
        await rig.until(lambda: counts.results)
        assert counts.results == {OK: 1}
        assert (counts.to_remote_bytes, counts.to_local_bytes) == (6, 6)
        assert counts.dials.count == 1
        assert counts.dials.cumulative()[10.0] == 1


async def test_a_stream_that_either_end_cuts_counts_as_reset() -> None:
    async def slam(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        rig.rst(writer)

    async with rig.path() as path, rig.tcp_target(slam) as there, rig.tcp_target(rig.hold) as here:
        far, near, cut = await path.tcp(there), await path.tcp(here), await path.tcp(here)
        async with rig.connect(rig.port_of(far)) as (reader, writer):
            writer.write(b"x")
            with pytest.raises(ConnectionResetError):
                await reader.read()
        async with rig.connect(rig.port_of(near)) as (_, writer):
            await rig.until(lambda: near.metrics.opened)
            rig.rst(writer)
        async with rig.connect(rig.port_of(cut)):
            await rig.until(lambda: cut.metrics.opened)
            cut.cut()
        await gone(path)
        for listener in (far, near, cut):
            await rig.until(lambda listener=listener: listener.metrics.results)
            assert listener.metrics.results == {RESET: 1}


async def test_a_refusal_counts_by_the_agent_s_answer_and_is_reported() -> None:
    results: list[tuple[ErrorCode | None, str]] = []
    async with rig.path() as path, rig.tcp_target(rig.echo) as target:
        closed = rig.closed_port()
        listener = await path.tcp(closed)
        counts = listener.metrics
        counts.on_dial = lambda code, message: results.append((code, message))
        async with rig.connect(rig.port_of(listener)) as (reader, _):
            with pytest.raises(ConnectionResetError):
                await reader.read()
        assert counts.results == {"refused": 1}
        assert counts.opened == counts.dials.count == 0
        ((code, message),) = results
        assert code is ErrorCode.REFUSED
        assert message.startswith(f"127.0.0.1:{closed}: ")
        listener.route.update(Resolution(Protocol.TCP, Endpoint(rig.HOST, target)))
        assert await rig.exchange(rig.port_of(listener), b"x") == b"x"
        assert results[1:] == [(None, "")]


async def test_a_queued_connection_counts_as_no_stream_or_as_cancelled() -> None:
    async with rig.path() as path:
        vain, left = (
            await path.tcp(path.route(None), open_timeout=0.0),
            await path.tcp(path.route(None)),
        )
        async with rig.connect(rig.port_of(vain)) as (reader, _):
            with pytest.raises(ConnectionResetError):
                await reader.read()
        assert vain.metrics.results == {"no_stream": 1}
        async with rig.connect(rig.port_of(left)) as (_, writer):
            await rig.until(lambda: left.live == 1)
            rig.rst(writer)
            # A queued connection may not be read: only the listener's end is certain.
            left.cut()
            await rig.until(lambda: left.metrics.results)
        assert left.metrics.results == {"cancelled": 1}


async def test_a_stream_lost_before_the_answer_counts_as_no_stream() -> None:
    with rig.silent() as port:
        await _lost_before_the_answer(port)


async def _lost_before_the_answer(port: int) -> None:
    async with rig.path() as path:
        listener = await path.tcp(port)
        async with rig.connect(rig.port_of(listener)) as (reader, _):
            await rig.until(lambda: path.streams[0] == 1)
            carrier = path.pool.pick()
            assert carrier is not None
            carrier.close(ErrorCode.RESET)
            with pytest.raises(ConnectionResetError):
                await reader.read()
        assert listener.metrics.results == {"no_stream": 1}


# -- records -----------------------------------------------------------------------------------


async def test_a_connection_leaves_a_record_of_what_it_carried_and_how_it_ended() -> None:
    async with rig.path() as path, rig.tcp_target(rig.echo) as target:
        listener = await path.tcp(target)
        counts = listener.metrics
        async with rig.connect(rig.port_of(listener)) as (reader, writer):
            writer.write(b"hello")
            assert await reader.readexactly(5) == b"hello"
            (live,) = counts.streams
            record = live.record().state
            host, port = writer.get_extra_info("sockname")
            assert record.client == f"{host}:{port}"
            assert (record.result, record.ended) == (None, None)
            assert record.endpoint == f"{rig.HOST}:{target}"
            writer.write_eof()
            assert await reader.read() == b""
        await rig.until(lambda: counts.recent)
        (ended,) = (each.state for each in counts.recent)
        assert not counts.streams
        assert (ended.client, ended.started) == (record.client, record.started)
        assert (ended.to_remote_bytes, ended.to_local_bytes) == (5, 5)
        assert (ended.result, ended.reason) == (OK, "")
        assert ended.ended is not None
        assert ended.ended >= ended.started


async def test_a_record_says_why_there_was_no_connection() -> None:
    async with rig.path() as path:
        closed = rig.closed_port()
        refused = await path.tcp(closed)
        vain = await path.tcp(path.route(None), open_timeout=0.0)
        for listener in (refused, vain):
            async with rig.connect(rig.port_of(listener)) as (reader, _):
                with pytest.raises(ConnectionResetError):
                    await reader.read()
        (record,) = (each.state for each in refused.metrics.recent)
        assert (record.result, record.endpoint) == ("refused", f"{rig.HOST}:{closed}")
        assert record.reason.startswith(f"{rig.HOST}:{closed}: ")
        (record,) = (each.state for each in vain.metrics.recent)
        assert (record.result, record.endpoint) == ("no_stream", None)
        assert record.reason.startswith("waited 0 s: ")


async def test_only_the_last_records_are_kept() -> None:
    counts = ForwardMetrics()
    for number in range(metrics.RECENT + 5):
        stream = StreamMetrics(counts)
        stream.stream_requested(("127.0.0.1", number))
        stream.open_failed()
    assert len(counts.recent) == metrics.RECENT
    assert [counts.recent[0].state.client, counts.recent[-1].state.client] == [
        "127.0.0.1:5",
        "127.0.0.1:24",
    ]


async def test_a_flow_leaves_a_record_with_its_own_bytes() -> None:
    async with rig.path() as path, rig.udp_echo(b"> ") as target:
        listener = await path.udp(target)
        async with (
            rig.udp_socket(connect=rig.port_of(listener)) as one,
            rig.udp_socket(connect=rig.port_of(listener)) as two,
        ):
            for client, data in ((one, b"a"), (two, b"bcd")):
                client.send(data)
                await rig.recv(client)
            addresses = {str(Endpoint(*client.getsockname()[:2])) for client in (one, two)}
        listener.cut()
        records = [each.state for each in listener.metrics.recent]
        assert {record.client for record in records} == addresses
        found = sorted((record.to_remote_bytes, record.to_local_bytes) for record in records)
        assert found == [(1, 3), (3, 5)]


# -- UDP ---------------------------------------------------------------------------------------


async def test_bytes_of_datagrams_count_for_their_flow() -> None:
    results: list[ErrorCode | None] = []
    async with rig.path() as path, rig.udp_echo(b"> ") as target:
        listener = await path.udp(target)
        counts = listener.metrics
        counts.on_dial = lambda code, message: results.append(code)
        async with rig.udp_socket(connect=rig.port_of(listener)) as client:
            for _ in range(3):
                client.send(b"abc")
                await rig.recv(client)
        assert (counts.to_remote_bytes, counts.to_local_bytes) == (9, 15)
        assert (counts.opened, counts.results) == (1, {})
        assert results == [None]
        listener.close()
        assert counts.results == {OK: 1}
        assert not counts.drops


async def test_a_flow_to_a_closed_port_counts_as_reset_and_is_reported() -> None:
    results: list[ErrorCode | None] = []
    async with rig.path() as path:
        listener = await path.udp(rig.closed_port(socket.SOCK_DGRAM))
        listener.metrics.on_dial = lambda code, message: results.append(code)
        async with rig.udp_socket(connect=rig.port_of(listener)) as client:
            client.send(b"x")
            await rig.until(lambda: listener.metrics.results)
        assert listener.metrics.results == {RESET: 1}
        assert results == [ErrorCode.REFUSED]


async def test_lost_datagrams_count_by_reason() -> None:
    async with rig.path() as path, rig.udp_echo() as target, AsyncExitStack() as stack:
        route = path.route(None)
        listener = await path.udp(route)
        listener.max_flows = 1
        counts = listener.metrics
        one, two = [
            await stack.enter_async_context(rig.udp_socket(connect=rig.port_of(listener)))
            for _ in range(2)
        ]
        for _ in range(udp_module._EARLY_DATAGRAMS + 2):
            one.send(b"x")
        await rig.until(lambda: counts.drops[metrics.EARLY] == 2)
        two.send(b"x")
        await rig.until(lambda: counts.results)
        assert counts.results == {"cancelled": 1}
        assert counts.drops == {metrics.EARLY: 2, metrics.UNROUTED: udp_module._EARLY_DATAGRAMS}
        route.update(Resolution(Protocol.UDP, Endpoint(rig.HOST, target)))
        assert await rig.recv(two) == b"x"
        connection = rig.connection(path.pool)
        connection.session._send_queue._max_datagrams = 0
        two.send(b"x")
        await rig.until(lambda: counts.drops[metrics.BACKLOG] == 1)
        impatient = await path.udp(path.route(None), open_timeout=0.0)
        three = await stack.enter_async_context(rig.udp_socket(connect=rig.port_of(impatient)))
        three.send(b"x")
        await rig.until(lambda: impatient.metrics.drops == {metrics.UNROUTED: 1})
        assert impatient.metrics.results == {"no_stream": 1}


async def test_a_flow_that_makes_room_counts_as_evicted() -> None:
    async with rig.path() as path, rig.udp_echo() as target:
        listener = await path.udp(target)
        listener.max_flows = 1
        for number in range(1, 4):
            async with rig.udp_socket(connect=rig.port_of(listener)) as client:
                client.send(b"x")
                assert await rig.recv(client) == b"x"
            assert listener.metrics.opened == number
        assert listener.metrics.results == {"evicted": 2}
        assert not listener.metrics.lost()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
async def test_datagrams_that_the_kernel_drops_are_counted() -> None:
    async with rig.path() as path, rig.udp_echo() as target:
        listener = await path.udp(target)
        [local] = listener._sockets
        assert local._endpoint is not None
        local._endpoint.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.setblocking(False)
            for _ in range(100):
                client.sendto(bytes(500), (rig.HOST, rig.port_of(listener)))
            come = 0
            while come + listener.metrics.lost()[metrics.RECEIVE] < 100:
                await rig.recv(client)
                come += 1
        assert 0 < come < 100
        lost = listener.metrics.lost()
        listener.close()
        assert listener.metrics.lost() == lost == {metrics.RECEIVE: 100 - come}


# -- the counts by itself ---------------------------------------------------------------------


@given(st.lists(st.floats(0, 20)))
def test_the_histogram_is_cumulative(seconds: list[float]) -> None:
    histogram = Histogram()
    for each in seconds:
        histogram.add(each)
    assert histogram.cumulative() == {
        bound: sum(each <= bound for each in seconds) for bound in BUCKETS
    }
    assert histogram.count == len(seconds)
    assert histogram.sum == pytest.approx(sum(seconds))


class Carrying:
    def __init__(self) -> None:
        self.received_bytes = self.sent_bytes = 0


_STEPS = st.lists(
    st.tuples(
        st.integers(0, 4),
        st.sampled_from(["accepted", "refused", "reset", "left", "clean", "open_failed", "bytes"]),
        st.sampled_from(list(ErrorCode)),
    ),
    max_size=60,
)


@given(_STEPS)
def test_every_stream_has_one_result_and_no_count_falls(
    steps: list[tuple[int, str, ErrorCode]],
) -> None:
    counts = ForwardMetrics()
    relays = [Carrying() for _ in range(5)]
    entries = [StreamMetrics(counts, relay) for relay in relays]
    for entry in entries:
        entry.stream_requested()
    ended: set[int] = set()
    before = (0, 0)
    for index, step, code in steps:
        entry = entries[index]
        if step == "bytes":
            relays[index].received_bytes += 3
            relays[index].sent_bytes += 5
        elif step == "accepted":
            entry.accepted()
        elif step == "refused":
            entry.refused(code, "")
        elif step == "reset":
            entry.reset(code)
        elif step == "open_failed":
            entry.open_failed()
        else:
            entry.closed(clean=step == "clean")
        if step not in ("bytes", "accepted"):
            ended.add(index)
        now = (counts.to_remote_bytes, counts.to_local_bytes)
        assert now >= before
        before = now
        assert counts.results.total() == len(ended)
        assert counts.opened == counts.dials.count
        assert counts.results[OK] + counts.results[RESET] <= counts.opened
    names = {OK, RESET, metrics.NO_STREAM, *(code.name.lower() for code in ErrorCode)}
    assert set(counts.results) <= names
