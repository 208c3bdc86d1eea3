"""A real agent under attack stays within four fifths of its Job's memory limit, and goes on
serving a client that behaves."""

from __future__ import annotations

import asyncio
import os
import secrets
import signal
import socket
import subprocess
import sys
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import pytest

from agent.memory import DEFAULT
from krelay.model import AgentConfig
from krelay.mux.connection import ClientTunnelProtocol, MuxConnection
from krelay.mux.descriptors import raise_file_limit
from krelay.mux.stream import MuxStream
from krelay.wire.errors import ErrorCode
from krelay.wire.frames import MAX_PAYLOAD, Buffer, FrameType, encode_frame
from krelay.wire.handshake import ClientHandshake
from krelay.wire.header import SESSION, TCP, UDP, Header
from krelay.wire.session import Side
from tests import rig

pytestmark = [
    pytest.mark.process,
    pytest.mark.timeout(120),
    pytest.mark.skipif(sys.platform != "linux", reason="/proc tells how much memory was used"),
]

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]

ROOT = Path(__file__).parents[2]
ALLOWED = DEFAULT * 4 // 5


class Agent:
    """An agent in a separate process."""

    def __init__(self, process: asyncio.subprocess.Process, port: int, door_port: int) -> None:
        self.port = port
        self.door_port = door_port
        self.tasks: list[asyncio.Task[None]] = []
        self._writers: list[asyncio.StreamWriter] = []
        self._tunnels: list[ClientTunnelProtocol] = []
        self._pid = process.pid

    def peak(self) -> int:
        """The most memory that it has had so far, in bytes."""
        return self._status("VmHWM")

    async def connect(
        self, *, door: bool = False
    ) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """A connection that lasts as long as the test, unless the agent ends it."""
        port = self.door_port if door else self.port
        streams = await asyncio.open_connection(rig.HOST, port, limit=1 << 16)
        self._writers.append(streams[1])
        return streams

    async def intruder(self) -> Intruder:
        """A session."""
        reader, writer = await self.connect()
        handshake = ClientHandshake(rig.KEY, secrets.token_bytes(32))
        writer.write(handshake.data_to_send())
        while handshake.receive_data(await reader.read(1 << 16)) is None:
            writer.write(handshake.data_to_send())
        return Intruder(reader, writer)

    async def connection(self) -> MuxConnection:
        """A client that keeps to the protocol."""
        made = MuxConnection(Side.CLIENT, "client")
        tunnel = ClientTunnelProtocol(made, ClientHandshake(rig.KEY, secrets.token_bytes(32)))
        await asyncio.get_running_loop().create_connection(lambda: tunnel, rig.HOST, self.port)
        await tunnel.welcome
        self._tunnels.append(tunnel)
        return made

    async def leave(self) -> None:
        """End every connection."""
        for tunnel in self._tunnels:
            tunnel.transport.abort()
        await rig.until(
            lambda: (
                not any(
                    tunnel.connection and tunnel.connection.attached for tunnel in self._tunnels
                )
            )
        )
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        for writer in self._writers:
            writer.transport.abort()
        closing = [writer.wait_closed() for writer in self._writers]
        await asyncio.gather(*closing, return_exceptions=True)

    def freeze(self) -> None:
        """Stop it until `thaw`."""
        os.kill(self._pid, signal.SIGSTOP)

    def thaw(self) -> None:
        """Let it go on."""
        os.kill(self._pid, signal.SIGCONT)

    def _status(self, name: str) -> int:
        for line in Path(f"/proc/{self._pid}/status").read_text().splitlines():
            if line.startswith(name):
                return int(line.split()[1]) << 10
        raise AssertionError("the agent is gone")


