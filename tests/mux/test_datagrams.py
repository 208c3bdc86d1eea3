"""DatagramEndpoint: batches on real sockets keep every datagram, its bounds and its order."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest

from krelay.mux import datagrams
from krelay.mux.datagrams import COST, MAX_WAITING, Address, DatagramEndpoint, FixedRoom
from tests import rig


class Seen:
    """A handler that records its events; `on_datagram` runs for each datagram."""

    def __init__(self) -> None:
        self.received: list[bytes] = []
        self.peers: list[Address] = []
        self.errors: list[int | None] = []
        self.sent = 0
        self.dropped = 0
        self.on_datagram: Callable[[], object] = lambda: None
        self.on_error: Callable[[], object] = lambda: None

    def datagram_received(self, data: bytes, addr: Address) -> None:
        self.received.append(data)
        self.peers.append(addr)
        self.on_datagram()

    def error_received(self, exc: OSError) -> None:
        self.errors.append(exc.errno)
        self.on_error()

    def datagrams_sent(self, size: int) -> None:
        self.sent += size

    def datagrams_dropped(self, count: int) -> None:
        self.dropped += count


def udp(family: int = socket.AF_INET, kind: type[socket.socket] = socket.socket) -> socket.socket:
    """A bound UDP socket on loopback."""
    sock = kind(family, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.bind((rig.HOST if family == socket.AF_INET else "::1", 0))
    return sock


@asynccontextmanager
async def pair(
    family: int = socket.AF_INET, kind: type[socket.socket] = socket.socket
) -> AsyncIterator[tuple[DatagramEndpoint, Seen, socket.socket]]:
    """An endpoint that is connected to a plain socket, and that socket."""
    with udp(family) as there:
        there.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        sock, seen = udp(family, kind), Seen()
        sock.connect(there.getsockname())
        there.connect(sock.getsockname())
        endpoint = DatagramEndpoint(sock, seen)
        try:
            yield endpoint, seen, there
        finally:
            endpoint.close()


@asynccontextmanager
async def unix(
    room: FixedRoom,
) -> AsyncIterator[tuple[DatagramEndpoint, Seen, socket.socket]]:
    """The same on UNIX sockets, which block as soon as the peer has a few unread datagrams."""
    sock, there = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with there:
        for each in (sock, there):
            each.setblocking(False)
        seen = Seen()
        endpoint = DatagramEndpoint(sock, seen, room)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4_096)
        try:
            yield endpoint, seen, there
        finally:
            endpoint.close()


SIZES = {
    "alike": [1_200] * 200,
    "the last is shorter": [1_200] * 40 + [7],
    "shorter and longer ones": [1_200, 1_200, 500, 1_200, 1_300, 1_300, 1, 1, 1],
    "empty ones": [0, 0, 5, 5, 0, 5, 0],
    "long ones": [32_000, 32_000, 32_000, 32_501, 32_501, 9_000, 9_000],
    "the longest": [65_507, 65_507, 1, 65_507],
    "many small ones": [30] * 300,
}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=SIZES)
@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6], ids=["IPv4", "IPv6"])
async def test_batches_keep_order_and_bounds(sizes: list[int], family: int) -> None:
    sent = [bytes([number % 256]) * size for number, size in enumerate(sizes)]
    async with pair(family) as (endpoint, seen, there):
        for data in sent:
            endpoint.send(data)
        got = [await rig.recv(there) for _ in sent]
        assert got == sent
        assert seen.sent == sum(sizes)
        for data in got:
            there.send(data)
        await rig.until(lambda: len(seen.received) == len(sent))
        assert seen.received == sent
        assert (seen.errors, seen.dropped) == ([], 0)


async def test_each_address_gets_its_own_datagrams() -> None:
    sock, seen = udp(), Seen()
    endpoint = DatagramEndpoint(sock, seen)
    with udp() as one, udp() as two:
        for client in (one, two):
            client.sendto(b"hello", sock.getsockname())
        await rig.until(lambda: len(seen.peers) == 2)
        for number in range(40):
            endpoint.send(b"%02d" % number, seen.peers[number // 3 % 2])
        got = [
            [await rig.recv(client) for _ in range(count)]
            for client, count in ((one, 21), (two, 19))
        ]
        assert sorted(got[0] + got[1]) == [b"%02d" % number for number in range(40)]
        assert got == [sorted(part) for part in got]
    endpoint.close()


ASKED = """
import asyncio, socket, subprocess, sys
from krelay.mux.datagrams import DatagramEndpoint

