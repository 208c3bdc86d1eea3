"""Agent lifecycle: create the agent's Job, wait until its pod runs, delete it.

A start that fails or is cancelled deletes its Job, or leaves it in `PostedJobs.left`. If krelay
itself is killed, the agent ends when idle, and its Job by its time to live.
"""

from __future__ import annotations

import asyncio
import copy
import functools
import logging
import secrets
from collections.abc import Awaitable, Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import Any

import aiohttp

from krelay.cluster.agent_job import NAME, job_manifest
from krelay.cluster.api import Api, collection, object_path
from krelay.cluster.api_errors import StatusError
from krelay.cluster.diagnosis import Diagnosis, diagnose, end_of, is_admission, of_pod, refusal
from krelay.cluster.objects import CREATED, POD, nested, read_object
from krelay.cluster.reflector import list_and_watch
from krelay.errors import (
    AccessDeniedError,
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
jobs_logger = logging.getLogger("krelay.jobs")

Object = Mapping[str, Any]
Progress = Callable[[str], None]

_REFUSED = "the API server refused: "
QUIET = 0.5  # seconds that a fast start takes: only later are the Job and the events watched too
CREATE_PATIENCE = 3.0  # seconds for the API server to confirm a Job's creation after a cancellation
START = 180.0  # seconds for an agent whose pod has a node: its image may be large
DELETE_DEADLINE = 5.0  # seconds for the deletion of a Job

_ALPHABET = "bcdfghjklmnpqrstvwxz2456789"
"""Of k8s.io/apimachinery/pkg/util/rand: it spells no words."""
_SUFFIX_LENGTH = 8
_MAX_NAME = 63  # the Job's name is the value of a label of its pod (RFC 1123 label)
_DELETE_OPTIONS = {"apiVersion": "v1", "kind": "DeleteOptions", "propagationPolicy": "Background"}
"""By default a Job deleted over REST leaves its pod behind (pkg/registry/batch/job)."""


@dataclass(frozen=True, slots=True)
class Agent:
    """An agent: its Job, and its pod (by name and uid), to which tunnels lead."""

    namespace: str
    job: str
    pod: str
    uid: str

    def __str__(self) -> str:
        return f"{self.namespace}/{self.pod}"


Placed = Callable[[Agent], Awaitable[None]]
"""Takes an agent whose pod has a node, and returns when it runs."""


async def create_agent(
    jobs: PostedJobs,
    config: AgentConfig,
    *,
    namespace: str,
    key_sha256: str,
    fallbacks: Sequence[str] = (),
    connect_timeout: float = 10.0,
    session: SessionConfig = SessionConfig(),  # noqa: B008
    run: str = "",
    deadline: float | None = None,
    on_progress: Progress = lambda reason: None,
    on_delay: Progress | None = None,
    on_placed: Placed | None = None,
) -> Agent:
    """Create the Job and wait until its container runs.

    The Job goes to `namespace`, or to the first of `fallbacks` if the cluster forbids it there or
    has no such namespace. Each is tried once.

    `deadline` (of the whole start; by default what the file allows for a node, and START for the
    rest) and `connect_timeout` (of the agent, for a target) are in seconds. `run` is as in
    `job_manifest`. `on_progress` gets a line whenever the reason to wait changes; `on_delay` gets
    it instead if something is missing that may not come. If this raises or is cancelled, the Job
    is deleted first, or stays in `jobs.left`.

    `on_placed` is awaited with the agent once its pod has a node. When it returns, the agent runs,
    whatever the status of its pod says: a kubelet reports that late.

    Raises:
        AgentError: the agent cannot run, or does not in time; with the cluster's reason.
        ConfigError: a patch does not fit.
        CredentialsError: the connection to the API server is not encrypted; no Job was created.
        ClusterError: krelay cannot create the Job, or cannot watch its pods.
    """
    # In a thread: it reads and compresses the agent's files.
    build = functools.partial(
        job_manifest,
        config,
        key_sha256=key_sha256,
        connect_timeout=connect_timeout,
        session=session,
        run=run,
    )
    refusals: dict[str, ClusterError] = {}
    for candidate in (namespace, *fallbacks):
        manifest, warnings = await in_thread(
            functools.partial(build, namespace=candidate), UnreachableError
        )
        place = manifest["metadata"]["namespace"]
        if place in refusals:
            continue  # a patch has moved the Job
        if not refusals:
            for warning in warnings:
                logger.warning("%s", warning)
            # Before the creation: a credential plugin may wait for a person.
            (await jobs.api.access()).require_private()
        try:
            created = await _create(jobs, manifest)
            if refusals:
                why = "; ".join(map(str, refusals.values()))
                logger.warning('the agent runs in the namespace "%s": %s', place, why)
            startup = _Startup(
                jobs.api,
                created["metadata"],
                _resources(manifest),
                config.start_timeout,
                on_delay or on_progress,
            )
            whole = config.start_timeout + START if deadline is None else deadline
            return await _run(jobs, startup, whole, on_progress, on_placed)
        except (AccessDeniedError, NotFoundError) as exc:
            refusals[place] = exc
    raise _refused_everywhere(refusals)


def _refused_everywhere(refusals: Mapping[str, ClusterError]) -> ClusterError:
    """Return one error for what each namespace answered, in the order in which they were tried."""
    denied = {place: exc for place, exc in refusals.items() if isinstance(exc, AccessDeniedError)}
    message = "; ".join(map(str, refusals.values()))
    if not denied:
        hint = "create it, or name another: `agent.namespace`, `--agent-namespace`, `namespace=`"
        return NotFoundError(message, hint=hint)
    # The rights are best given where the targets are.
    place = next((place for place in [*refusals][1:] if place in denied), next(iter(denied)))
    error = denied[place]
    return AccessDeniedError(message, hint=error.hint, user=error.user, agent_namespace=place)


async def _create(jobs: PostedJobs, manifest: Object) -> Object:
    """Create the Job, and say what mends a refusal by admission."""
    try:
        return await jobs.create(manifest)
    except (AccessDeniedError, NotFoundError):
        raise
    except ClusterError as exc:
        found = admission_refusal(exc, manifest)
        if found is None:
            raise
        raise AgentError(
            exc.message, hint=found.hint, settings=found.settings, no_agent=True
        ) from exc


def admission_refusal(exc: ClusterError, manifest: Object) -> Diagnosis | None:
    """Judge the API server's refusal to create the agent of `manifest`, its Job or its pod alone;
    return None for what is no refusal by admission."""
    forbidden = isinstance(exc.__cause__, StatusError) and exc.__cause__.code == 403
    if not (forbidden or is_admission(exc.message)):
        return None
    return refusal(exc.message.partition(_REFUSED)[2], _resources(manifest))


def _resources(manifest: Object) -> Object:
    """Return the resources of the agent's container."""
    for container in nested(manifest, "spec", "template", "spec", "containers") or ():
        if nested(container, "name") == NAME:
            return nested(container, "resources") or {}
    return {}


async def _run(
    jobs: PostedJobs,
    startup: _Startup,
    deadline: float,
    on_progress: Progress,
    on_placed: Placed | None,
) -> Agent:
    """Return the agent of a Job once its container runs. If it does not, delete the Job."""
    try:
        return await _wait_until_running(startup, deadline, on_progress, on_placed)
    except BaseException:
        await shield_cleanup(jobs.discard(startup.namespace, startup.job))
        raise


async def agent_gone(
    api: Api, agent: Agent, *, on_running: Callable[[], None] = lambda: None
) -> str:
    """Wait until the agent's pod has ended, is being deleted or is gone; return the reason.

    `on_running` is called when the pod's status says that it runs, maybe repeatedly.

    Raises:
        ClusterError: krelay cannot watch pods.
    """
    path = collection("v1", "pods", agent.namespace)
    sets = list_and_watch(api, path, field_selector=f"metadata.name={agent.pod}")
    async with aclosing(sets):
        async for pods in sets:
            pod = pods.get(agent.uid)
            if pod is None:
                break
            if ended := end_of(pod):
                return ended.line
            if of_pod(pod).running:
                on_running()
    return f"the agent's pod {agent.pod} is gone"


async def agent_ended(api: Api, agent: Agent) -> str | None:
    """Ask the API server whether the agent's pod has ended; return the reason, or None.

    Raises:
        ClusterError: the API server gives no answer.
    """
    path = object_path("v1", "pods", agent.namespace, agent.pod)
    try:
        pod = read_object(POD, await api.get(path), path)
    except NotFoundError:
        return f"the agent's pod {agent.pod} is gone"
    if pod["metadata"].get("uid") != agent.uid:
        return f"another pod has replaced the agent's pod {agent.pod}"
    ended = end_of(pod)
    return ended.line if ended else None


async def _wait_until_running(
    startup: _Startup, deadline: float, on_progress: Progress, on_placed: Placed | None
) -> Agent:
    """Return the agent once its container runs."""
    async with TaskGroup() as watches:
        tasks = [watches.create_task(watch) for watch in startup.watches()]
        if on_placed is not None:
            tasks.append(watches.create_task(startup.prove(on_placed)))
        verdict = await startup.verdict(deadline, on_progress)
        for task in tasks:
            task.cancel()
    if startup.proven is not None:
        return startup.proven
    if error := startup.denied.get(PODS):
        raise error
    if not verdict.running:
        if verdict.words:
            logger.warning("the agent's last log lines:\n%s", verdict.words)
        raise AgentError(
            verdict.reason,
            hint=verdict.hint,
            settings=verdict.settings,
            no_agent=verdict.no_agent,
        )
    running = (pod for pod in startup.seen[PODS] if diagnose(None, [pod], ()).running)
    return startup.agent(next(running))


PODS, JOB, JOB_EVENTS, POD_EVENTS = "pods", "Job", "Job's events", "pod's events"


class _Startup:
    """The objects that the watches of one Job have seen, and the errors of those denied."""

    def __init__(
        self,
        api: Api,
        metadata: Object,
        resources: Object,
        node_patience: float,
        on_delay: Progress,
    ) -> None:
        """`metadata` is the Job's; its container asks for `resources`. Its pod may wait for a node
        for `node_patience` seconds, which `on_delay` reports."""
        self._node_patience = node_patience
        self._on_delay = on_delay
        self._api = api
        self.job = str(metadata["name"])
        self.namespace = str(metadata["namespace"])
        self._uid = str(metadata["uid"])
        self._resources = resources
        self._changed = asyncio.Event()
        self._has_pod = asyncio.Event()
        self._placed: asyncio.Future[Object] = asyncio.get_running_loop().create_future()
        self.proven: Agent | None = None
        """The agent, once it has shown by itself that it runs."""
        self.seen: dict[str, Collection[Object]] = {PODS: ()}
        self.denied: dict[str, ClusterError] = {}

    def watches(self) -> list[Coroutine[Any, Any, None]]:
        """Return the watches to run; all but that of the pods begin later."""
        return [
            self._watch(PODS, "v1", "pods", label_selector=f"job-name={self.job}"),
            self._watch(JOB, "batch/v1", "jobs", f"metadata.name={self.job}", after=QUIET),
            self._watch_events(JOB_EVENTS, self._uid),
            self._watch_pod_events(),
        ]

    def agent(self, pod: Object) -> Agent:
        """Return the agent in `pod`."""
        metadata = pod["metadata"]
        return Agent(self.namespace, self.job, metadata["name"], metadata.get("uid", ""))

    async def prove(self, on_placed: Placed) -> None:
        """Await `on_placed` once the pod has a node; it returns when the agent runs."""
        agent = self.agent(await self._placed)
        await on_placed(agent)
        self.proven = agent
        self._changed.set()

    async def verdict(self, deadline: float, on_progress: Progress) -> Diagnosis:
        """Return the first diagnosis that is final, by itself or because it has lasted."""
        loop = asyncio.get_running_loop()
        until = loop.time() + deadline
        since = loop.time()
        last = Diagnosis("", "")
        while True:
            self._changed.clear()
            events = [*self.seen.get(JOB_EVENTS, ()), *self.seen.get(POD_EVENTS, ())]
            known_events = None if JOB_EVENTS in self.denied else events
            now = diagnose(self.seen.get(JOB), self.seen[PODS], known_events, self._resources)
            if now.code != last.code:
                since = loop.time()
            patience = self._node_patience if now.needs_node else now.patience
            final = now.running or self.proven is not None or PODS in self.denied
            if final or loop.time() >= since + patience:
                return now
            if now.reason != last.reason and now.needs_node:
                why = now.reason.partition(": ")[2]
                self._on_delay(f"waiting {self._node_patience:g} s for a node: {why}")
            elif now.reason != last.reason:
                on_progress(now.reason)
            last = now
            if loop.time() >= until:
                late = f"the agent does not run after {deadline:g} s: {now.reason}"
                return Diagnosis("Late", late, now.hint, settings=now.settings)
            with suppress(TimeoutError):
                async with asyncio.timeout_at(min(until, since + patience)):
                    await self._changed.wait()

    def _watch_events(self, what: str, uid: str) -> Coroutine[Any, Any, None]:
        return self._watch(what, "v1", "events", f"involvedObject.uid={uid}", after=QUIET)

    async def _watch_pod_events(self) -> None:
        await self._has_pod.wait()
        uid = next((pod["metadata"].get("uid", "") for pod in self.seen[PODS]), "")
        await self._watch_events(POD_EVENTS, uid)

    async def _watch(
        self,
        what: str,
        version: str,
        resource: str,
        field_selector: str = "",
        *,
        label_selector: str = "",
        after: float = 0.0,
    ) -> None:
        await asyncio.sleep(after)
        path = collection(version, resource, self.namespace)
        sets = list_and_watch(
            self._api, path, label_selector=label_selector, field_selector=field_selector
        )
        try:
            async for found in sets:
                self.seen[what] = found.values()
                if self.seen[PODS]:
                    self._has_pod.set()
                    self._note_placed()
                self._changed.set()
        except ClusterError as exc:
            logger.debug("cannot watch the %s of %s: %s", what, self.job, exc)
            self.denied[what] = exc
            self._changed.set()

    def _note_placed(self) -> None:
        placed = (pod for pod in self.seen[PODS] if nested(pod, "spec", "nodeName"))
        if (pod := next(placed, None)) is not None and not self._placed.done():
            self._placed.set_result(pod)


@dataclass(slots=True)
class _Posted:
    ours: bool
    """Whether krelay chose the name. A name from a patch may be another program's Job."""
    answered: bool = False
    """Whether the API server answered the request to create it."""


class PostedJobs:
    """Creates and deletes Jobs, and knows which of them may still exist.

    krelay chooses a Job's name itself, instead of the API server (`generateName`): a request may
    be carried out although its answer is lost, and a Job with a known name can still be deleted,
    or named in the log.
    """

    def __init__(self, api: Api) -> None:
        self.api = api
        self._posted: dict[tuple[str, str], _Posted] = {}

    @property
    def left(self) -> tuple[str, ...]:
        """`NAMESPACE/NAME` of each Job that may still exist."""
        return tuple(f"{namespace}/{name}" for namespace, name in self._posted)

    async def create(self, manifest: Object) -> dict[str, Any]:
        """Post `manifest`; return the Job as the API server created it.

        `metadata` has a namespace and either a `name` or a `generateName`. If this raises or is
        cancelled, the Job is deleted first, or stays in `left`.

        Raises:
            ClusterError: the API server refused the Job, or did not answer.
        """
        body = copy.deepcopy(dict(manifest))
        metadata = body["metadata"]
        prefix = metadata.pop("generateName", "")
        posted = _Posted(ours="name" not in metadata)
        if posted.ours:
            suffix = "".join(secrets.choice(_ALPHABET) for _ in range(_SUFFIX_LENGTH))
            metadata["name"] = prefix[: _MAX_NAME - _SUFFIX_LENGTH] + suffix
        key = metadata["namespace"], metadata["name"]
        created: list[dict[str, Any]] = []

        async def post() -> None:
            try:
                path = collection("batch/v1", "jobs", key[0])
                created.append(read_object(CREATED, await self.api.create(path, body), path))
            except ClusterError as exc:
                posted.answered = isinstance(exc.__cause__, StatusError)
                if _certainly_not_created(exc):
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
        return created[0]

    async def delete(self, namespace: str, name: str) -> None:
        """Delete a Job and its pod, if it still exists.

        Raises:
            ClusterError: the Job could not be deleted, and stays in `left`.
        """
        posted = self._posted.setdefault((namespace, name), _Posted(ours=True, answered=True))
        path = object_path("batch/v1", "jobs", namespace, name)
        try:
            async with asyncio.timeout(DELETE_DEADLINE):
                await self.api.delete(path, _DELETE_OPTIONS)
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
        """Delete a Job that may exist; return the error if that fails."""
        posted = self._posted.get((namespace, name))
        if posted is None or not (posted.ours or posted.answered):
            return None
        try:
            await self.delete(namespace, name)
        except ClusterError as exc:
            jobs_logger.debug("the Job %s/%s is not deleted yet: %s", namespace, name, exc)
            return exc
        return None

    async def clear(self, *starts: asyncio.Future[None]) -> None:
        """Delete each Job in `left`, after the cancelled `starts` have deleted theirs; log the
        names of those that remain."""
        error: ClusterError | None = None
        try:
            if starts:
                await asyncio.wait(starts)
            for namespace, name in list(self._posted):
                error = await self.discard(namespace, name) or error
        finally:
            left, self._posted = self._posted, {}
            for (namespace, name), posted in left.items():
                jobs_logger.warning(
                    "the Job %s/%s may be left behind (%s); it ends by itself when idle",
                    namespace,
                    name,
                    (error or "interrupted") if posted.answered else "its creation had no answer",
                )


def _certainly_not_created(exc: ClusterError) -> bool:
    """Return whether the request was refused, or never sent."""
    cause = exc.__cause__
    if isinstance(cause, StatusError):
        return cause.code < 500 and cause.code != 408
    return isinstance(exc, CredentialsError) or isinstance(cause, aiohttp.ClientConnectorError)
