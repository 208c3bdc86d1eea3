"""Supervisor: from a Config to running forwards, and back to nothing; owns every lifetime."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import secrets
from collections.abc import Awaitable, Callable

from krelay.datapath.pool import Pool
from krelay.datapath.route import Route
from krelay.errors import (
    AgentError,
    ConfigError,
    KrelayError,
    NotReadyError,
    Problem,
    TunnelRefusedError,
    first_error,
)
from krelay.forward import Forward
from krelay.model import Config, Resolution, Target
from krelay.reach import ClusterReach, EmbeddedReach, Reach

logger = logging.getLogger("krelay.supervisor")

_KEY_SIZE = 32
_TUNNEL_DEADLINE = 30.0
_RESOLVE_DEADLINE = 10.0
_REMOVE_DEADLINE = 10.0


def check_embedded(config: Config) -> None:
    """An embedded agent runs on this machine, where no cluster's objects are.

    Raises:
        ConfigError: a target needs a cluster.
    """
    problems = [
        Problem(
            target.line,
            0,
            f"target `{target.name}`: {target} needs a cluster, and the agent is embedded",
            "use `host/NAME` or `ip/ADDR`, or leave `embedded` out",
        )
        for target in config.targets
        if target.kind.in_cluster
    ]
    if config.agent.embedded and problems:
        raise ConfigError(config.path, problems)


class Supervisor:
    """Runs one Config. `announce` gets a line for each forward that is ready."""

    def __init__(self, config: Config, announce: Callable[[str], None]) -> None:
        check_embedded(config)
        self._config = config
        self._announce = announce
        self._forwards: list[Forward] = []
        self._pools: list[Pool] = []
        self._reaches: list[Reach] = []
        self._started = False

    async def run(self, stop: asyncio.Event) -> None:
        """Start, relay until `stop` is set, drain, clean up. Cancelling it skips the draining.

        Raises:
            KrelayError: it could not start; nothing is left behind.
        """
        try:
            async with asyncio.TaskGroup() as tasks:
                await self._run(stop, tasks)
                raise _StoppedError
        except* _StoppedError:
            pass
        except* KrelayError as group:
            raise first_error(group) from None
        finally:
            for forward in self._forwards:
                forward.cut()
            await self._remove_agents()

    async def _run(self, stop: asyncio.Event, tasks: asyncio.TaskGroup) -> None:
        stopping = tasks.create_task(stop.wait(), name="stop")
        starting = tasks.create_task(self._start(tasks), name="start")
        await asyncio.wait({stopping, starting}, return_when=asyncio.FIRST_COMPLETED)
        if not stopping.done():
            starting.result()
        await stopping
        live = sum(len(getattr(f.listener, "connections", ())) for f in self._forwards)
        if live:
            logger.info("draining %d connections; press Ctrl-C again to cut them", live)
        async with asyncio.TaskGroup() as draining:
            for forward in self._forwards:
                draining.create_task(forward.drain(self._config.tunnel.drain))

    # -- starting ------------------------------------------------------------------------------

    async def _start(self, tasks: asyncio.TaskGroup) -> None:
        for context in dict.fromkeys(target.context for target in self._config.targets):
            targets = [target for target in self._config.targets if target.context == context]
            await self._start_context(context, targets, tasks)
        # What needs nobody's answer binds first: a port in use must not cost an agent.
        await self._wait_bound([forward for forward in self._forwards if forward.certain])
        async with asyncio.TaskGroup() as starting:
            for reach in self._reaches:
                starting.create_task(reach.start())
        for pool in self._pools:
            tasks.create_task(pool.run(), name=pool.name)
        for pool, reach in zip(self._pools, self._reaches, strict=True):
            await self._wait_pool(pool, reach)
        await self._wait_bound(self._forwards)
        self._started = True
        for forward in self._forwards:
            if forward.bound.is_set():
                self._tell(forward)
            else:
                logger.warning("%s: waiting: %s", forward.name, forward.route.reason)
                tasks.create_task(self._tell_later(forward))

    async def _start_context(
        self, context: str | None, targets: list[Target], tasks: asyncio.TaskGroup
    ) -> None:
        config = self._config
        key = secrets.token_bytes(_KEY_SIZE)
        reach: Reach
        follow: _Follow
        if config.agent.embedded:
            reach, follow = EmbeddedReach(config.tunnel, key), _follow_constant
        else:
            from krelay.cluster.api import Api
            from krelay.cluster.resolve import follow_target

            api = await Api.connect(context=context or config.context)
            namespace = config.namespace or api.namespace
            agent_namespace = config.agent.namespace or namespace
            reach = ClusterReach(api, config.agent, config.tunnel, agent_namespace, key, tasks)

            def follow(target: Target, publish: _Publish) -> Awaitable[None]:
                return follow_target(api, target, target.namespace or namespace, publish)

        self._reaches.append(reach)
        pool = Pool(
            f"p{len(self._pools) + 1}",
            reach.dial,
            key,
            size=config.tunnel.sessions,
            private=reach.private,
        )
        self._pools.append(pool)
        for target in targets:
            routes = [Route(pool, followed=target.kind.in_cluster) for _ in target.ports]
            tasks.create_task(self._follow(target, routes, follow), name=target.name)
            for port, route in zip(target.ports, routes, strict=True):
                forward = Forward(target, port, route, config.tunnel)
                self._forwards.append(forward)
                tasks.create_task(forward.bind(tasks), name=forward.name)

    async def _follow(self, target: Target, routes: list[Route], follow: _Follow) -> None:
        def publish(resolutions: tuple[Resolution, ...]) -> None:
            for route, resolution in zip(routes, resolutions, strict=True):
                before = route.endpoint
                route.update(resolution)
                if resolution.endpoint is None:
                    logger.warning("%s: %s", target.name, resolution.reason)
                elif resolution.endpoint != before and target.kind.in_cluster:
                    logger.info("%s: -> %s (%s)", target.name, resolution.endpoint, resolution.via)

        try:
            await follow(target, publish)
        except KrelayError as exc:
            if not self._started:
                raise
            logger.error("%s: no longer followed: %s", target.name, exc)

    async def _wait_pool(self, pool: Pool, reach: Reach) -> None:
        """A tunnel is up, or the reason why there will be none is raised."""
        try:
            async with asyncio.timeout(_TUNNEL_DEADLINE):
                while pool.pick() is None:
                    await pool.wait_change()
                    if reach.lost:
                        raise AgentError(reach.lost, hint="`-v` shows each step")
                    if isinstance(pool.failure, TunnelRefusedError) or (
                        isinstance(pool.failure, KrelayError) and pool.failure.exit_code == 4
                    ):
                        raise pool.failure
        except TimeoutError as exc:
            raise NotReadyError(
                f"no tunnel to the agent within {_TUNNEL_DEADLINE:g} s: {pool.failure}",
                hint="run with -v to see each try",
            ) from exc

    async def _wait_bound(self, forwards: list[Forward]) -> None:
        """Each of `forwards` is bound, has failed, or has been waited for long enough; none of
        all being bound is an error."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_RESOLVE_DEADLINE):
                for forward in forwards:
                    await forward.bound.wait()
        failures = [forward.failure for forward in self._forwards if forward.failure]
        if failures and len(failures) == len(self._forwards):
            raise failures[0]

    async def _tell_later(self, forward: Forward) -> None:
        await forward.bound.wait()
        self._tell(forward)

    def _tell(self, forward: Forward) -> None:
        for line in forward.describe():
            self._announce(line)

    # -- the end -------------------------------------------------------------------------------

    async def _remove_agents(self) -> None:
        """Nothing stays in the cluster, also when this was cancelled."""
        try:
            async with asyncio.timeout(_REMOVE_DEADLINE), asyncio.TaskGroup() as removing:
                for reach in self._reaches:
                    removing.create_task(reach.stop())
        except TimeoutError:
            logger.warning("the agent was not removed in time; it ends by itself when idle")


_Publish = Callable[[tuple[Resolution, ...]], None]
_Follow = Callable[[Target, _Publish], Awaitable[None]]


async def _follow_constant(target: Target, publish: _Publish) -> None:
    """Hosts and addresses are dialled as they stand."""
    publish(tuple(Resolution.as_given(target, port) for port in target.ports))


class _StoppedError(Exception):
    """Ends the task group, and with it pools and watches."""
