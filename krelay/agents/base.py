"""AgentProvider: start an agent, connect to it, and start another one when it is lost.

Providers join what `cluster` knows (credentials, pods) with what `transport` can do, so that
neither needs the other.
"""

from __future__ import annotations

import logging
from typing import Protocol

from krelay.datapath.agent_link import AgentLink
from krelay.mux.log import about
from krelay.state.bus import EventBus
from krelay.state.events import AgentLost, AgentProgress, AgentStarted

log = about(logging.getLogger("krelay.agent"), name="agent")
"""Lines of the log about agents."""


class AgentProvider(AgentLink, Protocol):
    """One agent, wherever it runs, and the way to it."""

    lost: str
    """Why the last lost agent is gone; empty while none was lost."""

    @property
    def where(self) -> str:
        """`NAMESPACE/POD` or the process of the agent; empty while none runs."""

    async def start(self) -> None:
        """Start an agent, unless there is one; return when it may be dialled, which may be before
        it runs (`starting`). Raises ClusterError."""

    def access_changed(self) -> None:
        """Have other credentials, or another server, used at once."""

    async def gone(self) -> str:
        """Return why the agent is gone, or an empty text if it is still there, once that is
        known."""

    async def stop(self) -> None:
        """Remove the agent. Raises nothing if it is gone already."""


class AgentEvents:
    """Logs and publishes what happens to one agent of a context."""

    def __init__(self, bus: EventBus, context: str | None) -> None:
        self._bus = bus
        self._context = context

    def progress(self, step: str) -> None:
        """Report a step of the start."""
        log.info("%s", step)
        self._bus.publish(AgentProgress(self._context, step))

    def started(self, where: str, step: str) -> None:
        """Report that the agent runs."""
        self.progress(step)
        self._bus.publish(AgentStarted(self._context, where))

    def lost(self, where: str, reason: str) -> None:
        """Report that the agent is gone."""
        self._bus.publish(AgentLost(self._context, where, reason))
