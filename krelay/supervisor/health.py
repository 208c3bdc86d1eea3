"""Health: how one forward is, by what is known of the way and what was last heard from its end.

Whatever changes calls `look`, which judges at once; the task only probes: at the times when no
real traffic has shown that the endpoint works.
"""

from __future__ import annotations

import asyncio
import logging
import math
import random
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from krelay.datapath.probe import NoRouteError, ProbeError, probe
from krelay.model import Check, CheckKind, Endpoint, Kind, Protocol
from krelay.state.events import EventBus
from krelay.state.snapshot import State
from krelay.supervisor.probing import Answers, answers
from krelay.tasks import TaskGroup, keep
from krelay.wire.errors import ErrorCode

if TYPE_CHECKING:
    from krelay.supervisor.forward import Forward

logger = logging.getLogger("krelay.health")

INTERVAL = 10.0
"""Seconds for which a dial or a probe that worked is good; so long it is not probed again. What is
never probed is taken to work again so long after a connection that did not."""
PLAIN_INTERVAL = 60.0
"""The same where each probe is a tunnel of its own."""
AGAIN = (0.25, 0.5, 1.0, 2.0, 5.0, INTERVAL)
"""Seconds from each probe that did not work to the next one."""
TICK = 1.0
"""What is due in the same second is probed together: a few packets for all of it."""
_CONFIRM_WAIT = 0.5
_CHECKING = "being checked"
_NO_TUNNEL = "no tunnel to the agent"

_LEVELS = {
    State.DEGRADED: logging.WARNING,
    State.FAILED: logging.WARNING,
    State.DRAINING: logging.DEBUG,
}

# What an agent answers for reasons of its own or of the client's.
_NOT_ITS = (ErrorCode.GOING_AWAY, ErrorCode.CANCELLED, ErrorCode.LIMIT, ErrorCode.INTERNAL)


