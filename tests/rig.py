"""What tests of the data path stand on: targets on real sockets, an agent, a way to cut it off."""

from __future__ import annotations

import asyncio
import errno
import itertools
import math
import secrets
import socket
import struct
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any

from agent.server import Server
from agent.settings import Settings
from krelay.datapath.agent_link import Shortcut
from krelay.datapath.carrier import SessionCarrier
from krelay.datapath.pool import Pool
from krelay.datapath.route import Route
from krelay.datapath.tcp import TcpListener
from krelay.datapath.tunnel import Tunnel
from krelay.datapath.udp import UdpListener
from krelay.errors import TunnelError
from krelay.model import Endpoint, Protocol, Resolution, SessionConfig
from krelay.mux.connection import MuxConnection
from krelay.tasks import TaskGroup

HOST = "127.0.0.1"
KEY = bytes(range(32))

Serve = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def until(true: Callable[..., object]) -> None:
    """Return once `true()` is; the test's own timeout ends a wait that is in vain."""
    while not true():  # noqa: ASYNC110
        await asyncio.sleep(0.005)


# -- targets -----------------------------------------------------------------------------------


@asynccontextmanager
async def tcp_target(serve: Serve, host: str = HOST, limit: int = 1 << 16) -> AsyncIterator[int]:
    """A TCP server; yields its port. What its connections still do at the end is cancelled."""
    loop = asyncio.get_running_loop()
    async with asyncio.TaskGroup() as tasks:
        live: set[asyncio.Task[None]] = set()

        async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            try:
                await serve(reader, writer)
            except OSError as exc:
                # Its peer has gone. Ending such a connection is ENOTCONN, no ConnectionError.
                if not isinstance(exc, ConnectionError) and exc.errno != errno.ENOTCONN:
                    raise
            finally:
                writer.transport.abort() if writer.is_closing() else writer.close()
            with suppress(ConnectionError):
                # A connection that was reset raises that here.
                await writer.wait_closed()

        async def one(sock: socket.socket) -> None:
            reader = asyncio.StreamReader(limit)
            protocol = asyncio.StreamReaderProtocol(reader)
            transport, _ = await loop.connect_accepted_socket(lambda: protocol, sock)
            try:
                await run(reader, asyncio.StreamWriter(transport, protocol, reader, loop))
            finally:
                with suppress(AttributeError):  # Python 3.11, if it is closed already
                    transport.abort()
                await asyncio.sleep(0)  # the turn in which it closes

        def accept() -> None:
            # Not asyncio's server: it hands connections over some turns later, maybe after the end.
            with suppress(BlockingIOError):
                while True:
                    sock, _ = listener.accept()
                    sock.setblocking(False)
                    task = tasks.create_task(one(sock))
                    live.add(task)
                    task.add_done_callback(live.discard)
                    task.add_done_callback(lambda _, sock=sock: sock.close())  # type: ignore[misc]

        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with socket.create_server((host, 0), family=family, backlog=1024) as listener:
            listener.setblocking(False)
            loop.add_reader(listener.fileno(), accept)
            try:
                yield listener.getsockname()[1]
            finally:
                loop.remove_reader(listener.fileno())
                for task in live:
                    task.cancel()


async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Send every byte back, then the end."""
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.write_eof()
    await writer.drain()


async def swallow(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Read until the end, say nothing."""
    while await reader.read(1 << 16):
        pass


async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Neither read nor write."""
    await asyncio.get_running_loop().create_future()


@asynccontextmanager
async def udp_socket(port: int = 0, *, connect: int | None = None) -> AsyncIterator[socket.socket]:
    """A UDP socket on loopback, for `loop.sock_*`."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1 << 20)
        sock.setblocking(False)
        sock.bind((HOST, port))
        if connect is not None:
            sock.connect((HOST, connect))
        yield sock


