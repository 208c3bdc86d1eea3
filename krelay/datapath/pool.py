"""Pool: third stage of the data path; picks the tunnel that a new stream rides on."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING
from weakref import WeakSet

from krelay.datapath.agent_health import AgentHealth
from krelay.datapath.agent_link import AgentLink
from krelay.datapath.tunnel import Carrier, Tunnel
from krelay.model import SessionConfig
from krelay.tasks import TaskGroup

if TYPE_CHECKING:
    from krelay.datapath.route import Route

logger = logging.getLogger("krelay.tunnel")

_LOOK_EVERY = 1.0
"""Seconds between two looks at whether the last stream of a worn session has ended."""


def least_loaded(tunnels: Iterable[Tunnel]) -> Tunnel | None:
    """The tunnel that is up and has the least queued; the first among equals."""
    return min((tunnel for tunnel in tunnels if tunnel.up), key=lambda t: t.load, default=None)


class Pool:
    """The sessions to a group's agents, shared by all of its targets. `run` lasts until cancelled.

    An agent that is lost costs the streams of its own sessions alone.
    """

    def __init__(
        self,
        name: str,
        ways: Sequence[AgentLink],
        key: bytes,
        *,
        size: int,
        config: SessionConfig = SessionConfig(),  # noqa: B008
    ) -> None:
        """`size` sessions in all, but one for each of the `ways` to an agent at least."""
        self.name = name
        self.routes: WeakSet[Route] = WeakSet()
        """Those that lead through it; they are told of every change."""
        self._plain = False
        self._changed = asyncio.Event()
        self._key = key
        self._config = config
        self._numbers = itertools.count(1)
        self._tasks: TaskGroup | None = None
        self._running: dict[Tunnel, asyncio.Task[None]] = {}
        self._reached: dict[Tunnel, tuple[AgentLink, AgentHealth]] = {}
        self._retired: set[Tunnel] = set()
        reached = [(way, AgentHealth(way, config.resume_timeout)) for way in ways]
        self.tunnels = [self._tunnel(*reached[n % len(ways)]) for n in range(max(size, len(ways)))]

    def pick(self) -> Carrier | None:
        """The session for a new stream; None while no tunnel is up."""
        tunnel = least_loaded(t for t in self.tunnels if t not in self._retired)
        return tunnel.driver if tunnel else None

    async def wait_change(self) -> None:
        """Return when a tunnel came up, went down or failed to come up."""
        await self._changed.wait()

    @property
    def streams(self) -> int:
        """How many streams live on it."""
        return sum(tunnel.streams for tunnel in self.tunnels)

    @property
    def failure(self) -> Exception | None:
        """Why the last tunnel that tried did not come up."""
        return next((tunnel.failure for tunnel in self.tunnels if tunnel.failure), None)

    async def run(self) -> None:
        """Keep every tunnel up; ends with a good-bye to the agent."""
        try:
            async with TaskGroup() as self._tasks:
                for tunnel in self.tunnels:
                    self._run(tunnel, self._tasks)
        finally:
            self._tasks = None
            for tunnel in self.tunnels:
                tunnel.close()

    @property
    def wanted(self) -> bool:
        """Whether a connection waits for a tunnel."""
        return any(route.wanted for route in self.routes)

    def dial_soon(self) -> None:
        """A connection waits: no tunnel that is down waits for long."""
        for tunnel in self.tunnels:
            tunnel.dial_soon()

    def network_changed(self, *, broken: bool) -> None:
        """The network or the machine is not what it was: see `Tunnel.network_changed`."""
        for tunnel in self.tunnels:
            tunnel.network_changed(broken=broken)

    def _tunnel(self, way: AgentLink, reached: AgentHealth) -> Tunnel:
        tunnel = Tunnel(
            f"{self.name}t{next(self._numbers)}",
            way,
            self._key,
            self._config,
            reached=reached,
            on_change=self._on_change,
            on_worn=self._succeed,
            wanted=lambda: self.wanted,
        )
        self._reached[tunnel] = way, reached
        return tunnel

    def _run(self, tunnel: Tunnel, tasks: TaskGroup) -> None:
        self._running[tunnel] = tasks.create_task(tunnel.run(), name=tunnel.name)

    def _succeed(self, tunnel: Tunnel) -> None:
        """Have another tunnel, to the same agent, take the new streams of a worn session."""
        if self._tasks is None or tunnel not in self._running:
            return
        successor = self._tunnel(*self._reached[tunnel])
        logger.info("%s: its stream ids run out; %s takes over", tunnel.name, successor.name)
        self.tunnels.append(successor)
        self._run(successor, self._tasks)
        self._tasks.create_task(self._retire(tunnel, successor), name=tunnel.name)

    async def _retire(self, tunnel: Tunnel, successor: Tunnel) -> None:
        """Make before break: end `tunnel` once its last stream has ended."""
        while not successor.up:
            await self.wait_change()
        self._retired.add(tunnel)
        while tunnel.streams:  # noqa: ASYNC110 - once in 2^30 streams
            await asyncio.sleep(_LOOK_EVERY)
        self.tunnels.remove(tunnel)
        self._retired.discard(tunnel)
        del self._reached[tunnel]
        self._running.pop(tunnel).cancel()
        tunnel.close()
        self._on_change()

    def _on_change(self) -> None:
        if not self._plain and any(tunnel.plain for tunnel in self.tunnels):
            self._plain = True
            logger.warning(
                "the agent knows no sessions (it is not krelay's own): each connection has a"
                " tunnel of its own, and none is resumed"
            )
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        for route in list(self.routes):
            route.wake()
