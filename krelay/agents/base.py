"""Base: what the ways into a cluster share, and AgentProvider, which runs one agent.

Providers join what `cluster` knows (credentials, pods) with what `transport` can do, so that
neither needs the other.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any, Protocol

from krelay.datapath.agent_link import AgentLink
from krelay.mux.log import about
from krelay.state.bus import EventBus
from krelay.state.events import AgentLost, AgentProgress, AgentStarted
from krelay.tasks import shield_cleanup

if TYPE_CHECKING:
    from krelay.cluster.api import Api
    from krelay.net.api_access import ApiAccess

logger = logging.getLogger("krelay.supervisor")

RENEW_EVERY = 60.0
"""Seconds between two renewals of refused credentials: where new ones are refused as well, each
dial would run an exec plugin, which may prompt a person."""

log = about(logging.getLogger("krelay.agent"), name="agent")
"""Lines of the log about agents."""


class AgentProvider(AgentLink, Protocol):
    """One agent, wherever it runs, and the way to it."""

    lost: str
    """Why the last lost agent is gone; empty while none was lost."""
    on_delay: Callable[[str], None]
    """Called with what the agent's start lacks and may get, and with an empty text at its end."""

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

    def delayed(self, step: str) -> None:
        """Report a step of the start that may not end."""
        log.warning("%s", step)
        self._bus.publish(AgentProgress(self._context, step))

    def started(self, where: str, step: str) -> None:
        """Report that the agent runs."""
        self.progress(step)
        self._bus.publish(AgentStarted(self._context, where))

    def lost(self, where: str, reason: str) -> None:
        """Report that the agent is gone."""
        self._bus.publish(AgentLost(self._context, where, reason))


class Renewals:
    """Has other credentials used after a refusal: they may be accepted."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._last = -math.inf

    def refused(self, access: ApiAccess) -> None:
        """Ask for other credentials than `access`, once a minute at most."""
        now = asyncio.get_running_loop().time()
        if now >= self._last + RENEW_EVERY:
            self._last = now
            self._api.reject(access)

    def reset(self) -> None:
        """Ask at the next refusal, whenever the last one was."""
        self._last = -math.inf


class StreamCarriers(Protocol):
    """A pool that can be drained."""

    name: str

    @property
    def streams(self) -> int:
        """The number of live streams."""

    async def wait_idle(self) -> None:
        """Return when no stream is left."""


async def drain(
    pool: StreamCarriers, timeout: float, what: str, stop: Callable[[], Coroutine[Any, Any, None]]
) -> None:
    """Let the streams of `pool` finish within `timeout` seconds, then `stop`.

    `what` names the pool in the log, which says how many streams did not finish.
    """
    try:
        async with asyncio.timeout(timeout):
            await pool.wait_idle()
    except TimeoutError:
        about(logger, name=pool.name).warning(
            "%d streams of the former %s are cut", pool.streams, what
        )
    finally:
        await shield_cleanup(stop())
