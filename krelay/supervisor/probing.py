"""Probing: forwards that lead to one endpoint share the answers of their probes.

Hundreds of targets may name a few objects. What one of them learns of an endpoint through a pool
holds for all that are checked alike, so that probes cost by the endpoint and not by the target.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from weakref import WeakKeyDictionary, WeakValueDictionary

from krelay.datapath.pool import Pool
from krelay.datapath.probe import ProbeError
from krelay.model import Check, Endpoint

Probe = Callable[[], Awaitable[ProbeError | None]]


class Answers:
    """What is known of one endpoint, by one kind of check, through one pool.

    `at` is when the last probe began that had an answer, or when traffic proved that the endpoint
    works; `failure` is None if it worked.
    """

    def __init__(self) -> None:
        self.at = -math.inf
        self.failure: ProbeError | None = None
        self._began = -math.inf
        self._ended: asyncio.Event | None = None

    def worked(self, at: float) -> None:
        """Record that the endpoint worked."""
        self.at, self.failure = at, None

    async def ask(self, probe: Probe, since: float) -> ProbeError | None:
        """Return the newest answer from `since` on; probe, or wait for who does, to have one.

        Raises:
            NoRouteError: `probe` did.
        """
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
                # Otherwise traffic has shown something newer.
                return self.failure
            finally:
                if self._ended is ended:
                    self._ended = None
                ended.set()
        return self.failure


_Known = WeakValueDictionary[tuple[Endpoint, Check], Answers]
_known: WeakKeyDictionary[Pool, _Known] = WeakKeyDictionary()


def answers(pool: Pool, endpoint: Endpoint, check: Check) -> Answers:
    """The answers that are shared; kept for as long as a forward keeps them."""
    known = _known.setdefault(pool, WeakValueDictionary())
    found = known.get((endpoint, check))
    if found is None:
        found = known[endpoint, check] = Answers()
    return found
