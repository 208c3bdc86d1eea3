"""Supervisor: make the newest config the active one, and own the lifetime of all that runs."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import Collection, Coroutine
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from krelay import __version__
from krelay.config.changes import Change
from krelay.config.watch import Mode
from krelay.errors import KrelayError, NotReadyError
from krelay.model import Config, Kind
from krelay.mux.log import about
from krelay.net.host_monitor import watch_routes, watch_sleep
from krelay.platforms import require_posix
from krelay.state.bus import EventBus
from krelay.state.events import ContextChanged, ContextResolved, Ending, ForwardBound, Started
from krelay.state.snapshot import Snapshot
from krelay.state.states import ContextState, ForwardState, readiness
from krelay.supervisor.active import ActiveConfig
from krelay.supervisor.contexts import Contexts, ContextUpdate
from krelay.supervisor.forward import Forward
from krelay.supervisor.malloc_trim import give_back
from krelay.supervisor.snapshot import agent_state, direct_state, forward_state
from krelay.supervisor.transitions.edits import ApplyRequest, Edits, OutOfSync
from krelay.supervisor.transitions.restarts import ENDING, Restarted, Restarts
from krelay.supervisor.transitions.start import Start, fail_when_ended
from krelay.supervisor.warming import HURRY
from krelay.tasks import TaskGroup, keep, shield_cleanup

logger = logging.getLogger("krelay.supervisor")


class Supervisor:
    """Runs one config after the other. `bus` carries its events.

    `Start`, `Edits` and `Restarts` change the active config, one at a time. All their tasks, and
    those of what runs, end with `run`.
    """

    def __init__(
        self,
        config: Config,
        *,
        contexts: Contexts | None = None,
        strict: bool = False,
        must_exist: bool = False,
        pod_running_timeout: float | None = None,
        watch_mode: Mode = Mode.AUTO,
    ) -> None:
        """Begin with `config`.

        Args:
            contexts: where API clients come from.
            strict: fail the start if any forward cannot bind or resolve, not only if all fail.
            must_exist: fail the start if no target exists; with `strict`, if any does not.
            pod_running_timeout: as kubectl, wait so many seconds at the start for a pod that runs,
                and end once the pods of all targets have ended.
            watch_mode: how changes of kubeconfig are noticed.

        Raises:
            KrelayError: this system cannot relay.
        """
        require_posix()
        self.bus = EventBus(self.snapshot)
        self.started = asyncio.Event()
        """Set once each forward of the first config is bound, waits, or has failed."""
        self.ending = False
        self._began = datetime.now(UTC)
        self._contexts = contexts or Contexts()
        self._contexts.on_resolved = self._context_resolved
        self._contexts.on_change = self._context_changed
        self._watch_mode = watch_mode
        self._tasks = TaskGroup()
        self.active = ActiveConfig(self._contexts, self._tasks, self.bus, self._bound)
        self._first = Start(
            self.active,
            self._contexts.failures,
            strict=strict,
            must_exist=must_exist,
            pod_running_timeout=pod_running_timeout,
        )
        # An edit and a restart change the active config one after the other.
        changing = asyncio.Lock()
        self.edits = Edits(
            config,
            self.active,
            self.bus,
            changing=changing,
            started=self.started,
            began=self._began,
        )
        self._restarts = Restarts(
            self.active, self._contexts, changing=changing, newer=self.edits.newer
        )

    # -- requests ------------------------------------------------------------------------------

    def apply(self, config: Config, reason: str) -> ApplyRequest:
        """Request that `config` becomes active, in the place of any config requested before."""
        request = self.edits.apply(config, reason)
        if self.ending:
            request.finish(failure=KrelayError(ENDING))
        return request

    def refuse(self, error: KrelayError) -> bool:
        """Record that the file is invalid; return whether this error is new."""
        return self.edits.refuse(error)

    async def restart(self, names: Collection[str] = ()) -> Restarted:
        """Begin anew with the targets of `names`, or with everything and other agents.

        Their connections are reset once the new agents and the targets have answered. Listeners
        stay; new connections wait. If a new agent cannot be started, nothing changes.

        Raises:
            UsageError: no such target is relayed.
            KrelayError: krelay is starting or stopping, or an agent cannot be started.
        """
        if self.ending:
            raise KrelayError(ENDING)
        if not self.started.is_set():
            raise KrelayError("krelay is starting", hint="`krelay wait` waits until it has")
        return await self._restarts.request(frozenset(names))

    def plan(self, config: Config) -> list[Change]:
        """Return what applying `config` would change now."""
        return self.edits.plan(config)

    async def reread_kubeconfig(self) -> list[Change]:
        """Read kubeconfig again, and return what has changed for the contexts in use."""
        return await self._contexts.reread()

    def _context_resolved(self, state: ContextState) -> None:
        state = self._with_namespaces(state, self.edits.request.config)
        about(logger, name=state.title).info("%s", state)
        self.bus.publish(ContextResolved(state))

    def _context_changed(self, update: ContextUpdate) -> None:
        state = self._with_namespaces(update.state, self.edits.request.config)
        self.bus.publish(ContextChanged(state, changes=update.words))
        self.active.context_changed(update.keys, moved=update.moved)
        self.edits.retry_now()

    # -- state ---------------------------------------------------------------------------------

    @property
    def files(self) -> tuple[str, ...]:
        """The file and those that it includes."""
        return self.edits.files

    @property
    def out_of_sync(self) -> OutOfSync | None:
        """How the file differs from the active config; None while it does not."""
        return self.edits.out_of_sync

    def snapshot(self) -> Snapshot:
        """Return the state of all that runs, without the figures of this process."""
        active = self.active
        return Snapshot(
            version=__version__,
            pid=os.getpid(),
            started=self._began,
            file=self.edits.file_state(),
            forwards=self._forward_states(),
            draining=sum(forward.live for forward in active.draining_forwards),
            agents=tuple(agent_state(group, self._context) for group in active.groups.values()),
            ending=self.ending,
            contexts=tuple(
                self._with_namespaces(state, active.config or self.edits.request.config)
                for state in self._contexts.states()
            ),
            direct=tuple(
                state
                for group in active.directs.values()
                if (state := direct_state(group, self._context)) is not None
            ),
        )

    def _forward_states(self) -> tuple[ForwardState, ...]:
        return tuple(map(self._forward_state, self.active.all_forwards()))

    def _forward_state(self, forward: Forward) -> ForwardState:
        active = self.active
        return forward_state(forward, active.config, self._context, active.why_direct)

    def _context(self, context: str | None) -> ContextState | None:
        """Return where a context of the active config leads; an embedded agent has none."""
        config = self.active.config
        return None if config and config.agent.embedded else self._contexts.state(context)

    def _with_namespaces(self, state: ContextState, config: Config) -> ContextState:
        return replace(state, namespaces=self._contexts.namespaces(state, config))

    async def wait_ready(
        self, timeout: float, *, then: str = "", hint: str | None = None
    ) -> tuple[ForwardState, ...]:
        """Return all forwards once they are ready, while `run` runs in another task.

        Raises:
            NotReadyError: they are not ready within `timeout` seconds; `then` says what follows,
                and `hint` what helps if no forward has a hint.
        """
        try:
            async with asyncio.timeout(timeout):
                return (await self.bus.wait_for(lambda snapshot: snapshot.ready)).forwards
        except TimeoutError:
            waiting = readiness(self._forward_states()).waiting
            message = f"not ready after {timeout:g} s{f'; {then}' if then else ''}"
            unready = [str(forward) for forward in waiting] or ["krelay is starting"]
            errors = [forward.last_error for forward in waiting if forward.last_error]
            hint = next((error.hint for error in errors if error.hint), hint)
            raise NotReadyError(message, unready, hint=hint) from None

    # -- running -------------------------------------------------------------------------------

    async def run(self, stop: asyncio.Event) -> None:
        """Start, relay until `stop` is set, drain, clean up.

        If cancelled, skip draining and leave the removal of agents a few seconds; the log names
        each Job that may be left behind.

        Raises:
            KrelayError: it could not start; its agents are removed, or named in the log.
        """
        active = self.active
        try:
            async with self._tasks:
                for name, work in (
                    ("sleep", partial(watch_sleep, partial(active.network_changed, broken=True))),
                    (
                        "routes",
                        partial(watch_routes, partial(active.network_changed, broken=False)),
                    ),
                    ("memory", partial(give_back, active.streams)),
                    ("kubeconfig", self._watch_kubeconfig),
                ):
                    self._tasks.create_task(keep(work, f"the watch of {name}"), name=name)
                await self._run(stop)
                raise _StoppedError
        except _StoppedError:
            pass
        finally:
            active.cut()
            hurry = asyncio.current_task().cancelling() > 0  # type: ignore[union-attr]
            # Also after a cancellation: nothing else removes the agents.
            stopped = _within(HURRY if hurry else None, active.stop())
            await shield_cleanup(stopped, within=HURRY)

    async def _watch_kubeconfig(self) -> None:
        await self.started.wait()  # what it needs to load must not delay the start
        await self._contexts.watch(self._watch_mode)

    async def _run(self, stop: asyncio.Event) -> None:
        tasks = self._tasks
        stopping = tasks.create_task(stop.wait(), name="stop")
        starting = tasks.create_task(self._start(), name="start")
        await asyncio.wait({stopping, starting}, return_when=asyncio.FIRST_COMPLETED)
        if not stopping.done():
            starting.result()
            running = [
                tasks.create_task(self.edits.run(), name="requests"),
                tasks.create_task(self._restarts.run(), name="restarts"),
            ]
            if self._first.ends_with_pods:
                running.append(tasks.create_task(fail_when_ended(self.active), name="pods"))
            await stopping
            for task in running:
                task.cancel()
        else:
            starting.cancel()
        await self._drain()

    async def _start(self) -> None:
        request = self.edits.request
        await self._first.run(request.config)
        self.started.set()
        for forward in self.active.forwards.values():
            if forward.listener is not None:
                self._bound(forward)
            elif forward.failure is None:
                log = about(logger, target=forward.spec.target.name, name=forward.name)
                log.warning("waiting: %s", forward.route.reason)
        request.finish()
        self.bus.publish(Started())

    async def _drain(self) -> None:
        self.ending = True
        self.edits.request.finish(failure=KrelayError(ENDING))
        self._restarts.refuse_waiting()
        active = self.active
        config = active.config or self.edits.request.config
        drain = config.tunnel.drain
        ending = Ending(active.drain(drain), drain)
        self.bus.publish(ending)
        if ending.moving:
            logger.info("%s", ending.line)
        await active.drained()

    # -- forwards ------------------------------------------------------------------------------

    def _bound(self, forward: Forward) -> None:
        """Announce a bound forward; those of the first config are announced together."""
        if self.started.is_set():
            state = self._forward_state(forward)
            proxy = forward.spec.target.kind is Kind.PROXY
            found = forward.route.resolution
            pod_port = found.pods[0].port if found and found.pods else None
            self.bus.publish(ForwardBound(state, proxy, pod_port))


async def _within(seconds: float | None, work: Coroutine[Any, Any, None]) -> None:
    """Await `work` for at most `seconds`; it logs itself what it did not finish."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            await work


class _StoppedError(Exception):
    """Ends the task group, and with it pools and watchers."""
