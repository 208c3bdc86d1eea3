"""Supervisor: from the newest Config to what runs, and back to nothing; owns every lifetime."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Coroutine
from datetime import UTC, datetime
from functools import partial
from typing import Any

from krelay.config.changes import Change, changes
from krelay.config.diff import Plan, diff
from krelay.errors import KrelayError, NotFoundError
from krelay.model import Config
from krelay.net.host_monitor import watch_routes, watch_sleep
from krelay.retry import Backoff
from krelay.state.error_codec import to_json
from krelay.state.events import EventBus
from krelay.supervisor.active import ActiveConfig
from krelay.supervisor.apply_request import ApplyRequest
from krelay.supervisor.contexts import Contexts
from krelay.supervisor.forward import Forward
from krelay.supervisor.malloc_trim import give_back
from krelay.supervisor.warming import WarmingConfig
from krelay.tasks import TaskGroup, keep, shield_cleanup

logger = logging.getLogger("krelay.supervisor")

_SETTLE_DEADLINE = 10.0
_HURRY = 5.0
"""Seconds that the removal of agents may take once krelay is to end at once."""
_RETRY_FIRST, _RETRY_MOST = 2.0, 60.0
_ENDING = "krelay is ending"


class Supervisor:
    """Runs one Config after the other. `announce` is told of each forward that is ready."""

    def __init__(
        self,
        config: Config,
        announce: Callable[[Forward], None],
        *,
        contexts: Contexts | None = None,
        strict: bool = False,
        must_exist: bool = False,
        bus: EventBus | None = None,
    ) -> None:
        """`strict`: what cannot be bound or followed at the start is an error, not just told.
        `must_exist`: so it is that no target or port exists, or where it is strict, that one does
        not. `contexts` has the API clients; `bus` is told what happens."""
        self._announce = announce
        self._contexts = contexts or Contexts()
        self._strict = strict
        self._must_exist = must_exist
        self.bus = bus or EventBus()
        self.generation = 1
        """How many configs were carried out, the first one too."""
        self.carried_out = 0
        """How many times the file was carried out or nothing had changed, after the start."""
        self.refused = 0
        """How many could not be, at first."""
        self.ending = False
        """Whether it was told to stop."""
        self._running: ActiveConfig | None = None
        self.started = asyncio.Event()
        """Every forward of the first config is ready, waits, or has failed and was told."""
        self._want = ApplyRequest(config, "start")
        self._newer = asyncio.Event()
        self.applied_at: datetime | None = None
        self.applied = asyncio.Event()
        """Set whenever a config was carried out after the first; for one who waits and clears."""

    @property
    def running(self) -> ActiveConfig:
        """What runs, from when `run` has begun."""
        assert self._running is not None
        return self._running

    async def run(self, stop: asyncio.Event) -> None:
        """Start, relay until `stop` is set, drain, clean up.

        Cancelling it skips the draining, and leaves the removal of agents a few seconds; the log
        names each Job that may be left behind.

        Raises:
            KrelayError: it could not start; its agents are removed, or named in the log.
        """
        contexts = self._contexts
        running: ActiveConfig | None = None
        try:
            async with TaskGroup() as tasks:
                running = self._running = ActiveConfig(contexts, tasks, self._bound, self.bus)
                for name, work in (
                    ("sleep", partial(watch_sleep, partial(running.network_changed, broken=True))),
                    (
                        "routes",
                        partial(watch_routes, partial(running.network_changed, broken=False)),
                    ),
                    ("thrift", partial(give_back, running.streams)),
                ):
                    tasks.create_task(keep(work, f"the watch of {name}"), name=name)
                await self._run(running, contexts, tasks, stop)
                raise _StoppedError
        except _StoppedError:
            pass
        finally:
            if running is not None:
                running.cut()
                hurry = asyncio.current_task().cancelling() > 0  # type: ignore[union-attr]
                # Also after a cancellation: nothing else removes the agents.
                await shield_cleanup(
                    _within(_HURRY if hurry else None, running.stop()), within=_HURRY
                )

    def want(self, config: Config, reason: str) -> ApplyRequest:
        """Have `config` carried out, rather than any before it; `done` tells when that is over."""
        if config == self._want.config and not self._want.done.is_set():
            return self._want
        former, self._want = self._want, ApplyRequest(config, reason)
        former.replace(self._want)
        self._newer.set()
        if self.ending:
            self._want.give_up(KrelayError(_ENDING))
        return self._want

    def plan(self, config: Config) -> list[Change]:
        """What carrying out `config` would do to what runs now."""
        running = self.running
        return self._lines(diff(running.config, config), config, running)

    # -- running -------------------------------------------------------------------------------

    async def _run(
        self,
        running: ActiveConfig,
        contexts: Contexts,
        tasks: TaskGroup,
        stop: asyncio.Event,
    ) -> None:
        stopping = tasks.create_task(stop.wait(), name="stop")
        starting = tasks.create_task(self._start(running, contexts, tasks), name="start")
        await asyncio.wait({stopping, starting}, return_when=asyncio.FIRST_COMPLETED)
        if not stopping.done():
            starting.result()
            following = tasks.create_task(self._follow(running, contexts, tasks), name="wants")
            await stopping
            following.cancel()
        else:
            starting.cancel()
        self.ending = True
        self._want.give_up(KrelayError(_ENDING))
        config = running.config or self._want.config
        running.drain(config.tunnel.drain)
        live = sum(thing.live for thing in running.ending if isinstance(thing, Forward))
        if live:
            logger.info("draining %d connections; press Ctrl-C again to cut them", live)
        await running.drained()

    async def _start(self, running: ActiveConfig, contexts: Contexts, tasks: TaskGroup) -> None:
        """The first config: what cannot be had is an error now."""
        want = self._want
        stage = WarmingConfig(want.config, diff(None, want.config), contexts, tasks)
        await stage.prepare()
        running.commit(stage)
        # What needs nobody's answer binds before anything is made in the cluster: a port in use
        # must not cost an agent.
        await self._settled([f for f in running.forwards.values() if f.certain])
        self._check(running)
        async with TaskGroup() as warming:
            warming.create_task(stage.warm())
            await stage.answers()
            self._check(running)
        await self._settled(list(running.forwards.values()))
        self._check(running)
        self.started.set()
        for forward in running.forwards.values():
            if forward.listener is not None:
                self._bound(forward)
            elif forward.failure is None:
                logger.warning("%s: waiting: %s", forward.name, forward.route.reason)
        want.done.set()

    async def _follow(self, running: ActiveConfig, contexts: Contexts, tasks: TaskGroup) -> None:
        """Carry out what is wanted, the newest only, for ever."""
        backoff = Backoff(_RETRY_FIRST, _RETRY_MOST)
        delay: float | None = None
        while True:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay):
                    await self._newer.wait()
            if self._newer.is_set():
                backoff = Backoff(_RETRY_FIRST, _RETRY_MOST)
            self._newer.clear()
            want = self._want
            try:
                await self._carry_out(want, running, contexts, tasks)
                delay, want.failure = None, None
                self.applied.set()
            except KrelayError as exc:
                if want.failure is None:
                    self.refused += 1
                if str(exc) != str(want.failure):
                    logger.error("not applied, what ran before stays: %s", exc.line())
                    self.bus.tell("reload", f"not applied: {exc}", error=to_json(exc))
                want.failure = exc
                delay = _RETRY_FIRST + backoff.delay()
            except Exception as exc:
                # An edit that finds a bug must not end what runs.
                logger.exception("not applied")
                self.refused += 1
                error = KrelayError(f"internal error: {type(exc).__name__}")
                want.failure, delay = error, None
            if want is self._want:
                want.done.set()

    async def _carry_out(
        self, want: ApplyRequest, running: ActiveConfig, contexts: Contexts, tasks: TaskGroup
    ) -> None:
        """All of it, or nothing and an error; or nothing, where a newer one comes meanwhile."""
        plan = diff(running.config, want.config)
        if not plan:
            running.config = want.config
            self._count(want)
            logger.debug("nothing changed (%s)", want.reason)
            return
        lines = self._lines(plan, want.config, running)
        stage = WarmingConfig(want.config, plan, contexts, tasks)
        try:
            ready = await self._warmed(stage)
            # A commit must not follow the drain: take a cancellation that is on its way.
            await asyncio.sleep(0)
        except BaseException:
            await shield_cleanup(stage.discard(), within=_HURRY)
            raise
        if not ready:
            await shield_cleanup(stage.discard(), within=_HURRY)
            return
        running.commit(stage)
        await self._settled(
            [running.forwards[pair.new.key] for pair in plan.changed if pair.new is not None]
        )
        took = (datetime.now(UTC) - want.made).total_seconds()
        want.changes = lines
        self.generation += 1
        self._count(want)
        self.applied_at = datetime.now(UTC)
        told = [str(line) for line in lines]
        text = f"applied ({want.reason}): {told[0]}" + (f", +{len(told) - 1}" if told[1:] else "")
        self.bus.tell("reload", text, generation=self.generation, changes=told)
        for line in lines:
            logger.info("%s (%s, %.2f s)", line, want.reason, took)

    def _count(self, want: ApplyRequest) -> None:
        """It is carried out; one that was refused at first counts as that alone."""
        self.carried_out += want.failure is None

    async def _warmed(self, stage: WarmingConfig) -> bool:
        """Whether the stage is ready; False when something newer is wanted before it is."""

        async def newer() -> None:
            await self._newer.wait()
            raise _SupersededError

        try:
            async with TaskGroup() as warming:
                watching = warming.create_task(newer())
                await stage.prepare()
                await stage.warm()
                watching.cancel()
        except _SupersededError:
            return False
        return True

    # -- the parts -----------------------------------------------------------------------------

    def _lines(self, plan: Plan, config: Config, running: ActiveConfig) -> list[Change]:
        return list(
            changes(plan, live=running.live, carried=running.carried, drain=config.tunnel.drain)
        )

    async def _settled(self, forwards: list[Forward]) -> None:
        """Each is bound, has failed, or has been waited for long enough."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_SETTLE_DEADLINE):
                for forward in forwards:
                    await forward.settled.wait()

    def _check(self, running: ActiveConfig) -> None:
        """At the start, no forward being of use is an error; where it is strict, one that is of
        none is enough."""
        failures: list[KrelayError | None] = []
        for forward in running.forwards.values():
            following = running.followings[forward.spec.target.name]
            failures.append(forward.failure or following.failure)
        found = [failure for failure in failures if failure is not None]
        if found and (self._strict or len(found) == len(failures)):
            raise found[0]
        meanings = [forward.route.resolution for forward in running.forwards.values()]
        missing = [meaning.reason for meaning in meanings if meaning and meaning.missing]
        if self._must_exist and missing and (self._strict or len(missing) == len(meanings)):
            raise NotFoundError(missing[0])

    def _bound(self, forward: Forward) -> None:
        if self.started.is_set():
            self._announce(forward)


async def _within(seconds: float | None, work: Coroutine[Any, Any, None]) -> None:
    """Await `work`, at most so many seconds; what it does not finish, it logs itself."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await work


class _StoppedError(Exception):
    """Ends the task group, and with it pools and watches."""


class _SupersededError(Exception):
    """Something newer is wanted."""
