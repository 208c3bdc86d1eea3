"""Agent: the last step into the cluster; makes the agent's Job, waits until it runs, removes it.

A start that fails or is cancelled deletes its Job, or leaves it in `PostedJobs.left`. If krelay
itself is killed, the agent ends when idle, and its Job by its time to live.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import logging
import secrets
from collections.abc import AsyncGenerator, Callable, Collection, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any

import aiohttp

from krelay.cluster.agent_job import job_manifest
from krelay.cluster.api import Api, collection, object_path
from krelay.cluster.api_errors import Refusal
from krelay.cluster.diagnosis import Diagnosis, diagnose, end_of
from krelay.cluster.objects import MADE, POD, read_object
from krelay.cluster.reflector import follow
from krelay.errors import (
    AgentError,
    ClusterError,
    CredentialsError,
    NotFoundError,
    UnreachableError,
)
from krelay.model import AgentConfig, SessionConfig
from krelay.tasks import TaskGroup, shield_cleanup
from krelay.threads import in_thread

logger = logging.getLogger("krelay.agent")


@dataclass(frozen=True, slots=True)
class Agent:
    """An agent that runs: its Job, and the pod (with the pod's uid) that a tunnel leads to."""

    namespace: str
    job: str
    pod: str
    uid: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.pod}"


async def create_agent(
    jobs: PostedJobs,
    config: AgentConfig,
    *,
    namespace: str,
    key_sha256: str,
    connect_timeout: float = 10.0,
    session: SessionConfig = SessionConfig(),  # noqa: B008
    run: str = "",
    deadline: float = 300.0,
    on_progress: Callable[[str], None] = lambda reason: None,
) -> Agent:
    """Create the Job and wait until its container runs. `deadline`, and the `connect_timeout`
    that the agent gets for a target, are in seconds. `run` is as in `job_manifest`.

    `on_progress` gets a line whenever what is waited for changes. If this raises or is cancelled,
    the Job is deleted first, or stays in `jobs.left`.

    Raises:
        AgentError: it cannot run, or did not in time: the cluster's own reason.
        ConfigError: a patch does not fit.
        CredentialsError: the way to the API server is not encrypted; no Job was made.
        ClusterError: the Job cannot be made, or its pods not be watched.
    """
    # In a thread: it reads the agent's files, and compresses them.
    make = functools.partial(
        job_manifest,
        config,
        namespace=namespace,
        key_sha256=key_sha256,
        connect_timeout=connect_timeout,
        session=session,
        run=run,
    )
    manifest, warnings = await in_thread(make, UnreachableError)
    for warning in warnings:
        logger.warning("%s", warning)
    # First, and not part of the creation: a plugin may be waiting for a person.
    (await jobs.api.access()).require_private()
    made = await jobs.create(manifest)
    job = made["metadata"]
    try:
        pod = await started(jobs.api, made, deadline=deadline, on_progress=on_progress)
    except BaseException:
        await shield_cleanup(jobs.discard(job["namespace"], job["name"]))
        raise
    running = pod["metadata"]
    return Agent(job["namespace"], job["name"], running["name"], running.get("uid", ""))


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
            pod = pods.get(agent.uid)
            if pod is None:
                break
            if ended := end_of(pod):
                return ended.reason
    return f"the agent's pod {agent.pod} is gone"


async def agent_ended(api: Api, agent: Agent) -> str | None:
    """Why the agent's pod has ended, as the API server knows it; None while it has not.

    Raises:
        ClusterError: it cannot be asked.
    """
    path = object_path("v1", "pods", agent.namespace, agent.pod)
    try:
        pod = read_object(POD, await api.get(path), path)
    except NotFoundError:
        return f"the agent's pod {agent.pod} is gone"
    if pod["metadata"].get("uid") != agent.uid:
        return f"the agent's pod {agent.pod} is another one"
    ended = end_of(pod)
    return ended.reason if ended else None


Objects = Collection[Mapping[str, Any]]

QUIET = 0.5
"""Seconds that a start takes at its best: only then are the Job and the events watched too."""


