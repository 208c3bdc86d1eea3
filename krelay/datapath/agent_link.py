"""AgentLink: what a tunnel needs to know of the way to its agent; the supervisor brings it."""

from __future__ import annotations

import asyncio
from typing import Protocol


class AgentLink(Protocol):
    """One agent, as tunnels see it."""

    private: bool
    """Whether what passes is encrypted end to end, so that the key may be shown on it."""

    @property
    def expires(self) -> float:
        """When that which the last dial was let in with ends, in seconds since the epoch; infinite
        if nobody said. A tunnel is best replaced before."""

    async def dial(self, protocol: asyncio.Protocol) -> asyncio.Transport:
        """Opens a byte pipe to the agent and puts this protocol on it.

        Raises KrelayError or OSError; it has a deadline of its own.
        """

    async def reachable_again(self) -> None:
        """Return when the way, found shut, is seen open again; perhaps never."""

    async def abandon(self, reason: str) -> None:
        """This agent was not reached for too long: the next dial may go to another."""
