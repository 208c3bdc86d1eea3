"""AgentLink: the ways to an agent; AgentHealth: what its tunnels know of it together."""

from __future__ import annotations

import asyncio
from typing import Protocol

from krelay.errors import PodGoneError, TunnelError, TunnelRefusedError

SHORTEST_PAUSE, LONGEST_PAUSE = 0.02, 1.0
"""Bounds of the pause between two dials to an agent that is being started, in seconds."""


class Way(Protocol):
    """A way to an agent."""

    private: bool
    """Whether what passes is encrypted end to end, so that the key may be shown on it."""

    @property
    def name(self) -> str:
        """What carries the connection of the last dial: `proxy`, `spdy`, `websocket` or `tcp`."""

    @property
    def expires(self) -> float:
        """Expiry of the credentials used by the last dial (Unix time; `inf` if unknown)."""

    async def dial(self, protocol: asyncio.Protocol) -> asyncio.Transport:
        """Open a byte pipe to the agent and put `protocol` on it, within its own deadline.

        Raises:
            KrelayError, OSError: the agent cannot be reached.
        """


class Shortcut(Way, Protocol):
    """A way that may not work."""

    @property
    def available(self) -> bool:
        """Whether it may be tried now: at first it may not be known where it leads."""

    async def prepare(self) -> None:
        """Get what a dial needs and may take long, such as credentials of a plugin.

        Raises:
            KrelayError, OSError: there is no dial without it.
        """


class AgentLink(Way, Protocol):
    """The ways to one agent, as its tunnels see them. It is itself the way that always works."""

    @property
    def shortcut(self) -> Shortcut | None:
        """A faster way to the present agent, which may not work; another agent has another one.

        The agent serves it once it knows the key.
        """

    @property
    def shortcut_only(self) -> bool:
        """Whether nothing but the shortcut may carry a session, once the agent knows the key."""

    @property
    def starting(self) -> asyncio.Future[None] | None:
        """Done when the agent runs or cannot run; None if it is not being started.

        Until then the agent does not listen, or its node does not know it yet.
        """

    def reached(self) -> None:
        """Record that a tunnel is up: the agent runs."""

    async def reachable_again(self) -> None:
        """Return when the API server, found unreachable, can be reached again; maybe never."""

    async def abandon(self, reason: str) -> None:
        """Give up an agent that was out of reach for too long; the next dial may go to another."""


class SessionGoneError(TunnelError):
    """The agent does not know the session that was to be resumed."""


class AgentHealth:
    """Decides when an agent is given up; shared by the tunnels to it.

    A tunnel that cannot come up must cost neither the tunnels that are up nor an agent that
    another tunnel has just had started.
    """

    def __init__(self, link: AgentLink, grace: float) -> None:
        """`grace` is how long the agent may be out of reach, in seconds."""
        self.known = False
        """Whether a tunnel has reached it, or an agent in whose place it is."""
        self._link = link
        self._grace = grace
        self._loop = asyncio.get_running_loop()
        self._connected: set[object] = set()
        self._unreached_since: float | None = None
        self._start: asyncio.Future[None] | None = None
        self._scout: object = None
        self._scouting_since = 0.0

    async def wait_turn(self, tunnel: object) -> None:
        """Pace the dials to an agent that is being started; return at once for any other.

        One tunnel dials again and again, and the others wait until the agent runs. Each pause is an
        eighth of the time so far: so the agent is found soon after it listens, and a start that
        takes minutes costs its node a dial a second.
        """
        start = self._link.starting
        if start is None:
            return
        now = self._loop.time()
        if start is not self._start:
            self._start, self._scout, self._scouting_since = start, tunnel, now
            return
        pause = (now - self._scouting_since) / 8 if tunnel is self._scout else None
        if pause is not None:
            pause = min(max(pause, SHORTEST_PAUSE), LONGEST_PAUSE)
        await asyncio.wait((start,), timeout=pause)

    def connected(self, tunnel: object) -> None:
        """Record that `tunnel` reaches the agent."""
        self._connected.add(tunnel)
        self._unreached_since = None
        self.known = True
        self._link.reached()

    def disconnected(self, tunnel: object) -> None:
        """Record that `tunnel` no longer reaches the agent, if it did."""
        if tunnel in self._connected:
            self._connected.discard(tunnel)
            self._mark_unreached()

    def attempt_failed(self, failure: Exception) -> None:
        """Record that a tunnel did not come up."""
        if isinstance(failure, PodGoneError | SessionGoneError):
            # The next agent has its own grace; or this one has answered.
            self._unreached_since = None
        else:
            self._mark_unreached()

    async def abandon_if_lost(self, failure: Exception | None) -> None:
        """Abandon the agent if no tunnel has reached it for the grace; its node may be gone.

        `failure` is the last one. It must show that the API server answers and the agent does not.
        """
        if self._link.starting is not None:
            self._unreached_since = None  # its start has a deadline
        if self._unreached_since is None or self._loop.time() < self._unreached_since + self._grace:
            return
        self._unreached_since = None
        if isinstance(failure, TunnelError) and not isinstance(failure, TunnelRefusedError):
            await self._link.abandon(f"no tunnel for {self._grace:g} s (tunnel.resumeTimeout)")

    def _mark_unreached(self) -> None:
        if not self._connected and self._unreached_since is None:
            self._unreached_since = self._loop.time()
