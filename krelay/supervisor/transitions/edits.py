"""Edits: make the newest valid config the active one, and know how far the file is from it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime

from krelay.config.changes import Change, changes
from krelay.config.diff import Plan, diff
from krelay.errors import ConfigError, KrelayError
from krelay.model import Config
from krelay.retry import Backoff, OnceUntilChanged
from krelay.state.bus import EventBus
from krelay.state.error_codec import to_json
from krelay.state.events import ConfigApplied, ConfigNotApplied, ConfigRefused
from krelay.state.states import FileState
from krelay.supervisor.active import ActiveConfig
from krelay.supervisor.forward import wait_settled

logger = logging.getLogger("krelay.supervisor")

_RETRY_FIRST, _RETRY_MOST = 2.0, 60.0


@dataclass(eq=False, slots=True)
class ApplyRequest:
    """A config on its way from the reloader to the supervisor, and its outcome.

    Once `done` is set, the config is active; or `failure` says why it is not (yet: the supervisor
    tries again); or a `newer` request took its place.
    """

    config: Config
    reason: str
    made: datetime = field(default_factory=lambda: datetime.now(UTC))
    done: asyncio.Event = field(default_factory=asyncio.Event)
    changes: list[Change] = field(default_factory=list)
    failure: KrelayError | None = None
    newer: ApplyRequest | None = None
    _callbacks: list[Callable[[], None]] = field(default_factory=list)

    def when_done(self, callback: Callable[[], None]) -> None:
        """Call `callback` once the request is done: now if it is."""
        if self.done.is_set():
            callback()
        else:
            self._callbacks.append(callback)

    def finish(
        self, *, newer: ApplyRequest | None = None, failure: KrelayError | None = None
    ) -> None:
        """Mark the request as done, unless it is: as replaced by `newer`, or as failed for good."""
        if self.done.is_set():
            return
        self.newer, self.failure = newer, failure or self.failure
        self.done.set()
        for callback in self._callbacks:
            callback()


@dataclass(frozen=True, slots=True)
class OutOfSync:
    """Since when the file differs from the active config, and the error that keeps it from being
    applied; without one it is being applied."""

    since: datetime
    error: KrelayError | None = None


class Edits:
    """Applies the newest requested config, and counts what became of the others."""

    def __init__(
        self,
        config: Config,
        active: ActiveConfig,
        bus: EventBus,
        *,
        changing: asyncio.Lock,
        started: asyncio.Event,
        began: datetime,
    ) -> None:
        """Begin with the request for `config`, which the start carries out.

        Change `active` only while holding `changing`. `began` is when the start began; `started` is
        set once it has ended.
        """
        self.files = config.files
        """The file and those that it includes."""
        self.request = ApplyRequest(config, "start")
        """The newest request."""
        self.newer = asyncio.Event()
        """Set while the newest request is to be applied, or tried again."""
        self._active = active
        self._bus = bus
        self._changing = changing
        self._started = started
        self._refused: OutOfSync | None = None
        self._generation = 1
        self._applied = 0
        self._failed = 0
        self._applied_at = began

    # -- requests ------------------------------------------------------------------------------

    def apply(self, config: Config, reason: str) -> ApplyRequest:
        """Request that `config` becomes active, in the place of any config requested before."""
        self.files = config.files
        if self._refused is not None:
            logger.info("%s is valid again", config.path)
            self._refused = None
        if config == self.request.config and not self.request.done.is_set():
            return self.request
        former, self.request = self.request, ApplyRequest(config, reason)
        former.finish(newer=self.request)
        self.newer.set()
        return self.request

    def refuse(self, error: KrelayError) -> bool:
        """Record that the file is invalid; return whether this error is new."""
        self._failed += 1
        known = self._refused
        self._refused = OutOfSync(known.since if known else datetime.now(UTC), error)
        if isinstance(error, ConfigError):
            self.files = tuple(dict.fromkeys((*error.files, *self.files)))
        if known and known.error and to_json(known.error) == to_json(error):
            return False
        self._bus.publish(ConfigRefused(error))
        return True

    def retry_now(self) -> None:
        """Apply at once, and from the beginning, a request that failed or is being applied."""
        if self._started.is_set() and (self.request.failure or not self.request.done.is_set()):
            self.newer.set()

    def plan(self, config: Config) -> list[Change]:
        """Return what applying `config` would change now."""
        return self._changes(diff(self._active.config, config), config)

    # -- state ---------------------------------------------------------------------------------

    @property
    def out_of_sync(self) -> OutOfSync | None:
        """How the file differs from the active config; None while it does not."""
        if self._refused is not None:
            return self._refused
        request = self.request
        # The start is not an edit.
        applying = self._started.is_set() and not request.done.is_set()
        return OutOfSync(request.made, request.failure) if request.failure or applying else None

    def file_state(self) -> FileState:
        """Return the state of the file."""
        out_of_sync = self.out_of_sync
        return FileState(
            path=self.files[0] if self.files else None,
            files=self.files,
            in_step=out_of_sync is None,
            generation=self._generation,
            reloads=self._applied,
            failed_reloads=self._failed,
            since=out_of_sync.since if out_of_sync else None,
            error=to_json(out_of_sync.error) if out_of_sync and out_of_sync.error else None,
            applied=self._applied_at,
        )

    # -- applying ------------------------------------------------------------------------------

    async def run(self) -> None:
        """Apply the newest request, again and again, until cancelled; retry one that failed."""
        backoff = Backoff(_RETRY_FIRST, _RETRY_MOST)
        failures = OnceUntilChanged()
        delay: float | None = None
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self.newer.wait()
            if self.newer.is_set():
                backoff.reset()
                failures.clear()
            self.newer.clear()
            request = self.request
            try:
                async with self._changing:
                    applied = await self._apply(request)
                if not applied:
                    continue
                delay, request.failure = None, None
            except KrelayError as exc:
                self._failed += request.failure is None
                request.failure = exc
                if failures.is_new(exc):
                    logger.error("not applied, the active config stays: %s", exc.line())
                    self._bus.publish(ConfigNotApplied(exc))
                delay = _RETRY_FIRST + backoff.delay()
            except Exception as exc:
                # An edit that triggers a bug must not end what runs.
                logger.exception("not applied")
                self._failed += 1
                error = KrelayError(f"internal error: {type(exc).__name__}")
                request.failure, delay = error, None
            if request is self.request:
                request.finish()

    async def _apply(self, request: ApplyRequest) -> bool:
        """Diff, warm up, commit. An error, or a newer request, leaves everything as it was.

        Return False if it is to be done again: for a newer request, or by another kubeconfig.
        """
        active = self._active
        plan = diff(active.config, request.config)
        if not plan:
            active.config = request.config
            self._count_applied(request)
            logger.debug("nothing changed (%s)", request.reason)
            return True
        lines = self._changes(plan, request.config)
        warm = active.warming(request.config, plan)
        if not await warm.warm_up(unless=self.newer):
            return False
        active.commit(warm)
        await wait_settled(
            [active.forwards[pair.new.key] for pair in plan.changed if pair.new is not None]
        )
        self._generation += 1
        self._applied_at = datetime.now(UTC)
        self._count_applied(request)
        request.changes = lines
        took = (self._applied_at - request.made).total_seconds()
        targets = {spec.target.name for pair in plan.pairs for spec in (pair.old, pair.new) if spec}
        for line in lines:
            extra = {"target": line.name} if line.name in targets else None
            logger.info("%s (%s, %.2f s)", line, request.reason, took, extra=extra)
        texts = tuple(str(line) for line in lines)
        self._bus.publish(ConfigApplied(request.reason, self._generation, texts))
        return True

    def _count_applied(self, request: ApplyRequest) -> None:
        """Count a reload that worked; one that failed at first has been counted as that."""
        self._applied += request.failure is None

    def _changes(self, plan: Plan, config: Config) -> list[Change]:
        active, drain = self._active, config.tunnel.drain
        return list(changes(plan, live=active.live, carried=active.carried, drain=drain))
