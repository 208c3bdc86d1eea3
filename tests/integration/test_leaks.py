"""Connections that end in every way there is leave nothing behind, at either end."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import logging
import os
import socket
from collections.abc import Iterator

import pytest

from krelay.datapath import udp
from tests import rig


@pytest.fixture(autouse=True)
def nothing_goes_wrong(caplog: pytest.LogCaptureFixture) -> Iterator[None]:
    """However a connection ends, it is no error of krelay's or asyncio's."""
    yield
    records = caplog.get_records("call")
    assert not [record for record in records if record.levelno >= logging.ERROR]


async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The first byte says how it ends."""
    match await reader.read(1):
        case b"e":  # echo, then end
            await rig.echo(reader, writer)
        case b"f":  # end first
            writer.write(b"bye")
            writer.write_eof()
            await reader.read()
        case b"r":  # reset
            writer.write(b"r")
            await writer.drain()
            rig.rst(writer)
        case b"c":  # close with bytes unread
            writer.write(bytes(1 << 18))
            await writer.drain()
        case _:  # wait to be reset
            writer.write(b"w")
            await reader.read()


async def connection(number: int, good: int, closed: int) -> None:
    """One connection, ended in its own way."""
    with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
        async with rig.connect(closed if number % 7 == 6 else good) as (reader, writer):
            match number % 7:
                case 0:
                    writer.write(b"e" + bytes(100_000))
                    writer.write_eof()
                    assert await reader.read() == bytes(100_000)
                case 1:
                    writer.write(b"f")
                    assert await reader.read() == b"bye"
                    writer.write(b"more")
                    writer.write_eof()
                case 2:
                    writer.write(b"r")
                    await reader.read()
                case 3:
                    writer.write(b"c" + bytes(1 << 18))
                    await reader.readexactly(1)
                    rig.rst(writer)
                case 4:
                    writer.write(b"w")
                    await reader.readexactly(1)
                    rig.rst(writer)
                case 5:  # gone before it is accepted, perhaps
                    rig.rst(writer)
                case 6:  # refused
                    await reader.read()


def open_files() -> int:
    """How many there are, in a process that is both ends."""
    gc.collect()
    return len(os.listdir("/dev/fd"))


async def test_tcp_leaves_nothing_behind() -> None:
    async with rig.path(tunnels=2) as path, rig.tcp_target(serve) as target:
        good = await path.tcp(target)
        closed = await path.tcp(rig.closed_port())
        parked = await path.tcp(path.route(None), open_timeout=0.01)
        # The first use of anything may open what stays open.
        await connection(0, rig.port_of(good), rig.port_of(closed))
        await rig.until(lambda: path.streams == (0, 0))
        await rig.until(lambda: not good.connections)
        tasks, files = len(asyncio.all_tasks()), open_files()

        gate = asyncio.Semaphore(50)

        async def one(number: int) -> None:
            async with gate:
                if number % 10 == 9:
                    await connection(6, 0, rig.port_of(parked))
                else:
                    await connection(number, rig.port_of(good), rig.port_of(closed))

        async with asyncio.TaskGroup() as clients:
            for number in range(300):
                clients.create_task(one(number))

        await rig.until(lambda: path.streams == (0, 0))
        for listener in (good, closed, parked):
            await rig.until(lambda listener=listener: not listener.connections)
        await rig.until(lambda: len(asyncio.all_tasks()) == tasks)
        await rig.until(lambda: open_files() == files)
        for tunnel in path.pool.tunnels:
            session = rig.connection(tunnel).session
            await rig.until(lambda session=session: session.unacknowledged == 0)
            assert not session._send_queue._small
            assert not session._send_queue._bulk
        assert not path.server._legacy


async def test_udp_leaves_nothing_behind() -> None:
    async with rig.path(tunnels=2) as path, rig.udp_echo() as target:
        good = await path.udp(target)
        dead = await path.udp(rig.closed_port(socket.SOCK_DGRAM))
        tasks, files = len(asyncio.all_tasks()), open_files()
        for turn in range(100):
            async with (
                rig.udp_socket(connect=rig.port_of(good)) as client,
                rig.udp_socket(connect=rig.port_of(dead)) as lost,
            ):
                client.send(b"%d" % turn)
                lost.send(b"x")
                assert await rig.recv(client) == b"%d" % turn
        for sock in good._sockets + dead._sockets:
            for flow in sock.flows.values():
                flow.active_at -= udp.IDLE
            sock._sweep()
        assert good.live == dead.live == 0
        await rig.until(lambda: path.streams == (0, 0))
        await rig.until(lambda: len(asyncio.all_tasks()) == tasks)
        await rig.until(lambda: open_files() == files)


async def test_cuts_amid_connections_leave_nothing_behind() -> None:
    async with rig.path(tunnels=2) as path, rig.tcp_target(serve) as target:
        good = await path.tcp(target)
        closed = await path.tcp(rig.closed_port())
        await connection(0, rig.port_of(good), rig.port_of(closed))
        await rig.until(lambda: path.streams == (0, 0) and not good.connections)
        tasks, files = len(asyncio.all_tasks()), open_files()
        async with asyncio.TaskGroup() as clients:
            for number in range(100):
                clients.create_task(connection(number, rig.port_of(good), rig.port_of(closed)))
                if number % 20 == 10:
                    path.link.cut()
                await asyncio.sleep(0)
        await rig.until(lambda: path.streams == (0, 0))
        await rig.until(lambda: not good.connections and not closed.connections)
        await rig.until(lambda: all(tunnel.up for tunnel in path.pool.tunnels))
        await rig.until(lambda: len(asyncio.all_tasks()) == tasks)
        await rig.until(lambda: open_files() == files)
        assert len(path.server.sessions) == 2
