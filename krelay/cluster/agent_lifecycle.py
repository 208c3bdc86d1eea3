"""Agent: the last step into the cluster; makes the agent's Job, waits until it runs, removes it.

A start that fails or is cancelled deletes its Job, or leaves it in `PostedJobs.left`. If krelay
itself is killed, the agent ends when idle, and its Job by its time to live.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass

from krelay.cluster.agent_job import job_manifest
from krelay.cluster.api import Api, collection, object_path
from krelay.cluster.diagnosis import end_of
from krelay.cluster.jobs import PostedJobs
from krelay.cluster.objects import POD, read_object
from krelay.cluster.reflector import follow
from krelay.cluster.startup import started
from krelay.errors import NotFoundError, UnreachableError
from krelay.model import AgentConfig, SessionConfig
from krelay.tasks import shield_cleanup
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
