"""SocketTransport, with real sockets."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Iterator
from typing import cast

import pytest

from krelay.mux.sockets import reset_on_close
from krelay.mux.transport import SocketTransport


class Recorder(asyncio.Protocol):
    """Notes what its transport reports."""

    def __init__(self) -> None:
        self.received = bytearray()
        self.calls: list[str] = []
        self.changed = asyncio.Event()
        self.error: Exception | None = None
        self.keep_open = True

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._note("made")

    def data_received(self, data: bytes) -> None:
        self.received += data
        self._note("data")

    def eof_received(self) -> bool:
        self._note("eof")
        return self.keep_open

    def pause_writing(self) -> None:
        self._note("pause")

    def resume_writing(self) -> None:
        self._note("resume")

    def connection_lost(self, exc: Exception | None) -> None:
        self.error = exc
        self._note("lost")

    def _note(self, call: str) -> None:
        self.calls.append(call)
        self.changed.set()

    async def until(self, call: str) -> None:
        async with asyncio.timeout(10):
            while call not in self.calls:
                self.changed.clear()
                await self.changed.wait()


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    """Two connected TCP sockets, of which the first does not block."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    near.setblocking(False)
    far.settimeout(10)
    with near, far:
        yield near, far


Pair = tuple[socket.socket, socket.socket]


async def test_it_exists_at_once_and_reads(pair: Pair) -> None:
    protocol = Recorder()
    SocketTransport(pair[0], protocol)
    assert protocol.calls == ["made"]
    pair[1].sendall(b"hello")
    await protocol.until("data")
    assert protocol.received == b"hello"
    protocol.transport.close()
    await protocol.until("lost")
    assert protocol.error is None
    assert pair[1].recv(1) == b""


async def test_a_paused_reader_leaves_the_bytes_in_the_socket(pair: Pair) -> None:
    protocol = Recorder()
    transport = SocketTransport(pair[0], protocol)
    transport.pause_reading()
    pair[1].sendall(b"hello")
    await asyncio.sleep(0.02)
    assert not transport.is_reading()
    assert not protocol.received
    transport.resume_reading()
    await protocol.until("data")
    transport.abort()
    await protocol.until("lost")


async def test_a_protocol_with_a_buffer_gets_the_bytes_there(pair: Pair) -> None:
    class Buffered(Recorder, asyncio.BufferedProtocol):
        memory = bytearray(4)

        def get_buffer(self, sizehint: int) -> bytearray:
            return self.memory

        def buffer_updated(self, nbytes: int) -> None:
            self.data_received(bytes(self.memory[:nbytes]))

    protocol = Buffered()
    SocketTransport(pair[0], protocol)
    pair[1].sendall(b"0123456789")
    async with asyncio.timeout(10):
        while len(protocol.received) < 10:
            protocol.changed.clear()
            await protocol.changed.wait()
    assert protocol.received == b"0123456789"
    protocol.transport.abort()
    await protocol.until("lost")


async def test_bytes_that_the_kernel_does_not_take_go_out_in_order(pair: Pair) -> None:
    protocol = Recorder()
    transport = SocketTransport(pair[0], protocol)
    transport.set_write_buffer_limits(high=1000)
    pieces = [bytes([number]) * 99_999 for number in range(200)]
    transport.writelines(pieces[:100])
    for piece in pieces[100:]:
        transport.write(piece)
    assert protocol.calls == ["made", "pause"]
    assert transport.get_write_buffer_size() > 1000
    transport.write_eof()

    def read() -> bytes:
        received = bytearray()
        while data := pair[1].recv(1 << 20):
            received += data
        return bytes(received)

    assert await asyncio.to_thread(read) == b"".join(pieces)
    assert protocol.calls == ["made", "pause", "resume"]
    assert transport.get_write_buffer_size() == 0
    transport.close()
    await protocol.until("lost")


async def test_close_sends_what_was_written(pair: Pair) -> None:
    protocol = Recorder()
    transport = SocketTransport(pair[0], protocol)
    transport.write(bytes(10 << 20))
    transport.close()
    assert transport.is_closing()

    def read() -> int:
        count = 0
        while data := pair[1].recv(1 << 20):
            count += len(data)
        return count

    assert await asyncio.to_thread(read) == 10 << 20
    await protocol.until("lost")
    assert protocol.error is None


