"""ActiveConfig: the forwards, watches and agents that run now, and how a plan changes them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from functools import partial

from krelay.agents.group import AgentGroup
from krelay.config.diff import Spec, group_of
from krelay.datapath.route import Route
from krelay.model import Config, GroupSpec
from krelay.state.events import EventBus
from krelay.supervisor.contexts import Contexts
from krelay.supervisor.forward import Forward
from krelay.supervisor.news import tell_of
from krelay.supervisor.target_watcher import TargetWatcher
from krelay.supervisor.warming import WarmingConfig
from krelay.tasks import TaskGroup, guard, keep

logger = logging.getLogger("krelay.supervisor")


class ActiveConfig:
    """`forwards` by target and port, in the file's order; `followings` by target; `groups` by
    context; `ending` has what drains. Its tasks belong to `tasks`."""

    def __init__(
        self,
        contexts: Contexts,
        tasks: TaskGroup,
        on_bound: Callable[[Forward], None],
        bus: EventBus,
    ) -> None:
        self.config: Config | None = None
        self.forwards: dict[tuple[str, int], Forward] = {}
        self.followings: dict[str, TargetWatcher] = {}
        self.groups: dict[str | None, AgentGroup] = {}
        self.ending: set[Forward | AgentGroup] = set()
        self._ended = asyncio.Event()
        self._contexts = contexts
        self._tasks = tasks
        self._on_bound = on_bound
        self._bus = bus
        self._tellers: dict[AgentGroup, asyncio.Task[None]] = {}

    def live(self, spec: Spec) -> int:
        """How many connections a forward carries."""
        forward = self.forwards.get(spec.key)
        return forward.live if forward else 0

    def carried(self, spec: GroupSpec) -> int:
        """How many streams an agent carries."""
        return sum(group.pool.streams for group in self.groups.values() if group.spec == spec)

    def commit(self, stage: WarmingConfig) -> None:
        """Carry out the stage's plan, at once: what ends stops before what starts, so that an
        address may change hands; what did not change is not touched."""
        config, plan, before = stage.config, stage.plan, self.forwards
        drain = config.tunnel.drain
        for pair in plan.pairs:
            if pair.new is None:
                assert pair.old is not None
                before[pair.old.key].unbind()
                self._end(before[pair.old.key], drain)
            elif pair.old is not None and pair.rebound:
                before[pair.old.key].unbind()
        self._take_groups(stage, drain)
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
        self._take_followings(stage)
        for pair in plan.pairs:
            if pair.new is not None and pair.rerouted and not pair.rebound:
                to_bind += _of_another_protocol(self.forwards[pair.new.key])
        for forward in dict.fromkeys(to_bind):
            forward.bind()
        self.config = config

    def streams(self) -> int:
        """How many streams live, of whatever group."""
        return sum(group.pool.streams for group in self._all_groups())

    def network_changed(self, *, broken: bool) -> None:
        """The network or the machine is not what it was: see `Tunnel.network_changed`."""
        for group in self._all_groups():
            group.pool.network_changed(broken=broken)

    def drain(self, timeout: float) -> None:
        """Every forward ends; `ending` is without forwards when that is done."""
        for forward in self.forwards.values():
            forward.unbind()
            self._end(forward, timeout)
        self.forwards = {}

    async def drained(self) -> None:
        """Return when no forward is in `ending`."""
        while any(isinstance(thing, Forward) for thing in self.ending):
            self._ended.clear()
            await self._ended.wait()

    def cut(self) -> None:
        """No connection is left."""
        for thing in (*self.forwards.values(), *self.ending):
            if isinstance(thing, Forward):
                thing.cut()

    async def stop(self) -> None:
        """No agent, watch or client is left."""
        for following in self.followings.values():
            following.stop()
        for teller in self._tellers.values():
            teller.cancel()
        async with TaskGroup() as stopping:
            for group in self._all_groups():
                # What goes wrong with one must not leave another's agent behind.
                stopping.create_task(guard(group.stop, group.pool.name))
        await self._contexts.close()

    def _all_groups(self) -> list[AgentGroup]:
        """Those that are used, and those that end."""
        ending = (thing for thing in self.ending if isinstance(thing, AgentGroup))
        return [*self.groups.values(), *ending]

    def _forward(self, spec: Spec, forward: Forward | None, config: Config) -> Forward:
        """The forward that there is, or a new one, as `spec` says."""
        pool = self.groups[group_of(config, spec.target)].pool
        followed, park = spec.target.kind.in_cluster, config.tunnel.open_timeout
        if forward is None:
            route = Route(pool, followed=followed)
            return Forward(
                spec, route, self._tasks, park=park, on_bound=self._on_bound, bus=self._bus
            )
        forward.update(spec, pool, park)
        forward.route.followed = followed
        return forward

    def _take_groups(self, stage: WarmingConfig, drain: float) -> None:
        for change in stage.plan.groups:
            former = self.groups.pop(change.key, None)
            if change.key in stage.groups:
                group = self.groups[change.key] = stage.groups[change.key]
                name = f"news of {group.pool.name}"
                self._tellers[group] = self._tasks.create_task(
                    keep(partial(tell_of, group, self._bus), name), name=name
                )
            if former is not None:
                self._end(former, drain)

    def _take_followings(self, stage: WarmingConfig) -> None:
        present = {name for name, _ in self.forwards}
        for name, following in list(self.followings.items()):
            if name in stage.followings or name not in present:
                following.stop()
                del self.followings[name]
        for name, following in stage.followings.items():
            self.followings[name] = following
            count = len(following.target.ports)
            following.feed([self.forwards[name, index].route for index in range(count)])

    def _end(self, thing: Forward | AgentGroup, timeout: float) -> None:
        self.ending.add(thing)
        if isinstance(thing, AgentGroup):
            self._tellers.pop(thing).cancel()
        self._tasks.create_task(self._drain(thing, timeout))

    async def _drain(self, thing: Forward | AgentGroup, timeout: float) -> None:
        try:
            await guard(partial(thing.drain, timeout), "draining")
        finally:
            self.ending.discard(thing)
            self._ended.set()


def _of_another_protocol(forward: Forward) -> list[Forward]:
    """The forward, where it now leads to what speaks another protocol than it is bound for."""
    resolution = forward.route.resolution
    wanted = forward.spec.protocol or (resolution.protocol if resolution else None)
    return [forward] if forward.protocol and wanted and forward.protocol != wanted else []
