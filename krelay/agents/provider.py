"""AgentProvider: how a pool gets to its agent: starts it, dials it, starts another when it is gone.

Joins what `cluster` knows (credentials, the pod) with what `transport` can do, so that neither
needs the other.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import sys
from typing import TYPE_CHECKING, Protocol

from krelay import payload
from krelay.datapath.agent_link import AgentLink
from krelay.errors import (
    AccessDeniedError,
    AgentError,
    ClusterError,
    PodGoneError,
    TunnelError,
)
from krelay.model import AGENT_PORT, GroupSpec
from krelay.processes import end
from krelay.tasks import TaskGroup, keep
from krelay.threads import in_thread
from krelay.wire.handshake import key_digest

if TYPE_CHECKING:
    from krelay.cluster.agent_lifecycle import Agent, PostedJobs
    from krelay.cluster.api import Api
    from krelay.net.api_access import ApiAccess

logger = logging.getLogger("krelay.agent")

_PROCESS_DEADLINE = 10.0
_STOP_DEADLINE = 5.0
_RENEW_EVERY = 60.0
"""Seconds between two times that refused credentials are dropped: where others are refused as well,
each dial would run an exec plugin, which may ask a person."""


class AgentProvider(AgentLink, Protocol):
    """One agent, wherever it runs, and the way to it."""

    lost: str
    """Why the last agent that was lost is gone; empty while none was."""

    @property
    def where(self) -> str:
        """`NAMESPACE/POD`, or the process; empty while there is none."""

    async def start(self) -> None:
        """Have an agent that runs. Raises ClusterError."""

    async def stop(self) -> None:
        """Remove the agent; never raises for what is gone already."""


class JobAgent:
    """An agent in a cluster, as a Job of its own, through the API server's port-forward."""

    private = True

    def __init__(
        self, api: Api, spec: GroupSpec, key: bytes, tasks: TaskGroup, *, run: str = ""
    ) -> None:
        """`api` stays its maker's; `tasks` gets the watch of the agent's pod. Agents of the same
        `run` spread over the nodes."""
        self.lost = ""
        self.expires = math.inf
        self._run = run
        self._api = api
        self._spec = spec
        self._key = key
        self._tasks = tasks
        self._agent: Agent | None = None
        self._jobs: PostedJobs | None = None
        self._stopped = False
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
                on_progress=lambda text: logger.info("agent: %s", text),
            )
            logger.info("agent: pod %s runs", agent)
            self._watching = self._tasks.create_task(
                keep(lambda: self._watch(agent), f"the watch of {agent}"), name=f"agent {agent}"
            )

    async def dial(self, protocol: asyncio.Protocol) -> asyncio.Transport:
        from krelay.transport.portforward import open_portforward, transport_from_env
        from krelay.transport.upgrade import UnauthorizedError

        if self._agent is None:
            await self.start()
        agent = self._agent
        if agent is None:
            raise AgentError("the agent is gone")
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
            self.expires = access.expires
            return pipe
        except UnauthorizedError:
            self._renew(access)
            raise
        except PodGoneError as exc:
            reason = await self._ended(agent, exc)
            if reason is None:
                raise TunnelError(f"{exc}, says its node, but the API server has it") from exc
            await self._lose(agent, reason)
            raise

    async def reachable_again(self) -> None:
        from krelay.transport.reachability import reachable_again

        await reachable_again(await self._api.access())

    async def abandon(self, reason: str) -> None:
        if self._agent is not None:
            await self._lose(self._agent, reason)

    async def stop(self) -> None:
        self._agent, self._stopped = None, True
        if self._watching is not None:
            self._watching.cancel()
        if self._jobs is not None:
            await self._jobs.clear()

    def _renew(self, access: ApiAccess) -> None:
        """The next dial has other credentials than those, which were refused."""
        now = asyncio.get_running_loop().time()
        if now >= self._renewed_at + _RENEW_EVERY:
            self._renewed_at = now
            self._api.reject(access)

    async def _ended(self, agent: Agent, exc: PodGoneError) -> str | None:
        """Why the agent has ended; None if it has not. A kubelet that has just started knows none
        of its pods yet, and says of each that it does not exist."""
        from krelay.cluster.agent_lifecycle import agent_ended

        try:
            return await agent_ended(self._api, agent)
        except AccessDeniedError:
            return str(exc)
        except ClusterError as error:
            logger.debug("agent: nobody knows whether %s has ended: %s", agent, error)
            return None

    async def _watch(self, agent: Agent) -> None:
        """Learn that the pod ends as soon as the cluster knows, and not by the next dial."""
        from krelay.cluster.agent_lifecycle import agent_gone

        try:
            reason = await agent_gone(self._api, agent)
        except ClusterError as exc:
            logger.debug("agent: %s is not watched: %s", agent, exc)
        else:
            await self._lose(agent, reason)

    async def _lose(self, agent: Agent, reason: str) -> None:
        """The next dial starts another agent."""
        if self._agent is agent:
            self._agent = None
            self.lost = reason
            logger.warning("agent: %s", reason)
            assert self._jobs is not None
            if error := await self._jobs.discard(agent.namespace, agent.job):
                logger.warning("agent: its Job is deleted later: %s", error)


