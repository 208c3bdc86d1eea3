"""A connection runs a session over memory, sockets and a trickle."""

from __future__ import annotations

import asyncio
import logging
import os
import random
from contextlib import suppress

import pytest

from krelay.mux.connection import TunnelProtocol
from krelay.mux.stream import HIGH_WATER, MuxStream
from krelay.wire.errors import ErrorCode, ProtocolError
from krelay.wire.session import Limits
from krelay.wire.stream import INITIAL_WINDOW
from tests import fakes
from tests.mux.pair import TARGET, WAYS, Ear, Pair, pair
from tests.rig import until

every_way = pytest.mark.parametrize("way", WAYS)


@every_way
async def test_bytes_both_ways_and_half_close(way: str) -> None:
    data = random.Random(1).randbytes(300_000 if way != "trickle" else 20_000)
    async with pair(way) as both:
        near, near_ear, far, far_ear = await both.stream()
        near.write(data)
        near.end()
        await far_ear.until("end")
        assert far_ear.data == data
        far.write(data[::-1])
        far.end()
        await near_ear.until("end")
        assert near_ear.data == data[::-1]
        assert not both.client.session.streams
        assert not both.agent.session.streams


@every_way
async def test_a_reset_is_passed_on_in_both_directions(way: str) -> None:
    async with pair(way) as both:
        near, near_ear, far, far_ear = await both.stream()
        near.reset(ErrorCode.RESET)
        await far_ear.until("reset RESET")
        near, near_ear, far, far_ear = await both.stream()
        far.reset(ErrorCode.IDLE)
        await near_ear.until("reset IDLE")
        assert not both.client.session.streams
        assert not both.agent.session.streams


@every_way
async def test_early_data_a_refusal_and_datagrams(way: str) -> None:
    async with pair(way) as both:
        ear = Ear()
        stream = both.client.open(TARGET, ear)
        stream.write(b"early")
        stream.datagram(b"ping")
        arrived, far = await both.arrivals.get()
        assert arrived.header == TARGET
        await far.until("datagram ping")
        await far.until_size(5)
        assert far.data == b"early"
        arrived.refuse(ErrorCode.REFUSED, "nobody there")
        await ear.until("refused REFUSED nobody there")


@every_way
async def test_a_paused_reader_holds_a_window_while_another_stream_flows(way: str) -> None:
    size = 400_000 if way != "trickle" else 30_000
    async with pair(way) as both:
        slow, _, slow_far, slow_ear = await both.stream(greedy=False)
        fast, _, _, fast_ear = await both.stream()
        slow.write(bytes(1 << 20))
        fast.write(bytes(size))
        await fast_ear.until_size(size)
        await slow_ear.until_size(min(INITIAL_WINDOW, size))
        assert len(slow_ear.data) <= INITIAL_WINDOW
        slow_far.consume(INITIAL_WINDOW)
        await slow_ear.until_size(INITIAL_WINDOW + 1)


async def test_a_writer_waits_at_the_high_water_mark_and_goes_on_later() -> None:
    async with pair() as both:
        near, near_ear, _, far_ear = await both.stream()
        assert near.write(bytes(10))
        assert not near.write(bytes(HIGH_WATER))
        await near_ear.until("writable")
        await far_ear.until_size(HIGH_WATER + 10)


