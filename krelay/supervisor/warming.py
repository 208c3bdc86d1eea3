"""WarmingConfig: what a plan adds, warming up beside the active config as in Envoy."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Collection, Hashable, Iterable
from functools import partial

from krelay.agents.direct import DirectGroup
from krelay.agents.group import AgentGroup
from krelay.agents.job import JobAgent
from krelay.agents.subprocess import SubprocessAgent
from krelay.config.diff import Plan, Spec, directs, needs_no_agent
from krelay.errors import ClusterError, UnreachableError
from krelay.model import Config, DirectSpec, GroupSpec, Target
from krelay.state.bus import EventBus
from krelay.supervisor.contexts import Contexts
from krelay.supervisor.explain import explain_error
from krelay.supervisor.target_watcher import Follow, TargetWatcher, follow_constant
from krelay.tasks import TaskGroup, guard, shield_cleanup

HURRY = 5.0
"""Seconds for the removal of agents once krelay must end at once."""
_KEY_SIZE = 32
_ANSWER_DEADLINE = 10.0

Group = AgentGroup | DirectGroup


class WarmingConfig:
    """What a plan adds: `groups` and `directs` by context, and `watchers` by target.

    `prepare` makes it, `warm` waits until it works; `warm_up` does both. Then `ActiveConfig.commit`
    takes it over, or `discard` removes it.
    """

    def __init__(
        self,
        config: Config,
        plan: Plan,
        contexts: Contexts,
        tasks: TaskGroup,
        bus: EventBus,
        *,
        present: Collection[DirectSpec] = (),
        served: Collection[str | None] = (),
        restarted: Collection[str] = (),
    ) -> None:
        """`tasks` gets the tasks of what is made, `bus` its events. The ways of `present` exist, as
        do agents for the contexts of `served`. The targets of `restarted` begin anew, although
        nothing in the file has changed."""
        self.config = config
        self.plan = plan
        self.groups: dict[str | None, AgentGroup] = {}
        self.directs: dict[str | None, DirectGroup] = {}
        self.fallen: dict[str | None, ClusterError] = {}
        """Why a context has no agent, if its targets do without one."""
        self._present = present
        self._served = served
        self.restarted = restarted
        self.watchers: dict[str, TargetWatcher] = {}
        self._contexts = contexts
        self._tasks = tasks
        self._bus = bus

    async def warm_up(self, *, unless: asyncio.Event) -> bool:
        """Prepare and warm; return whether that ended before `unless` was set.

        If it did not, or failed, discard everything. Raises what `prepare` and `warm` raise.
        """
        try:
            is_warm = await self._warm_up_before(unless)
            # Let a cancellation that is on its way arrive: no commit may follow the drain.
            await asyncio.sleep(0)
        except BaseException:
            await shield_cleanup(self.discard(), within=HURRY)
            raise
        if not is_warm:
            await shield_cleanup(self.discard(), within=HURRY)
        return is_warm

    async def _warm_up_before(self, newer: asyncio.Event) -> bool:
        async def superseded() -> None:
            await newer.wait()
            raise _SupersededError

        try:
            async with TaskGroup() as warming:
                waiting = warming.create_task(superseded())
                await self.prepare()
                await self.warm()
                waiting.cancel()
        except _SupersededError:
            return False
        return True

    async def prepare(self) -> None:
        """Make the groups without starting them, and start the watchers. Raises as
        `Contexts.api` does."""
        for change in self.plan.groups:
            if change.new is not None:
                self.groups[change.key] = await make_group(
                    change.new, self.config, self._contexts, self._tasks, self._bus
                )
        for context, spec in directs(self.config).items():
            if spec not in self._present:
                api = await self._contexts.api(context)
                explain = partial(explain_error, config=self.config, context=context, api=api)
                self.directs[context] = DirectGroup(spec, api, explain=explain)
        for target in _targets_to_watch(self.plan, self.restarted):
            follow: Follow = follow_constant
            if target.kind.in_cluster and not self.config.agent.embedded:
                follow = await self._contexts.follow(self.config, target)
            self.watchers[target.name] = TargetWatcher(
                target, follow, self._tasks, self._contexts.failures
            )

    async def warm(self) -> None:
        """Wait until all new agents are reached; give new targets a while to be resolved. Raises
        KrelayError if an agent cannot be started or reached."""
        async with TaskGroup() as warming:
            for context, group in self.groups.items():
                warming.create_task(self._start_agents(context, group))
            for direct in self.directs.values():
                direct.start(self._tasks)
                warming.create_task(self._reach_pods(direct))
            for context in self.directs.keys() - self.groups.keys():
                warming.create_task(self._reach(context))
            warming.create_task(self.answers())

    async def _reach_pods(self, direct: DirectGroup) -> None:
        await self.answers()  # before them no pod is known
        await direct.reached()

    async def _reach(self, context: str | None) -> None:
        """Ask the API server anything, where no agent's start would find it out of reach."""
        api = await self._contexts.api(context)
        try:
            await api.get("/version")
        except UnreachableError:
            raise
        except ClusterError:
            pass  # it answers

    async def answers(self) -> None:
        """Wait until each new target has an answer or has failed, for a limited time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ANSWER_DEADLINE):
                for watcher in self.watchers.values():
                    await watcher.answered.wait()

    async def discard(self) -> None:
        """Stop the watchers and remove the agents."""
        for watcher in self.watchers.values():
            watcher.stop()
        await stop_groups([*self.groups.values(), *self.directs.values()])

    async def _start_agents(self, context: str | None, group: AgentGroup) -> None:
        try:
            await group.start(self._tasks)
        except ClusterError as exc:
            # What the file itself asks for in vain is to be told, not passed by. And an edit that
            # can have no agent must not take away the one that runs.
            hopeless = not exc.no_agent or context in self._served
            if hopeless or not needs_no_agent(self.config, context):
                raise
            await group.stop()
            self.fallen[context] = exc


async def make_group(
    spec: GroupSpec, config: Config, contexts: Contexts, tasks: TaskGroup, bus: EventBus
) -> AgentGroup:
    """Return the agents of `spec`, not started. Raises as `Contexts.api` does."""
    key = secrets.token_bytes(_KEY_SIZE)
    count = spec.agent.replicas
    agents: list[SubprocessAgent] | list[JobAgent]
    if spec.agent.embedded:
        agents = [SubprocessAgent(spec, key, bus) for _ in range(count)]
    else:
        api = await contexts.api(spec.context)
        run = secrets.token_hex(4) if count > 1 else ""
        explain = partial(explain_error, config=config, context=spec.context, api=api)
        agents = [
            JobAgent(api, spec, key, tasks, bus, run=run, explain=explain) for _ in range(count)
        ]
    return AgentGroup(spec, agents, key, bus)


async def stop_groups(groups: Iterable[Group]) -> None:
    """Remove the agents of `groups` at once."""
    async with TaskGroup() as stopping:
        for group in groups:
            # An error of one group must not leave the agent of another behind.
            stopping.create_task(guard(group.stop, group.pool.name))


def _targets_to_watch(plan: Plan, restarted: Collection[str]) -> list[Target]:
    """Return the targets without a watcher, those whose watcher follows other objects, and those
    of `restarted`."""
    stale: set[str] = set(restarted)
    for old, new in ((pair.old, pair.new) for pair in plan.pairs):
        if not (old and new and _followed(old) == _followed(new)):
            stale.update(spec.target.name for spec in (old, new) if spec)
    targets = {pair.new.target.name: pair.new.target for pair in plan.pairs if pair.new}
    return [target for name, target in targets.items() if name in stale]


def _followed(spec: Spec) -> tuple[Hashable, ...]:
    """Return what decides where a watcher of the forward's target leads it."""
    return spec.leads, spec.protocol, spec.target.ready, spec.target.affinity


class _SupersededError(Exception):
    """Something newer comes first."""
