"""What the proxy does to connections, before it is trusted to do that to krelay's."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from tests import rig
from tests.chaos.proxy import Connection, Proxy


@asynccontextmanager
async def proxied(serve: rig.Serve = rig.echo) -> AsyncIterator[Proxy]:
    """A proxy before a target."""
    async with rig.tcp_target(serve) as port, asyncio.TaskGroup() as tasks:
        proxy = Proxy((rig.HOST, port), tasks)
        await proxy.open()
        try:
            yield proxy
        finally:
            await proxy.heal()
            proxy.close()


def only(proxy: Proxy) -> Connection:
    """Its one connection."""
    (one,) = proxy.connections
    return one


async def test_without_a_fault_every_byte_passes_and_the_end_too() -> None:
    data = rig.noise(1 << 20)

    async def send(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        assert await reader.readexactly(len(data)) == data
        writer.write(data)

    async with proxied(send) as proxy:
        async with rig.connect(proxy.port) as (reader, writer):
            writer.write(data)
            assert await reader.read() == data
        await rig.until(lambda: not proxy.connections)


async def test_a_reset_passes_as_a_reset() -> None:
    async def slam(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(1)
        rig.rst(writer)

    async with proxied(slam) as proxy, rig.connect(proxy.port) as (reader, writer):
        writer.write(b"x")
        with pytest.raises(ConnectionResetError):
            await reader.read()


async def test_a_cut_is_a_reset_at_both_ends() -> None:
    seen: asyncio.Future[type[BaseException]] = asyncio.get_running_loop().create_future()

    async def watch(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readexactly(1))
        try:
            await reader.read()
        except OSError as exc:
            seen.set_result(type(exc))

    async with proxied(watch) as proxy, rig.connect(proxy.port) as (reader, writer):
        writer.write(b"x")
        await reader.readexactly(1)
        assert proxy.cut() == 1
        with pytest.raises(ConnectionResetError):
            await reader.read()
        assert await seen is ConnectionResetError


async def test_a_truncated_piece_loses_its_end_and_then_ends_in_good_order() -> None:
    async with proxied() as proxy, rig.connect(proxy.port) as (reader, writer):
        writer.write(b"first")
        assert await reader.readexactly(5) == b"first"
        only(proxy).truncate(3)
        writer.write(b"second")
        assert await reader.read() in (b"", b"sec")
        await rig.until(lambda: not proxy.connections)


async def test_a_hole_passes_nothing_both_ways_and_all_of_it_afterwards() -> None:
    async with proxied() as proxy, rig.connect(proxy.port) as (reader, writer):
        writer.write(b"a")
        assert await reader.readexactly(1) == b"a"
        passed = only(proxy).passed
        proxy.faults.hole = True
        writer.write(b"b")
        async with rig.connect(proxy.port) as (second, also):
            also.write(b"c")
            writer.write_eof()
            await rig.until(lambda: len(proxy.connections) == 2)
            for _ in range(20):
                await asyncio.sleep(0)
            assert sum(one.passed for one in proxy.connections) == passed
            await proxy.heal()
            assert await second.readexactly(1) == b"c"
        # The end that was said in the hole has come after its byte.
        assert await reader.read() in (b"", b"b")


async def test_one_connection_s_hole_is_its_own() -> None:
    async with proxied() as proxy, rig.connect(proxy.port) as (reader, writer):
        writer.write(b"a")
        assert await reader.readexactly(1) == b"a"
        holed = only(proxy)
        holed.faults.hole = True
        async with rig.connect(proxy.port) as (second, also):
            writer.write(b"b")
            also.write(b"c")
            assert await second.readexactly(1) == b"c"
            assert holed.passed == 2
            await proxy.heal()
            assert await reader.readexactly(1) == b"b"


async def test_a_delay_holds_each_piece_and_keeps_the_order() -> None:
    async with proxied() as proxy, rig.connect(proxy.port) as (reader, writer):
        proxy.faults.delay = 0.05
        clock = asyncio.get_running_loop().time
        began = clock()
        writer.write(b"a" * 40_000)
        writer.write(b"b" * 40_000)
        assert await reader.readexactly(80_000) == b"a" * 40_000 + b"b" * 40_000
        assert clock() - began >= 0.1


async def test_a_rate_bounds_what_passes() -> None:
    async with proxied() as proxy, rig.connect(proxy.port) as (reader, writer):
        proxy.faults.rate = 1_000_000
        clock = asyncio.get_running_loop().time
        began = clock()
        writer.write(bytes(200_000))
        await reader.readexactly(200_000)
        assert clock() - began >= 0.18


async def test_refused_is_refused_and_the_port_stays() -> None:
    async with proxied() as proxy, rig.connect(proxy.port) as (reader, writer):
        writer.write(b"a")
        await reader.readexactly(1)
        proxy.refuse()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(rig.HOST, proxy.port)
        writer.write(b"b")
        assert await reader.readexactly(1) == b"b"
        await proxy.heal()
        async with rig.connect(proxy.port) as (again, more):
            more.write(b"c")
            assert await again.readexactly(1) == b"c"


async def test_an_upstream_that_is_not_there_is_a_reset() -> None:
    async with asyncio.TaskGroup() as tasks:
        proxy = Proxy((rig.HOST, rig.closed_port()), tasks)
        await proxy.open()
        async with rig.connect(proxy.port) as (reader, _):
            with pytest.raises(ConnectionResetError):
                await reader.read()
        proxy.close()