class Echo:
    def datagram_received(self, data, addr):
        for _ in range(3):
            self.endpoint.send(data, addr)
    def error_received(self, exc): raise exc
    def datagrams_sent(self, size): pass
    def datagrams_dropped(self, count): pass

async def main():
    sock = socket.socket(socket.AF_INET6, socket.SOCK_DGRAM)
    sock.setblocking(False)
    sock.bind(("::", 0))
    echo = Echo()
    echo.endpoint = DatagramEndpoint(sock, echo)
    port = sock.getsockname()[1]
    scope = socket.if_nametoindex("lo")
    for address in ("fd00::1", "::1", "fd00::2", "fe80::1"):
        with socket.socket(socket.AF_INET6, socket.SOCK_DGRAM) as client:
            client.setblocking(False)
            client.connect((address, port, 0, scope if address[:2] == "fe" else 0))
            client.send(address.encode())
            for _ in range(3):
                async with asyncio.timeout(10):
                    got = await asyncio.get_running_loop().sock_recv(client, 100)
                assert got == address.encode(), got
    echo.endpoint.close()
    print("answered")

for words in ("link set lo up", *(f"addr add {a} dev lo nodad" for a in sys.argv[1:])):
    subprocess.run(["ip", *words.split()], check=True, timeout=10)
