"""A hostile peer of a real agent: it costs bounded memory, and only itself.

Each attack runs beside a bystander, whose stream must go on byte-exact; when the attacker has gone,
the agent must have nothing left of it.
"""

from __future__ import annotations

import asyncio
import random
import resource
import secrets
import socket
import sys
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest

from agent.server import MAX_PENDING, Server
from krelay.mux.descriptors import raise_file_limit
from krelay.wire.errors import ErrorCode
from krelay.wire.frames import FrameDecoder, FrameType, encode_frame
from krelay.wire.handshake import ClientHandshake
from krelay.wire.header import TCP, UDP, Header
from krelay.wire.session import Limits, Session
from tests import rig

MEMORY = 6 << 20
"""What a session may hold for a peer that acknowledges nothing: its replay (protocol.md,
section 8), some frames that are no data, and what objects cost besides."""
NOWHERE = Header(200, "10.0.0.1", 80).encode()
"""A stream that is refused without anybody's being asked."""


def weight(thing: object) -> int:
    """Bytes of all that a value of the wire holds."""
    seen: set[int] = set()
    waiting, total = [thing], 0
    while waiting:
        one = waiting.pop()
        if id(one) in seen:
            continue
        seen.add(id(one))
        total += sys.getsizeof(one)
        if isinstance(one, dict):
            waiting += [*one.keys(), *one.values()]
        elif isinstance(one, list | tuple | set | deque):
            waiting += one
        elif isinstance(one, memoryview):
            waiting.append(one.obj)
        elif type(one).__module__.startswith("krelay.wire") and not isinstance(one, type):
            slots = (getattr(one, name, None) for name in getattr(type(one), "__slots__", ()))
            waiting += [*slots, *getattr(one, "__dict__", {}).values()]
    return total


class Bystander:
    """A client whose one stream is used without a pause."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.rounds = 0
        self.stopped = False

    async def exchange(self) -> None:
        """A few kilobytes there and back."""
        data = rig.noise(random.Random(self.rounds).randrange(1, 50_000))
        self._writer.write(data)
        assert await self._reader.readexactly(len(data)) == data
        self.rounds += 1

    async def run(self) -> None:
        while not self.stopped:
            await self.exchange()

    async def goes_on(self) -> None:
        """It did not stand still."""
        before = self.rounds
        await rig.until(lambda: self.rounds > before + 2)


class Scene:
    """An agent, a bystander and their targets."""

    def __init__(self, server: Server, bystander: Bystander) -> None:
        self.server = server
        self.bystander = bystander
        self.before = self.counts

    @property
    def counts(self) -> tuple[int, ...]:
        """All that an agent has of its peers."""
        server = self.server
        return (
            len(server._connections),
            len(server._legacy),
            len(server.sessions),
            self.streams,
            sum("_dial" in repr(task) for task in asyncio.all_tasks()),
        )

    @property
    def streams(self) -> int:
        """Those of all sessions."""
        kept = self.server.sessions._kept.values()
        return sum(len(k.mux.session.streams) for k in kept)

    @property
    def session(self) -> Session | None:
        """The intruder's, at the agent; None when that has ended."""
        sessions = [kept.mux.session for kept in self.server.sessions._kept.values()]
        return sessions[1] if len(sessions) > 1 else None

    @property
    def cost(self) -> int:
        """Bytes that the agent holds for the intruder's session."""
        waiting = [e.transport.get_write_buffer_size() for e in self.server._connections]
        return weight(self.session) + sum(waiting)


@asynccontextmanager
async def scene(**settings: Any) -> AsyncIterator[Scene]:
    """From when the bystander's stream has carried something, until nothing else is left."""
    async with (
        rig.tcp_target(rig.echo) as echo,
        rig.path(grace=0.01, **settings) as path,
        rig.connect(rig.port_of(await path.tcp(echo))) as streams,
        asyncio.TaskGroup() as tasks,
    ):
        bystander = Bystander(*streams)
        await bystander.exchange()
        made = Scene(path.server, bystander)
        busy = tasks.create_task(bystander.run())
        try:
            yield made
            await bystander.goes_on()
            await rig.until(lambda: made.counts == made.before)
            # Between two exchanges, so that nothing is under way when the sockets close.
            bystander.stopped = True
            await busy
        finally:
            busy.cancel()