async def test_abort_drops_what_was_written(pair: Pair) -> None:
    protocol = Recorder()
    transport = SocketTransport(pair[0], protocol)
    transport.write(bytes(10 << 20))
    reset_on_close(transport)
    transport.abort()
    transport.write(b"ignored")
    await protocol.until("lost")

    def read() -> None:
        while pair[1].recv(1 << 20):
            pass

    with pytest.raises(ConnectionResetError):
        read()


@pytest.mark.parametrize("keep_open", [True, False])
async def test_the_end_closes_it_unless_the_protocol_keeps_it(pair: Pair, keep_open: bool) -> None:
    protocol = Recorder()
    protocol.keep_open = keep_open
    transport = SocketTransport(pair[0], protocol)
    pair[1].shutdown(socket.SHUT_WR)
    await protocol.until("eof")
    assert transport.is_closing() is not keep_open
    transport.write(b"still")
    if keep_open:
        assert pair[1].recv(5) == b"still"
        transport.close()
    await protocol.until("lost")


async def test_a_reset_is_passed_on(pair: Pair) -> None:
    protocol = Recorder()
    SocketTransport(pair[0], protocol)
    pair[1].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    pair[1].close()
    await protocol.until("lost")
    assert isinstance(protocol.error, ConnectionResetError)


async def test_an_error_of_the_protocol_closes_it_and_is_reported(pair: Pair) -> None:
    class Broken(Recorder):
        def data_received(self, data: bytes) -> None:
            raise ValueError("a bug")

    reported: list[object] = []
    asyncio.get_running_loop().set_exception_handler(
        lambda _, context: reported.append(context["exception"])
    )
    protocol = Broken()
    SocketTransport(pair[0], protocol)
    pair[1].sendall(b"x")
    await protocol.until("lost")
    assert isinstance(protocol.error, ValueError)
    assert reported == [protocol.error]


async def test_an_error_of_connection_made_leaves_the_socket_to_the_caller(pair: Pair) -> None:
    class Broken(Recorder):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            raise ValueError("a bug")

    with pytest.raises(ValueError, match="a bug"):
        SocketTransport(pair[0], Broken())
    assert pair[0].fileno() >= 0
    pair[1].sendall(b"x")
    await asyncio.sleep(0.02)
    assert pair[0].recv(1) == b"x"


async def test_a_failed_write_leaves_time_to_read_an_answer_that_came_before(pair: Pair) -> None:
    protocol = Recorder()
    transport = SocketTransport(pair[0], protocol)
    pair[1].sendall(b"answer")
    pair[1].setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    pair[1].close()
    transport.write(b"more")
    transport.writelines([b"even", b"more"])
    await protocol.until("lost")
    assert protocol.received == b"answer"
    assert isinstance(protocol.error, ConnectionError)


async def test_a_reset_that_a_write_meets_is_not_taken_for_an_end(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    near, far = pair
    protocol = Recorder()
    transport = SocketTransport(near, protocol)
    far.sendall(b"half of it")
    far.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    far.close()
    transport.write(b"x")
    await protocol.until("lost")
    assert "eof" not in protocol.calls
    assert bytes(protocol.received) in (b"", b"half of it")
    assert isinstance(protocol.error, ConnectionResetError)


async def test_an_end_written_while_the_queue_drains_is_sent_once() -> None:
    """After the peer's end, the kernel takes a second one for an error."""

    class EndsWhenDrained(Recorder):
        def resume_writing(self) -> None:
            super().resume_writing()
            self.transport.write_eof()

    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 100_000)
        server.bind(("127.0.0.1", 0))
        server.listen()
        near = socket.create_connection(server.getsockname())
        far, _ = server.accept()
    with near, far:
        near.setblocking(False)
        near.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_608)
        protocol = EndsWhenDrained()
        transport = SocketTransport(near, protocol)
        transport.set_write_buffer_limits(high=0)
        transport.pause_reading()
        far.sendall(b"answer" * 1_000)
        far.shutdown(socket.SHUT_WR)
        sent = 0
        while not transport.get_write_buffer_size():
            transport.write(bytes(1_000))
            sent += 1_000
        received = await asyncio.to_thread(read_all, far)
        assert received == sent
        transport.resume_reading()
        await protocol.until("eof")
        assert protocol.received == b"answer" * 1_000
        transport.abort()
        await protocol.until("lost")
        assert protocol.error is None


def read_all(sock: socket.socket) -> int:
    """Read to the end; return the number of bytes."""
    total = 0
    while data := sock.recv(1 << 16):
        total += len(data)
    return total
