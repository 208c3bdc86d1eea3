"""The slow link: its arithmetic without a clock, and its bytes over real sockets."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from benchmarks.wan import PACKET, QUEUE, Emulator, Link, listening_socket
from tests import rig

MBIT = 8.0  # a byte takes a microsecond


def test_a_packet_arrives_after_its_own_time_and_the_delay() -> None:
    link = Link(MBIT, 0.02)
    assert link.send(10.0, 1000) == pytest.approx(10.021)


def test_packets_follow_each_other_at_the_rate() -> None:
    link = Link(MBIT, 0.02)
    arrivals = [link.send(0.0, 1000) for _ in range(5)]
    assert arrivals == pytest.approx([0.021, 0.022, 0.023, 0.024, 0.025])


def test_a_link_at_rest_is_no_credit() -> None:
    link = Link(MBIT, 0.0)
    link.send(0.0, 1000)
    assert link.send(100.0, 1000) == pytest.approx(100.001)


def test_a_full_queue_waits_until_it_is_shorter() -> None:
    link = Link(MBIT, 0.5)
    assert link.wait(0.0) == 0.0
    link.send(0.0, int(QUEUE * 1e6) + 3000)
    assert link.wait(0.0) == pytest.approx(0.003)
    assert link.wait(0.003) == pytest.approx(0.0)


def test_a_sender_that_always_has_more_gets_the_rate() -> None:
    link, now, arrived = Link(MBIT, 0.02), 0.0, 0.0
    for _ in range(1000):
        now += link.wait(now)
        arrived = link.send(now, PACKET)
    assert arrived == pytest.approx(0.02 + 1000 * PACKET / 1e6)
    assert now == pytest.approx(arrived - 0.02 - QUEUE, abs=0.01)


def test_without_a_rate_only_the_delay_counts() -> None:
    link = Link(0, 0.1)
    assert link.send(1.0, 1 << 30) == pytest.approx(1.1)
    assert link.wait(1.0) == 0.0


@asynccontextmanager
async def emulator(port: int, mbit: float = 0, rtt: float = 0) -> AsyncIterator[int]:
    """Run an emulator before a port; yield its own."""
    with listening_socket() as listener:
        async with asyncio.TaskGroup() as tasks:
            serving = tasks.create_task(Emulator(rig.HOST, port, mbit, rtt).serve(listener))
            yield listener.getsockname()[1]
            serving.cancel()


async def test_bytes_cross_both_ways_whole_and_in_order() -> None:
    data = os.urandom(600_000)
    async with rig.tcp_target(rig.echo) as target, emulator(target, 400, 0.004) as port:
        reader, writer = await asyncio.open_connection(rig.HOST, port)

        async def send() -> None:
            writer.write(data)
            await writer.drain()
            writer.write_eof()

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(send())
            assert await reader.read(-1) == data
        writer.close()
        await writer.wait_closed()


async def test_a_receiver_that_is_slow_loses_nothing() -> None:
    data = os.urandom(8 << 20)

    async def source(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()

    async with rig.tcp_target(source) as target, emulator(target) as port:
        reader, writer = await asyncio.open_connection(rig.HOST, port, limit=1 << 12)
        received = bytearray()
        while part := await reader.read(1 << 16):
            received += part
            await asyncio.sleep(0)
        assert received == data
        writer.close()
        await writer.wait_closed()


async def test_a_port_that_refuses_ends_the_connection() -> None:
    async with emulator(rig.closed_port()) as port:
        reader, writer = await asyncio.open_connection(rig.HOST, port)
        assert await reader.read() == b""
        writer.close()
        await writer.wait_closed()


async def test_a_reset_at_one_end_ends_the_other() -> None:
    ended = asyncio.Event()

    async def wait(reader: asyncio.StreamReader, _: asyncio.StreamWriter) -> None:
        try:
            await reader.read(-1)
        finally:
            ended.set()

    async with rig.tcp_target(wait) as target, emulator(target) as port:
        _, writer = await asyncio.open_connection(rig.HOST, port)
        writer.write(b"x")
        await writer.drain()
        rig.rst(writer)
        await ended.wait()
