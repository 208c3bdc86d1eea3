from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from krelay.transport import handshake_stream as dialogue_module
from krelay.transport.connect import dial
from krelay.transport.handshake_stream import HandshakeStream

from .conftest import Witness, client_context


@contextlib.asynccontextmanager
async def talking() -> AsyncIterator[tuple[HandshakeStream, asyncio.StreamWriter]]:
    """A dialogue, and the other end of its connection."""
    accepted: asyncio.Future[asyncio.StreamWriter] = asyncio.get_running_loop().create_future()

    def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        accepted.set_result(writer)

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    host, port = listener.sockets[0].getsockname()
    _, dialogue = await dial(HandshakeStream, host, port)
    writer = await accepted
    try:
        yield dialogue, writer
    finally:
        dialogue.abort()
        writer.transport.abort()
        listener.close()


async def test_reading() -> None:
    async with talking() as (dialogue, writer):
        writer.write(b"one\ntwo-")
        assert await dialogue.read_until(b"\n") == b"one\n"
        assert await dialogue.read_exactly(3) == b"two"
        async with asyncio.TaskGroup() as group:
            read = group.create_task(dialogue.read_until(b"\r\n"))
            for byte in b"three\r\nrest":
                writer.write(bytes([byte]))
                await asyncio.sleep(0)
        assert read.result() == b"-three\r\n"


async def test_the_end() -> None:
    async with talking() as (dialogue, writer):
        writer.write(b"half")
        writer.close()
        with pytest.raises(EOFError):
            await dialogue.read_exactly(5)
        with pytest.raises(EOFError):
            dialogue.hand_over(Witness())
        assert dialogue.rest() == b"half"


async def test_too_much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dialogue_module, "LIMIT", 9)
    async with talking() as (dialogue, writer):
        writer.write(b"0123456789")
        with pytest.raises(OSError, match="more than a megabyte"):
            await dialogue.read_until(b"\n")
        assert dialogue.transport.is_closing()


async def test_handing_over() -> None:
    async with talking() as (dialogue, writer):
        writer.write(b"a\nb")
        await dialogue.read_until(b"a\n")
        witness = Witness()
        rest = dialogue.hand_over(witness)
        writer.write(b"c")
        await witness.until(lambda: rest + witness.data == b"bc")


async def test_nothing_is_handed_over_that_is_closing() -> None:
    async with talking() as (dialogue, _):
        dialogue.abort()
        with pytest.raises(EOFError):
            dialogue.hand_over(Witness())


async def test_nothing_in_the_clear_before_tls() -> None:
    async with talking() as (dialogue, writer):
        writer.write(b"x\ninjected")
        await dialogue.read_until(b"x\n")
        with pytest.raises(OSError, match="in the clear"):
            await dialogue.start_tls(client_context(), "localhost")


@pytest.mark.parametrize("answered", [None, object()])
async def test_a_connection_that_ends_with_its_handshake(
    monkeypatch: pytest.MonkeyPatch, answered: Any
) -> None:
    """asyncio then gives no transport, or one that is gone."""
    async with talking() as (dialogue, _):

        async def start_tls(*args: object, **options: object) -> object:
            if answered is not None:
                dialogue.connection_lost(ConnectionResetError())
            return answered

        monkeypatch.setattr(asyncio.get_running_loop(), "start_tls", start_tls)
        with pytest.raises(EOFError if answered is None else ConnectionResetError):
            await dialogue.start_tls(client_context(), "localhost")