async def started(
    api: Api,
    job: Mapping[str, Any],
    *,
    deadline: float,
    on_progress: Callable[[str], None],
) -> Mapping[str, Any]:
    """The pod of `job`, once its container runs. `deadline` is in seconds.

    Raises:
        AgentError: it cannot run, or did not in time: the cluster's own reason.
        ClusterError: its pods cannot be watched.
    """
    startup = _Startup(api, job["metadata"])
    async with TaskGroup() as watches:
        tasks = [watches.create_task(watch()) for watch in startup.watches]
        verdict = await startup.verdict(deadline, on_progress)
        for task in tasks:
            task.cancel()
    if error := startup.denied.get(PODS):
        raise error
    if not verdict.running:
        if verdict.words:
            logger.warning("the agent's last words:\n%s", verdict.words)
        raise AgentError(verdict.reason, hint=verdict.hint)
    return next(pod for pod in startup.seen[PODS] if diagnose(None, [pod], ()).running)


PODS, JOB, JOB_EVENTS, POD_EVENTS = "pods", "Job", "Job's events", "pod's events"


class _Startup:
    """What the watches of one Job have seen, and why one of them may not look."""

    def __init__(self, api: Api, metadata: Mapping[str, Any]) -> None:
        self._api = api
        self._job = str(metadata["name"])
        self._uid = str(metadata["uid"])
        self._namespace = str(metadata["namespace"])
        self._changed = asyncio.Event()
        self._has_pod = asyncio.Event()
        self.seen: dict[str, Objects] = {PODS: ()}
        self.denied: dict[str, ClusterError] = {}
        self.watches = (self._pods, self._job_itself, self._job_s_events, self._pod_s_events)

    async def verdict(self, deadline: float, on_progress: Callable[[str], None]) -> Diagnosis:
        """The first diagnosis that is final, by itself or by the time that it has lasted."""
        loop = asyncio.get_running_loop()
        until = loop.time() + deadline
        since = loop.time()
        last = Diagnosis("", "")
        while True:
            self._changed.clear()
            now = self._diagnosis()
            if now.code != last.code:
                since = loop.time()
            if now.running or PODS in self.denied or loop.time() >= since + now.patience:
                return now
            if now.reason != last.reason:
                on_progress(now.reason)
            last = now
            if loop.time() >= until:
                late = f"the agent does not run after {deadline:g} s: {now.reason}"
                return Diagnosis("Late", late, now.hint)
            with suppress(TimeoutError):
                async with asyncio.timeout_at(min(until, since + now.patience)):
                    await self._changed.wait()

    def _diagnosis(self) -> Diagnosis:
        events = [*self.seen.get(JOB_EVENTS, ()), *self.seen.get(POD_EVENTS, ())]
        return diagnose(
            self.seen.get(JOB), self.seen[PODS], None if JOB_EVENTS in self.denied else events
        )

    async def _pods(self) -> None:
        await self._see(PODS, "v1", "pods", label_selector=f"job-name={self._job}")

    async def _job_itself(self) -> None:
        await asyncio.sleep(QUIET)
        await self._see(JOB, "batch/v1", "jobs", field_selector=f"metadata.name={self._job}")

    async def _job_s_events(self) -> None:
        await asyncio.sleep(QUIET)
        await self._see(JOB_EVENTS, "v1", "events", field_selector=_about(self._uid))

    async def _pod_s_events(self) -> None:
        await asyncio.sleep(QUIET)
        await self._has_pod.wait()
        uid = next((pod["metadata"].get("uid", "") for pod in self.seen[PODS]), "")
        await self._see(POD_EVENTS, "v1", "events", field_selector=_about(uid))

    async def _see(
        self,
        what: str,
        version: str,
        resource: str,
        *,
        label_selector: str = "",
        field_selector: str = "",
    ) -> None:
        path = collection(version, resource, self._namespace)
        sets = follow(self._api, path, label_selector=label_selector, field_selector=field_selector)
        try:
            async for found in sets:
                self.seen[what] = found.values()
                if self.seen[PODS]:
                    self._has_pod.set()
                self._changed.set()
        except ClusterError as exc:
            logger.debug("cannot watch the %s of %s: %s", what, self._job, exc)
            self.denied[what] = exc
            self._changed.set()


def _about(uid: str) -> str:
    return f"involvedObject.uid={uid}"


jobs_logger = logging.getLogger("krelay.jobs")

CREATE_PATIENCE = 3.0
"""Seconds that the API server gets to confirm a Job's creation after a cancellation."""
DELETE_DEADLINE = 5.0
"""Seconds that the deletion of a Job may take."""

_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
"""Of k8s.io/apimachinery/pkg/util/rand: it spells no words."""
_SUFFIX = 8
_MAX_NAME = 63
"""The Job's name is the value of a label of its pod (RFC 1123 label)."""