class Ear:
    """A stream's handler; one that is deaf keeps the credit of what comes."""

    def __init__(self, *, deaf: bool = False) -> None:
        self.got = bytearray()
        self.stream: MuxStream | None = None
        self.ended: ErrorCode | None = None
        self._deaf = deaf

    def on_accepted(self) -> None:
        """It needs none."""

    def on_refused(self, code: ErrorCode, message: str) -> None:
        self.ended = code

    def on_data(self, data: Buffer) -> None:
        if self.stream is not None and not self._deaf:
            self.got += data
            self.stream.consume(len(data))

    def on_datagram(self, data: Buffer) -> None:
        """Not kept."""

    def on_end(self) -> None:
        """Not awaited."""

    def on_reset(self, code: ErrorCode) -> None:
        self.ended = code

    def on_writable(self) -> None:
        """It writes all at once."""


async def exchange(client: MuxConnection, echo: int) -> None:
    """A stream of it carries 200 KB there and back."""
    seen, data = Ear(), rig.noise(200_000)
    stream = seen.stream = client.open(Header(TCP, rig.HOST, echo), seen)
    stream.write(data)
    await rig.until(lambda: len(seen.got) >= len(data) or seen.ended)
    assert seen.got == data, seen.ended
    stream.reset()


@asynccontextmanager
async def agent(*, secured: bool = True, limit: int = DEFAULT) -> AsyncIterator[Agent]:
    raise_file_limit()
    env = {**os.environ, "PYTHONPATH": str(ROOT), "KRELAY_MEMORY": str(limit)}
    if secured:
        env["KRELAY_KEY"] = rig.KEY.hex()
    door_port = rig.closed_port()
    env |= {"KRELAY_POD_IP": rig.HOST, "KRELAY_DOOR_PORT": str(door_port)}
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "agent",
        "--port=0",
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    try:
        port = int((await process.stdout.readline()).rpartition(b":")[2])
        made = Agent(process, port, door_port)
        yield made
        await made.leave()
    finally:
        process.kill()
        await process.wait()


@asynccontextmanager
async def target(serve: Serve) -> AsyncIterator[int]:
    """A TCP server whose connections end with it, however many come; yields its port."""
    live: set[asyncio.Task[None]] = set()

    async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(OSError, asyncio.CancelledError):
            await serve(reader, writer)
        writer.transport.abort()

    def accept(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.create_task(run(reader, writer))
        live.add(task)
        task.add_done_callback(live.discard)

    listening = socket.socket()
    # By default the system would keep 4 MiB of each connection.
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 1 << 14)
    listening.bind((rig.HOST, 0))
    server = await asyncio.start_server(accept, sock=listening, backlog=4096, limit=1 << 14)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()
        for task in live:
            task.cancel()
        await asyncio.gather(*live, return_exceptions=True)
        live.clear()