class SubprocessAgent:
    """An agent as a child process of this one, over loopback TCP with a key."""

    private = False
    expires = math.inf

    def __init__(self, spec: GroupSpec, key: bytes) -> None:
        self.lost = ""
        self._spec = spec
        self._key = key
        self._process: asyncio.subprocess.Process | None = None
        self._log: asyncio.Task[None] | None = None
        self._port = 0
        self._starting = asyncio.Lock()

    @property
    def where(self) -> str:
        process = self._process
        if process is None or process.returncode is not None or not self._port:
            return ""
        return f"process {process.pid}, port {self._port}"

    async def start(self) -> None:
        async with self._starting:
            if self._process is not None and self._process.returncode is None:
                return
            source = await in_thread(payload.payload)
            environ = {
                **os.environ,
                payload.ENV_NAME: source,
                "KRELAY_KEY": self._key.hex(),
            }
            session = self._spec.session
            # Without its parent it has nobody, and nothing else cuts loopback: it may end soon.
            arguments = [
                "--port=0",
                "--idle-timeout=5s",
                f"--grace={min(session.resume_timeout, 2.0):g}",
            ]
            arguments.append(f"--connect-timeout={self._spec.connect_timeout:g}")
            arguments.append(f"--replay={session.resume_buffer}")
            arguments += [f"--ping={session.ping:g}", f"--ping-timeout={session.ping_timeout:g}"]
            pipe, null = asyncio.subprocess.PIPE, asyncio.subprocess.DEVNULL
            process = await asyncio.create_subprocess_exec(
                *payload.command(sys.executable),
                *arguments,
                env=environ,
                stdin=null,
                stdout=pipe,
                stderr=pipe if logger.isEnabledFor(logging.DEBUG) else null,
                start_new_session=True,
            )
            if process.stderr is not None:
                told = _log_lines(process.stderr)
                self._log = asyncio.get_running_loop().create_task(told, name="agent's log")
            self._port = await self._read_port(process)
            self._process = process
            logger.info("agent: embedded, process %d, port %d", process.pid, self._port)

    async def dial(self, protocol: asyncio.Protocol) -> asyncio.Transport:
        from krelay.transport.connect import open_tcp

        process = self._process
        if process is None or process.returncode is not None:
            await self.start()
            if process is not None:
                self.lost = f"the embedded agent ended with {process.returncode}"
                raise PodGoneError(self.lost)
        return await open_tcp("127.0.0.1", self._port, protocol=protocol, timeout=_PROCESS_DEADLINE)

    async def reachable_again(self) -> None:
        """Loopback is never shut."""
        await asyncio.get_running_loop().create_future()

    async def abandon(self, reason: str) -> None:
        """A child that does not answer for so long never will."""
        if self._process is not None and self._process.returncode is None:
            logger.warning("agent: killed: %s", reason)
            self._process.kill()

    async def stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            await end(process, grace=_STOP_DEADLINE)

    async def _read_port(self, process: asyncio.subprocess.Process) -> int:
        assert process.stdout is not None
        try:
            async with asyncio.timeout(_PROCESS_DEADLINE):
                line = await process.stdout.readline()
            return int(line.rpartition(b":")[2])
        except BaseException as exc:
            # Nobody would know where it listens.
            await end(process)
            if isinstance(exc, TimeoutError | ValueError):
                raise AgentError("the embedded agent did not start", hint="run with -vv") from exc
            raise


async def _log_lines(stream: asyncio.StreamReader) -> None:
    """Log what an agent of this machine writes, until it has ended."""
    while True:
        try:
            line = await stream.readline()
        except ValueError:
            continue  # too long for a line: what is left of it follows
        if not line:
            return
        logger.debug("agent: %s", line.decode(errors="replace").rstrip())