_BACKGROUND = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
"""Without it the pod would stay: over REST a Job orphans its own (pkg/registry/batch/job)."""


@dataclass(slots=True)
class _Posted:
    ours: bool
    """Whether krelay chose the name. A name that a patch chose may be another program's Job."""
    answered: bool = False
    """Whether the API server said what became of the request to create it."""


class PostedJobs:
    """Creates and deletes Jobs, and knows which of them may still exist."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self._posted: dict[tuple[str, str], _Posted] = {}

    @property
    def left(self) -> tuple[str, ...]:
        """`NAMESPACE/NAME` of each Job that may still exist."""
        return tuple(f"{namespace}/{name}" for namespace, name in self._posted)

    async def create(self, manifest: Mapping[str, Any]) -> dict[str, Any]:
        """Post `manifest`, whose `metadata` has a namespace and either a `name` or a
        `generateName`; return the Job as the API server made it.

        If this raises or is cancelled, the Job is deleted first, or stays in `left`.

        Raises:
            ClusterError: the Job could not be created, or the API server did not answer.
        """
        body = copy.deepcopy(dict(manifest))
        metadata = body["metadata"]
        prefix = metadata.pop("generateName", "")
        posted = _Posted(ours="name" not in metadata)
        if posted.ours:
            metadata["name"] = prefix[: _MAX_NAME - _SUFFIX] + _suffix()
        key = metadata["namespace"], metadata["name"]
        made: list[dict[str, Any]] = []

        async def post() -> None:
            try:
                path = collection("batch/v1", "jobs", key[0])
                made.append(read_object(MADE, await self.api.create(path, body), path))
            except ClusterError as exc:
                posted.answered = isinstance(exc.__cause__, Refusal)
                if _certainly_not_made(exc):
                    del self._posted[key]
                raise
            posted.answered = True

        self._posted[key] = posted
        try:
            # The API server may carry out a request whose answer never arrives.
            await shield_cleanup(post(), within=CREATE_PATIENCE)
        except BaseException:
            await shield_cleanup(self.discard(*key))
            raise
        return made[0]

    async def delete(self, namespace: str, name: str) -> None:
        """Delete a Job; its pod follows. It may be gone already.

        Raises:
            ClusterError: it could not be deleted, and stays in `left`.
        """
        posted = self._posted.setdefault((namespace, name), _Posted(ours=True, answered=True))
        try:
            async with asyncio.timeout(DELETE_DEADLINE):
                await self.api.delete(object_path("batch/v1", "jobs", namespace, name), _BACKGROUND)
        except NotFoundError:
            jobs_logger.debug("the Job %s/%s was gone already", namespace, name)
            if not posted.answered:
                return  # the API server may yet create it
        except TimeoutError as exc:
            raise UnreachableError(
                f"no answer to the deletion of {namespace}/{name} within {DELETE_DEADLINE:g} s",
                hint="the agent ends by itself when idle, and its Job soon after",
            ) from exc
        self._posted.pop((namespace, name), None)

    async def discard(self, namespace: str, name: str) -> ClusterError | None:
        """Delete a Job that may exist; return why it could not be deleted, if so."""
        posted = self._posted.get((namespace, name))
        if posted is None or not (posted.ours or posted.answered):
            return None
        try:
            await self.delete(namespace, name)
        except ClusterError as exc:
            jobs_logger.debug("the Job %s/%s is not deleted yet: %s", namespace, name, exc)
            return exc
        return None

    async def clear(self) -> None:
        """Delete each Job in `left`, and name those that could not be deleted."""
        why: ClusterError | None = None
        try:
            for namespace, name in list(self._posted):
                why = await self.discard(namespace, name) or why
        finally:
            left, self._posted = self._posted, {}
            for (namespace, name), posted in left.items():
                jobs_logger.warning(
                    "the Job %s/%s may be left behind (%s); it ends by itself when idle",
                    namespace,
                    name,
                    (why or "interrupted") if posted.answered else "its creation had no answer",
                )


def _suffix() -> str:
    return "".join(secrets.choice(_ALPHABET) for _ in range(_SUFFIX))


def _certainly_not_made(exc: ClusterError) -> bool:
    """Whether the request was refused, or never sent."""
    cause = exc.__cause__
    if isinstance(cause, Refusal):
        return cause.status < 500 and cause.status != 408
    return isinstance(exc, CredentialsError) or isinstance(cause, aiohttp.ClientConnectorError)