class Health:
    """`state`, why (`reason`) and `since` when. `start` has it probed, `drain` ends that."""

    def __init__(self, forward: Forward, bus: EventBus) -> None:
        """It looks at `forward` and its route, hears of its traffic, and tells `bus`."""
        self.state = State.PENDING
        self.reason = "not bound yet"
        self.since = datetime.now(UTC)
        self._forward = forward
        self._bus = bus
        self._worked = False
        self._draining = False
        # The last dial or probe: None from when the way changed.
        self._verdict: bool | None = None
        self._failure = ""
        self._leads = forward.spec.leads
        self._asked: tuple[Endpoint | None, Check] | None = None
        # Where forwards that ask the same keep the answers, and from when on one is news here.
        self._answers: Answers | None = None
        self._since = 0.0
        self._tries = 0
        self._proved_at = 0.0
        self._due = 0.0
        self._wake = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        forward.metrics.on_dial = self._dialled
        forward.route.on_change = self.look

    @property
    def check(self) -> Check:
        """How it is probed."""
        target = self._forward.spec.target
        if target.kind is Kind.PROXY:
            return Check(CheckKind.NONE)
        return target.check.of(self._forward.speaks or Protocol.TCP)

    @property
    def _probed(self) -> bool:
        return self.check.kind is not CheckKind.NONE

    def start(self, tasks: TaskGroup) -> None:
        """Have it probed from now on, by a task of `tasks`."""
        if self._task is None:
            name = f"health {self._forward.name}"
            self._task = tasks.create_task(keep(self._run, name), name=name)

    def drain(self) -> None:
        """It takes nothing new, and is probed no more."""
        if not self._draining:
            self._draining = True
            self._set(State.DRAINING, "")
        if self._task is not None:
            self._task.cancel()

    def look(self) -> None:
        """Judge by what is there now."""
        if self._draining:
            return
        spec = self._forward.spec
        if spec.leads != self._leads:
            self._leads, self._worked, self._asked = spec.leads, False, None
            self._set(State.PENDING, _CHECKING)
        obstacle = self._obstacle()
        asked = None if obstacle else (self._forward.route.endpoint, self.check)
        if asked != self._asked:
            # What was true of another way says nothing about this one.
            self._asked, self._verdict, self._tries = asked, None, 0
            self._answers = self._shared()
            self._since = asyncio.get_running_loop().time()
            self._probe_at(0.0)
        if self._verdict is None:
            self._wake.set()
        self._set(*self._judged(obstacle))

    # -- judging -------------------------------------------------------------------------------

    def _obstacle(self) -> tuple[State, str] | None:
        """What keeps a connection from being dialled, and how bad that is where it never worked."""
        route = self._forward.route
        if route.endpoint is None:
            missing = route.resolution.missing if route.resolution else bool(route.trouble)
            return State.FAILED if missing else State.PENDING, route.reason
        if route.pool.pick() is None:
            failure = route.pool.failure
            why = f": {failure or type(failure).__name__}" if failure is not None else " yet"
            return State.PENDING, f"{_NO_TUNNEL}{why}"
        return None

    def _judged(self, obstacle: tuple[State, str] | None) -> tuple[State, str]:
        forward = self._forward
        if forward.failure is not None:
            return State.FAILED, str(forward.failure)
        if obstacle is not None:
            state, reason = obstacle
            return State.DEGRADED if self._worked else state, reason
        if forward.listener is None:
            return State.PENDING, "not bound yet"
        if self._verdict is False:
            return State.DEGRADED if self._worked else State.FAILED, self._failure
        if self._verdict or not self._probed or self.state is State.READY:
            return State.READY, ""
        return State.DEGRADED if self._worked else State.PENDING, _CHECKING

    def _set(self, state: State, reason: str) -> None:
        before, known = self.state, self.reason
        if (before, known) == (state, reason):
            return
        self.state, self.reason = state, reason
        self._worked = self._worked or state is State.READY
        if before is not state:
            self.since = datetime.now(UTC)
        elif reason == _CHECKING or state is State.PENDING or reason.startswith(_NO_TUNNEL):
            return  # no news, or told by the tunnel
        spec, name = self._forward.spec, self._forward.name
        text = f"{name}: {state}{reason and f': {reason}'}"
        # Who failed to bind or to resolve has told it.
        told = bool(reason) and reason in (str(self._forward.failure), self._forward.route.reason)
        logger.log(logging.DEBUG if told else _LEVELS.get(state, logging.INFO), "%s", text)
        details = {"from": before.value, "to": state.value, "reason": reason, "index": spec.index}
        self._bus.tell("state", text, target=spec.target.name, **details)

    def _dialled(self, code: ErrorCode | None, message: str) -> None:
        """Real traffic reached its end, or did not."""
        if self._draining or self._forward.spec.target.kind is Kind.PROXY:
            return
        if code is None:
            now = asyncio.get_running_loop().time()
            if self._answers is not None:
                self._answers.worked(now)
            self._proved(now)
        elif code not in _NOT_ITS:
            self._failed(explain(code, message))

    def _proved(self, at: float) -> None:
        self._proved_at = at
        self._since = math.nextafter(at, math.inf)
        costly = not all(t.multiplexed for t in self._forward.route.pool.tunnels)
        due = at + (PLAIN_INTERVAL if costly else INTERVAL) * random.uniform(1.0, 1.1)
        self._due = math.ceil(due / TICK) * TICK
        self._tries = 0
        if self._verdict is not True:
            self._verdict = True
            self.look()

    def _failed(self, reason: str) -> None:
        """A connection that is refused while that is known changes nothing about the next probe."""
        news = self._verdict is not False
        self._verdict, self._failure = False, reason
        if news:
            self._tries = 0
        if news or not self._probed:
            self._again()
        self.look()

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
            wanted = (
                self._asked is not None
                and self._forward.listener is not None
                and (self._probed or self._verdict is False)
            )
            if not wanted:
                await self._wake.wait()
            elif (left := self._due - clock()) > 0:
                await self._sleep(left)
            elif self._probed:
                await self._probe()
            else:
                # Nobody would ever learn that it works again.
                self._verdict = None
                self.look()

    async def _sleep(self, seconds: float) -> None:
        timer = asyncio.get_running_loop().call_later(seconds, self._wake.set)
        try:
            await self._wake.wait()
        finally:
            timer.cancel()

    def _shared(self) -> Answers | None:
        endpoint = self._forward.route.endpoint
        if self._asked is None or endpoint is None:
            return None
        return answers(self._forward.route.pool, endpoint, self.check)

    async def _probe(self) -> None:
        """One probe; a second one before what was ready is said not to be."""
        asked, route, shared = self._asked, self._forward.route, self._answers
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
            # What is in the way is told, and its end wakes.
            self._again()
            return
        if asked != self._asked:
            return  # it was of another way
        if failure is None:
            self._proved(max(shared.at, self._proved_at))
        elif self._proved_at < shared.at:  # else traffic has told what is newer
            self._since = math.nextafter(shared.at, math.inf)
            self._tell(failure)

    def _tell(self, failure: ProbeError) -> None:
        known = self._verdict is False
        message = str(failure)
        self._failed(explain(failure.code, message) if failure.code is not None else message)
        if known:
            self._again()

    async def _ask(self) -> ProbeError | None:
        try:
            await probe(self.check, self._forward.route)
        except ProbeError as exc:
            return exc
        except NoRouteError:
            raise
        except Exception as exc:
            # One forward's bug is its own; let through, it would end every other.
            logger.exception("%s: probing failed", self._forward.name)
            return ProbeError(f"internal error: {exc!r}")
        return None


def explain(code: ErrorCode, message: str) -> str:
    """An agent's answer for people: what it means for the target."""
    end = f" ({message})" if message else ""
    if code is ErrorCode.REFUSED:
        return f"refused: the agent reached the host, but nothing listens there{end}"
    if code is ErrorCode.NO_SUCH_HOST:
        return f"no such host: the cluster does not know the name{end}"
    if code is ErrorCode.RESOLVE_TIMEOUT:
        return f"timed out: the cluster's DNS did not answer{end}"
    if code is ErrorCode.CONNECT_TIMEOUT:
        return (
            "timed out: no answer at all: the host is down, or something drops the packets, as a"
            f" NetworkPolicy or a firewall does{end}"
        )
    if code is ErrorCode.UNREACHABLE:
        return f"unreachable: the agent's network has no way there{end}"
    return f"{code.text}{end}"
