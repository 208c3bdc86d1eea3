"""JobAgent: an agent that runs in a cluster as a Job, and the ways to it."""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

from krelay.agents.base import AgentEvents, Renewals, log
from krelay.errors import AccessDeniedError, AgentError, ClusterError, PodGoneError, TunnelError
from krelay.model import AGENT_DOOR_PORT, AGENT_PORT, GroupSpec, Transport
from krelay.state.bus import EventBus
from krelay.tasks import TaskGroup, keep, shield_cleanup
from krelay.wire.handshake import key_digest

if TYPE_CHECKING:
    from krelay.cluster.agent_lifecycle import Agent, PostedJobs
    from krelay.cluster.api import Api

_LOOK_EVERY = 1.0
"""Seconds between two attempts to ask another server for the agent."""


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
        explain: Callable[[Exception], None] = lambda error: None,
    ) -> None:
        """Watch the agent's pod in a task of `tasks`. Agents of one `run` spread over the nodes.

        The caller closes `api`. `explain` is called with each error of the cluster before it is
        raised.
        """
        self.lost = ""
        self.on_delay: Callable[[str], None] = lambda delay: None
        self.expires = math.inf
        self.shortcut: PodProxy | None = None
        self.reported = True
        """Whether the pod's status says that it runs, and so has the pod's address."""
        self.shortcut_only = spec.transport is Transport.PROXY
        self._run = run
        self._explain = explain
        self._namespace: str | None = None
        """Where the last agent was allowed."""
        self._api = api
        self._spec = spec
        self._key = key
        self._tasks = tasks
        self._agent: Agent | None = None
        self._jobs: PostedJobs | None = None
        self._stopped = False
        self._events = AgentEvents(bus, spec.context)
        self._life: asyncio.Task[None] | None = None
        self._started: asyncio.Future[None] | None = None
        self._failure: Exception | None = None
        self._renewals = Renewals(api)
        self._one_start = asyncio.Lock()

    @property
    def where(self) -> str:
        return "" if self._agent is None or self.starting else str(self._agent)

    @property
    def starting(self) -> asyncio.Future[None] | None:
        return None if self._started is None or self._started.done() else self._started

    async def start(self) -> None:
        from krelay.cluster.agent_lifecycle import PostedJobs

        async with self._one_start:
            if self._agent is not None:
                return
            if self._failure is not None:
                # Another one is started by the next dial, after its pause.
                failure, self._failure = self._failure, None
                raise failure
            if self._stopped:
                raise AgentError("the agent was removed")
            jobs = self._jobs = self._jobs or PostedJobs(self._api)
            loop = asyncio.get_running_loop()
            placed, self._started = loop.create_future(), loop.create_future()
            life = self._live(jobs, placed, self._started)
            self._life = self._tasks.create_task(life, name="agent")
            try:
                await asyncio.wait((placed, self._life), return_when=asyncio.FIRST_COMPLETED)
            except asyncio.CancelledError:
                self._life.cancel()
                await shield_cleanup(asyncio.wait((self._life,)))
                raise
            if not placed.done():  # it was cancelled before its first step
                self._not_started(AgentError("the agent was removed"), placed, self._started)
            placed.result()

    def reached(self) -> None:
        if self.starting is not None and self._agent is not None:
            self.reported = False
            self.starting.set_result(None)

    async def dial(self, protocol: asyncio.Protocol) -> asyncio.Transport:
        from krelay.transport.portforward import open_portforward, transport_from_env
        from krelay.transport.upgrade import UnauthorizedError

        if self._agent is None:
            await self.start()
        agent = self._agent
        if agent is None:
            raise AgentError("the agent is gone")
        starting = self.starting
        access = await self._api.access()
        try:
            pipe = await open_portforward(
                access,
                namespace=agent.namespace,
                pod=agent.pod,
                port=AGENT_PORT,
                protocol=protocol,
                transport=transport_from_env(self._spec.transport, os.environ),
            )
        except UnauthorizedError:
            self._renewals.refused(access)
            raise
        except AccessDeniedError as exc:
            exc.agent_namespace = agent.namespace
            self._explain(exc)
            raise
        except PodGoneError as exc:
            if starting is not None:
                raise  # its node does not know it yet
            reason = await self._ended(agent, exc)
            if reason is None:
                raise TunnelError(f"{exc}, says its node, but the API server still has it") from exc
            await self._lose(agent, reason)
            raise
        if self._agent is not agent:
            pipe.abort()
            raise PodGoneError(f"the agent {agent} is gone")
        self.name, self.expires = pipe.carrier, access.expires
        return pipe

    async def dial_door(
        self, agent: Agent, protocol: asyncio.Protocol
    ) -> tuple[asyncio.Transport, float]:
        """Connect `protocol` to `agent` by the API server's proxy, while it is the present agent.

        Return the transport, and the expiry of the credentials.
        """
        from krelay.transport.pod_proxy import open_pod_proxy
        from krelay.transport.upgrade import UnauthorizedError

        if self._agent is not agent:
            raise PodGoneError(f"the agent {agent} is gone")
        access = await self._api.access()
        try:
            transport = await open_pod_proxy(
                access,
                namespace=agent.namespace,
                pod=agent.pod,
                port=AGENT_DOOR_PORT,
                protocol=protocol,
            )
        except UnauthorizedError:
            # A program in the agent's place can say so, too; a port-forward shows the truth.
            if self.shortcut_only:
                self._renewals.refused(access)
            raise
        return transport, access.expires

    async def renew_access(self) -> None:
        """Have credentials that are valid now."""
        await self._api.access()

    def access_changed(self) -> None:
        self._renewals.reset()

    async def gone(self) -> str:
        from krelay.cluster.agent_lifecycle import agent_ended

        agent = self._agent
        while agent is not None and agent is self._agent:
            changes = self._api.changes
            try:
                reason = await agent_ended(self._api, agent)
            except ClusterError as exc:
                log.debug("cannot tell whether %s is there: %s", agent, exc)
                await self._api.pause(_LOOK_EVERY, changes)
            else:
                if reason is not None:
                    await self._lose(agent, reason)
                return reason or ""
        return self.lost if agent is not None else ""

    async def reachable_again(self) -> None:
        from krelay.transport.portforward import reachable_again

        await reachable_again(await self._api.access())

    async def abandon(self, reason: str) -> None:
        if self._agent is not None:
            await self._lose(self._agent, reason)

    async def stop(self) -> None:
        self._agent = self.shortcut = None
        self._stopped = True
        if self._life is not None:
            self._life.cancel()
        if self._jobs is not None:
            await self._jobs.clear(*([self._life] if self._life is not None else ()))

    async def _live(
        self, jobs: PostedJobs, placed: asyncio.Future[None], started: asyncio.Future[None]
    ) -> None:
        """Start an agent and watch it until it is gone.

        `placed` is done when the agent may be dialled, `started` when it runs.
        """
        from krelay.cluster.agent_lifecycle import create_agent

        async def until_reached(agent: Agent) -> None:
            self.on_delay("")
            self._placed(agent)
            if not placed.done():
                placed.set_result(None)
            await asyncio.wait((started,))

        def delayed(step: str) -> None:
            self._events.delayed(step)
            self.on_delay(step)

        self.reported = True
        first = self._spec.namespace or self._api.namespace
        namespace, *fallbacks = dict.fromkeys(
            (self._namespace or first, first, *self._spec.fallbacks)
        )
        try:
            agent = await create_agent(
                jobs,
                self._spec.agent,
                namespace=namespace,
                fallbacks=fallbacks,
                key_sha256=key_digest(self._key),
                connect_timeout=self._spec.connect_timeout,
                session=self._spec.session,
                run=self._run,
                on_progress=self._events.progress,
                on_delay=delayed,
                # The shortcut needs the pod's status, and a session may have to begin on it.
                on_placed=None if self.shortcut_only else until_reached,
            )
        except asyncio.CancelledError:
            self._not_started(AgentError("the agent was removed"), placed, started)
            raise
        except Exception as exc:
            self._explain(exc)
            if self._started is started:  # no other agent has taken its place
                self._failure = exc if placed.done() else None
            self._not_started(exc, placed, started)
            return
        finally:
            self.on_delay("")
        if not placed.done():
            self._placed(agent)
        agent = self._agent or agent  # the same one; it may be lost already
        self._namespace = agent.namespace
        for future in (placed, started):
            if not future.done():
                future.set_result(None)
        self._events.started(str(agent), f"pod {agent} runs")
        await keep(lambda: self._watch(agent), f"the watch of {agent}")

    def _placed(self, agent: Agent) -> None:
        self._agent = agent
        if self._spec.transport in (Transport.AUTO, Transport.PROXY):
            self.shortcut = PodProxy(self, agent)

    def _not_started(
        self, exc: Exception, placed: asyncio.Future[None], started: asyncio.Future[None]
    ) -> None:
        if self._started is started:
            self._agent = self.shortcut = None
        for future in (placed, started):
            if not future.done():
                future.set_exception(exc)
                future.exception()  # it is retrieved, even if nothing waits for it

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
            reason = await agent_gone(self._api, agent, on_running=lambda: self._report(agent))
        except ClusterError as exc:
            log.debug("%s is not watched: %s", agent, exc)
            self._report(agent)
        else:
            await self._lose(agent, reason)

    def _report(self, agent: Agent) -> None:
        if self._agent is agent:
            self.reported = True

    async def _lose(self, agent: Agent, reason: str) -> None:
        """Give the agent up; the next dial starts another one."""
        if self._agent is agent:
            self._agent = self.shortcut = None
            self.lost = reason
            log.warning("%s", reason)
            self._events.lost(str(agent), reason)
            if self._life is not None and self._life is not asyncio.current_task():
                self._life.cancel()
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

    @property
    def available(self) -> bool:
        """Whether the API server knows the pod's address, from the pod's status."""
        return self._job.reported

    async def prepare(self) -> None:
        await self._job.renew_access()

    async def dial(self, protocol: asyncio.Protocol) -> asyncio.Transport:
        transport, self.expires = await self._job.dial_door(self._agent, protocol)
        return transport
