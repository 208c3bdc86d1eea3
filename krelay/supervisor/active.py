"""ActiveConfig: the forwards, watchers and agents that run, and how a plan changes them.

What a plan adds has warmed up before; `commit` makes it active in one turn of the event loop; what
the plan removes drains.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Iterator
from functools import partial
from typing import TypeVar

from krelay.agents.direct import DirectGroup
from krelay.agents.group import AgentGroup
from krelay.config.diff import Plan, Spec, directs, group_of, groups
from krelay.datapath.probe import NoRouteError, ProbeError, probe
from krelay.datapath.route import Route
from krelay.datapath.stream_pool import StreamPool
from krelay.errors import KrelayError
from krelay.model import Check, CheckKind, Config, GroupSpec, Protocol, Resolution, Via
from krelay.mux.log import about
from krelay.state.bus import EventBus
from krelay.supervisor.contexts import Contexts
from krelay.supervisor.forward import Forward
from krelay.supervisor.target_watcher import TargetWatcher
from krelay.supervisor.warming import Group, WarmingConfig, make_group, stop_groups
from krelay.tasks import TaskGroup, guard, shield_cleanup
from krelay.wire.errors import ErrorCode

logger = logging.getLogger("krelay.supervisor")

_TRIAL_DEADLINE = 10.0
_CONFIRM = 1.0
_AGENT_AGAIN = 600.0
"""Seconds between two attempts to start an agent that could not be had."""

T = TypeVar("T", Forward, Group)


class ActiveConfig:
    """What runs: `forwards` by target and port in the file's order, `watchers` by target, `groups`
    (the agents) and `directs` (the ways without one) by context. `draining_forwards` and
    `draining_groups` were removed and still carry connections."""

    def __init__(
        self,
        contexts: Contexts,
        tasks: TaskGroup,
        bus: EventBus,
        on_bound: Callable[[Forward], None],
    ) -> None:
        """`tasks` gets all tasks, `bus` all events."""
        self.config: Config | None = None
        self.forwards: dict[tuple[str, int], Forward] = {}
        self.watchers: dict[str, TargetWatcher] = {}
        self.groups: dict[str | None, AgentGroup] = {}
        self.directs: dict[str | None, DirectGroup] = {}
        self.draining_forwards: set[Forward] = set()
        self.draining_groups: set[Group] = set()
        self._drained = asyncio.Event()
        self._fallbacks: dict[str | None, asyncio.Task[None]] = {}
        self._trying: set[Forward] = set()
        self._contexts = contexts
        self._tasks = tasks
        self._bus = bus
        self._on_bound = on_bound

    # -- figures -------------------------------------------------------------------------------

    def live(self, spec: Spec) -> int:
        """Return how many connections a forward carries."""
        forward = self.forwards.get(spec.key)
        return forward.live if forward else 0

    def carried(self, spec: GroupSpec) -> int:
        """Return how many streams an agent carries."""
        return sum(group.pool.streams for group in self.groups.values() if group.spec == spec)

    def streams(self) -> int:
        """Return how many streams are carried."""
        return sum(group.pool.streams for group in self._all_groups())

    def all_forwards(self) -> Iterator[Forward]:
        """Yield the active forwards in file order, then draining ones whose name is not in use."""
        keys = set(self.forwards)
        yield from self.forwards.values()
        for forward in self.draining_forwards:
            if forward.spec.key not in keys:
                keys.add(forward.spec.key)
                yield forward

    @property
    def served(self) -> set[str | None]:
        """The contexts whose agents run."""
        return self.groups.keys() - self._fallbacks.keys()

    # -- an edit -------------------------------------------------------------------------------

    def warming(
        self, config: Config, plan: Plan, *, restarted: Collection[str] = ()
    ) -> WarmingConfig:
        """Return what `plan` adds, and what the `restarted` targets need anew; nothing is made
        yet."""
        directs = () if restarted and plan.groups else self.directs.values()
        return WarmingConfig(
            config,
            plan,
            self._contexts,
            self._tasks,
            self._bus,
            present=[direct.spec for direct in directs],
            served=self.served,
            restarted=restarted,
        )

    def commit(self, warm: WarmingConfig) -> int:
        """Carry out the plan of `warm` at once; return how many connections a restart has reset.

        Listeners that go close before new ones open, so that an address may change hands. What
        the plan does not change stays untouched.
        """
        config, plan, before = warm.config, warm.plan, self.forwards
        drain = config.tunnel.drain
        for pair in plan.pairs:
            if pair.new is None:
                assert pair.old is not None
                before[pair.old.key].unbind()
                self._drain(before[pair.old.key], self.draining_forwards, drain)
            elif pair.old is not None and pair.rebound:
                before[pair.old.key].unbind()
        for change in plan.groups:
            if (fallback := self._fallbacks.pop(change.key, None)) is not None:
                fallback.cancel()
            if (former := self.groups.pop(change.key, None)) is not None:
                self._drain(former, self.draining_groups, drain)
        self.groups |= warm.groups
        self._replace_directs(config, warm)
        reset = self._restart(config, warm.restarted)
        self.forwards = {}
        to_bind = []
        for pair in plan.pairs:
            if pair.new is None:
                continue
            old = before[pair.old.key] if pair.old else None
            forward = self.forwards[pair.new.key] = self._forward(pair.new, old, config)
            unbound = forward.listener is None and (pair.changed or forward.failure)
            if old is None or pair.rebound or unbound:
                to_bind.append(forward)
        self._replace_watchers(warm)
        for pair in plan.pairs:
            if pair.new is not None and pair.rerouted and not pair.rebound:
                forward = self.forwards[pair.new.key]
                if _changed_protocol(forward):
                    to_bind.append(forward)
        for forward in dict.fromkeys(to_bind):
            forward.bind()
        self.config = config
        for context in list(self._fallbacks):
            self._try_agent_later(context, after=0.0)  # the edit may have mended it
        self.fall_back(warm)
        report_fallen(warm)
        return reset

    def _restart(self, config: Config, names: Collection[str]) -> int:
        """Restart the forwards of targets; return how many connections that has reset."""
        count = 0
        for forward in self.forwards.values():
            if forward.spec.target.name in names:
                resolution = forward.route.resolution
                count += forward.restart()
                direct = self.directs.get(group_of(config, forward.spec.target))
                if direct is not None and resolution is not None:
                    direct.pool.renew(resolution)
        return count

    def _forward(self, spec: Spec, forward: Forward | None, config: Config) -> Forward:
        """Return the present forward updated to `spec`, or a new one."""
        if forward is not None and spec.leads != forward.spec.leads:
            forward.direct_only = ""
        pool = self._pool(config, spec, forward)
        timeout = config.tunnel.open_timeout
        if forward is None:
            forward = Forward(
                spec, Route(pool), self._tasks, timeout, bus=self._bus, on_bound=self._on_bound
            )
        else:
            forward.update(spec, pool, timeout)
        forward.route.followed = spec.target.kind.in_cluster
        forward.health.on_refused = partial(self._refused, forward)
        return forward

    def _pool(self, config: Config, spec: Spec, forward: Forward | None) -> StreamPool:
        """Return what opens the streams of a forward, which may be about to be made."""
        target, context = spec.target, group_of(config, spec.target)
        no_agent = context in self._fallbacks or (forward is not None and forward.direct_only)
        udp = spec.port.protocol is Protocol.UDP
        if target.via is Via.DIRECT or (no_agent and target.may_go_direct and not udp):
            return self.directs[context].pool
        return self.groups[context].pool

    # -- without an agent ----------------------------------------------------------------------

    def fall_back(self, warm: WarmingConfig) -> list[DirectGroup]:
        """Reach what can be reached without the agents that `warm` could not start.

        Return the ways that it takes.
        """
        for context, exc in warm.fallen.items():
            self.groups[context].pool.no_agent = str(exc)
            self._try_agent_later(context, after=_AGENT_AGAIN)
            self._move(context)
        return [self.directs[context] for context in warm.fallen]

    def why_direct(self, forward: Forward) -> str:
        """Return why a forward goes directly, if nothing in the file says so."""
        assert self.config is not None
        context = group_of(self.config, forward.spec.target)
        if context in self._fallbacks:
            return self.groups[context].pool.no_agent
        return forward.direct_only

    def is_direct(self, forward: Forward) -> bool:
        """Return whether new connections of a forward go directly."""
        return any(forward.route.pool is direct.pool for direct in self.directs.values())

    def _move(self, context: str | None) -> None:
        """Have the forwards of a context take the way that they should take now."""
        assert self.config is not None
        for forward in self.forwards.values():
            target = forward.spec.target
            if group_of(self.config, target) == context:
                forward.route.move(self._pool(self.config, forward.spec, forward))
                forward.route.wake()

    def _refused(self, forward: Forward) -> None:
        """Try a forward directly whose endpoint refuses the agent.

        Its program may listen on the loopback addresses of its pod only.
        """
        target = forward.spec.target
        known = self.forwards.get(forward.spec.key) is forward
        if not known or target.via is not Via.AUTO or not target.may_go_direct:
            return
        if forward.health.protocol is Protocol.UDP:
            return
        if self.is_direct(forward) or forward in self._trying:
            return
        self._trying.add(forward)

        async def trying() -> None:
            await guard(partial(self._try_directly, forward), forward.name)

        self._tasks.create_task(trying(), name=forward.name)

    async def _try_directly(self, forward: Forward) -> None:
        leads = forward.spec.leads
        try:
            await asyncio.sleep(_CONFIRM)  # a rolling update refuses for a moment
            assert self.config is not None
            resolution = forward.route.resolution
            direct = self.directs.get(group_of(self.config, forward.spec.target))
            if resolution is None or not resolution.pods or direct is None:
                return
            why = "its pod refuses the agent, but not a port-forward"
            if forward.health.why_not_probed:
                # A debugger that takes one client would take a trial for its user.
                why = "its pod refuses the agent, and a trial could end a debugger"
            elif not await self._reached_only_directly(forward, resolution, direct.pool):
                return
            known = self.forwards.get(forward.spec.key) is forward
            if known and forward.health.refused and forward.spec.leads == leads:
                forward.direct_only = why
                log = about(logger, target=forward.spec.target.name, name=forward.name)
                log.warning(
                    "%s: it goes directly from now on, without resumption", forward.direct_only
                )
                self._move(group_of(self.config, forward.spec.target))
        finally:
            self._trying.discard(forward)

    async def _reached_only_directly(
        self, forward: Forward, resolution: Resolution, pool: StreamPool
    ) -> bool:
        """Return whether a port-forward is accepted where the agent is refused."""
        trial = Route(pool)
        trial.update(resolution)
        try:
            async with asyncio.timeout(_TRIAL_DEADLINE):
                with trial.waiting():
                    await trial.wait_ready()
                await probe(Check(CheckKind.DIAL), trial)
        except (ProbeError, NoRouteError, TimeoutError) as exc:
            log = about(logger, target=forward.spec.target.name, name=forward.name)
            log.debug("not reached directly either: %s", exc)
            return False
        finally:
            pool.users.discard(trial)
        # Its program may have begun to listen since the agent was refused.
        try:
            await probe(Check(CheckKind.DIAL), forward.route)
        except ProbeError as exc:
            return exc.code is ErrorCode.REFUSED
        except NoRouteError:
            pass
        return False

    def _try_agent_later(self, context: str | None, *, after: float) -> None:
        """Try to start the agents of a context again, `after` seconds from now and on."""
        if (former := self._fallbacks.get(context)) is not None:
            former.cancel()
        work = partial(self._try_agent, context, after)

        async def trying() -> None:
            await guard(work, "the agent")

        self._fallbacks[context] = self._tasks.create_task(trying(), name="agent")

    async def _try_agent(self, context: str | None, after: float) -> None:
        while True:
            await asyncio.sleep(after)
            after = _AGENT_AGAIN
            assert self.config is not None
            spec = groups(self.config)[context]
            group: AgentGroup | None = None
            try:
                group = await make_group(spec, self.config, self._contexts, self._tasks, self._bus)
                await group.start(self._tasks)
            except KrelayError as exc:
                logger.debug("still no agent: %s", exc)
                self.groups[context].pool.no_agent = str(exc)
                if group is not None:
                    await group.stop()
            except BaseException:
                if group is not None:
                    await shield_cleanup(group.stop())
                raise
            else:
                del self._fallbacks[context]
                self.groups[context] = group
                logger.info("there is an agent now: new connections go through it")
                self._move(context)
                return

    def _replace_directs(self, config: Config, warm: WarmingConfig) -> None:
        wanted = directs(config)
        for context, direct in list(self.directs.items()):
            if wanted.get(context) != direct.spec or context in warm.directs:
                del self.directs[context]
                self._drain(direct, self.draining_groups, config.tunnel.drain)
        self.directs |= warm.directs

    def _replace_watchers(self, warm: WarmingConfig) -> None:
        present = {name for name, _ in self.forwards}
        for name, watcher in list(self.watchers.items()):
            if name in warm.watchers or name not in present:
                watcher.stop()
                del self.watchers[name]
        for name, watcher in warm.watchers.items():
            self.watchers[name] = watcher
            count = len(watcher.target.ports)
            watcher.update([self.forwards[name, index].route for index in range(count)])

    # -- the network ---------------------------------------------------------------------------

    def network_changed(self, *, broken: bool) -> None:
        """Tell all tunnels that the network changed, or that the machine slept (`broken`)."""
        for group in self._all_groups():
            group.pool.network_changed(broken=broken)

    def context_changed(self, keys: Collection[str | None], *, moved: bool) -> None:
        """Try again at once what another kubeconfig of the contexts at `keys` may let succeed.

        `moved`: they lead to another server, which may be another cluster.
        """
        config = self.config
        for watcher in self.watchers.values():
            if config is None or group_of(config, watcher.target) in keys:
                watcher.retry_now()
        for group in self._all_groups():
            if group.spec.context in keys:
                group.access_changed(moved=moved)

    # -- the end -------------------------------------------------------------------------------

    def drain(self, timeout: float) -> int:
        """Free all addresses; give connections `timeout` seconds to finish while they move.

        Return how many move. The others are closed in the next turns of the loop.
        """
        for forward in self.forwards.values():
            forward.unbind()
            self._drain(forward, self.draining_forwards, timeout)
        self.forwards = {}
        moving = sum(forward.moving for forward in self.draining_forwards)
        for forward in self.draining_forwards:
            forward.end_quiet()
        return moving

    async def drained(self) -> None:
        """Wait until no forward drains."""
        while self.draining_forwards:
            self._drained.clear()
            await self._drained.wait()

    def cut(self) -> None:
        """Reset all connections."""
        for forward in (*self.forwards.values(), *self.draining_forwards):
            forward.cut()

    async def stop(self) -> None:
        """Stop the watchers, remove the agents and close the API clients."""
        for watcher in self.watchers.values():
            watcher.stop()
        await stop_groups(self._all_groups())
        await self._contexts.close()

    def _all_groups(self) -> list[Group]:
        """Return the active groups and the draining ones."""
        return [*self.groups.values(), *self.directs.values(), *self.draining_groups]

    def _drain(self, part: T, draining: set[T], timeout: float) -> None:
        """Drain a part that was removed, as a member of `draining` until it has."""
        draining.add(part)

        async def drain() -> None:
            try:
                await guard(partial(part.drain, timeout), "draining")
            finally:
                draining.discard(part)
                self._drained.set()

        self._tasks.create_task(drain())


def report_fallen(warm: WarmingConfig) -> None:
    """Log why contexts have no agent."""
    for exc in warm.fallen.values():
        logger.warning(
            "no agent: %s; TCP ports of pods are reached directly, as by kubectl: a lost"
            " connection is not resumed",
            exc.line(),
        )


def _changed_protocol(forward: Forward) -> bool:
    """Return whether the forward now leads to a protocol other than the bound one."""
    resolution = forward.route.resolution
    wanted = forward.spec.protocol or (resolution.protocol if resolution else None)
    return bool(forward.protocol and wanted and forward.protocol != wanted)
