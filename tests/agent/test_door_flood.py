"""Floods at the door: the sessions of the other listener go on, and the agent keeps little."""

from __future__ import annotations

import asyncio
import itertools
import socket
import tracemalloc
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress

import pytest

from agent import door as module
from agent.door import MAX_PENDING, Door
from agent.upgrade import HEAD_LIMIT
from krelay.wire.frames import FrameType, encode_frame
from krelay.wire.handshake import OPENING
from tests import rig
from tests.agent.peer import session
from tests.agent.test_door import REQUEST, agent, enter, knock
from tests.agent.test_hostile import Scene, scene

HALF = REQUEST + OPENING + encode_frame(FrameType.AUTH, 0, bytes(1_000))[:-1]
"""All of a client's opening but its last byte."""
HEAD = REQUEST[:-2] + b"X: " + b"a" * (HEAD_LIMIT - len(REQUEST) - 10)
"""Nearly the longest head, without its end."""
STRANGERS = [b"", b"GET", HEAD, REQUEST, REQUEST + OPENING, HALF, b"\xff" * 5_000, b"x\r\n"]


@asynccontextmanager
async def crowd(door: Door, count: int, sources: Iterator[str]) -> AsyncIterator[None]:
    """Strangers who connect, one after the other, and stay: each has said something else."""
    loop = asyncio.get_running_loop()
    socks: list[socket.socket] = []
    try:
        for number in range(count):
            sock = socket.socket()
            socks.append(sock)
            sock.bind((next(sources), 0))
            sock.setblocking(False)
            await loop.sock_connect(sock, door.address)
            with suppress(OSError):
                sock.send(STRANGERS[number % len(STRANGERS)])
        yield
    finally:
        for sock in socks:
            sock.close()


def bounded(here: Scene, door: Door) -> bool:
    """Strangers take no place of the others, and few of their own."""
    return (
        len(door._pending) <= MAX_PENDING
        and here.counts == here.before
        and len(here.server._pending) == 0
    )


@pytest.mark.parametrize("sources", [1, 200])
async def test_a_flood_disturbs_no_session_of_the_other_listener(
    sources: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "INTERVAL", 0.0)
    async with scene(pod_ip=rig.HOST, door_port=0) as here:
        door = here.server.door
        assert door is not None
        addresses = itertools.cycle([f"127.0.1.{n + 1}" for n in range(sources)])
        for _ in range(3):
            async with crowd(door, 200, addresses):
                assert bounded(here, door)
                await here.bystander.goes_on()
                # Also those that want in: by either way.
                client = await session(here.server)
                client.leave()
                client = await enter(door)
                client.leave()
                await rig.until(lambda: bounded(here, door))
        await rig.until(lambda: not len(door._pending))


async def test_a_flood_beyond_the_door_s_rate_waits_outside(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "BURST", 8)
    monkeypatch.setattr(module, "INTERVAL", 3600.0)
    async with scene(pod_ip=rig.HOST, door_port=0) as here:
        door = here.server.door
        assert door is not None
        socks = [socket.socket() for _ in range(200)]
        for sock in socks:
            sock.setblocking(False)
            sock.connect_ex(door.address)
        await rig.until(lambda: door._retry)
        assert len(door._pending) == 8
        assert bounded(here, door)
        await here.bystander.goes_on()
        client = await session(here.server)
        client.leave()
        for sock in socks:
            sock.close()
        await rig.until(lambda: not len(door._pending))


async def test_strangers_that_fill_the_door_take_little_memory() -> None:
    loop = asyncio.get_running_loop()
    async with agent() as (_, door):
        async with knock(door, REQUEST):
            await rig.until(lambda: len(door._pending))
        await rig.until(lambda: not len(door._pending))
        socks = [socket.socket() for _ in range(MAX_PENDING)]
        tracemalloc.start()
        before = tracemalloc.get_traced_memory()[0]
        try:
            for number, sock in enumerate(socks):
                sock.setblocking(False)
                await loop.sock_connect(sock, door.address)
                await loop.sock_sendall(sock, HEAD if number % 2 else HALF)
            await rig.until(lambda: len(door._pending) == MAX_PENDING)
            (strangers,) = door._pending._by_source.values()
            await rig.until(lambda: all(each._reads for each in strangers))  # type: ignore[attr-defined]
            assert tracemalloc.get_traced_memory()[0] - before < MAX_PENDING * 8 << 10
        finally:
            tracemalloc.stop()
            for sock in socks:
                sock.close()
