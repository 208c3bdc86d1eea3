"""TargetWatcher: follow one target in the cluster and update the routes of its forwards."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress

from krelay.datapath.route import Route
from krelay.errors import KrelayError
from krelay.model import Resolution, Target
from krelay.mux.log import about
from krelay.retry import Backoff, OnceUntilChanged
from krelay.tasks import TaskGroup

logger = logging.getLogger("krelay.supervisor")

_RETRY_FIRST, _RETRY_MOST = 1.0, 30.0
_NAMED = 3
"""Targets that a line about several of them names."""

Publish = Callable[[tuple[Resolution, ...]], None]
Follow = Callable[[Target, Publish], Awaitable[None]]
"""Calls `Publish` with the resolution of each port, in order, whenever one changes. Returns when
none can change any more. Raises KrelayError."""


class TargetWatcher:
    """Follows one target. From when `answered` is set, it has resolutions or a `failure`."""

    def __init__(
        self, target: Target, follow: Follow, tasks: TaskGroup, failures: Failures | None = None
    ) -> None:
        """Start at once, as a task of `tasks`. Targets that may fail together share `failures`."""
        self.target = target
        self.answered = asyncio.Event()
        self.failure: KrelayError | None = None
        self._follow = follow
        self._log = about(logger, target=target.name)
        self._failures = failures or Failures()
        self._reported = OnceUntilChanged()
        self._retry = asyncio.Event()
        self._latest: tuple[Resolution, ...] | None = None
        self._routes: tuple[Route, ...] = ()
        self._task = tasks.create_task(self._run(), name=target.name)

    def update(self, routes: Sequence[Route]) -> None:
        """Update these routes, one for each port, with the last answer and all further ones."""
        self._routes = tuple(routes)
        self._update_routes()

    def retry_now(self) -> None:
        """End the pause after a failure: what it failed by has changed."""
        self._retry.set()

    def stop(self) -> None:
        """Stop following; the routes stay as they are."""
        self._task.cancel()

    async def _run(self) -> None:
        backoff = Backoff(_RETRY_FIRST, _RETRY_MOST)
        while True:
            try:
                await self._follow(self.target, self._publish)
            except KrelayError as exc:
                self._failed(exc)
            except Exception as exc:
                # Let through, a bug in one target would end all targets.
                self._log.exception("following failed")
                self._failed(KrelayError(f"internal error: {exc}"))
            else:
                return
            with suppress(TimeoutError):
                async with asyncio.timeout(backoff.delay()):
                    await self._retry.wait()
            if self._retry.is_set():
                self._retry.clear()
                backoff.reset()

    def _publish(self, resolutions: tuple[Resolution, ...]) -> None:
        self._latest = resolutions
        self.failure = None
        self._reported.clear()
        self._update_routes()
        self.answered.set()

    def _failed(self, exc: KrelayError) -> None:
        """Record why the target is not followed; its routes keep their last resolution."""
        if self._reported.is_new(exc):
            self._failures.add(self.target.name, exc)
        self.failure = exc
        self._update_routes()
        self.answered.set()

    def _update_routes(self) -> None:
        if self._latest is None:
            hint = (self.failure.hint if self.failure else None) or ""
            for route in self._routes:
                route.fail(str(self.failure or ""), hint)
            return
        for route, resolution in zip(self._routes, self._latest, strict=bool(self._routes)):
            if resolution == route.given:
                continue
            former = route.endpoint
            route.update(resolution)
            if route.endpoint is None:
                self._failures.unresolved(self.target.name, route.reason)
            elif self.target.kind.in_cluster and former != route.endpoint and route.resolution:
                self._log.info("-> %s (%s)", route.endpoint, route.resolution.via)


async def follow_constant(target: Target, publish: Publish) -> None:
    """Publish the resolutions of a host or an address, which never change."""
    publish(tuple(Resolution.as_given(target, port) for port in target.ports))


class Failures:
    """Logs why targets are not followed: one line for all that fail alike in one turn of the event
    loop, as the targets of one watch do.

    It also logs why targets are not resolved. While held, it keeps everything back.
    """

    def __init__(self) -> None:
        self._failed: dict[str, list[str]] = {}
        self._unresolved: dict[tuple[str, str], None] = {}
        self._held = False

    def hold(self) -> None:
        """Log nothing until `release`."""
        self._held = True

    def release(self, *told: str) -> None:
        """Log what has been kept back, but not the texts that are `told` elsewhere."""
        if not self._held:
            return
        self._held = False
        unresolved, self._unresolved = self._unresolved, {}
        for name, reason in unresolved:
            if reason not in told:
                self.unresolved(name, reason)
        for text in told:
            self._failed.pop(text, None)
        self._flush()

    def add(self, name: str, exc: KrelayError) -> None:
        """Log this failure at the end of the turn."""
        if not self._failed and not self._held:
            asyncio.get_running_loop().call_soon(self._flush)
        self._failed.setdefault(exc.line(), []).append(name)

    def unresolved(self, name: str, reason: str) -> None:
        """Log why a target has no endpoint."""
        if self._held:
            self._unresolved[name, reason] = None
        else:
            about(logger, target=name).warning("%s", reason)

    def _flush(self) -> None:
        if self._held:
            return
        failed, self._failed = self._failed, {}
        for text, names in failed.items():
            if len(names) == 1:
                about(logger, target=names[0]).error("not followed: %s", text)
            else:
                named = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
                logger.error(
                    "%d targets (%s) are not followed: %s",
                    len(names),
                    named,
                    text,
                    extra={"targets": tuple(names)},
                )
