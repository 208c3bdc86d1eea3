"""TargetWatcher: follow one target in the cluster and update the routes of its forwards."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from krelay.datapath.route import Route
from krelay.errors import KrelayError
from krelay.model import Resolution, Target
from krelay.retry import Backoff
from krelay.tasks import TaskGroup

logger = logging.getLogger("krelay.supervisor")

_RETRY_FIRST, _RETRY_MOST = 1.0, 30.0

Publish = Callable[[tuple[Resolution, ...]], None]
Follow = Callable[[Target, Publish], Awaitable[None]]
"""Calls `Publish` with what each port of the target means, in order, whenever that changes; lasts
as long as that may happen. Raises KrelayError."""


_NAMED = 3


class Failures:
    """Logs why targets are not followed: one line for all that fail alike in one turn of the loop,
    as the targets of one watch do."""

    def __init__(self) -> None:
        self._failed: dict[str, list[str]] = {}

    def add(self, name: str, exc: KrelayError) -> None:
        """Log this failure, soon."""
        if not self._failed:
            asyncio.get_running_loop().call_soon(self._flush)
        self._failed.setdefault(exc.line(), []).append(name)

    def _flush(self) -> None:
        failed, self._failed = self._failed, {}
        for text, names in failed.items():
            if len(names) == 1:
                logger.error("%s: not followed: %s", names[0], text)
            else:
                named = ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")
                logger.error("%d targets (%s) are not followed: %s", len(names), named, text)


class TargetWatcher:
    """One target, watched. It has an answer, or a `failure`, from when `answered` is set."""

    def __init__(
        self, target: Target, follow: Follow, tasks: TaskGroup, failures: Failures | None = None
    ) -> None:
        """Starts at once, as a task of `tasks`; `stop` ends it. `failures` is shared by targets
        that may fail together."""
        self.target = target
        self.answered = asyncio.Event()
        self.failure: KrelayError | None = None
        self._follow = follow
        self._failures = failures or Failures()
        self._latest: tuple[Resolution, ...] | None = None
        self._routes: tuple[Route, ...] = ()
        self._task = tasks.create_task(self._run(), name=target.name)

    def feed(self, routes: Sequence[Route]) -> None:
        """From now on its answers, the last one too, go to these: one for each port, in order."""
        self._routes = tuple(routes)
        self._tell()

    def stop(self) -> None:
        """The routes stay as they are."""
        self._task.cancel()

    async def _run(self) -> None:
        backoff = Backoff(_RETRY_FIRST, _RETRY_MOST)
        while True:
            try:
                await self._follow(self.target, self._publish)
            except KrelayError as exc:
                self._failed(exc)
            except Exception as exc:
                # One target's bug is its own; let through, it would end every other.
                logger.exception("%s: following failed", self.target.name)
                self._failed(KrelayError(f"internal error: {exc}"))
            else:
                return
            await asyncio.sleep(backoff.delay())

    def _publish(self, resolutions: tuple[Resolution, ...]) -> None:
        self._latest = resolutions
        self.failure = None
        self._tell()
        self.answered.set()

    def _failed(self, exc: KrelayError) -> None:
        """The routes stay as they are."""
        if str(exc) != str(self.failure):
            self._failures.add(self.target.name, exc)
        self.failure = exc
        self._tell()
        self.answered.set()

    def _tell(self) -> None:
        if self._latest is None:
            for route in self._routes:
                route.fail(str(self.failure or ""))
            return
        for route, resolution in zip(self._routes, self._latest, strict=bool(self._routes)):
            self._update(route, resolution)

    def _update(self, route: Route, resolution: Resolution) -> None:
        before = route.resolution
        if resolution == before:
            return
        route.update(resolution)
        if resolution.endpoint is None:
            logger.warning("%s: %s", self.target.name, resolution.reason)
        elif self.target.kind.in_cluster and not (
            before and before.endpoint == resolution.endpoint
        ):
            logger.info("%s: -> %s (%s)", self.target.name, resolution.endpoint, resolution.via)