@asynccontextmanager
async def udp_echo(prefix: bytes = b"") -> AsyncIterator[int]:
    """Sends each datagram back to where it came from; yields the port."""
    loop = asyncio.get_running_loop()
    async with udp_socket() as sock:

        def answer() -> None:
            data, address = sock.recvfrom(1 << 16)
            sock.sendto(prefix + data, address)

        loop.add_reader(sock, answer)
        try:
            yield sock.getsockname()[1]
        finally:
            loop.remove_reader(sock)


def port_of(listener: TcpListener | UdpListener) -> int:
    """The local port of a listener."""
    return listener.addresses[0][1]


def rst(writer: asyncio.StreamWriter) -> None:
    """Cut a connection with RST."""
    sock = writer.get_extra_info("socket")
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()


def _own_ports() -> Iterator[int]:
    """Claim ports that the kernel gives to no client, and that no other run of the tests uses.

    The first port of a block is bound for as long as this process lives; its number says whose the
    others are.
    """
    size = 500
    for first in range(10_000, 32_000, size):
        with socket.socket() as claim:
            try:
                claim.bind((HOST, first))
            except OSError:
                continue
            claim.detach()
        return itertools.cycle(range(first + 1, first + size))
    raise AssertionError("too many runs of the tests at once")


_PORTS = _own_ports()


def closed_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    """Return a port on which nothing listens, and nothing else will: each only once."""
    while True:
        port = next(_PORTS)
        with socket.socket(socket.AF_INET, kind) as sock, suppress(OSError):
            sock.bind((HOST, port))
            return port


@contextmanager
def silent() -> Iterator[int]:
    """A port whose connections neither come up nor fail: its queue is full."""
    with socket.socket() as server:
        server.bind((HOST, 0))
        server.listen(0)
        waiting = []
        try:
            for _ in range(4):
                sock = socket.socket()
                sock.setblocking(False)
                sock.connect_ex(server.getsockname())
                waiting.append(sock)
            yield server.getsockname()[1]
        finally:
            for sock in waiting:
                sock.close()


async def recv(sock: socket.socket, size: int = 1 << 16) -> bytes:
    """The next datagram or bytes of a non-blocking socket."""
    return await asyncio.get_running_loop().sock_recv(sock, size)


# -- an agent, and a pool that reaches it ------------------------------------------------------


@asynccontextmanager
async def agent(**settings: Any) -> AsyncIterator[Server]:
    """An agent in this process, on a free port, with KEY unless `settings` say otherwise."""
    server = Server(Settings(**{"port": 0, "key": KEY, **settings}))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(server.run())
        await server.listening.wait()
        try:
            yield server
        finally:
            server.stop("the test ends")


class AgentLink:
    """The way to an agent: `dial` goes there, `cut` breaks what is up, `blocked` keeps it shut."""

    name = "tcp"
    private = False
    expires = math.inf
    shortcut: Shortcut | None = None
    shortcut_only = False
    starting: asyncio.Future[None] | None = None

    def __init__(self, server: Server | None) -> None:
        self.opened = asyncio.Event()
        self.abandoned: list[str] = []
        self.server = server
        self.blocked = server is None
        self.dials = 0
        self.transports: list[asyncio.Transport] = []

    async def dial(self, protocol: asyncio.Protocol) -> asyncio.Transport:
        self.dials += 1
        if self.blocked or self.server is None:
            raise TunnelError("the way is shut")
        loop = asyncio.get_running_loop()
        transport, _ = await loop.create_connection(lambda: protocol, *self.server.address)
        self.transports.append(transport)
        return transport

    def reached(self) -> None:
        """Nothing waits for it."""

    async def reachable_again(self) -> None:
        await self.opened.wait()

    async def abandon(self, reason: str) -> None:
        self.abandoned.append(reason)

    def cut(self, *, blocked: bool = False) -> None:
        """Break every tunnel; `blocked`: and let none come up again."""
        self.blocked = blocked
        for transport in self.transports:
            transport.abort()
        self.transports.clear()


@asynccontextmanager
async def running(pool: Pool, *, up: bool = True) -> AsyncIterator[Pool]:
    """Keeps a pool up, from when all of its tunnels are."""
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(pool.run())
        try:
            if up:
                await until(lambda: all(tunnel.up for tunnel in pool.tunnels))
            yield pool
        finally:
            task.cancel()