asyncio.run(main())
"""


@pytest.mark.skipif(
    sys.platform != "linux" or os.geteuid() != 0 or not shutil.which("unshare"),
    reason="creates a network namespace: Linux, root",
)
@pytest.mark.process
async def test_a_wildcard_socket_answers_from_each_ipv6_address() -> None:
    words = ["unshare", "--net", sys.executable, "-c", ASKED]
    process = await asyncio.create_subprocess_exec(
        *words, "fd00::1/64", "fd00::2/64", "fe80::1/64", stdout=asyncio.subprocess.PIPE
    )
    try:
        out, _ = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert out == b"answered\n"


async def test_a_view_is_sent_as_it_was() -> None:
    memory = bytearray(b"before")
    async with pair() as (endpoint, _, there):
        endpoint.send(memoryview(memory))
        memory[:] = b"after!"
        assert await rig.recv(there) == b"before"


@pytest.mark.parametrize("number", [errno.EIO, errno.EMSGSIZE, errno.EINVAL])
async def test_what_the_kernel_does_not_segment_is_sent_one_by_one(number: int) -> None:
    class Whole(socket.socket):
        calls = 0

        def sendmsg(self, *_: Any) -> int:
            Whole.calls += 1
            raise OSError(number, "no segments")

    sent = [bytes([number]) * 1_000 for number in range(50)]
    async with pair(kind=Whole) as (endpoint, seen, there):
        for _ in range(2):
            for data in sent:
                endpoint.send(data)
            assert [await rig.recv(there) for _ in sent] == sent
        assert (seen.errors, seen.dropped) == ([], 0)
        assert Whole.calls <= 1


# -- errors ------------------------------------------------------------------------------------


async def test_a_datagram_that_is_too_long_costs_no_other() -> None:
    async with pair() as (endpoint, seen, there):
        for data in (b"a", b"b", bytes(70_000), b"c", b"d"):
            endpoint.send(data)
        assert [await rig.recv(there) for _ in range(4)] == [b"a", b"b", b"c", b"d"]
        assert (seen.errors, seen.dropped) == ([errno.EMSGSIZE], 1)


async def test_icmp_in_the_middle_of_a_batch_costs_no_received_datagram() -> None:
    port = rig.closed_port(socket.SOCK_DGRAM)
    sock, seen = udp(), Seen()
    sock.connect((rig.HOST, port))
    sock.send(b"to a closed port")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as there:
        there.bind((rig.HOST, port))
        for data in (b"1", b"2", b"3"):
            there.sendto(data, sock.getsockname())
        endpoint = DatagramEndpoint(sock, seen)
        await rig.until(lambda: len(seen.received) == 3)
        assert seen.received == [b"1", b"2", b"3"]
        assert seen.errors == [errno.ECONNREFUSED]
        endpoint.close()


async def test_icmp_costs_one_datagram_of_a_batch() -> None:
    async with pair() as (endpoint, seen, there):
        port = there.getsockname()
        there.close()
        endpoint.socket.send(b"to a closed port")
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as again:
            again.setblocking(False)
            again.bind(port)
            for number in range(5):
                endpoint.send(b"%d" % number)
            endpoint._flush()
            assert [await rig.recv(again) for _ in range(4)] == [b"1", b"2", b"3", b"4"]
        assert (seen.errors, seen.dropped) == ([errno.ECONNREFUSED], 1)


async def test_a_handler_may_close_on_an_error_of_a_batch(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(datagrams, "_FLUSH_AT", 1 << 20)
    async with pair() as (endpoint, seen, there):
        seen.on_error = endpoint.close
        for data in (b"a", bytes(70_000), b"b"):
            endpoint.send(data)
        assert [await rig.recv(there) for _ in range(2)] == [b"a", b"b"]
        assert endpoint.closed
        assert (seen.errors, seen.dropped) == ([errno.EMSGSIZE], 1)


# -- a kernel that takes no more -----------------------------------------------------------------


async def test_a_full_send_buffer_holds_datagrams_until_there_is_room() -> None:
    room = FixedRoom()
    sent = [b"%03d" % number + bytes(500) for number in range(300)]
    async with unix(room) as (endpoint, seen, there):
        for data in sent:
            endpoint.send(data)
        await rig.until(lambda: endpoint._blocked)
        assert room.left < MAX_WAITING
        assert [await rig.recv(there) for _ in sent] == sent
        await rig.until(lambda: not endpoint._blocked)
        assert (seen.dropped, room.left) == (0, MAX_WAITING)
        endpoint.send(b"goes on")
        assert await rig.recv(there) == b"goes on"


async def test_what_finds_no_room_is_dropped_and_counted() -> None:
    room = FixedRoom(10 * (100 + COST))
    sent = [b"%04d" % number + bytes(96) for number in range(1_000)]
    async with unix(room) as (endpoint, seen, there):
        for data in sent:
            endpoint.send(data)
        await rig.until(lambda: endpoint._blocked)
        count = len(sent) - seen.dropped
        assert 10 < count < 100
        assert room.left == 0
        assert [await rig.recv(there) for _ in range(count)] == sent[:count]
        await rig.until(lambda: not endpoint._blocked)
        assert room.left == 10 * (100 + COST)


async def test_a_close_drops_what_the_kernel_has_not_taken() -> None:
    room = FixedRoom()
    async with unix(room) as (endpoint, seen, there):
        for _ in range(200):
            endpoint.send(bytes(500))
        await rig.until(lambda: endpoint._blocked)
        endpoint.close()
        assert room.left == MAX_WAITING
        assert seen.dropped * 500 + seen.sent == 200 * 500
        endpoint.send(b"late")
        assert seen.dropped * 500 + seen.sent == 200 * 500


# -- turns and ends ------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "count"), [(10, datagrams.MAX_READS), (60_000, 3)])
async def test_a_flood_leaves_room_in_each_turn(size: int, count: int) -> None:
    turns = [0]
    loop = asyncio.get_running_loop()

    def next_turn() -> None:
        turns.append(0)
        loop.call_soon(next_turn)

    async with pair() as (_, seen, there):

        def count_one() -> None:
            turns[-1] += 1

        seen.on_datagram = count_one
        next_turn()
        for _ in range(400 if size == 10 else 12):
            there.send(bytes(size))
        await rig.until(lambda: len(seen.received) == (400 if size == 10 else 12))
        assert max(turns) == count


async def test_a_handler_may_close_in_the_middle_of_a_batch() -> None:
    async with pair() as (endpoint, seen, there):

        def close() -> None:
            if len(seen.received) == 3:
                endpoint.close()

        seen.on_datagram = close
        for number in range(6):
            there.send(b"%d" % number)
        await rig.until(lambda: endpoint.closed)
        await asyncio.sleep(0)
        assert seen.received == [b"0", b"1", b"2"]


async def test_a_close_sends_what_is_queued() -> None:
    async with pair() as (endpoint, seen, there):
        for data in (b"1", b"2", b"3"):
            endpoint.send(data)
        endpoint.close()
        endpoint.close()
        endpoint.send(b"late")
        assert [await rig.recv(there) for _ in range(3)] == [b"1", b"2", b"3"]
        assert (seen.sent, seen.dropped) == (3, 0)
