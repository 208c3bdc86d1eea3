"""The account of a run: what was carried, what became of it, and how long anything stood still."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from dataclasses import dataclass, field

EXACT, RESET, WRONG, TRUNCATED, HUNG = "exact", "reset", "wrong bytes", "truncated", "hung"
SILENT = (WRONG, TRUNCATED, HUNG)
"""Ends that no connection may have."""

now = time.monotonic


@dataclass(eq=False)
class Carried:
    """One connection. `end` is empty while it lives; `cause` says why it was reset."""

    key: int
    pod: str = ""
    opened: float = field(default_factory=now)
    moved: float = field(default_factory=now)
    stall: float = 0.0
    received: int = 0
    faults: int = 0
    end: str = ""
    detail: str = ""
    cause: str = ""
    ended: float = 0.0


@dataclass(eq=False)
class Recovery:
    """From the end of a fault: until the first connection moved, and until all of them had."""

    kind: str
    healed: float
    waiting: set[Carried]
    first: float | None = None
    every: float | None = None

    def moved(self, one: Carried) -> None:
        """It did, or it has ended."""
        if one not in self.waiting:
            return
        self.waiting.discard(one)
        passed = now() - self.healed
        if self.first is None and not one.end:
            self.first = passed
        if not self.waiting:
            self.every = passed


@dataclass
class Killer:
    """Something was deleted: these target pods, or (none) the agent, between these times."""

    kind: str
    pods: frozenset[str]
    begun: float
    done: float = float("inf")


class Account:
    """Clients and faults write it, the report reads it."""

    def __init__(self) -> None:
        self.live: set[Carried] = set()
        self.ended: list[Carried] = []
        self.faults: Counter[str] = Counter()
        self.asked: Counter[str] = Counter()
        self.datagrams: Counter[str] = Counter()
        self.slowest_answer = 0.0
        self.recoveries: list[Recovery] = []
        self.killers: list[Killer] = []
        self._open: list[Recovery] = []

    # -- connections ---------------------------------------------------------------------------

    def opened(self, one: Carried) -> None:
        """A connection is there."""
        self.live.add(one)

    def progress(self, one: Carried, count: int) -> None:
        """It received something."""
        at = now()
        one.stall = max(one.stall, at - one.moved)
        one.moved = at
        one.received += count
        self._tell(one)

    def close(self, one: Carried, end: str, detail: str = "") -> None:
        """It has ended."""
        one.end, one.detail, one.ended = end, detail, now()
        one.stall = max(one.stall, one.ended - one.moved)
        if end == RESET:
            one.cause = self._cause(one)
        self.live.discard(one)
        self.ended.append(one)
        self._tell(one)

    def _cause(self, one: Carried) -> str:
        for killer in self.killers:
            by_pod = one.pod in killer.pods
            by_agent = not killer.pods and one.opened <= killer.done
            if killer.begun <= one.ended and (by_pod or by_agent):
                return killer.kind
        return "unexplained" if one.pod else "not opened"

    # -- faults --------------------------------------------------------------------------------

    def kill(self, kind: str, pods: frozenset[str] = frozenset()) -> Killer:
        """Record that these pods end; connections to them may be reset from now on."""
        killer = Killer(kind, pods, now())
        self.killers.append(killer)
        return killer

    def fault(self, kind: str) -> None:
        """One begins."""
        self.faults[kind] += 1
        for one in self.live:
            one.faults += 1

    def healed(self, kind: str) -> None:
        """It is over: what lives is to move again."""
        recovery = Recovery(kind, now(), set(self.live))
        self.recoveries.append(recovery)
        self._open.append(recovery)

    def _tell(self, one: Carried) -> None:
        for recovery in self._open:
            recovery.moved(one)
        self._open = [recovery for recovery in self._open if recovery.waiting]

    def times(self, kind: str) -> dict[str, float]:
        """Median and longest recovery after faults of this kind, in seconds."""
        of = [recovery for recovery in self.recoveries if recovery.kind == kind]
        found: dict[str, float] = {}
        for name in ("first", "every"):
            times = [t for one in of if (t := getattr(one, name)) is not None]
            if times:
                found[f"{name}Median"] = round(statistics.median(times), 3)
                found[f"{name}Max"] = round(max(times), 3)
        return found
