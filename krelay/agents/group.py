"""AgentGroup: one agent, or several alike, and the pool of sessions to them."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Sequence
from functools import partial

from krelay.agents.base import AgentProvider, drain
from krelay.datapath.pool import Pool, Sessions
from krelay.datapath.tunnel import Tunnel
from krelay.errors import AgentError, KrelayError, NotReadyError
from krelay.legacy import LegacyTunnels
from krelay.model import GroupSpec
from krelay.state.bus import EventBus
from krelay.state.events import TunnelChanged
from krelay.tasks import TaskGroup, guard, keep

logger = logging.getLogger("krelay.supervisor")

_NUMBERS = itertools.count(1)
_TUNNEL_DEADLINE = 30.0
_REMOVE_DEADLINE = 10.0
_LOOK_PATIENCE = 0.5
"""Seconds to learn whether a server knows an agent, before tunnels to it are dialled anyway."""


class AgentGroup:
    """The agents of one GroupSpec. `start` makes it usable; `drain` or `stop` ends it."""

    def __init__(
        self, spec: GroupSpec, agents: Sequence[AgentProvider], key: bytes, bus: EventBus
    ) -> None:
        """Prove this client to the `agents` with `key`; publish the states of tunnels on `bus`."""
        self.spec = spec
        self.agents = tuple(agents)
        name = f"p{next(_NUMBERS)}"
        self.pool = Pool(
            name,
            self.agents,
            key,
            size=spec.sessions,
            config=spec.session,
            legacy=LegacyTunnels,
            on_tunnel=self._tunnel_changed,
        )
        for agent in self.agents:
            agent.on_delay = self.pool.delayed
        self._bus = bus
        self._tasks: TaskGroup | None = None
        self._running: asyncio.Task[None] | None = None

    async def start(self, tasks: TaskGroup) -> None:
        """Start every agent; wait until all of them run and a tunnel is up.

        `tasks` gets the tasks of the pool. Connections may use a tunnel before this returns.

        Raises:
            ClusterError: an agent cannot be started, or the cluster refuses tunnels to it.
            NotReadyError: no tunnel came up in time.
            TunnelRefusedError: the agent refuses this client.
        """
        self._tasks = tasks
        async with TaskGroup() as starting:
            for agent in self.agents:
                starting.create_task(agent.start())
        self._running = tasks.create_task(keep(self.pool.run, self.pool.name), name=self.pool.name)
        try:
            async with TaskGroup() as reaching:
                tunnel = reaching.create_task(self._wait_tunnel())
                await self._wait_agents()
                async with asyncio.timeout(_TUNNEL_DEADLINE):
                    await asyncio.wait((tunnel,))
        except TimeoutError as exc:
            raise NotReadyError(
                f"no tunnel to the agent within {_TUNNEL_DEADLINE:g} s: {self.pool.failure}",
                hint="run with -v to see each attempt",
            ) from exc

    def access_changed(self, *, moved: bool) -> None:
        """Try again at once what other credentials may let succeed.

        `moved`: requests go to another server. If that is another cluster, or the same one made
        anew, the agents are gone, and with them what they carry.
        """
        for agent in self.agents:
            agent.access_changed()
        if not moved:
            self.pool.dial_soon()
        elif self._tasks is not None:
            for agent in self.agents:
                look = partial(self._look_for, agent, self.pool.sessions(agent))
                self._tasks.create_task(guard(look, f"{self.pool.name}: looking for its agent"))

    async def _look_for(self, agent: AgentProvider, sessions: Sessions) -> None:
        """Dial `agent` anew if it is where requests go now, else drop the `sessions` with it."""
        async with TaskGroup() as tasks:
            looking = tasks.create_task(agent.gone())
            done, _ = await asyncio.wait((looking,), timeout=_LOOK_PATIENCE)
            if not done:
                self.pool.network_changed(broken=True)
        if reason := looking.result():
            self.pool.drop(sessions, reason)
        elif done:
            self.pool.network_changed(broken=True)

    async def drain(self, timeout: float) -> None:
        """Let streams finish within `timeout` seconds, then `stop`."""
        await drain(self.pool, timeout, "agent", self.stop)

    async def stop(self) -> None:
        """Cut the remaining streams, and remove the agents."""
        running, self._running, self._tasks = self._running, None, None
        if running is not None:
            running.cancel()
            await asyncio.wait([running])
        try:
            async with asyncio.timeout(_REMOVE_DEADLINE), TaskGroup() as stopping:
                for agent in self.agents:
                    stopping.create_task(guard(agent.stop, f"{self.pool.name}: removing"))
        except TimeoutError:
            logger.warning("the agent was not removed in time; it ends by itself when idle")

    async def _wait_agents(self) -> None:
        """Wait until every agent runs; raise the reason as soon as one cannot."""
        starts = [start for agent in self.agents if (start := agent.starting) is not None]
        while starts:
            await asyncio.wait(starts, return_when=asyncio.FIRST_COMPLETED)
            for start in [start for start in starts if start.done()]:
                start.result()
                starts.remove(start)

    async def _wait_tunnel(self) -> None:
        """Wait until a tunnel is up; raise the reason if none will ever be."""
        while self.pool.pick() is None:
            await self.pool.wait_change()
            if lost := next((agent.lost for agent in self.agents if agent.lost), None):
                raise AgentError(lost, hint="`-v` shows each step")
            failure = self.pool.failure
            if isinstance(failure, KrelayError) and failure.fails_start:
                raise failure

    def _tunnel_changed(self, tunnel: Tunnel) -> None:
        if self._running is not None:
            reason = str(tunnel.failure) if tunnel.failure and not tunnel.up else ""
            self._bus.publish(TunnelChanged(self.spec.context, tunnel.name, tunnel.up, reason))