def talk(most: int) -> Serve:
    """Return what says so many bytes to each connection, and then waits.

    All connections of a test together say more than the agent may keep, and little more than that:
    the system keeps what the agent does not read, and for want of memory it would reset connections
    of other programs.
    """

    async def say(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(bytes(most))
        await writer.drain()
        await asyncio.get_running_loop().create_future()

    return say


async def dribble(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The same, a few bytes at a time."""
    writer.get_extra_info("socket").setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    while True:
        writer.write(b"xy")
        await writer.drain()
        await asyncio.sleep(0)


class Intruder:
    """A session that sends anything, and reads only on request."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    async def send(self, data: bytes) -> None:
        """Send what the agent takes within a moment."""
        with suppress(ConnectionError, TimeoutError):
            self.writer.write(data)
            async with asyncio.timeout(2):
                await self.writer.drain()

    async def read_on(self) -> None:
        """Take all that comes, and acknowledge nothing."""
        with suppress(ConnectionError):
            while await self.reader.read(1 << 20):
                pass


def opens(count: int, port: int, protocol: int = TCP) -> bytes:
    header = Header(protocol, rig.HOST, port).encode()
    return b"".join(encode_frame(FrameType.OPEN, 2 * n + 1, header) for n in range(count))


def credit(count: int, amount: int = 1 << 30) -> bytes:
    frames = (
        encode_frame(FrameType.WINDOW, 2 * n + 1, amount.to_bytes(4, "big")) for n in range(count)
    )
    return b"".join(frames)


async def rest(attacked: Agent) -> None:
    """Until the agent's memory no longer grows."""
    peak, since = attacked.peak(), 0
    while since < 20:
        await asyncio.sleep(0.05)
        since = since + 1 if attacked.peak() == peak else 0
        peak = attacked.peak()


@asynccontextmanager
async def attacked() -> AsyncIterator[Agent]:
    """An agent. After the attack it has kept to its limit, serves the
    client that was there before, and takes another."""
    async with agent() as here, target(rig.echo) as echo:
        client = await here.connection()
        await exchange(client, echo)
        yield here
        await rest(here)
        assert here.peak() <= ALLOWED
        await exchange(client, echo)
        await exchange(await here.connection(), echo)
        assert here.peak() <= ALLOWED


def test_the_agent_assumes_the_limit_of_its_job() -> None:
    limits = AgentConfig().resources["limits"]
    assert isinstance(limits, dict)
    assert limits["memory"] == f"{DEFAULT >> 20}Mi"


@pytest.mark.parametrize(("said", "count"), [(talk(320_000), 250), (dribble, 50)])
async def test_stalled_streams_of_fast_targets(said: Serve, count: int) -> None:
    """Their clients keep to the protocol, but take nothing of what comes."""
    async with attacked() as here, target(said) as port:
        for _ in range(4):
            client = await here.connection()
            for _ in range(count):
                client.open(Header(TCP, rig.HOST, port), Ear(deaf=True))


async def test_sessions_that_take_all_they_may_leave_room_under_a_small_limit() -> None:
    limit = 128 << 20
    async with agent(limit=limit) as here, target(talk(160_000)) as port, target(rig.echo) as echo:
        for client in [await here.connection() for _ in range(20)]:
            for _ in range(400):
                client.open(Header(TCP, rig.HOST, port), Ear(deaf=True))
        await rest(here)
        await exchange(await here.connection(), echo)
        assert here.peak() <= limit * 4 // 5


async def test_credit_without_end_and_no_acknowledgement() -> None:
    async with attacked() as here, target(talk(320_000)) as port:
        for _ in range(12):
            peer = await here.intruder()
            here.tasks.append(asyncio.create_task(peer.read_on()))
            await peer.send(opens(100, port) + credit(100))


async def test_clients_that_read_nothing() -> None:
    async with attacked() as here, target(talk(320_000)) as port:
        for _ in range(12):
            await (await here.intruder()).send(opens(100, port) + credit(100))


async def test_credit_that_leaves_little_of_each_chunk() -> None:
    """What is left of a large read must not keep the whole of it alive, nor what was sent of it."""
    async with attacked() as here, target(talk(320_000)) as port:
        for _ in range(8):
            peer = await here.intruder()
            here.tasks.append(asyncio.create_task(peer.read_on()))
            await peer.send(opens(120, port) + credit(120, (256 << 10) - MAX_PAYLOAD - 1))


async def test_targets_that_take_nothing() -> None:
    async with attacked() as here, target(rig.hold) as port:
        data = bytes(MAX_PAYLOAD)
        for _ in range(4):
            peer = await here.intruder()
            await peer.send(opens(900, port))
            for n in range(900):
                await peer.send(encode_frame(FrameType.DATA, 2 * n + 1, data))


async def test_bytes_one_by_one_for_targets_that_take_nothing() -> None:
    async with attacked() as here, target(rig.hold) as port:
        for _ in range(4):
            peer = await here.intruder()
            await peer.send(opens(8, port))
            for n in range(8):
                await peer.send(encode_frame(FrameType.DATA, 2 * n + 1, b"x") * 10_000)


async def test_targets_that_are_never_reached() -> None:
    with rig.silent() as port:
        async with attacked() as here:
            for _ in range(4):
                peer = await here.intruder()
                await peer.send(opens(1_000, port))
                for n in range(1_000):
                    await peer.send(encode_frame(FrameType.DATA, 2 * n + 1, bytes(MAX_PAYLOAD)))


async def test_a_read_of_compressed_frames_that_yields_a_thousand_times_as_much() -> None:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, 9)
    frame = packer.compress(bytes(MAX_PAYLOAD)) + packer.flush()
    with rig.silent() as port:
        header = Header(TCP, rig.HOST, port).encode()
        flood = b"".join(
            encode_frame(FrameType.OPEN, number, header)
            + encode_frame(FrameType.COMPRESSED, number, frame)
            for number in range(1, 4_000, 2)
        )
        async with agent(limit=96 << 20) as here:
            peer = await here.intruder()
            here.freeze()  # so that it reads all of it at once
            await peer.send(flood)
            here.thaw()
            await rest(here)
            assert here.peak() <= (96 << 20) * 4 // 5


async def test_many_sessions_that_acknowledge_nothing_of_many_refusals() -> None:
    nowhere = Header(200, rig.HOST, 1).encode()
    async with attacked() as here:
        for _ in range(16):
            peer = await here.intruder()
            here.tasks.append(asyncio.create_task(peer.read_on()))
            frames = (encode_frame(FrameType.OPEN, 2 * n + 1, nowhere) for n in range(15_000))
            await peer.send(b"".join(frames))


async def test_sessions_that_are_left_behind_with_full_buffers() -> None:
    async with attacked() as here, target(talk(640_000)) as port:
        for _ in range(24):
            peer = await here.intruder()
            await peer.send(opens(20, port) + credit(20))
            with suppress(ConnectionError, EOFError):
                await peer.reader.readexactly(1 << 18)
            peer.writer.transport.abort()


async def test_datagrams_that_come_back_to_a_client_that_reads_nothing() -> None:
    async with attacked() as here, rig.udp_echo() as port:
        for size in (0, 1_000):
            for _ in range(6):
                peer = await here.intruder()
                await peer.send(opens(4, port, UDP))
                for _ in range(100):
                    frames = (
                        encode_frame(FrameType.DATAGRAM, 2 * n + 1, bytes(size)) * 50
                        for n in range(4)
                    )
                    await peer.send(b"".join(frames))


async def test_connections_with_half_a_handshake() -> None:
    header = Header(SESSION, "krelay", 0).encode()
    halves = [
        header + encode_frame(FrameType.AUTH, 0, bytes(MAX_PAYLOAD))[:-1],
        header + encode_frame(FrameType.AUTH, 0, bytes(1_000))[:-1],
        header[:-1],
    ]
    async with attacked() as here:
        for n in range(2_100):
            with suppress(ConnectionError):
                _, writer = await here.connect()
                writer.write(halves[n % len(halves)])
        await rest(here)
        # They hold all places; a client that knows the key gets one.
        await here.connection()


async def test_strangers_at_the_door() -> None:
    """They say all that the agent has to keep, while four clients fill its memory."""
    async with attacked() as here, target(talk(320_000)) as port:
        for _ in range(4):
            client = await here.connection()
            for _ in range(250):
                client.open(Header(TCP, rig.HOST, port), Ear(deaf=True))
        for n in range(200):
            with suppress(ConnectionError):
                _, writer = await here.connect(door=True)
                writer.write(
                    b"GET / HTTP/1.1\r\nHost: a\r\nX-A: " + b"a" * (4_000 if n % 2 else 5_000)
                )


@pytest.mark.parametrize("side", ["client", "target", "both", "framing"])
async def test_legacy_connections_whose_ends_take_nothing(side: str) -> None:
    serve: Serve = rig.hold if side == "target" else talk(640_000)
    async with (
        agent(secured=False) as here,
        target(serve) as port,
        target(rig.echo) as echo,
        rig.udp_echo() as datagrams,
    ):
        protocol, to = (UDP, datagrams) if side == "framing" else (TCP, port)
        said = b"\xff\xff" + bytes(65_000) if side == "framing" else bytes(1 << 18)
        for _ in range(500):
            _, writer = await here.connect()
            writer.write(Header(protocol, rig.HOST, to).encode())
            if side != "client":
                writer.write(said)
        await rest(here)
        assert here.peak() <= ALLOWED
        reader, writer = await here.connect()
        writer.write(Header(TCP, rig.HOST, echo).encode() + b"hello")
        assert await reader.readexactly(6) == b"\x01hello"
