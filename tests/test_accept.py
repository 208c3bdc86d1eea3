"""Accepting on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
from collections.abc import AsyncIterator, Iterator

import pytest

from krelay import accept
from krelay.accept import Accept
from krelay.bind import bind
from tests import rig


class Served(asyncio.Protocol):
    """Greets, and counts in `all`."""

    def __init__(self, all_: list[Served]) -> None:
        all_.append(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(b"hi")
        transport.close()


@contextlib.asynccontextmanager
async def open_port() -> AsyncIterator[tuple[Accept, tuple[str, int], list[Served]]]:
    (sock,) = bind(rig.HOST, 0, socket.SOCK_STREAM)
    address = sock.getsockname()
    served: list[Served] = []
    accepting = Accept("web", sock, lambda: Served(served))
    try:
        yield accepting, address, served
    finally:
        accepting.close()


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def greeting(address: tuple[str, int]) -> bytes:
    reader, writer = await asyncio.open_connection(*address)
    try:
        return await reader.read()
    finally:
        writer.close()


async def test_each_connection_of_a_burst_gets_a_protocol() -> None:
    async with open_port() as (_, address, served), asyncio.TaskGroup() as tasks:
        answers = [tasks.create_task(greeting(address)) for _ in range(200)]
    assert [answer.result() for answer in answers] == [b"hi"] * 200
    assert len(served) == 200


async def test_the_port_is_free_at_once() -> None:
    async with open_port() as (_, address, _):
        pass
    for sock in bind(rig.HOST, address[1], socket.SOCK_STREAM):
        sock.close()


@pytest.mark.parametrize("turns", range(5))
async def test_what_is_accepted_when_it_closes_is_served(turns: int) -> None:
    """A connection takes several turns of the loop to begin: closing in any of them loses none."""
    loop = asyncio.get_running_loop()
    async with open_port() as (accepting, address, _):
        with socket.create_connection(address) as client:
            client.setblocking(False)
            done = loop.create_future()

            def close(left: int) -> None:
                if left:
                    loop.call_soon(close, left - 1)
                else:
                    accepting.close()
                    done.set_result(None)

            close(turns)
            await done
            if turns > 1:
                assert await loop.sock_recv(client, 9) == b"hi"
            else:
                with pytest.raises(ConnectionResetError):  # the kernel, which had it still
                    await loop.sock_recv(client, 9)


async def test_without_descriptors_it_waits_and_says_so_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    tries = 0
    pause = Accept._pause

    def count(self: Accept, exc: OSError) -> None:
        nonlocal tries
        tries += 1
        pause(self, exc)

    monkeypatch.setattr(accept, "PAUSE", 0.01)
    monkeypatch.setattr(Accept, "_pause", count)
    async with open_port() as (_, address, served):
        with socket.create_connection(address) as client:
            client.setblocking(False)
            with no_descriptors():
                await rig.until(lambda: tries > 3)
                assert not served
            assert await asyncio.get_running_loop().sock_recv(client, 9) == b"hi"
    assert caplog.messages == ["web: connections wait, none can be accepted: Too many open files"]
