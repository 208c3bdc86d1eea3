"""Agent: the last step into the cluster; makes the agent's Job, waits until it runs, removes it.

Whatever happens on the way, a failure or a cancellation, no Job is left behind; and where this
program itself is killed, the agent ends when idle and its Job by its time to live.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Callable, Collection, Coroutine, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from krelay.cluster.api import Api, collection, object_path
from krelay.cluster.diagnosis import Diagnosis, diagnose, end_of
from krelay.cluster.job import job_manifest
from krelay.cluster.watch import follow
from krelay.errors import AccessDeniedError, AgentError, ClusterError, NotFoundError, UnreachableError
from krelay.model import AgentConfig

logger = logging.getLogger("krelay.agent")

DELETE_DEADLINE = 10.0
QUIET = 0.5
"""Seconds that a start takes at its best: only after them the Job and the events are looked at."""

BACKGROUND = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
"""Without it the pod would stay: Jobs orphan theirs (Kubernetes, pkg/registry/batch/job)."""


@dataclass(frozen=True, slots=True)
class Agent:
    """An agent that runs: its Job, and the pod (with its uid) that a tunnel leads to."""

    namespace: str
    job: str
    pod: str
    uid: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.pod}"


async def create_agent(
    api: Api,
    config: AgentConfig,
    *,
    namespace: str,
    key_sha256: str,
    deadline: float = 300.0,
    on_progress: Callable[[str], None] = lambda reason: None,
) -> Agent:
    """Create the Job and wait until its container runs. `deadline` is in seconds.

    `on_progress` gets a line whenever what is waited for changes.

    Raises:
        AgentError: it cannot run, or did not in time: the cluster's own reason.
        ConfigError: a patch does not fit.
        ClusterError: the Job cannot be made, or its pods not be watched.
    """
    # In a thread: it reads the agent's files, and compresses them.
    manifest, warnings = await asyncio.to_thread(
        job_manifest, config, namespace=namespace, key_sha256=key_sha256
    )
    for warning in warnings:
        logger.warning("%s", warning)
    place = manifest["metadata"]["namespace"]
    made: list[Mapping[str, Any]] = []

    async def create() -> None:
        path = collection("batch/v1", "jobs", place)
        made.append((await api.create(path, manifest))["metadata"])

    try:
        await _to_the_end(create())
        logger.debug("made the Job %s/%s", place, made[0]["name"])
        return await _run(api, place, made[0], deadline, on_progress)
    except BaseException:
        for metadata in made:
            await _to_the_end(_discard(api, place, metadata["name"]))
        raise


async def delete_agent(api: Api, agent: Agent) -> None:
    """Delete the Job; its pod follows. It may be gone already.

    Raises:
        ClusterError: it could not be deleted (it will end by itself when idle).
    """
    await _delete(api, agent.namespace, agent.job)


async def agent_gone(api: Api, agent: Agent) -> str:
    """Wait until the agent's pod has ended, is being deleted or is gone: which, and why.

    Raises:
        ClusterError: pods cannot be watched.
    """
    path = collection("v1", "pods", agent.namespace)
    sets = follow(api, path, field_selector=f"metadata.name={agent.pod}")
    assert isinstance(sets, AsyncGenerator)
    async with aclosing(sets):
        async for pods in sets:
            if (pod := pods.get(agent.uid)) is None:
                break
            if ended := end_of(pod):
                return ended.reason
    return f"the agent's pod {agent.pod} is gone"


async def _run(
    api: Api,
    namespace: str,
    metadata: Mapping[str, Any],
    deadline: float,
    on_progress: Callable[[str], None],
) -> Agent:
    """Watch the Job until its pod runs."""
    job, uid = str(metadata["name"]), str(metadata["uid"])
    seen = _Seen()
    async with asyncio.TaskGroup() as watches:
        tasks = [
            watches.create_task(seen.watch_pods(api, namespace, job)),
            watches.create_task(seen.watch_job(api, namespace, job)),
            watches.create_task(seen.watch_events(api, namespace, uid)),
            watches.create_task(seen.watch_pod_events(api, namespace)),
        ]
        verdict = await _verdict(seen, deadline, on_progress)
        for task in tasks:
            task.cancel()
    if seen.error is not None:
        raise seen.error
    if not verdict.running:
        if verdict.words:
            logger.warning("the agent's last words:\n%s", verdict.words)
        raise AgentError(verdict.reason, hint=verdict.hint)
    (pod,) = (p["metadata"] for p in seen.pods if diagnose((), (p,), ()).running)
    return Agent(namespace, job, pod["name"], pod["uid"])


async def _verdict(
    seen: _Seen, deadline: float, on_progress: Callable[[str], None]
) -> Diagnosis:
    """The first diagnosis that is final, by itself or by the time that it has lasted."""
    loop = asyncio.get_running_loop()
    until = loop.time() + deadline
    told, code, since = "", "", loop.time()
    while True:
        now = diagnose(seen.jobs, seen.pods, seen.events)
        if now.code != code:
            code, since = now.code, loop.time()
        if now.running or seen.error is not None or loop.time() >= since + now.patience:
            return now
        if now.reason != told:
            told = now.reason
            on_progress(told)
        if loop.time() >= until:
            late = f"the agent does not run after {deadline:g} s: {now.reason}"
            return Diagnosis("Late", late, now.hint)
        try:
            async with asyncio.timeout_at(min(until, since + now.patience)):
                await seen.changed.wait()
        except TimeoutError:
            continue
        seen.changed.clear()


@dataclass
class _Seen:
    """What the watches have seen so far; None is what we may not look at."""

    pods: Collection[Mapping[str, Any]] = ()
    jobs: Collection[Mapping[str, Any]] | None = None
    error: ClusterError | None = None
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    _pod: asyncio.Event = field(default_factory=asyncio.Event)
    _of_job: Collection[Mapping[str, Any]] | None = ()
    _of_pod: Collection[Mapping[str, Any]] = ()

    @property
    def events(self) -> Collection[Mapping[str, Any]] | None:
        return None if self._of_job is None else [*self._of_job, *self._of_pod]

    async def watch_pods(self, api: Api, namespace: str, job: str) -> None:
        path = collection("v1", "pods", namespace)
        try:
            async for found in follow(api, path, label_selector=f"job-name={job}"):
                self.pods = found.values()
                if found:
                    self._pod.set()
                self.changed.set()
        except ClusterError as exc:
            self.error = exc
            self.changed.set()

    async def watch_job(self, api: Api, namespace: str, job: str) -> None:
        await asyncio.sleep(QUIET)
        path = collection("batch/v1", "jobs", namespace)
        try:
            async for found in follow(api, path, field_selector=f"metadata.name={job}"):
                self.jobs = found.values()
                self.changed.set()
        except AccessDeniedError as exc:
            logger.debug("cannot watch the Job itself: %s", exc)

    async def watch_events(self, api: Api, namespace: str, uid: str) -> None:
        await asyncio.sleep(QUIET)
        try:
            async for found in _events(api, namespace, uid):
                self._of_job = found.values()
                self.changed.set()
        except AccessDeniedError as exc:
            logger.debug("cannot watch events: %s", exc)
            self._of_job = None
            self.changed.set()

    async def watch_pod_events(self, api: Api, namespace: str) -> None:
        await asyncio.sleep(QUIET)
        await self._pod.wait()
        uid = next(pod["metadata"]["uid"] for pod in self.pods)
        try:
            async for found in _events(api, namespace, uid):
                self._of_pod = found.values()
                self.changed.set()
        except AccessDeniedError as exc:
            logger.debug("cannot watch the pod's events: %s", exc)
