"""Health: judge the state of one forward, by its route, its traffic and its probes.

Each change of what is known calls `judge`, which judges at once. The task only probes, and only
while no real traffic has shown that the endpoint works.

With `check: auto` the kubelet says whether the program is ready, if it knows. One dial proves the
way to it, and lasts while the endpoint and the session to the agent stay, until a dial fails: each
dial is a line in the log of some program, and may be the only client that a debugger takes.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import random
from collections.abc import Callable
from datetime import UTC, datetime
from typing import NamedTuple

from krelay.config.diff import Spec
from krelay.datapath.metrics import ForwardMetrics
from krelay.datapath.probe import NoRouteError, ProbeError, probe, takes_one_client
from krelay.datapath.route import Route
from krelay.errors import ListenError
from krelay.model import Check, CheckKind, Kind, Protocol, Resolution
from krelay.mux.log import About, about
from krelay.state.bus import EventBus
from krelay.state.events import ForwardChanged
from krelay.state.states import State, Trouble
from krelay.supervisor.explain import dial_hint, missing_hint
from krelay.supervisor.shared_probe import Proof, Question, SharedProbe, shared_probe
from krelay.tasks import TaskGroup, keep
from krelay.wire.errors import ErrorCode

logger = logging.getLogger("krelay.health")

INTERVAL = 10.0
"""Seconds for which a dial or a probe that worked is proof enough; no probe is made meanwhile. A
forward without probes counts as working again so long after a connection that failed."""
PLAIN_INTERVAL = 60.0
"""The same if each probe needs its own tunnel."""
AGAIN = (0.25, 0.5, 1.0, 2.0, 5.0, INTERVAL)
"""Seconds from each failed probe to the next one."""
TICK = 1.0
"""Probes that are due in the same second are made together: a few packets for all of them."""
_CONFIRM_WAIT = 0.5
_MOST_PROOFS = 16
"""Endpoints whose proof a forward keeps, for when it leads to them again."""

_LEVELS = {
    State.DEGRADED: logging.WARNING,
    State.FAILED: logging.WARNING,
    State.DRAINING: logging.DEBUG,
}

_TROUBLES = (State.DEGRADED, State.FAILED)

_ACCEPTED = "its port accepted"
_PROOFS = {CheckKind.AUTO: _ACCEPTED, CheckKind.DIAL: _ACCEPTED}

_NOT_THE_ENDPOINT = (
    ErrorCode.GOING_AWAY,
    ErrorCode.CANCELLED,
    ErrorCode.LIMIT,
    ErrorCode.INTERNAL,
)
"""Answers of an agent that say nothing about the endpoint."""


class Judgement(NamedTuple):
    """A state and its reason.

    `logged`: the part that found the reason has logged it. `quiet`: a change of the reason alone
    is no event. `hint` says what mends it.
    """

    state: State
    reason: str = ""
    logged: bool = False
    quiet: bool = False
    hint: str = ""


_CHECKING = "being checked"


def _checking(state: State) -> Judgement:
    return Judgement(state, _CHECKING, quiet=True)


class Health:
    """The `state` of a forward, the `reason` for it, and `since` when.

    `start` begins to probe, `drain` ends that.
    """

    def __init__(self, spec: Spec, route: Route, metrics: ForwardMetrics, bus: EventBus) -> None:
        """Watch `route` and the traffic that `metrics` counts; publish changes on `bus`."""
        self.state = State.PENDING
        self._reason = "not bound yet"
        self.since = datetime.now(UTC)
        self.last_error: Trouble | None = None
        """The present trouble, or the last one."""
        self.spec = spec
        self._route = route
        self._bus = bus
        self._bound: Protocol | None = None
        self._bind_failure: ListenError | None = None
        self._worked = False
        self._draining = False
        # The result of the last dial or probe; None since the way to the endpoint changed.
        self._verdict: bool | None = None
        self._failure = self._hint = ""
        self.refused = False
        """Whether the endpoint refused the last dial."""
        self.on_refused: Callable[[], None] | None = None
        """Called at each refusal of the endpoint."""
        self._leads = spec.leads
        self._question: Question | None = None
        # Forwards with the same question share its answers; those from `_since` on are news here.
        self._shared: SharedProbe | None = None
        self._known: dict[Question, SharedProbe] = {}
        self._pool = route.pool
        self._since = 0.0
        self._tries = 0
        self._proved_at = 0.0
        self._proof: Proof | None = None
        self._due = 0.0
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        metrics.on_dial = self._dialled
        route.on_change = self.judge

    @property
    def protocol(self) -> Protocol | None:
        """The protocol that the forward is bound for, or is expected to be."""
        resolution = self._route.resolution
        resolved = resolution.protocol if resolution else None
        return self._bound or self.spec.protocol or resolved

    @property
    def reason(self) -> str:
        """Why the forward is not ready, or what its readiness rests on."""
        return self._basis() if self.state is State.READY else self._reason

    @property
    def check(self) -> Check:
        """How the endpoint is probed. `auto` means `dial` if the kubelet knows nothing of it."""
        target, protocol = self.spec.target, self.protocol or Protocol.TCP
        if target.kind is Kind.PROXY:
            return Check(CheckKind.NONE)
        check, found = target.check, self._route.resolution
        known = target.kind.in_cluster and (
            not (found and found.endpoint) or bool(found.pods) or found.unready
        )
        if check.kind is CheckKind.AUTO and not known:
            check = Check(CheckKind.DIAL)
        return check.of(protocol)

    @property
    def _auto(self) -> bool:
        return self.check.kind is CheckKind.AUTO

    @property
    def _probed(self) -> bool:
        return self.check.kind is not CheckKind.NONE and not self.why_not_probed

    @property
    def why_not_probed(self) -> str:
        """Why `auto` does not dial; empty if it does."""
        if not self._auto:
            return ""
        if self.protocol is Protocol.UDP:
            return "not probed: a UDP port answers nothing but its protocol"
        found, names = self._route.resolution, {self.spec.port.remote}
        if found is not None and found.endpoint is not None:
            names |= {found.endpoint.port, *(pod.port for pod in found.pods)}
        return "not probed: a debugger's port takes one client" if takes_one_client(names) else ""

    @property
    def _unready(self) -> str:
        """What the kubelet has against the program, as far as `auto` asks it."""
        found = self._route.resolution
        if not (self._auto and self.spec.target.ready and found and found.endpoint):
            return ""
        return f"{self._program} is not ready" if _is_unready(found) else ""

    @property
    def _program(self) -> str:
        return "its endpoint" if self.spec.target.kind is Kind.SERVICE else "the pod"

    def _basis(self) -> str:
        """Return what a ready state rests on."""
        if self.spec.target.kind is Kind.PROXY:
            return "the agent is connected"
        unproved = self.why_not_probed or ("being checked" if self._probed else "not probed")
        proof = str(self._proof or unproved)
        found = self._route.resolution
        if not (self._auto and found):
            return proof
        return f"{self._program} is {'not ' if _is_unready(found) else ''}ready; {proof}"

    @property
    def _log(self) -> About:
        return about(logger, target=self.spec.target.name, name=self.spec.name)

    def start(self, tasks: TaskGroup) -> None:
        """Probe from now on, in a task of `tasks`."""
        if self._task is None:
            name = f"health {self.spec.name}"
            self._task = tasks.create_task(keep(self._run, name), name=name)

    def drain(self) -> None:
        """Stop probing: the forward takes no new connections."""
        if not self._draining:
            self._draining = True
            self._set(Judgement(State.DRAINING))
        if self._task is not None:
            self._task.cancel()

    def restart(self) -> None:
        """Judge anew, as if the forward had just been added."""
        self._worked, self._question = False, None
        if not self._draining:
            self._set(_checking(State.PENDING))

    def bound(self, protocol: Protocol) -> None:
        """The forward listens."""
        self._bound, self._bind_failure = protocol, None
        self.judge()

    def bind_failed(self, failure: ListenError) -> None:
        """The forward cannot listen, for now."""
        self._bind_failure = failure
        self.judge()

    def unbound(self) -> None:
        """The forward listens no more; it is bound again or drained next."""
        self._bound = self._bind_failure = None

    def judge(self) -> None:
        """Judge by what is known now."""
        if self._draining:
            return
        if self.spec.leads != self._leads:
            self._leads, self._worked, self._question = self.spec.leads, False, None
            self._set(_checking(State.PENDING))
        obstacle = self._obstacle()
        endpoint = None if obstacle else self._route.endpoint
        question = (endpoint, self.check) if endpoint else None
        if question != self._question or (question and self._pool is not self._route.pool):
            # The last answer was about another way.
            self._question, self._tries = question, 0
            self._shared = self._shared_probe(question) if question else None
            self._since = asyncio.get_running_loop().time()
            self._proof = None
            if self._shared is not None and self._auto and self._probed:
                self._proof = self._shared.lasting(self._route)
            self._verdict = True if self._proof else None
            self._probe_at(0.0)
        if self._verdict is None:
            self._wake.set()
        self._set(self._judged(obstacle))

    def _shared_probe(self, question: Question) -> SharedProbe:
        """Return the shared answer to `question`, and keep it for when it comes up again."""
        if self._pool is not self._route.pool:
            self._pool = self._route.pool
            self._known.clear()
        found = shared_probe(self._pool, *question)
        self._known.pop(question, None)
        self._known[question] = found
        if len(self._known) > _MOST_PROOFS:
            del self._known[next(iter(self._known))]
        return found

    # -- judging -------------------------------------------------------------------------------

    def _obstacle(self) -> Judgement | None:
        """Return what keeps a connection from being dialled, for a forward that never worked."""
        route = self._route
        if route.endpoint is None:
            missing = route.resolution.missing if route.resolution else bool(route.trouble)
            state = State.FAILED if missing else State.PENDING
            hint = route.hint
            if missing and route.resolution is not None:
                hint = missing_hint(self.spec.target)
            return Judgement(state, route.reason, logged=bool(route.reason), hint=hint)
        if not route.reached:
            return Judgement(State.PENDING, route.obstacle, quiet=True)
        return None

    def _judged(self, obstacle: Judgement | None) -> Judgement:
        if self._bind_failure is not None:
            hint = self._bind_failure.hint or ""
            return Judgement(State.FAILED, str(self._bind_failure), logged=True, hint=hint)
        if obstacle is not None:
            return obstacle._replace(state=State.DEGRADED) if self._worked else obstacle
        if self._bound is None:
            return Judgement(State.PENDING, "not bound yet")
        if unready := self._unready:
            if self._verdict:
                return Judgement(State.DEGRADED, f"{unready}, but {self._proof}", quiet=True)
            both = f"{unready}; {self._failure}" if self._verdict is False else unready
            return Judgement(State.DEGRADED if self._worked else State.PENDING, both)
        if self._verdict is False:
            state = State.DEGRADED if self._worked else State.FAILED
            return Judgement(state, self._failure, hint=self._hint)
        if self._verdict or not self._probed or self.state is State.READY:
            return Judgement(State.READY)
        return _checking(State.DEGRADED if self._worked else State.PENDING)

    def _set(self, judgement: Judgement) -> None:
        state, reason, logged, quiet, hint = judgement
        before, known = self.state, self._reason
        heard = self._route.resolution is not None
        if reason not in ("", _CHECKING) and (state in _TROUBLES or (logged and heard)):
            last = self.last_error
            if last is None or before is State.READY or last.message != reason:
                self.last_error = Trouble(reason, hint, datetime.now(UTC))
        if (before, known) == (state, reason):
            return
        self.state, self._reason = state, reason
        self._worked = self._worked or state in (State.READY, State.DEGRADED)
        if before is not state:
            self.since = datetime.now(UTC)
        elif quiet or state is State.PENDING:
            return
        spec = self.spec
        level = logging.DEBUG if logged else _LEVELS.get(state, logging.INFO)
        self._log.log(level, "%s%s", state, f": {reason}" if reason else "")
        self._bus.publish(
            ForwardChanged(spec.target.name, spec.name, spec.index, before, state, reason)
        )

    def _dialled(self, code: ErrorCode | None, message: str) -> None:
        """Learn from real traffic: it reached the endpoint, or did not."""
        if self._draining or self.spec.target.kind is Kind.PROXY:
            return
        if code is None:
            now = asyncio.get_running_loop().time()
            udp = self.protocol is Protocol.UDP
            proof = Proof("it answered" if udp else _ACCEPTED, datetime.now(UTC))
            if self._shared is not None:
                self._shared.worked(now)
                self._shared.proves(proof, self._route)
            self._proved(now, proof)
        elif code not in _NOT_THE_ENDPOINT:
            if self._shared is not None:
                self._shared.proof = None
            self._failed(self._route.pool.explain(code, message), code)

    def _proved(self, at: float, proof: Proof) -> None:
        self._proved_at, self._proof, self.refused = at, proof, False
        self._since = math.nextafter(at, math.inf)
        costly = not self._route.pool.multiplexed
        due = at + (PLAIN_INTERVAL if costly else INTERVAL) * random.uniform(1.0, 1.1)
        self._due = math.ceil(due / TICK) * TICK
        self._tries = 0
        if self._verdict is not True or self._unready:
            self._verdict = True
            self.judge()

    def _failed(self, reason: str, code: ErrorCode | None = None) -> None:
        """Record a failure. A repeated one does not move the next probe."""
        self.refused = code is ErrorCode.REFUSED
        if self.refused and self.on_refused is not None:
            self.on_refused()
        first = self._verdict is not False
        self._verdict, self._failure, self._proof = False, reason, None
        self._hint = dial_hint(code, self.spec.target)
        if first:
            self._tries = 0
        if first or not self._probed:
            self._again()
        self.judge()

    # -- probing -------------------------------------------------------------------------------

    def _again(self) -> None:
        wait = AGAIN[min(self._tries, len(AGAIN) - 1)] if self._probed else INTERVAL
        self._tries += 1
        self._probe_at(asyncio.get_running_loop().time() + wait)

    def _probe_at(self, when: float) -> None:
        self._due = when
        self._wake.set()

    async def _run(self) -> None:
        clock = asyncio.get_running_loop().time
        while True:
            self._wake.clear()
            proved = self._verdict is True and self._auto
            wanted = (
                self._question is not None
                and self._bound is not None
                and ((self._probed and not proved) or self._verdict is False)
            )
            if not wanted:
                await self._wake.wait()
            elif (left := self._due - clock()) > 0:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(left):
                        await self._wake.wait()
            elif self._probed:
                await self._probe()
            else:
                # Without probes nothing else would show that it works again.
                self._verdict = None
                self.judge()

    async def _probe(self) -> None:
        """Probe once; twice before a forward that was ready is not."""
        question, route, shared = self._question, self._route, self._shared
        assert shared is not None
        try:
            failure = await shared.ask(self._ask, self._since)
            endpoint = route.endpoint
            sure = failure is None or failure.code is ErrorCode.CONNECT_TIMEOUT
            if not sure and self.state is State.READY and endpoint is not None:
                first = shared.at
                await route.wait_other(endpoint, _CONFIRM_WAIT)
                failure = await shared.ask(self._ask, math.nextafter(first, math.inf))
        except NoRouteError:
            # The obstacle has its own event; its end wakes this task.
            self._again()
            return
        if question != self._question:
            return
        if failure is None:
            proof = Proof(_PROOFS.get(self.check.kind, f"{self.check} passed"), datetime.now(UTC))
            shared.proves(proof, route)
            self._proved(max(shared.at, self._proved_at), proof)
        elif self._proved_at < shared.at:  # otherwise traffic has shown something newer
            self._since = math.nextafter(shared.at, math.inf)
            repeated, message = self._verdict is False, str(failure)
            if failure.code is not None:
                message = route.pool.explain(failure.code, message)
            self._failed(message, failure.code)
            if repeated:
                self._again()

    async def _ask(self) -> ProbeError | None:
        try:
            await probe(self.check, self._route)
        except ProbeError as exc:
            return exc
        except NoRouteError:
            raise
        except Exception as exc:
            # Let through, a bug in one forward's probe would end all forwards.
            self._log.exception("probing failed")
            return ProbeError(f"internal error: {exc!r}")
        return None


def _is_unready(resolution: Resolution) -> bool:
    """Return whether the kubelet calls the program behind the endpoint unready."""
    pods = resolution.pods
    return resolution.unready or (bool(pods) and not pods[0].ready)
