"""Two connections with a tunnel between them, over any transport."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from krelay.mux.connection import MuxConnection, TunnelProtocol
from krelay.mux.stream import MuxStream
from krelay.wire.errors import ErrorCode
from krelay.wire.frames import Buffer
from krelay.wire.header import TCP, Header
from krelay.wire.session import Limits, Side
from tests import fakes
from tests.rig import until

TARGET = Header(TCP, "10.0.0.1", 80)
WAYS = ["memory", "sockets", "trickle"]


class Ear:
    """A handler that records its events, and returns credit at once if `greedy`."""

    def __init__(self, *, greedy: bool = True) -> None:
        self.stream: MuxStream | None = None
        self.greedy = greedy
        self.data = bytearray()
        self.said: list[str] = []
        self.changed = asyncio.Event()

    def _say(self, what: str) -> None:
        self.said.append(what)
        changed, self.changed = self.changed, asyncio.Event()
        changed.set()

    def on_accepted(self) -> None:
        self._say("accepted")

    def on_refused(self, code: ErrorCode, message: str) -> None:
        self._say(f"refused {code.name} {message}")

    def on_data(self, data: Buffer) -> None:
        self.data += data
        if self.greedy and self.stream is not None:
            self.stream.consume(len(data))
        self._say("data")

    def on_datagram(self, data: Buffer) -> None:
        self._say(f"datagram {bytes(data).decode()}")

    def on_end(self) -> None:
        self._say("end")

    def on_reset(self, code: ErrorCode) -> None:
        self._say(f"reset {code.name}")

    def on_writable(self) -> None:
        self._say("writable")

    async def until(self, what: str) -> None:
        """Wait for this event."""
        while what not in self.said:
            await self.changed.wait()

    async def until_size(self, size: int) -> None:
        """Wait until so many bytes have come."""
        while len(self.data) < size:
            await self.changed.wait()


class Pair:
    """A client's and an agent's connection. Streams that the client opens turn up in `arrivals`."""

    def __init__(self, limits: Limits) -> None:
        self.arrivals: asyncio.Queue[tuple[MuxStream, Ear]] = asyncio.Queue()
        self.listens: Callable[[MuxStream], None] = self._arrive
        self.detached: list[Exception | None] = []
        self.goodbyes: list[str] = []
        self.client = MuxConnection(
            Side.CLIENT,
            "c",
            limits=limits,
            on_detached=self.detached.append,
            on_go_away=lambda code, text: self.goodbyes.append(f"{code.name} {text}"),
        )
        self.agent = MuxConnection(
            Side.AGENT, "a", limits=limits, on_open=lambda stream: self.listens(stream)
        )
        self.tunnels: list[TunnelProtocol] = []

    def _arrive(self, stream: MuxStream) -> None:
        ear = Ear()
        ear.stream, stream.handler = stream, ear
        self.arrivals.put_nowait((stream, ear))

    async def connect(self, way: str) -> None:
        """A new tunnel between them, which the sessions move to."""
        here, there = TunnelProtocol(), TunnelProtocol()
        if way == "sockets":
            loop = asyncio.get_running_loop()
            server = await loop.create_server(lambda: there, "127.0.0.1", 0)
            await loop.create_connection(lambda: here, *server.sockets[0].getsockname())
            await until(lambda: hasattr(there, "transport"))
            server.close()
        else:
            fakes.join(here, there, piece=7 if way == "trickle" else 1 << 20)
        counts = self.client.session.begin_resume(), self.agent.session.begin_resume()
        here.connection, there.connection = self.client, self.agent
        self.client.attach(here.transport, counts[1])
        self.agent.attach(there.transport, counts[0])
        self.tunnels = [here, there]

    async def stream(self, *, greedy: bool = True) -> tuple[MuxStream, Ear, MuxStream, Ear]:
        """A stream that is open at both ends, and who listens there."""
        near = Ear()
        near.stream = self.client.open(TARGET, near)
        stream, far = await self.arrivals.get()
        far.greedy = greedy
        stream.accept()
        await near.until("accepted")
        return near.stream, near, stream, far

    def close(self) -> None:
        """End both."""
        self.client.close(ErrorCode.NONE)
        self.agent.close(ErrorCode.NONE)


@asynccontextmanager
async def pair(way: str = "memory", limits: Limits = Limits()) -> AsyncIterator[Pair]:  # noqa: B008
    """Two connections, connected."""
    made = Pair(limits)
    await made.connect(way)
    try:
        yield made
    finally:
        made.close()
        for tunnel in made.tunnels:
            tunnel.transport.abort()
        await asyncio.sleep(0)
