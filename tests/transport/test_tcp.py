from __future__ import annotations

import asyncio
import errno
import socket
from typing import Any

import pytest

from krelay.errors import NotListeningError, TunnelError
from krelay.net.dns import Address
from krelay.transport.tcp import dial, open_tcp

from .conftest import Witness


async def test_open() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readexactly(5))
        writer.close()

    listener = await asyncio.start_server(echo, "127.0.0.1", 0)
    witness = Witness()
    transport = await open_tcp(*listener.sockets[0].getsockname(), protocol=witness)
    assert witness.transport is transport
    sock = transport.get_extra_info("socket")
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    options = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT")
    idle, between, count = (
        sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in options
    )
    assert idle + between * count == 10
    transport.write(b"hello")
    assert await witness.lost is None
    assert witness.data == b"hello"
    listener.close()


async def test_refused() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        with pytest.raises(NotListeningError, match="nothing listens on 127.0.0.1 port"):
            await open_tcp(*sock.getsockname(), protocol=Witness())


async def test_no_answer() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(0)
        address = sock.getsockname()
        # A full queue: the kernel answers no further connection.
        with socket.create_connection(address), pytest.raises(TunnelError, match="within 0.05 s"):
            await open_tcp(*address, protocol=Witness(), timeout=0.05)


async def test_what_gets_no_answer_is_tried_again_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    """The first SYN is lost, and TCP would wait for long: a second connection is there first."""
    monkeypatch.setattr("krelay.transport.tcp.AGAIN", 0.01)
    loop = asyncio.get_running_loop()
    listener = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    real, tries = loop.create_connection, 0

    async def lossy(*args: Any, **kwargs: Any) -> Any:
        nonlocal tries
        tries += 1
        if tries == 1:
            await loop.create_future()
        return await real(*args, **kwargs)

    monkeypatch.setattr(loop, "create_connection", lossy)
    _, witness = await dial(Witness, *listener.sockets[0].getsockname(), insist=True)
    assert tries == 2
    await witness.lost
    listener.close()


async def test_of_two_that_come_up_one_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("krelay.transport.tcp.AGAIN", 0.01)
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
    real, both = loop.create_connection, asyncio.Barrier(2)
    made: list[Any] = []

    async def together(*args: Any, **kwargs: Any) -> Any:
        found = await real(*args, **kwargs)
        made.append(found)
        if len(made) <= 2:
            await both.wait()
        return found

    monkeypatch.setattr(loop, "create_connection", together)
    transport, witness = await dial(Witness, *listener.sockets[0].getsockname(), insist=True)
    (other,) = [w for t, w in made if t is not transport]
    await other.lost
    assert not transport.is_closing()
    transport.abort()
    await witness.lost
    listener.close()


async def test_one_that_is_refused_is_not_tried_again() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionRefusedError):
            await dial(Witness, *sock.getsockname(), insist=True)


async def test_the_next_address(monkeypatch: pytest.MonkeyPatch) -> None:
    listener = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.2", 0)
    port = listener.sockets[0].getsockname()[1]
    for hosts, meets in (
        (("127.0.0.3", "127.0.0.2"), None),
        (("127.0.0.3", "127.0.0.4"), NotListeningError),
        ((), TunnelError),
    ):
        found: list[Address] = [(socket.AF_INET, host) for host in hosts]

        async def lookup(name: str, found: list[Address] = found) -> list[Address]:
            return found

        monkeypatch.setattr("krelay.transport.tcp.lookup", lookup)
        witness = Witness()
        if meets is None:
            await open_tcp("name.test", port, protocol=witness)
            await witness.lost
        else:
            with pytest.raises(meets):
                await open_tcp("name.test", port, protocol=witness)
        monkeypatch.undo()
    listener.close()


async def test_unreachable() -> None:
    with pytest.raises(TunnelError, match="cannot reach no.invalid port 1"):
        await open_tcp("no.invalid", 1, protocol=Witness())


async def test_one_more_try_that_finds_no_descriptor_does_not_end_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("krelay.transport.tcp.AGAIN", 0.01)
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
    real, tried = loop.create_connection, asyncio.Event()
    tries = 0

    async def connect(*args: Any, **options: Any) -> Any:
        nonlocal tries
        tries += 1
        if tries > 1:
            tried.set()
            raise OSError(errno.EMFILE, "Too many open files")
        await tried.wait()
        return await real(*args, **options)

    monkeypatch.setattr(loop, "create_connection", connect)
    transport, witness = await dial(Witness, *listener.sockets[0].getsockname(), insist=True)
    transport.abort()
    await witness.lost
    listener.close()
