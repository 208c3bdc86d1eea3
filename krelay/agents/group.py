"""AgentGroup: one agent, or several alike, and the pool of sessions to them."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Sequence

from krelay.agents.provider import AgentProvider
from krelay.datapath.pool import Pool
from krelay.errors import AgentError, KrelayError, NotReadyError, TunnelRefusedError
from krelay.legacy import LegacyTunnels
from krelay.model import GroupSpec
from krelay.tasks import TaskGroup, guard, keep, shield_cleanup

logger = logging.getLogger("krelay.supervisor")

_NUMBERS = itertools.count(1)
_TUNNEL_DEADLINE = 30.0
_REMOVE_DEADLINE = 10.0
_LOOK_EVERY = 0.1


class AgentGroup:
    """What a GroupSpec stands for. `start` has it ready; whoever made it ends it with `stop`."""

    def __init__(self, spec: GroupSpec, reaches: Sequence[AgentProvider], key: bytes) -> None:
        """`key` proves this client to the agents that `reaches` lead to."""
        self.spec = spec
        self.reaches = tuple(reaches)
        name = f"p{next(_NUMBERS)}"
        self.pool = Pool(
            name,
            self.reaches,
            key,
            size=spec.sessions,
            config=spec.session,
            legacy=LegacyTunnels,
        )
        self._running: asyncio.Task[None] | None = None

    async def start(self, tasks: TaskGroup) -> None:
        """Every agent runs, and a tunnel is up. The pool's tasks belong to `tasks`.

        Raises:
            ClusterError: the agent cannot be had.
            NotReadyError: no tunnel came up in time.
            TunnelError: none ever will.
        """
        async with TaskGroup() as starting:
            for reach in self.reaches:
                starting.create_task(reach.start())
        self._running = tasks.create_task(keep(self.pool.run, self.pool.name), name=self.pool.name)
        try:
            async with asyncio.timeout(_TUNNEL_DEADLINE):
                await self._wait_tunnel()
        except TimeoutError as exc:
            raise NotReadyError(
                f"no tunnel to the agent within {_TUNNEL_DEADLINE:g} s: {self.pool.failure}",
                hint="run with -v to see each try",
            ) from exc

    async def drain(self, timeout: float) -> None:
        """Let what rides on it finish within `timeout` seconds, then `stop`."""
        try:
            async with asyncio.timeout(timeout):
                while self.pool.streams:  # noqa: ASYNC110 - streams end in thousands, this once
                    await asyncio.sleep(_LOOK_EVERY)
        except TimeoutError:
            count = self.pool.streams
            logger.warning("%s: %d streams of the former agent are cut", self.pool.name, count)
        finally:
            await shield_cleanup(self.stop())

    async def stop(self) -> None:
        """Cut what still rides on it, and remove the agent."""
        running, self._running = self._running, None
        if running is not None:
            running.cancel()
            await asyncio.wait([running])
        try:
            async with asyncio.timeout(_REMOVE_DEADLINE), TaskGroup() as stopping:
                for reach in self.reaches:
                    stopping.create_task(guard(reach.stop, f"{self.pool.name}: removing"))
        except TimeoutError:
            logger.warning("the agent was not removed in time; it ends by itself when idle")

    async def _wait_tunnel(self) -> None:
        """A tunnel is up, or the reason why there will be none is raised."""
        while self.pool.pick() is None:
            await self.pool.wait_change()
            if lost := next((reach.lost for reach in self.reaches if reach.lost), None):
                raise AgentError(lost, hint="`-v` shows each step")
            failure = self.pool.failure
            if isinstance(failure, TunnelRefusedError) or (
                isinstance(failure, KrelayError) and failure.exit_code == 4
            ):
                raise failure
