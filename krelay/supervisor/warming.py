"""WarmingConfig: what a plan adds, made and warmed up beside what runs; then used, or discarded."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
from collections.abc import Awaitable

from krelay.agents.group import AgentGroup
from krelay.agents.provider import JobAgent, SubprocessAgent
from krelay.config.diff import Pair, Plan, group_of
from krelay.model import Config, GroupSpec, Resolution, Target
from krelay.supervisor.contexts import Contexts
from krelay.supervisor.target_watcher import Follow, Publish, TargetWatcher
from krelay.tasks import TaskGroup, guard

_KEY_SIZE = 32
_ANSWER_DEADLINE = 10.0


class WarmingConfig:
    """`groups` by context and `followings` by target have what is new; `prepare` makes it, `warm`
    has it ready. Whoever made the stage takes both over, or calls `discard`."""

    def __init__(self, config: Config, plan: Plan, contexts: Contexts, tasks: TaskGroup) -> None:
        """What it starts belongs to `tasks`."""
        self.config = config
        self.plan = plan
        self.groups: dict[str | None, AgentGroup] = {}
        self.followings: dict[str, TargetWatcher] = {}
        self._contexts = contexts
        self._tasks = tasks

    async def prepare(self) -> None:
        """Make the groups, start none; start the watches.

        Raises:
            CredentialsError: kubeconfig has no such context.
        """
        for change in self.plan.groups:
            if change.new is not None:
                self.groups[change.key] = await self._group(change.new)
        for target in _to_follow(self.plan):
            follow = await self._follow(target)
            self.followings[target.name] = TargetWatcher(
                target, follow, self._tasks, self._contexts.failures
            )

    async def warm(self) -> None:
        """Every new agent is reached, and every new target has an answer or has been waited for.

        Raises:
            KrelayError: an agent cannot be had.
        """
        async with TaskGroup() as warming:
            for group in self.groups.values():
                warming.create_task(group.start(self._tasks))
            warming.create_task(self.answers())

    async def discard(self) -> None:
        """Nothing of it is left."""
        for following in self.followings.values():
            following.stop()
        async with TaskGroup() as stopping:
            for group in self.groups.values():
                stopping.create_task(guard(group.stop, group.pool.name))

    async def answers(self) -> None:
        """Every new target has an answer, has failed, or has been waited for."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_ANSWER_DEADLINE):
                for following in self.followings.values():
                    await following.answered.wait()

    async def _group(self, spec: GroupSpec) -> AgentGroup:
        key = secrets.token_bytes(_KEY_SIZE)
        count = spec.agent.replicas
        if spec.agent.embedded:
            return AgentGroup(spec, [SubprocessAgent(spec, key) for _ in range(count)], key)
        api = await self._contexts.api(spec.context)
        run = secrets.token_hex(4) if count > 1 else ""
        reaches = [JobAgent(api, spec, key, self._tasks, run=run) for _ in range(count)]
        return AgentGroup(spec, reaches, key)

    async def _follow(self, target: Target) -> Follow:
        if self.config.agent.embedded or not target.kind.in_cluster:
            return _follow_constant
        from krelay.cluster.resolve import follow_target

        context = group_of(self.config, target)
        api, informers = await self._contexts.api(context), await self._contexts.informers(context)
        namespace = target.namespace or self.config.namespace or api.namespace

        def follow(target: Target, publish: Publish) -> Awaitable[None]:
            return follow_target(informers, target, namespace, publish)

        return follow


def _to_follow(plan: Plan) -> list[Target]:
    """The targets whose present watch, if any, would not tell what their ports need."""
    targets: dict[str, Target] = {}
    stale: set[str] = set()
    for pair in plan.pairs:
        if pair.new is not None:
            targets[pair.new.target.name] = pair.new.target
        if _refollowed(pair):
            spec = pair.new or pair.old
            assert spec is not None
            stale.add(spec.target.name)
    return [target for name, target in targets.items() if name in stale]


def _refollowed(pair: Pair) -> bool:
    old, new = pair.old, pair.new
    return old is None or new is None or pair.rerouted or old.protocol != new.protocol


async def _follow_constant(target: Target, publish: Publish) -> None:
    """Hosts and addresses are dialled as they stand."""
    publish(tuple(Resolution.as_given(target, port) for port in target.ports))