async def test_a_failing_handler_resets_only_its_own_stream_at_both_ends(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Broken(Ear):
        def on_data(self, data: object) -> None:
            raise RuntimeError("a bug")

    class Wrecked(Broken):
        def on_reset(self, code: ErrorCode) -> None:
            super().on_reset(code)
            raise RuntimeError("another")

    async with pair() as both:
        near, _, far, far_ear = await both.stream()
        for broken in (Broken(), Wrecked()):
            bad, bad_ear, bad_far, _ = await both.stream()
            bad_far.handler = broken
            bad.write(b"x")
            await bad_ear.until("reset INTERNAL")
            assert broken.said == ["reset INTERNAL"]
        assert "a bug" in caplog.text
        assert "another" in caplog.text
        near.write(b"fine")
        await far_ear.until_size(4)


async def test_a_stream_that_cannot_be_taken_is_reset_and_costs_no_other_its_bytes() -> None:
    async with pair() as both:
        near, _, _, far_ear = await both.stream()

        def fail(stream: MuxStream) -> None:
            raise ZeroDivisionError

        both.listens = fail
        other = Ear()
        both.client.open(TARGET, other)
        near.write(b"in the same read")
        await far_ear.until_size(16)
        await other.until("reset INTERNAL")
        assert far_ear.data == b"in the same read"


@every_way
async def test_a_session_moves_to_another_tunnel_and_loses_nothing(way: str) -> None:
    data = random.Random(2).randbytes(200_000 if way != "trickle" else 15_000)
    async with pair(way) as both:
        near, _, far, far_ear = await both.stream()
        for at in range(0, len(data), 5_000):
            near.write(data[at : at + 5_000])
            if at % 20_000 == 0:
                old = [tunnel.transport for tunnel in both.tunnels]
                if at % 40_000 == 0:
                    for transport in old:
                        transport.abort()
                    await asyncio.sleep(0)
                await both.connect(way)
        near.end()
        await far_ear.until("end")
        assert far_ear.data == data
        assert not both.client.closed


async def test_a_lost_tunnel_is_reported_once_and_a_former_one_is_ignored() -> None:
    async with pair() as both:
        former = both.tunnels[0].transport
        await both.connect("memory")
        both.client.receive_data(former, b"\xff" * 20)
        both.client.tunnel_lost(former, None)
        both.client.pause_writing(former)
        both.client.resume_writing(former)
        assert both.detached == []
        both.tunnels[0].transport.abort()
        await asyncio.sleep(0.001)
        assert [type(exc) for exc in both.detached] == [ConnectionResetError]
        assert not both.client.attached


async def test_a_tunnel_that_cannot_resume_leaves_the_session_on_the_present_one() -> None:
    async with pair() as both:
        _, near_ear, far, _ = await both.stream()
        with pytest.raises(ProtocolError):
            both.client.attach(fakes.MemoryTransport(), 1_000)
        far.write(b"goes on")
        await near_ear.until("data")
        assert both.detached == []


async def test_a_protocol_error_ends_the_session_with_goaway() -> None:
    async with pair() as both:
        _, near_ear, _, _ = await both.stream()
        both.client.receive_data(both.tunnels[0].transport, b"\xff" * 8)
        assert near_ear.said[-1] == "reset PROTOCOL"
        assert both.detached == [None]
        assert both.client.closed
        await until(lambda: both.agent.session.peer_going_away)


async def test_no_stream_opens_after_the_peer_s_goaway() -> None:
    async with pair() as both:
        both.agent.go_away(ErrorCode.GOING_AWAY, "later")
        await until(lambda: both.goodbyes)
        assert both.goodbyes == ["GOING_AWAY later"]
        with pytest.raises(ProtocolError):
            both.client.open(TARGET, Ear())


async def test_a_client_refuses_streams_of_the_agent() -> None:
    async with pair() as both:
        ear = Ear()
        both.agent.open(TARGET, ear)
        await ear.until("refused PROTOCOL this end opens streams")


async def test_a_stream_that_one_read_opens_and_closes_is_not_reported() -> None:
    async with pair() as both:
        both.client.open(TARGET, Ear()).reset()
        _, _, far, _ = await both.stream()
        assert repr(far) == "a/s3"
        assert both.arrivals.empty()
        both.agent.on_go_away = both.agent.close
        both.client.open(TARGET, Ear())
        both.client.close(ErrorCode.NONE)
        await until(lambda: both.agent.closed)
        assert both.arrivals.empty()


async def test_a_stalled_tunnel_is_dropped() -> None:
    limits = Limits(ping_interval=0.01, ping_timeout=0.05)
    async with pair(limits=limits) as both:
        transport = both.tunnels[0].transport
        assert isinstance(transport, fakes.MemoryTransport)
        assert transport.other is not None
        transport.other.choke(True)
        await until(lambda: both.detached)
        assert [type(exc) for exc in both.detached] == [TimeoutError]


async def test_a_full_tunnel_pauses_the_connection_and_loses_nothing() -> None:
    async with pair() as both:
        near, _, _, far_ear = await both.stream()
        transport = both.tunnels[0].transport
        assert isinstance(transport, fakes.MemoryTransport)
        transport.choke(True)
        transport.set_write_buffer_limits(high=10_000)
        for _ in range(10):
            near.write(bytes(10_000))
            await asyncio.sleep(0)
        assert transport.get_write_buffer_size() < 200_000
        transport.choke(False)
        await far_ear.until_size(100_000)


async def test_a_thousand_closed_streams_leave_nothing() -> None:
    async with pair() as both:
        for _ in range(20):
            streams = [await both.stream() for _ in range(50)]
            for number, (near, _, far, _) in enumerate(streams):
                near.write(b"x")
                if number % 3:
                    near.reset()
                else:
                    near.end()
                    far.end()
            await until(lambda: not both.client.session.streams and not both.agent.session.streams)


async def test_a_connection_logs_frames_and_prints_its_name(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "krelay.mux")
    async with pair() as both:
        near, *_ = await both.stream()
        assert repr(near) == "c/s1"
        assert repr(both.client) == "<MuxConnection c streams=1>"
        assert "> OPEN c/s1 10.0.0.1:80" in caplog.text
        assert "< ACCEPTED c/s1" in caplog.text


def test_a_tunnel_without_a_connection_drops_its_bytes() -> None:
    tunnel = TunnelProtocol()
    tunnel.data_received(b"x")
    tunnel.pause_writing()
    tunnel.resume_writing()
    tunnel.connection_lost(None)


async def test_a_stream_without_a_handler_gets_no_events() -> None:
    async with pair() as both:
        near, near_ear, far, _ = await both.stream()
        near.handler = None
        far.write(b"x")
        far.end()
        other, *_ = await both.stream()
        assert isinstance(other, MuxStream)
        assert near_ear.data == b""


async def test_a_second_close_and_a_detached_close_do_nothing_more() -> None:
    both = Pair(Limits())
    both.client.close(ErrorCode.NONE)
    both.client.close(ErrorCode.NONE)
    assert both.detached == []


async def test_bytes_for_a_tunnel_that_breaks_reach_no_other() -> None:
    """asyncio's `writelines` (3.12, 3.13) has the loop watch a descriptor that is closed then, and
    the next socket of that number is never read."""
    loop = asyncio.get_running_loop()
    async with pair("sockets") as both:
        transport = both.tunnels[0].transport
        number = transport.get_extra_info("socket").fileno()
        near, *_ = await both.stream()
        near.write(b"sent at the end of this turn")
        # Lost, as when a read or write fails; the connection learns of it later.
        transport.abort()
        await until(lambda: both.detached)
        assert not loop.remove_writer(number)


async def test_a_tunnel_that_takes_no_bytes_pauses_the_connection_on_any_python() -> None:
    """asyncio's `writelines` (until 3.12.8 and 3.13.1) never pauses, so the buffer has no bound."""
    async with pair("sockets") as both:
        transport = both.tunnels[0].transport
        both.tunnels[1].transport.pause_reading()
        with suppress(BlockingIOError):
            while True:
                os.write(transport.get_extra_info("socket").fileno(), bytes(1 << 16))
        transport.set_write_buffer_limits(high=1000)
        both.client.open(TARGET, Ear()).write(bytes(2000))
        await until(lambda: both.client._paused)
