"""Start: make the first config active, and end the start if nothing can come of it.

The start is an edit from nothing. Two things differ: a missing agent ends it, and ports that need
no answer from the cluster bind first.
"""

from __future__ import annotations

import asyncio

from krelay.config.diff import diff
from krelay.datapath.route import Route
from krelay.errors import (
    AccessDeniedError,
    ClusterError,
    KrelayError,
    NotFoundError,
    NotReadyError,
    NotRunningError,
)
from krelay.model import Config
from krelay.supervisor.active import ActiveConfig, report_fallen
from krelay.supervisor.forward import wait_settled
from krelay.supervisor.target_watcher import Failures
from krelay.supervisor.warming import WarmingConfig
from krelay.tasks import TaskGroup

_NOT_RUNNING = "unable to forward port because pod is not running. Current status="
"""Kubectl's words, for those who look for them."""
_NO_POD = "timed out waiting for a pod to run"


class Start:
    """Makes the first config active."""

    def __init__(
        self,
        active: ActiveConfig,
        failures: Failures,
        *,
        strict: bool,
        must_exist: bool,
        pod_running_timeout: float | None,
    ) -> None:
        """`failures` logs why targets fail, except what the error of the start says. `Supervisor`
        describes the options."""
        self._active = active
        self._failures = failures
        self._strict = strict
        self._must_exist = must_exist
        self._pod_running_timeout = pod_running_timeout

    @property
    def ends_with_pods(self) -> bool:
        """Whether the run ends once the pods of all targets have ended."""
        return self._pod_running_timeout is not None

    async def run(self, config: Config) -> None:
        """Make `config` active, and wait until each forward is bound, waits, or has failed.

        Raises:
            KrelayError: the start has failed; its error is not in the log.
        """
        # The error of the start says it; the log need not repeat it.
        self._failures.hold()
        told: tuple[str, ...] = ()
        try:
            await self._run(config)
        except KrelayError as exc:
            told = (exc.line(), exc.message)
            raise
        finally:
            self._failures.release(*told)

    async def _run(self, config: Config) -> None:
        active = self._active
        warm = active.warming(config, diff(None, config))
        await warm.prepare()
        active.commit(warm)
        forwards = list(active.forwards.values())
        for forward in forwards:
            # What ends the start is logged as its error.
            forward.quiet = True
        # What needs no answer from the cluster binds before an agent is made: a port in use must
        # not cost a pod. While the protocol is unknown, a port that both have free will do.
        await wait_settled([f for f in forwards if f.certain or f.port_may_be_taken()])
        self._check()
        async with TaskGroup() as warming:
            warming.create_task(warm.warm())
            await warm.answers()
            self._check()
            self._failures.release()
        await self._fall_back(warm)
        if self._pod_running_timeout is not None:
            await self._wait_running(self._pod_running_timeout)
        await wait_settled(forwards)
        self._check()
        for forward in forwards:
            forward.quiet = False

    async def _fall_back(self, warm: WarmingConfig) -> None:
        """Do without the agents that could not be started. Raise if no pod is reached either."""
        ways = self._active.fall_back(warm)
        for fallen, direct in zip(warm.fallen.values(), ways, strict=True):
            try:
                await direct.reached()
            except ClusterError as exc:
                if isinstance(exc, AccessDeniedError) and isinstance(fallen, AccessDeniedError):
                    raise fallen from exc  # its hint gives the rights for both ways
                report_fallen(warm)
                raise
        report_fallen(warm)

    def _check(self) -> None:
        """Fail the start if no forward is usable, or if `strict` and any is not."""
        active = self._active
        forwards = active.forwards.values()
        failures = [f.failure or active.watchers[f.spec.target.name].failure for f in forwards]
        found = [failure for failure in failures if failure is not None]
        if found and (self._strict or len(found) == len(failures)):
            for forward in forwards:
                if forward.failure is not found[0]:
                    forward.report()
            raise found[0]
        resolutions = [forward.route.resolution for forward in forwards]
        missing = [found.reason for found in resolutions if found and found.missing]
        if self._must_exist and missing and (self._strict or len(missing) == len(resolutions)):
            raise NotFoundError(missing[0])
        if self._pod_running_timeout is not None and all(
            found and (found.missing or found.ended) for found in resolutions
        ):
            ended = next((found for found in resolutions if found and found.ended), None)
            self._failures.release(ended.reason if ended else "")
            raise NotRunningError(_NOT_RUNNING + (ended.phase if ended else ""))
        for forward in forwards:
            forward.report()

    async def _wait_running(self, timeout: float) -> None:
        """Wait until a target has a pod that runs. Raise if there is none in time, or if all have
        ended."""
        forwards = list(self._active.forwards.values())
        found = asyncio.Event()

        async def wait_for(route: Route) -> None:
            while not route.fall_back() and route.endpoint is None:
                if route.given is not None and route.given.phase == "Running":
                    break  # its containers may start again
                await route.changed()
            found.set()

        async def wait_ended() -> None:
            await _all_ended(self._active)
            found.set()

        try:
            async with asyncio.timeout(timeout), TaskGroup() as tasks:
                waiting = [tasks.create_task(wait_for(forward.route)) for forward in forwards]
                waiting.append(tasks.create_task(wait_ended()))
                await found.wait()
                for task in waiting:
                    task.cancel()
        except TimeoutError:
            given = forwards[0].route.given
            text = f"{_NOT_RUNNING}{given.phase}" if given and given.phase else _NO_POD
            reasons = [f"{forward.name}: {forward.route.reason}" for forward in forwards]
            hint = "`--pod-running-timeout` waits longer"
            raise NotReadyError(text, reasons, hint=hint) from None
        self._check()


async def _all_ended(active: ActiveConfig) -> None:
    """Return when no target has a pod any more, and none will come."""
    routes = [forward.route for forward in active.forwards.values()]
    while left := [route for route in routes if not (route.given and route.given.ended)]:
        await left[0].changed()


async def fail_when_ended(active: ActiveConfig) -> None:
    """Raise when `kubectl port-forward` would."""
    await _all_ended(active)
    raise KrelayError("lost connection to pod")
