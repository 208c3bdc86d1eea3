"""Startup: watches a new Job until its pod runs, or tells why it does not."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from typing import Any

from krelay.cluster.api import Api, collection
from krelay.cluster.diagnosis import Diagnosis, diagnose
from krelay.cluster.reflector import follow
from krelay.errors import AgentError, ClusterError
from krelay.tasks import TaskGroup

logger = logging.getLogger("krelay.agent")

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
