from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from krelay.net import engine, handshake_stream
from krelay.net.dial import dial
from krelay.net.handshake_stream import HandshakeStream

from .conftest import Witness, client_context

pytestmark = pytest.mark.usefixtures("engine")


@contextlib.asynccontextmanager
async def talking() -> AsyncIterator[tuple[HandshakeStream, asyncio.StreamWriter]]:
    """A stream, and the other end of its connection."""
    accepted: asyncio.Future[asyncio.StreamWriter] = asyncio.get_running_loop().create_future()

    def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.set_result(writer)

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = listener.sockets[0].getsockname()
    _, stream = await dial(HandshakeStream, host, port)
    writer = await accepted
    try:
        yield stream, writer
    finally:
        stream.abort()
        writer.transport.abort()
        listener.close()


async def test_a_reader_gets_what_has_arrived_or_exactly_what_it_asks_for() -> None:
    async with talking() as (stream, writer):
        writer.write(b"one")
        assert await stream.read_exactly(2) == b"on"
        stream.unread(b"ON")
        assert await stream.read(2) == b"ON"
        assert await stream.read(99) == b"e"
        async with asyncio.TaskGroup() as group:
            read = group.create_task(stream.read_exactly(5))
            for byte in b"three":
                writer.write(bytes([byte]))
                await asyncio.sleep(0)
        assert read.result() == b"three"


async def test_a_stream_that_ended_gives_its_last_bytes_and_is_not_handed_over() -> None:
    async with talking() as (stream, writer):
        writer.write(b"half")
        writer.close()
        with pytest.raises(EOFError):
            await stream.read_exactly(5)
        with pytest.raises(EOFError):
            stream.hand_over(Witness())
        assert await stream.read(99) == b"half"
        with pytest.raises(EOFError):
            await stream.read(99)


async def test_more_unread_bytes_than_the_limit_end_the_connection(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(handshake_stream, "LIMIT", 9)
    async with talking() as (stream, writer):
        writer.write(b"0123456789")
        with pytest.raises(OSError, match="more than a megabyte"):
            await stream.read_exactly(99)
        assert stream.transport.is_closing()


async def test_the_next_protocol_gets_the_unread_bytes_and_those_that_follow() -> None:
    async with talking() as (stream, writer):
        writer.write(b"a\nb")
        await stream.read_exactly(2)
        witness = Witness()
        rest = stream.hand_over(witness)
        writer.write(b"c")
        await witness.until(lambda: rest + witness.data == b"bc")


async def test_a_closing_connection_is_not_handed_over() -> None:
    async with talking() as (stream, _):
        stream.abort()
        with pytest.raises(EOFError):
            stream.hand_over(Witness())


async def test_bytes_in_the_clear_before_tls_are_refused() -> None:
    async with talking() as (stream, writer):
        writer.write(b"x\ninjected")
        await stream.read_exactly(2)
        with pytest.raises(OSError, match="in the clear"):
            await stream.start_tls(client_context(), "localhost")


@pytest.mark.parametrize("answered", [None, object()])
async def test_a_connection_that_ends_during_the_tls_handshake_is_an_error(
    monkeypatch: pytest.MonkeyPatch, answered: Any
) -> None:
    """asyncio then gives no transport, or one that is gone."""
    async with talking() as (stream, _):

        async def start_tls(*args: object, **options: object) -> object:
            if answered is not None:
                stream.connection_lost(ConnectionResetError())
            return answered

        monkeypatch.setattr(engine, "start_tls", start_tls)
        with pytest.raises(EOFError if answered is None else ConnectionResetError):
            await stream.start_tls(client_context(), "localhost")
