"""AgentLink: the ways to an agent; AgentHealth: what its tunnels know of it together."""

from __future__ import annotations

import asyncio
from typing import Protocol

from krelay.errors import PodGoneError, TunnelError, TunnelRefusedError


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


class AgentLink(Way, Protocol):
    """The ways to one agent, as its tunnels see them. It is itself the way that always works."""

    @property
    def shortcut(self) -> Way | None:
        """A faster way to the present agent, which may not work; another agent has another one.

        The agent serves it once it knows the key.
        """

    @property
    def shortcut_only(self) -> bool:
        """Whether nothing but the shortcut may carry a session, once the agent knows the key."""

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
        self._link = link
        self._grace = grace
        self._loop = asyncio.get_running_loop()
        self._connected: set[object] = set()
        self._unreached_since: float | None = None

    def connected(self, tunnel: object) -> None:
        """Record that `tunnel` reaches the agent."""
        self._connected.add(tunnel)
        self._unreached_since = None

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
        if self._unreached_since is None or self._loop.time() < self._unreached_since + self._grace:
            return
        self._unreached_since = None
        if isinstance(failure, TunnelError) and not isinstance(failure, TunnelRefusedError):
            await self._link.abandon(f"no tunnel for {self._grace:g} s (tunnel.resumeTimeout)")

    def _mark_unreached(self) -> None:
        if not self._connected and self._unreached_since is None:
            self._unreached_since = self._loop.time()
