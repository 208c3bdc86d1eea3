"""Socket options of relays, and the kernel's count of dropped datagrams."""

from __future__ import annotations

import asyncio
import socket
import struct
import sys

import pytest

from krelay.mux.sockets import ReceiveDrops, end_socket, no_delay, reset_on_close, reset_socket
from tests import rig
from tests.fakes import MemoryTransport


async def test_connections_of_a_bare_socket_send_small_writes_at_once() -> None:
    """asyncio leaves these out: the socket was made without its protocol's number."""
    loop = asyncio.get_running_loop()
    accepted: asyncio.Queue[asyncio.BaseTransport] = asyncio.Queue()

    class Accept(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            accepted.put_nowait(transport)

    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as sock:
        sock.bind(("127.0.0.1", 0))
        server = await loop.create_server(Accept, sock=sock)
        reader, writer = await asyncio.open_connection(*sock.getsockname())
        transport = await accepted.get()
        assert isinstance(transport, asyncio.Transport)
        theirs = transport.get_extra_info("socket")
        no_delay(transport)
        assert theirs.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
        end_socket(transport)
        assert await reader.read() == b""
        writer.transport.abort()
        reset_socket(transport)
        server.close()


async def test_a_reset_socket_sends_rst() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        reset_socket(writer.transport)

    async with rig.tcp_target(serve) as port:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"x")
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.transport.abort()


async def test_a_transport_without_a_socket_is_left_alone() -> None:
    transport = MemoryTransport()
    no_delay(transport)
    reset_socket(transport)
    assert transport.is_closing()


async def test_options_of_a_closed_connection_are_no_error(macos: None) -> None:
    """As after a reset before the accept: the server goes on to the next connection."""
    made: asyncio.Queue[asyncio.Transport] = asyncio.Queue()

    class Serve(asyncio.Protocol):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            assert isinstance(transport, asyncio.Transport)
            no_delay(transport)
            reset_on_close(transport)
            made.put_nowait(transport)

    with socket.create_server((rig.HOST, 0)) as sock:
        with socket.create_connection(sock.getsockname()) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        server = await asyncio.get_running_loop().create_server(Serve, sock=sock)
        transport = await made.get()
        reset_socket(transport)
        assert transport.is_closing()
        server.close()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_each_datagram_that_the_kernel_drops_is_counted() -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        sock.setblocking(False)
        sock.bind((rig.HOST, 0))
        drops = ReceiveDrops(sock)
        assert drops.count == 0
        for _ in range(100):
            sender.sendto(bytes(500), sock.getsockname())
        came = 0
        while True:
            try:
                sock.recv(500)
            except BlockingIOError:
                break
            came += 1
        assert 0 < came < 100
        assert drops.count == 100 - came
        assert drops.close() == 100 - came
    assert drops.count == 100 - came


def test_a_socket_without_a_counter_counts_zero() -> None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    drops = ReceiveDrops(sock)
    sock.close()
    assert drops.count == 0