def connection(of: Pool | Tunnel) -> MuxConnection:
    """The client's end of a tunnel's session, or of the one that the pool's next stream gets."""
    carrier = of.carrier if isinstance(of, Tunnel) else of.pick()
    assert isinstance(carrier, SessionCarrier)
    return carrier


class Path:
    """A whole data path in one process."""

    def __init__(self, server: Server, link: AgentLink, pool: Pool, tasks: TaskGroup) -> None:
        self.server = server
        self.link = link
        self.pool = pool
        self.tasks = tasks
        self.listeners: list[TcpListener | UdpListener] = []

    async def tcp(self, target: int | Route, *, open_timeout: float = 30.0) -> TcpListener:
        """A listener on a free port, before a target's port or a route."""
        route = self.route(target) if isinstance(target, int) else target
        listener = TcpListener("web", route, self.tasks, open_timeout=open_timeout)
        self.listeners.append(listener)
        await listener.open(HOST, 0)
        return listener

    async def udp(
        self, target: int | Route, *, open_timeout: float = 30.0, address: str = HOST
    ) -> UdpListener:
        """The same for UDP."""
        route = self.route(target, Protocol.UDP) if isinstance(target, int) else target
        listener = UdpListener("dns", route, self.tasks, open_timeout=open_timeout)
        self.listeners.append(listener)
        await listener.open(address, 0)
        return listener

    def route(
        self,
        port: int | None,
        protocol: Protocol = Protocol.TCP,
        host: str = HOST,
        *,
        followed: bool = False,
    ) -> Route:
        """A route to `port`; None for one that leads nowhere yet."""
        route = Route(self.pool, followed=followed)
        if port is not None:
            route.update(Resolution(protocol, Endpoint(host, port)))
        return route

    @property
    def streams(self) -> tuple[int, int]:
        """How many streams live, here and at the agent."""
        kept = self.server.sessions._kept.values()
        return (
            self.pool.streams,
            sum(len(k.mux.session.streams) for k in kept),
        )


@asynccontextmanager
async def path(
    *,
    tunnels: int = 1,
    config: SessionConfig = SessionConfig(),  # noqa: B008
    **settings: Any,
) -> AsyncIterator[Path]:
    """An agent, a pool to it, and a task group for listeners."""
    async with agent(**settings) as server:
        link = AgentLink(server)
        pool = Pool("p", [link], KEY, size=tunnels, config=config)
        async with running(pool), TaskGroup() as tasks:
            built = Path(server, link, pool, tasks)
            try:
                yield built
            finally:
                for listener in built.listeners:
                    listener.cut()


# -- a client ----------------------------------------------------------------------------------


@asynccontextmanager
async def connect(
    port: int, host: str = HOST
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A TCP connection to a local port; cut at the end."""
    reader, writer = await asyncio.open_connection(host, port)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with suppress(OSError):
            await writer.wait_closed()


async def exchange(port: int, data: bytes, host: str = HOST) -> bytes:
    """Send `data`, end, and read to the end."""
    async with connect(port, host) as (reader, writer):
        writer.write(data)
        writer.write_eof()
        return await reader.read()


async def echoed(port: int, size: int, each_mebibyte: Callable[[], None]) -> None:
    """`size` bytes there and back through an echo, byte-exact, whatever is done each mebibyte."""
    data = noise(size)
    async with connect(port) as (reader, writer), asyncio.TaskGroup() as tasks:

        async def send() -> None:
            for at in range(0, len(data), 1 << 16):
                writer.write(data[at : at + (1 << 16)])
                await writer.drain()
            writer.write_eof()

        tasks.create_task(send())
        got, step = bytearray(), 0
        while chunk := await reader.read(1 << 16):
            got += chunk
            if len(got) > (step + 1) << 20:
                step += 1
                each_mebibyte()
    assert got == data


def noise(size: int) -> bytes:
    """Bytes that show any loss, repetition or reordering."""
    return secrets.token_bytes(size)
