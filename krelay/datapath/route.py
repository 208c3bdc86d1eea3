"""Route: second stage of the data path; where new streams of a forward go, and by which pool."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import math
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import replace

from krelay.datapath.stream_pool import StreamPool
from krelay.model import Endpoint, Resolution
from krelay.wire.header import TCP, Header

logger = logging.getLogger("krelay.tunnel")

AVOIDED = 300.0
"""Seconds for which an endpoint that refused is avoided while those behind it stay the same."""


REAPPEARS = 10.0
"""Seconds for which connections wait for an object that is gone: it may be about to be replaced."""


class Route:
    """Where a forward leads, for its whole life. A watch and an edit of the file change it under
    its listeners."""

    def __init__(self, pool: StreamPool, *, followed: bool = True) -> None:
        self.followed = followed
        """Whether the endpoint may change, as those of a Service or a workload do."""
        self.given: Resolution | None = None
        """The last answer."""
        self.resolution: Resolution | None = None
        """What new streams follow: the last answer, or its fallback."""
        self.unusable = ""
        """Why the endpoint of the last answer cannot be dialled; empty if it can."""
        self.trouble = ""
        """Why there is no answer; empty if there is one, or none yet."""
        self.hint = ""
        """What mends that, if it is known."""
        self.on_change: Callable[[], None] | None = None
        """Called at each change of the route or of its pool."""
        self.appeared_at = -math.inf
        """Time of the loop at which there was an endpoint again after there had been none."""
        self._existed = False
        self._vanished_at = -math.inf
        self._changed = asyncio.Event()
        self._waiting = 0
        self._fell_back = False
        self._turn = 0
        # An endpoint that refused, as a clusterIP, while one behind it did not.
        self._avoided: Endpoint | None = None
        self._avoided_until = -math.inf
        self.pool = pool
        pool.users.add(self)

    def move(self, pool: StreamPool) -> None:
        """Have `pool` open the new streams."""
        if pool is not self.pool:
            self.pool.users.discard(self)
            self.pool = pool
            pool.users.add(self)
            pool.user_changed(self)
            self.wake()

    @property
    def endpoint(self) -> Endpoint | None:
        """The endpoint for new streams, if there is one; `pick` chooses among several."""
        if self.resolution is None:
            return None
        found = self.resolution.endpoint
        if found is None or found != self._avoided or not self.resolution.endpoints:
            return found
        avoided = asyncio.get_running_loop().time() < self._avoided_until
        return self.resolution.endpoints[0] if avoided else found

    @property
    def reached(self) -> bool:
        """Whether there is an endpoint, and the pool can open a stream to it now."""
        resolution = self.resolution
        if resolution is None or resolution.endpoint is None:
            return False
        return self.pool.reaches(resolution)

    @property
    def carriers(self) -> Collection[object]:
        """What carries its streams now."""
        return self.pool.carriers(self.resolution) if self.resolution is not None else ()

    @property
    def obstacle(self) -> str:
        """Why `reached` is false."""
        if self.resolution is None or self.resolution.endpoint is None:
            return self.reason
        return self.pool.obstacle(self.resolution)

    @property
    def has_other(self) -> bool:
        """Whether the next stream goes to another pod than one that has just refused."""
        return self.resolution is not None and self.pool.has_other(self.resolution)

    @property
    def reason(self) -> str:
        """Why there is no endpoint."""
        if self.resolution is None:
            return self.trouble or "not resolved yet"
        return self.resolution.reason

    @property
    def hopeless(self) -> str:
        """Why it is of no use to wait for the route; empty if it is of use.

        An object that never existed will not come soon, nor will a pod in the place of one that has
        ended for good. An object that existed a moment ago may be about to be replaced.
        """
        found = self.resolution
        if self.unusable or found is None:
            return self.unusable
        gone_for = asyncio.get_running_loop().time() - self._vanished_at
        gone = found.ended or (found.missing and gone_for >= REAPPEARS)
        return found.reason if gone else ""

    @property
    def wanted(self) -> bool:
        """Whether a connection waits for the route."""
        return self._waiting > 0

    def update(self, resolution: Resolution) -> None:
        """Lead new streams elsewhere; live ones stay where they are.

        An endpoint that no Header can carry counts as none, with that reason.
        """
        if self.given is None or resolution.endpoints != self.given.endpoints:
            self._avoided = None
        self.given, self.hint = resolution, ""
        if resolution.endpoint is not None:
            self._fell_back = False
        elif self._fell_back and resolution.fallback is not None:
            resolution = resolution.fallback
        self.unusable = _why_unusable(resolution.endpoint)
        if self.unusable:
            resolution = replace(resolution, endpoint=None, reason=self.unusable)
        if self.resolution and not self.resolution.endpoint and resolution.endpoint:
            self.appeared_at = asyncio.get_running_loop().time()
        if self._existed and resolution.missing:
            self._vanished_at = asyncio.get_running_loop().time()
        self._existed = not resolution.missing
        self.resolution = resolution
        self.pool.user_changed(self)
        self.wake()

    def fall_back(self) -> bool:
        """Lead new streams to a pod that runs, though it is not ready, until one is.

        Return whether there is such a pod.
        """
        fallback = self.given.fallback if self.given is not None else None
        if fallback is None or self.given is None or self.given.endpoint is not None:
            return False
        if not self._fell_back:
            self._fell_back = True
            self.update(self.given)
        return self.endpoint is not None

    def avoid(self, endpoint: Endpoint) -> None:
        """Lead new streams past an endpoint that refused, to those behind it, for a while."""
        self._avoided = endpoint
        self._avoided_until = asyncio.get_running_loop().time() + AVOIDED
        self.wake()

    def pick(self, client: Callable[[], str], refused: Endpoint | None) -> Endpoint | None:
        """Return the endpoint for a new stream, if possible another one than `refused`.

        `client` returns the address of the stream's client.
        """
        first, resolution = self.endpoint, self.resolution
        if first is None or resolution is None:
            return None
        if first not in resolution.endpoints and (first != refused or not resolution.endpoints):
            return first
        found = [one for one in resolution.endpoints if one != refused] or [first]
        if resolution.affinity:
            address = client()
            return max(found, key=lambda one: _weight(address, one))
        self._turn += 1
        return found[self._turn % len(found)]

    def leads_to(self, endpoint: Endpoint | None) -> bool:
        """Return whether new streams may go to `endpoint`."""
        first = self.endpoint
        if first is None or self.resolution is None or first not in self.resolution.endpoints:
            return endpoint == first
        return endpoint in self.resolution.endpoints

    def redirect(self) -> None:
        """Expect answers about another object from now on; new streams wait for the first one."""
        self._existed, self._vanished_at = False, -math.inf
        self.resolution = self.given = None
        self.unusable = self.trouble = ""
        self._avoided, self._fell_back = None, False

    def fail(self, trouble: str, hint: str = "") -> None:
        """Record why there is no answer, empty if there is none yet, and what mends that."""
        if trouble != self.trouble:
            self.trouble, self.hint = trouble, hint
            self.wake()

    def wake(self) -> None:
        """Have every waiter look at the route and its pool again."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        if self.on_change is not None:
            try:
                self.on_change()
            except Exception:
                # A bug in one forward must not end the tunnel whose change this is.
                logger.exception("internal error")

    async def heard(self) -> bool:
        """Wait for the first answer or the reason why there is none; return whether it is one."""
        while self.resolution is None and not self.trouble:
            await self._changed.wait()
        return self.resolution is not None

    async def changed(self) -> None:
        """Wait for the next change."""
        await self._changed.wait()

    async def resolved(self) -> Resolution:
        """Wait for an answer and return it, whatever it is."""
        while self.resolution is None:
            await self._changed.wait()
        return self.resolution

    async def wait_endpoint(self) -> Endpoint:
        """Wait for an endpoint and return it."""
        while (endpoint := self.endpoint) is None:
            await self._changed.wait()
        return endpoint

    async def wait_ready(self) -> None:
        """Return when a stream can be opened, or when waiting is of no use."""
        while not (self.hopeless or self.reached):
            await self._changed.wait()

    async def wait_other(self, endpoint: Endpoint, timeout: float) -> None:
        """Return when the route no longer leads to `endpoint`, or after `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                while self.leads_to(endpoint):
                    await self._changed.wait()
        except TimeoutError:
            return

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Mark that a connection waits, so that the pool dials sooner."""
        self._waiting += 1
        self.pool.dial_soon()
        try:
            yield
        finally:
            self._waiting -= 1


def _weight(client: str, endpoint: Endpoint) -> bytes:
    """Return the weight of an endpoint for a client (rendezvous hashing): an endpoint that comes or
    goes moves no other endpoint's clients."""
    return hashlib.blake2b(f"{client} {endpoint}".encode(), digest_size=8).digest()


def _why_unusable(endpoint: Endpoint | None) -> str:
    if endpoint is None:
        return ""
    if endpoint.port == 0:
        return f"no connection can be made to port 0 of {endpoint.host[:80]!r}"
    try:
        Header(TCP, endpoint.host, endpoint.port).encode()
    except ValueError as exc:
        return f"the endpoint cannot be addressed: {exc}"
    return ""