class Intruder:
    """A connection that sends anything."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    @property
    def gone(self) -> bool:
        """The agent has ended it."""
        return self.reader.at_eof() or self.writer.is_closing()

    async def shake_hands(self) -> None:
        """It knows the key: from here on it has a session."""
        handshake = ClientHandshake(rig.KEY, secrets.token_bytes(32))
        self.writer.write(handshake.data_to_send())
        while handshake.receive_data(await self.reader.read(1 << 16)) is None:
            self.writer.write(handshake.data_to_send())

    async def send(self, data: bytes) -> bool:
        """Have the agent take all of it; False when it has ended the connection before that."""
        with suppress(ConnectionError):
            self.writer.write(data)
            await self.writer.drain()
            return not self.gone
        return False

    async def taken(self, here: Scene, number: int, port: int) -> bool:
        """The agent has dealt with all that was sent: it has opened one stream more, to a UDP
        `port`, that is cut again. False when it has ended the session before that."""

        session = here.session
        if session is None:
            return False
        ask = Header(UDP, rig.HOST, port).encode()
        await self.send(encode_frame(FrameType.OPEN, number, ask))
        await rig.until(lambda: here.session is None or number in session.streams)
        await self.send(encode_frame(FrameType.RESET, number, b"\x0a"))
        await rig.until(lambda: here.session is None or number not in session.streams)
        return here.session is not None

    async def ended(self) -> bytes:
        """Read to the end."""
        data = b""
        with suppress(ConnectionError):
            while more := await self.reader.read(1 << 16):
                data += more
        return data

    async def ended_with(self) -> ErrorCode | None:
        """The same: the code of the good-bye, if there was one."""
        frames = FrameDecoder().feed(await self.ended())
        codes = [ErrorCode.of(payload[0]) for kind, _, payload in frames if kind == 20]
        return codes[-1] if codes else None


@asynccontextmanager
async def intruder(server: Server, *, session: bool = True) -> AsyncIterator[Intruder]:
    """A client that reads only on request."""
    reader, writer = await asyncio.open_connection(*server.address)
    try:
        made = Intruder(reader, writer)
        if session:
            await made.shake_hands()
        yield made
    finally:
        writer.transport.abort()
        with suppress(OSError):
            await writer.wait_closed()


def opens(first: int, count: int, header: bytes = NOWHERE) -> bytes:
    """OPEN frames."""
    numbers = range(first, first + 2 * count, 2)
    return b"".join(encode_frame(FrameType.OPEN, number, header) for number in numbers)


def resets(first: int, count: int) -> bytes:
    """RESET frames for as many."""
    numbers = range(first, first + 2 * count, 2)
    return b"".join(encode_frame(FrameType.RESET, number, b"\x0a") for number in numbers)


# -- garbage -----------------------------------------------------------------------------------

GARBAGE = random.Random(7).randbytes(100_000)


@pytest.mark.parametrize(
    "said",
    [
        GARBAGE,
        b"GET / HTTP/1.1\r\nHost: x\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + GARBAGE[:500],
        b"\0\xff\xff" + GARBAGE,
        Header(TCP, "10.0.0.1", 80).encode() + GARBAGE,
        Header(UDP, "10.0.0.1", 80).encode() + b"\xff\xff" * 1_000,
        Header(75, "krelay", 0).encode() + GARBAGE,
        Header(75, "krelay", 0).encode() + encode_frame(FrameType.AUTH, 0, GARBAGE[:65_536]),
        Header(75, "krelay", 0).encode() + b"\x21\xff\xff\xff\0\0\0\0" + GARBAGE,
    ],
    ids=["noise", "http", "tls", "length", "tcp", "udp", "hello", "auth", "giant"],
)
async def test_garbage_before_the_handshake_harms_no_other_client(said: bytes) -> None:
    async with scene() as here, intruder(here.server, session=False) as peer:
        await peer.send(said)
        await peer.ended()


@pytest.mark.parametrize(
    ("said", "code"),
    [
        (b"\xee" + GARBAGE, ErrorCode.PROTOCOL),
        (b"\x04\xff\xff\xff\0\0\0\1" + GARBAGE, ErrorCode.PROTOCOL),
        (b"\x04\x01\0\1\0\0\0\1" + GARBAGE, ErrorCode.PROTOCOL),
        (encode_frame(FrameType.DATA, 99, b"x"), ErrorCode.PROTOCOL),
        (encode_frame(FrameType.OPEN, 1, GARBAGE[:9_000]), ErrorCode.PROTOCOL),
        (encode_frame(FrameType.ACK, 0, b"\xff" * 16), ErrorCode.PROTOCOL),
        (opens(1, 1) + opens(1, 1), ErrorCode.PROTOCOL),
    ],
    ids=["noise", "giant", "over", "unopened", "header", "ack", "twice"],
)
async def test_garbage_in_a_session_harms_no_other_client(said: bytes, code: ErrorCode) -> None:
    async with scene() as here, intruder(here.server) as peer:
        await peer.send(said)
        assert await peer.ended_with() is code


async def test_more_data_than_the_window_ends_the_session() -> None:
    async with scene() as here:
        with rig.silent() as port:
            async with intruder(here.server) as peer:
                await peer.send(opens(1, 1, Header(TCP, rig.HOST, port).encode()))
                full = encode_frame(FrameType.DATA, 1, bytes(65_536))
                await peer.send(full + full)
                assert await peer.ended_with() is ErrorCode.FLOW_CONTROL


# -- floods ------------------------------------------------------------------------------------


@pytest.mark.parametrize("reads", [True, False], ids=["reading", "deaf"])
async def test_a_flood_of_streams_that_is_never_acknowledged(
    monkeypatch: pytest.MonkeyPatch, reads: bool
) -> None:
    """The session ends at its limit, with a GOAWAY for a client that reads."""
    monkeypatch.setattr("krelay.wire.session._CONTROL_ROOM", 256 << 10)  # or it takes seconds
    each = Limits().streams - 100  # more at once are refused before anybody is asked
    async with scene() as here, rig.udp_socket() as sock, intruder(here.server) as peer:
        port = sock.getsockname()[1]
        async with asyncio.TaskGroup() as tasks:
            good_bye = tasks.create_task(peer.ended_with()) if reads else None
            for first in range(1, 2 * 15 * each, 2 * each + 2):
                await peer.send(opens(first, each))
                assert here.cost < MEMORY
                if not await peer.taken(here, first + 2 * each, port):
                    break
            assert here.session is None
        if good_bye is not None:
            assert good_bye.result() is ErrorCode.LIMIT


async def test_streams_that_are_cut_at_once() -> None:
    async with scene() as here, rig.udp_socket() as sock, intruder(here.server) as peer:
        ask = Header(TCP, rig.HOST, rig.closed_port()).encode()
        for first in range(1, 16_016, 2_002):
            await peer.send(opens(first, 1_000, ask) + resets(first, 1_000))
            assert await peer.taken(here, first + 2_000, sock.getsockname()[1])
        await rig.until(lambda: here.counts[3:] == here.before[3:])
        assert here.cost < MEMORY


async def test_more_streams_than_there_may_be_and_again() -> None:
    most = Limits().streams
    async with scene() as here, rig.udp_socket() as sock, intruder(here.server) as peer:
        ask = Header(UDP, rig.HOST, sock.getsockname()[1]).encode()
        before = here.streams
        await peer.send(opens(1, most + 50, ask))
        await rig.until(lambda: here.streams == before + most)
        await peer.send(resets(1, most + 50))
        await rig.until(lambda: here.streams == before)
        await peer.send(opens(2 * most + 101, 100, ask))
        await rig.until(lambda: here.streams == before + 100)
        assert here.cost < MEMORY


async def test_endless_pings_take_bounded_memory() -> None:
    async with scene() as here, rig.udp_socket() as sock, intruder(here.server) as peer:
        pings = encode_frame(FrameType.PING, 0, bytes(8)) * 4_096
        for number in range(1, 41, 2):
            await peer.send(pings)
            assert await peer.taken(here, number, sock.getsockname()[1])
            assert here.cost < MEMORY


async def test_endless_datagrams_and_credit_take_bounded_memory() -> None:
    async with scene() as here, rig.udp_socket() as sock, intruder(here.server) as peer:
        port = sock.getsockname()[1]
        await peer.send(opens(1, 1, Header(UDP, rig.HOST, port).encode()))
        piece = encode_frame(FrameType.DATAGRAM, 1, bytes(1_000)) * 60
        piece += encode_frame(FrameType.WINDOW, 1, b"\xff" * 4) * 1_000
        for number in range(3, 43, 2):
            await peer.send(piece)
            assert await peer.taken(here, number, port)
            assert here.cost < MEMORY


async def test_a_client_that_never_reads_takes_bounded_memory() -> None:
    """Targets that say more than it takes are stalled, whatever credit it gives them."""
    said = 0

    async def talk(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal said
        while True:
            writer.write(bytes(1 << 16))
            said += 1 << 16
            await writer.drain()

    async with scene() as here, rig.tcp_target(talk) as port, intruder(here.server) as peer:
        await peer.send(opens(1, 4, Header(TCP, rig.HOST, port).encode()))
        for number in (1, 3, 5, 7):
            await peer.send(encode_frame(FrameType.WINDOW, number, b"\xff" * 4))
        before = -1
        while said != before:
            before = said
            for _ in range(8):
                await here.bystander.goes_on()
        # What the kernel's own buffers take comes on top.
        assert 0 < said < 64 << 20
        assert here.cost < MEMORY


async def test_pending_connections_make_way_for_a_client() -> None:
    """Each has begun a handshake, and the agent keeps next to nothing of it."""
    count = 3 * MAX_PENDING
    raise_file_limit()
    if resource.getrlimit(resource.RLIMIT_NOFILE)[0] < 2 * count + 500:
        pytest.skip("too few files may be open")
    half = Header(75, "krelay", 0).encode() + encode_frame(FrameType.AUTH, 0, bytes(1_000))[:900]
    async with scene() as here:
        loop = asyncio.get_running_loop()
        socks = [socket.socket() for _ in range(count)]
        try:
            for first in range(0, count, 250):
                async with asyncio.TaskGroup() as tasks:
                    for sock in socks[first : first + 250]:
                        sock.setblocking(False)
                        tasks.create_task(loop.sock_connect(sock, here.server.address))
                for sock in socks[first : first + 250]:
                    with suppress(OSError):
                        sock.send(half)
                async with intruder(here.server):
                    """Its handshake is done."""
            await here.bystander.goes_on()
            await rig.until(lambda: len(here.server._pending) >= MAX_PENDING - 1)
            assert len(here.server._connections) <= MAX_PENDING + 2
        finally:
            for sock in socks:
                sock.close()


async def test_pending_connections_of_one_address_lock_out_no_other() -> None:
    raise_file_limit()
    async with scene() as here:
        with socket.socket() as patient:
            patient.bind(("127.0.0.2", 0))
            patient.setblocking(False)
            loop = asyncio.get_running_loop()
            await loop.sock_connect(patient, here.server.address)
            await rig.until(lambda: len(here.server._pending) == 1)
            crowd = []
            for _ in range(MAX_PENDING + 50):
                crowd.append(sock := socket.socket())
                sock.setblocking(False)
                await loop.sock_connect(sock, here.server.address)
            handshake = ClientHandshake(rig.KEY, secrets.token_bytes(32))
            while True:
                await loop.sock_sendall(patient, handshake.data_to_send())
                if handshake.receive_data(await loop.sock_recv(patient, 1 << 16)):
                    break
            for sock in crowd:
                sock.close()
