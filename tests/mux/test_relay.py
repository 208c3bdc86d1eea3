"""A TCP socket coupled to a stream: every way to end, on real sockets at both sides."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from krelay.mux.relay import TcpRelay
from krelay.mux.stream import MuxStream
from tests import rig
from tests.mux.pair import TARGET, Pair, pair


class Ends:
    """An application's connection, a relay at each end of a tunnel, and a target's connection."""

    def __init__(self, both: Pair) -> None:
        self.both = both
        self.closed: list[TcpRelay] = []

    app: tuple[asyncio.StreamReader, asyncio.StreamWriter]
    target: tuple[asyncio.StreamReader, asyncio.StreamWriter]
    near: TcpRelay
    far: TcpRelay


@asynccontextmanager
async def relayed() -> AsyncIterator[Ends]:
    """app -> near relay == tunnel == far relay -> target."""
    loop = asyncio.get_running_loop()
    async with pair() as both:
        ends = Ends(both)
        targets: asyncio.Queue[tuple[asyncio.StreamReader, asyncio.StreamWriter]] = asyncio.Queue()
        accepted: asyncio.Queue[TcpRelay] = asyncio.Queue()

        class Local(TcpRelay):
            def connection_made(self, transport: asyncio.BaseTransport) -> None:
                super().connection_made(transport)
                accepted.put_nowait(self)

        listener = await loop.create_server(lambda: Local(ends.closed.append), "127.0.0.1", 0)
        server = await asyncio.start_server(lambda r, w: targets.put_nowait((r, w)), "127.0.0.1", 0)
        ends.app = await asyncio.open_connection(*listener.sockets[0].getsockname())
        ends.near = await accepted.get()
        ends.far = TcpRelay(ends.closed.append)
        arrived: asyncio.Queue[MuxStream] = asyncio.Queue()

        def arrive(stream: MuxStream) -> None:
            ends.far.stream, stream.handler = stream, ends.far
            arrived.put_nowait(stream)

        both.listens = arrive
        ends.near.start(both.client.open(TARGET, ends.near))
        ends.app[1].write(b"early")
        far_stream = await arrived.get()
        # The early bytes are there before the target is reached.
        await rig.until(lambda: both.agent.session.received_count > 1)
        await loop.create_connection(lambda: ends.far, *server.sockets[0].getsockname())
        far_stream.accept()
        ends.far.start(far_stream)
        ends.target = await targets.get()
        assert await ends.target[0].readexactly(5) == b"early"
        try:
            yield ends
        finally:
            for _, writer in (ends.app, ends.target):
                writer.transport.abort()
            listener.close()
            server.close()
            await rig.until(lambda: len(ends.closed) == 2)
            await rig.until(
                lambda: not both.client.session.streams and not both.agent.session.streams
            )


async def test_the_application_ends_and_the_target_goes_on() -> None:
    async with relayed() as ends:
        ends.app[1].write(b"question")
        ends.app[1].write_eof()
        assert await ends.target[0].read() == b"question"
        ends.target[1].write(b"answer")
        ends.target[1].write_eof()
        assert await ends.app[0].read() == b"answer"
        assert (ends.near.received_bytes, ends.near.sent_bytes) == (13, 6)


async def test_the_target_ends_and_the_application_goes_on() -> None:
    async with relayed() as ends:
        ends.target[1].write(b"bye")
        ends.target[1].write_eof()
        assert await ends.app[0].read() == b"bye"
        ends.app[1].write(b"one more thing")
        ends.app[1].write_eof()
        assert await ends.target[0].read() == b"one more thing"


@pytest.mark.usefixtures("macos")
async def test_bytes_of_the_end_that_ends_last_all_arrive_on_any_system() -> None:
    async with relayed() as ends:
        ends.target[1].write_eof()
        assert await ends.app[0].read() == b""
        ends.app[1].write(bytes(100_000))
        ends.app[1].write_eof()
        assert len(await ends.target[0].read()) == 100_000


@pytest.mark.usefixtures("macos")
@pytest.mark.parametrize("size", [1 << 20, 8 << 20])
async def test_unread_bytes_stay_readable_after_both_ends(
    size: int,
) -> None:
    async with relayed() as ends:
        sock = ends.app[1].get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 14)
        ends.target[1].write(bytes(size))
        ends.target[1].write_eof()
        near, received = ends.near.transport, 0
        assert near is not None
        # What is left then is the sending kernel's, and the end behind it.
        while not ends.near._remote_ended or near.get_write_buffer_size():
            received += len(await ends.app[0].read(1 << 14))
        ends.app[1].write_eof()
        assert await ends.target[0].read() == b""
        assert received + len(await ends.app[0].read()) == size


async def test_a_reset_by_the_application_resets_the_target() -> None:
    async with relayed() as ends:
        rig.rst(ends.app[1])
        with pytest.raises(ConnectionResetError):
            await ends.target[0].read()


async def test_a_reset_by_the_target_resets_the_application() -> None:
    async with relayed() as ends:
        rig.rst(ends.target[1])
        with pytest.raises(ConnectionResetError):
            await ends.app[0].read()


async def test_a_lost_session_resets_the_application() -> None:
    async with relayed() as ends:
        ends.both.close()
        with pytest.raises(ConnectionResetError):
            await ends.app[0].read()


async def test_an_application_that_does_not_read_pauses_the_target() -> None:
    async with relayed() as ends:
        ends.app[0]._transport.pause_reading()  # type: ignore[attr-defined]
        block, sent = bytes(1 << 20), 0
        try:
            while sent < 64 << 20:
                ends.target[1].write(block)
                async with asyncio.timeout(0.5):
                    await ends.target[1].drain()
                sent += len(block)
        except TimeoutError:
            pass
        assert sent < 64 << 20, "unbounded buffering"
        ends.app[0]._transport.resume_reading()  # type: ignore[attr-defined]
        received = 0
        while received < sent:
            received += len(await ends.app[0].read(1 << 20))


async def test_both_sockets_send_small_writes_at_once() -> None:
    async with relayed() as ends:
        for relay in (ends.near, ends.far):
            assert relay.transport is not None
            sock = relay.transport.get_extra_info("socket")
            assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        ends.near.on_datagram(b"nobody's")
