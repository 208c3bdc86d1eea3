"""A pool and an agent joined in memory, by a link that lags, cuts, swallows and refuses, on a
simulated clock: minutes of a bad network pass in milliseconds."""

from __future__ import annotations

import asyncio
import math
import random
from collections.abc import Callable
from typing import Any

from agent.connection import AgentConnection
from agent.dial import Lookups
from agent.memory import MemoryBudget, ReadBuffer
from agent.pending import RefusalLog
from agent.sessions import KeptSession, Sessions
from agent.settings import Settings
from krelay.errors import NotListeningError
from krelay.mux.connection import MuxConnection
from krelay.mux.stream import MuxStream
from krelay.wire.header import Header
from tests.fakes import MemoryTransport


class FaultyTransport(MemoryTransport):
    """One end of a tunnel. Besides what its base does: `rate` bounds what passes, in bytes per
    second, and what ends while `choked` ends here alone, and the other end does not learn of it."""

    rate = math.inf

    def _pump(self) -> None:
        if not self._pumping and self.buffer and not self.choked:
            self._pumping = True
            delay = self.lag + min(len(self.buffer), self.piece) / self.rate
            self.loop.call_later(delay, self._deliver)

    def cut(self, part: float) -> None:
        """Deliver this part of what is under way, and be gone."""
        other = self.other
        data = bytes(self.buffer[: int(len(self.buffer) * part)])
        if data and not self.choked and other is not None and other.protocol is not None:
            other.protocol.data_received(data)
        self.abort()

    def abort(self) -> None:
        if not self.choked:
            super().abort()
            return
        self._closing = True
        self.buffer.clear()
        protocol, self.protocol = self.protocol, None
        if protocol is not None:
            self.loop.call_soon(protocol.connection_lost, None)


class FaultyAgent(Sessions):
    """A real agent's sessions and connections, without a socket: `on_stream` gets its streams."""

    def __init__(
        self, settings: Settings, tasks: asyncio.TaskGroup, on_stream: Callable[[MuxStream], None]
    ) -> None:
        self.buffer = ReadBuffer()
        self.refusals = RefusalLog()
        self.deadline = 10.0
        super().__init__(
            settings,
            tasks,
            lambda _: None,
            budget=MemoryBudget(256 << 20),
            buffer=self.buffer,
            lookups=Lookups(),
        )
        self.sessions: Sessions = self
        self.connections: set[AgentConnection] = set()
        self._on_stream = on_stream

    @property
    def drivers(self) -> list[MuxConnection]:
        """Those of the sessions that it keeps."""
        return [kept.mux for kept in self._kept.values()]

    def connected(self, connection: AgentConnection) -> None:
        self.connections.add(connection)

    def authenticated(self, connection: AgentConnection) -> None:
        assert connection in self.connections

    def disconnected(self, connection: AgentConnection) -> None:
        self.connections.discard(connection)

    def serve_legacy(self, connection: AgentConnection, request: Header, early: bytes) -> None:
        raise AssertionError("no client asks for legacy mode")

    def _open_target(self, kept: KeptSession, stream: MuxStream) -> None:
        self._on_stream(stream)


class FaultyLink:
    """The way of a pool's tunnels to the agent. New tunnels get `lag`, `rate` and `piece`;
    `blocked` refuses new ones, `silent` lets them hang, as a dial has its own deadline."""

    name = "tcp"
    private = False
    expires = math.inf
    shortcut = None
    shortcut_only = False
    starting = None

    def __init__(self, agent: FaultyAgent, chance: random.Random) -> None:
        self.agent = agent
        self.lag, self.rate, self.piece = 0.001, math.inf, 1 << 20
        self.blocked = False
        self.silent = False
        self.pairs: list[tuple[FaultyTransport, FaultyTransport]] = []
        self._chance = chance

    async def dial(self, protocol: asyncio.Protocol) -> asyncio.Transport:
        await asyncio.sleep(self.lag)
        if self.silent:
            await asyncio.sleep(10.0)
            raise TimeoutError("no answer")
        if self.blocked:
            raise NotListeningError("the way is shut")
        here, there = ends = (self._transport(), self._transport())
        for end, other, one in zip(
            ends, reversed(ends), (protocol, AgentConnection(self.agent)), strict=True
        ):
            end.other, end.protocol = other, one
        self.live()
        self.pairs.append((here, there))
        assert there.protocol is not None
        there.protocol.connection_made(there)
        protocol.connection_made(here)
        return here

    def reached(self) -> None:
        """Nothing waits for it."""

    async def reachable_again(self) -> None:
        await asyncio.get_running_loop().create_future()

    async def abandon(self, reason: str) -> None:
        """There is no other agent."""

    def _transport(self) -> FaultyTransport:
        made = FaultyTransport(self.piece, self.lag)
        made.rate = self.rate
        return made

    def live(self) -> list[FaultyTransport]:
        """Both ends of every tunnel that is not gone at both."""
        self.pairs = [pair for pair in self.pairs if any(end.protocol for end in pair)]
        return [end for pair in self.pairs for end in pair]

    def cut(self) -> None:
        """End every tunnel in the middle of what is under way."""
        for end in self.live():
            if end.protocol is not None:
                end.cut(self._chance.random())

    def choke(self, choked: bool) -> None:
        """A black hole for the tunnels that live, or the end of it: what an end has missed of the
        other's end, it learns now."""
        for end in self.live():
            end.choke(choked)
            if not choked and end.other is not None and end.protocol is None:
                end.other.abort()

    def shape(self, **changes: Any) -> None:
        """Lag, rate or piece, for what lives and what comes."""
        for name, value in changes.items():
            for thing in (self, *self.live()):
                setattr(thing, name, value)
