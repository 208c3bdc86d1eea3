"""Examination: which checks a file needs, on this machine and in the cluster of each context."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Collection
from contextlib import aclosing
from dataclasses import replace
from typing import Protocol

from krelay.doctor.cluster import Cluster, of_context
from krelay.doctor.finding import Finding, failed, failure, ok
from krelay.doctor.machine import machine_checks
from krelay.doctor.runner import run_checks
from krelay.errors import ConfigError, Problem, UsageError
from krelay.model import Config
from krelay.tasks import TaskGroup
from krelay.threads import in_thread


class Source(Protocol):
    """Where a config comes from, as in `krelay.config.sources`."""

    @property
    def file(self) -> str | None:
        """The path of the file; None if there is none."""

    def load(self) -> Config:
        """Return the config. Blocks. Raises UsageError or ConfigError."""


async def examine(
    source: Source | None,
    *,
    quick: bool = False,
    context: str | None = None,
    namespace: str | None = None,
    kubeconfig: str | None = None,
) -> AsyncGenerator[Finding]:
    """Examine what `source` needs; without one, what any agent needs in a context of kubeconfig.

    `context` and `namespace` are those of the examination without a source; `kubeconfig` is the
    path of one that replaces the environment's. With `quick`, nothing is created in a cluster.

    Close the generator (`contextlib.aclosing`) to end the examination early: an agent that it
    started is removed then.
    """
    config: Config | None = None
    file: str | None = None
    if source is not None:
        try:
            file = await in_thread(lambda: source.file)
            config = await in_thread(source.load)
        except ConfigError as exc:
            for problem in exc.problems:
                yield _invalid(exc, problem)
        except UsageError as exc:
            yield failure("file", exc)
        else:
            yield _valid(config)
    async with aclosing(run_checks(machine_checks(config, file))) as here:
        async for finding in here:
            yield finding
    if config is not None and config.agent.embedded:
        return
    config = config or of_context(context, namespace)
    async with aclosing(_clusters(config, quick=quick, kubeconfig=kubeconfig)) as there:
        async for finding in there:
            yield finding


async def _clusters(
    config: Config,
    *,
    quick: bool,
    kubeconfig: str | None,
    only: Collection[str] | None = None,
) -> AsyncGenerator[Finding]:
    """Examine all contexts at once, and yield the findings of one after the other.

    Their agents take turns, because they share this machine's network.
    """
    contexts = list(dict.fromkeys(target.context or config.context for target in config.targets))
    turn = asyncio.Semaphore()
    found: dict[str | None, asyncio.Queue[Finding | None]] = {
        name: asyncio.Queue() for name in contexts
    }

    async def fill(context: str | None) -> None:
        cluster = Cluster(config, context, quick=quick, kubeconfig=kubeconfig, only=only, turn=turn)
        shown = context if len(contexts) > 1 else None
        async with aclosing(cluster.examine()) as findings:
            async for finding in findings:
                found[context].put_nowait(replace(finding, context=shown))
        found[context].put_nowait(None)

    async with TaskGroup() as tasks:
        filling = [tasks.create_task(fill(context)) for context in contexts]
        try:
            for queue in found.values():
                while (finding := await queue.get()) is not None:
                    yield finding
        finally:
            for task in filling:
                task.cancel()


TARGETS = ("kubeconfig", "credentials", "server", "user", "rights", "targets")
"""The checks of a file's targets, and of those that they need."""


async def examine_targets(config: Config, kubeconfig: str | None = None) -> list[Finding]:
    """Examine the targets of a config in the clusters of all contexts at once, and the rights that
    they need. Nothing is created."""
    if config.agent.embedded:
        return []
    there = _clusters(config, quick=True, kubeconfig=kubeconfig, only=TARGETS)
    async with aclosing(there) as findings:
        return [finding async for finding in findings]


def _valid(config: Config) -> Finding:
    count = len(config.targets)
    return ok(
        "file",
        f"{config.path}: {count} target{'' if count == 1 else 's'}",
        path=config.path,
        targets=[target.name for target in config.targets],
    )


def _invalid(error: ConfigError, problem: Problem) -> Finding:
    place = [str(number) for number in (problem.line, problem.column) if number]
    text = ": ".join((":".join((problem.path or error.path, *place)), problem.message))
    return failed("file", text, problem.hint, exit_code=error.exit_code)
