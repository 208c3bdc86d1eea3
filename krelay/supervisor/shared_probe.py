"""Shared probes: one answer for all forwards that ask the same endpoint the same question."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from datetime import datetime
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary, WeakSet, WeakValueDictionary

from krelay.datapath.probe import ProbeError
from krelay.datapath.route import Route
from krelay.datapath.stream_pool import StreamPool
from krelay.model import Check, Endpoint

Question = tuple[Endpoint, Check]
Probe = Callable[[], Awaitable[ProbeError | None]]


class Proof(NamedTuple):
    """What showed that the endpoint works, and when."""

    what: str
    when: datetime

    def __str__(self) -> str:
        when = self.when.astimezone()
        today = when.date() == datetime.now().astimezone().date()
        return f"{self.what} at {when:%H:%M}" if today else f"{self.what} on {when:%Y-%m-%d %H:%M}"


class SharedProbe:
    """The last answer of one endpoint to one kind of check through one pool.

    Hundreds of targets may lead to a few endpoints. Forwards with the same endpoint, check and
    pool share one answer, so that probes cost by the endpoint and not by the target.

    `at` is when the last answered probe began, or when traffic proved that the endpoint works;
    `failure` is None if it worked. `proof` is the last proof that it works; None since it did not.
    """

    def __init__(self) -> None:
        self.at = -math.inf
        self.failure: ProbeError | None = None
        self.proof: Proof | None = None
        self._carriers: WeakSet[Any] = WeakSet()
        self._began = -math.inf
        self._ended: asyncio.Event | None = None

    def worked(self, at: float) -> None:
        """Record that the endpoint worked."""
        self.at, self.failure = at, None

    def proves(self, proof: Proof, route: Route) -> None:
        """Keep a proof for as long as what carries the streams of `route` now lives."""
        if self.proof is None:
            self._carriers.clear()
        self.proof = proof
        self._carriers.update(route.carriers)

    def lasting(self, route: Route) -> Proof | None:
        """Return the proof if it was made by what carries the streams of `route` now."""
        return self.proof if any(each in self._carriers for each in route.carriers) else None

    async def ask(self, probe: Probe, since: float) -> ProbeError | None:
        """Return the newest answer from `since` on; probe, or wait for a running probe, to get one.
        Raises what `probe` raises."""
        while self.at < since:
            if self._ended is not None and self._began >= since:
                await self._ended.wait()
                continue
            began = self._began = asyncio.get_running_loop().time()
            ended = self._ended = asyncio.Event()
            try:
                failure = await probe()
                if self.at <= began:
                    self.at, self.failure = began, failure
                    self.proof = None if failure else self.proof
                # Otherwise traffic has shown something newer.
                return self.failure
            finally:
                if self._ended is ended:
                    self._ended = None
                ended.set()
        return self.failure


_ByQuestion = WeakValueDictionary[Question, SharedProbe]
_shared: WeakKeyDictionary[StreamPool, _ByQuestion] = WeakKeyDictionary()


def shared_probe(pool: StreamPool, endpoint: Endpoint, check: Check) -> SharedProbe:
    """Return the shared answer, which lives as long as a forward holds it."""
    known = _shared.setdefault(pool, WeakValueDictionary())
    found = known.get((endpoint, check))
    if found is None:
        found = known[endpoint, check] = SharedProbe()
    return found
