"""AgentHealth: whether any tunnel reaches an agent, and when to give the agent up."""

from __future__ import annotations

import asyncio

from krelay.datapath.agent_link import AgentLink
from krelay.datapath.handshake import SessionGoneError
from krelay.errors import PodGoneError, TunnelError, TunnelRefusedError


class AgentHealth:
    """What the tunnels of one way know of its agent together: one that cannot come up again must
    not cost those that are up, nor an agent that another has just had made."""

    def __init__(self, way: AgentLink, grace: float) -> None:
        """`grace` is in seconds."""
        self._way = way
        self._grace = grace
        self._loop = asyncio.get_running_loop()
        self._by: set[object] = set()
        self._missed_at: float | None = None

    def by(self, tunnel: object) -> None:
        """`tunnel` leads to it."""
        self._by.add(tunnel)
        self._missed_at = None

    def lost(self, tunnel: object) -> None:
        """`tunnel` does not lead to it any more, if it did."""
        if tunnel in self._by:
            self._by.discard(tunnel)
            self._miss()

    def missed(self, failure: Exception) -> None:
        """A tunnel did not come up."""
        if isinstance(failure, PodGoneError | SessionGoneError):
            self._missed_at = None  # the next agent has a grace of its own; or this one answers
        else:
            self._miss()

    async def give_up(self, failure: Exception | None) -> None:
        """Abandon the agent, if no tunnel led to it for the grace and `failure`, the last one, says
        that the API server answers, and the agent does not: its node may be gone."""
        if self._missed_at is None or self._loop.time() < self._missed_at + self._grace:
            return
        self._missed_at = None
        if isinstance(failure, TunnelError) and not isinstance(failure, TunnelRefusedError):
            await self._way.abandon(f"no tunnel for {self._grace:g} s (tunnel.resumeTimeout)")

    def _miss(self) -> None:
        if not self._by and self._missed_at is None:
            self._missed_at = self._loop.time()
