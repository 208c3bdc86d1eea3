"""JobAgent: an agent that runs in a cluster as a Job, and the ways to it."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, TypeVar

from krelay.agents.base import AgentEvents, log
from krelay.errors import AccessDeniedError, AgentError, ClusterError, PodGoneError, TunnelError
from krelay.model import AGENT_DOOR_PORT, AGENT_PORT, GroupSpec, Transport
from krelay.state.bus import EventBus
from krelay.tasks import TaskGroup, keep
from krelay.wire.handshake import key_digest

if TYPE_CHECKING:
    from krelay.cluster.agent_lifecycle import Agent, PostedJobs
    from krelay.cluster.api import Api
    from krelay.net.api_access import ApiAccess

_Opened = TypeVar("_Opened", bound=asyncio.Transport)

_RENEW_EVERY = 60.0
"""Seconds between two renewals of refused credentials: where new ones are refused as well, each
dial would run an exec plugin, which may prompt a person."""


class JobAgent:
    """An agent that runs in a cluster as a Job; tunnels begin on the API server's port-forward."""

    name = "spdy"
    private = True

    def __init__(
        self,
        api: Api,
        spec: GroupSpec,
        key: bytes,
        tasks: TaskGroup,
        bus: EventBus,
        *,
        run: str = "",
    ) -> None:
        """Watch the agent's pod in a task of `tasks`. Agents of one `run` spread over the nodes.

        The caller closes `api`.
        """
        self.lost = ""
        self.expires = math.inf
        self.shortcut: PodProxy | None = None
        self.shortcut_only = spec.transport is Transport.PROXY
        self._run = run
        self._api = api
        self._spec = spec
        self._key = key
        self._tasks = tasks
        self._agent: Agent | None = None
        self._jobs: PostedJobs | None = None
        self._stopped = False
        self._events = AgentEvents(bus, spec.context)
        self._watching: asyncio.Task[None] | None = None
        self._renewed_at = -math.inf
        self._starting = asyncio.Lock()

    @property
    def where(self) -> str:
        return str(self._agent or "")

    async def start(self) -> None:
        from krelay.cluster.agent_lifecycle import PostedJobs, create_agent

        async with self._starting:
            if self._agent is not None:
                return
            if self._stopped:
                raise AgentError("the agent was removed")
            self._jobs = self._jobs or PostedJobs(self._api)
            agent = self._agent = await create_agent(
                self._jobs,
                self._spec.agent,
                namespace=self._spec.namespace or self._api.namespace,
                key_sha256=key_digest(self._key),
                connect_timeout=self._spec.connect_timeout,
                session=self._spec.session,
                run=self._run,
                on_progress=self._events.progress,
            )
            if self._spec.transport in (Transport.AUTO, Transport.PROXY):
                self.shortcut = PodProxy(self, agent)
            self._events.started(str(agent), f"pod {agent} runs")
            self._watching = self._tasks.create_task(
                keep(lambda: self._watch(agent), f"the watch of {agent}"), name=f"agent {agent}"
            )

    async def dial(self, protocol: asyncio.Protocol) -> asyncio.Transport:
        from krelay.transport.portforward import open_portforward, transport_from_env

        if self._agent is None:
            await self.start()
        agent = self._agent
        if agent is None:
            raise AgentError("the agent is gone")
        pipe, self.expires = await self._open(
            agent,
            lambda access: open_portforward(
                access,
                namespace=agent.namespace,
                pod=agent.pod,
                port=AGENT_PORT,
                protocol=protocol,
                transport=transport_from_env(self._spec.transport, os.environ),
            ),
        )
        self.name = pipe.carrier
        return pipe

    async def dial_door(
        self, agent: Agent, protocol: asyncio.Protocol
    ) -> tuple[asyncio.Transport, float]:
        """Connect `protocol` to `agent` by the API server's proxy, while it is the present agent.

        Return the transport, and the expiry of the credentials.
        """
        from krelay.transport.pod_proxy import open_pod_proxy

        if self._agent is not agent:
            raise PodGoneError(f"the agent {agent} is gone")
        return await self._open(
            agent,
            lambda access: open_pod_proxy(
                access,
                namespace=agent.namespace,
                pod=agent.pod,
                port=AGENT_DOOR_PORT,
                protocol=protocol,
            ),
        )

    async def _open(
        self, agent: Agent, dial: Callable[[ApiAccess], Awaitable[_Opened]]
    ) -> tuple[_Opened, float]:
        """Dial with valid credentials, and draw the conclusions of a refusal."""
        from krelay.transport.upgrade import UnauthorizedError

        access = await self._api.access()
        try:
            return await dial(access), access.expires
        except UnauthorizedError:
            # Others may be accepted; but ask for them once a minute at most.
            now = asyncio.get_running_loop().time()
            if now >= self._renewed_at + _RENEW_EVERY:
                self._renewed_at = now
                self._api.reject(access)
            raise
        except PodGoneError as exc:
            reason = await self._ended(agent, exc)
            if reason is None:
                raise TunnelError(f"{exc}, says its node, but the API server still has it") from exc
            await self._lose(agent, reason)
            raise

    async def reachable_again(self) -> None:
        from krelay.transport.portforward import reachable_again

        await reachable_again(await self._api.access())

    async def abandon(self, reason: str) -> None:
        if self._agent is not None:
            await self._lose(self._agent, reason)

    async def stop(self) -> None:
        self._agent = self.shortcut = None
        self._stopped = True
        if self._watching is not None:
            self._watching.cancel()
        if self._jobs is not None:
            await self._jobs.clear()

    async def _ended(self, agent: Agent, exc: PodGoneError) -> str | None:
        """Return why the agent has ended, or None if it has not.

        The API server decides: a kubelet that has just started knows none of its pods yet, and
        claims of each that it does not exist.
        """
        from krelay.cluster.agent_lifecycle import agent_ended

        try:
            return await agent_ended(self._api, agent)
        except AccessDeniedError:
            return str(exc)
        except ClusterError as error:
            log.debug("cannot tell whether %s has ended: %s", agent, error)
            return None

    async def _watch(self, agent: Agent) -> None:
        """Notice the end of the pod as soon as the cluster knows, and not only by the next dial."""
        from krelay.cluster.agent_lifecycle import agent_gone

        try:
            reason = await agent_gone(self._api, agent)
        except ClusterError as exc:
            log.debug("%s is not watched: %s", agent, exc)
        else:
            await self._lose(agent, reason)

    async def _lose(self, agent: Agent, reason: str) -> None:
        """Give the agent up; the next dial starts another one."""
        if self._agent is agent:
            self._agent = self.shortcut = None
            self.lost = reason
            log.warning("%s", reason)
            self._events.lost(str(agent), reason)
            assert self._jobs is not None
            if error := await self._jobs.discard(agent.namespace, agent.job):
                log.warning("its Job will be deleted later: %s", error)


class PodProxy:
    """The way to a JobAgent through the API server's proxy to the pod's address.

    The connection from the API server to the pod is not encrypted.
    """

    name = "proxy"
    private = False

    def __init__(self, job: JobAgent, agent: Agent) -> None:
        self.expires = math.inf
        self._job = job
        self._agent = agent

    async def dial(self, protocol: asyncio.Protocol) -> asyncio.Transport:
        transport, self.expires = await self._job.dial_door(self._agent, protocol)
        return transport
