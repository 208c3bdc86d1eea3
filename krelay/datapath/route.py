"""Route: second stage of the data path; where a forward's new streams go now, and through what."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace

from krelay.datapath.pool import Pool
from krelay.model import Endpoint, Resolution
from krelay.wire.header import TCP, Header

logger = logging.getLogger("krelay.tunnel")

SETTLE = 10.0
"""Seconds in which an endpoint that has just appeared may still refuse: the cluster's own proxies
learn of it after the watch does (kube-proxy writes its rules once a second at best, and later where
its node is busy)."""


class Route:
    """What a forward points at. Listeners hold it; following changes it under them, and so does
    an edit of the file.

    `followed`: the endpoint may change (a Service, a workload), so that a refused dial is worth
    a second try.
    """

    def __init__(self, pool: Pool, *, followed: bool = True) -> None:
        self.followed = followed
        self.resolution: Resolution | None = None
        self.unusable = ""
        """Why no agent can be asked for the endpoint of the last answer; empty where one can."""
        self.trouble = ""
        """Why nobody can say where it leads, while that is so."""
        self.on_change: Callable[[], None] | None = None
        """Called at each change, here or in the pool."""
        self._changed = asyncio.Event()
        self._settled_at = 0.0
        self._waiting = 0
        self._pool = pool
        pool.users.add(self)

    @property
    def pool(self) -> Pool:
        """What new streams ride on."""
        return self._pool

    @pool.setter
    def pool(self, pool: Pool) -> None:
        self._pool.users.discard(self)
        self._pool = pool
        pool.users.add(self)
        self.wake()

    @property
    def endpoint(self) -> Endpoint | None:
        """Where to dial now; None while nothing answers."""
        return self.resolution.endpoint if self.resolution else None

    @property
    def reason(self) -> str:
        """Why there is no endpoint."""
        if self.resolution is None:
            return self.trouble or "not resolved yet"
        return self.resolution.reason

    @property
    def settling(self) -> bool:
        """Whether there was no endpoint a moment ago."""
        return asyncio.get_running_loop().time() < self._settled_at

    def update(self, resolution: Resolution) -> None:
        """New streams go there from now on; live ones stay where they are. An endpoint that no
        Header can carry is no endpoint, and the reason says so."""
        self.unusable = _unusable(resolution.endpoint)
        if self.unusable:
            resolution = replace(resolution, endpoint=None, reason=self.unusable)
        if self.resolution and not self.resolution.endpoint and resolution.endpoint:
            self._settled_at = asyncio.get_running_loop().time() + SETTLE
        self.resolution = resolution
        self.wake()

    def fail(self, trouble: str) -> None:
        """Nothing is known of where it leads, and this is why; empty: there was no answer yet."""
        if trouble != self.trouble:
            self.trouble = trouble
            self.wake()

    def wake(self) -> None:
        """Something changed, here or in the pool: whoever waits looks again."""
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        if self.on_change is not None:
            try:
                self.on_change()
            except Exception:
                # It is one forward's; let through, it would end the tunnel that has changed.
                logger.exception("internal error")

    async def heard(self) -> bool:
        """Wait for the first answer, or for why there is none: whether there is one."""
        while self.resolution is None and not self.trouble:
            await self._changed.wait()
        return self.resolution is not None

    async def resolved(self) -> Resolution:
        """The first answer, whatever it is."""
        while self.resolution is None:
            await self._changed.wait()
        return self.resolution

    async def wait_endpoint(self) -> Endpoint:
        """An endpoint, once there is one."""
        while (endpoint := self.endpoint) is None:
            await self._changed.wait()
        return endpoint

    @property
    def wanted(self) -> bool:
        """Whether a connection waits for it."""
        return self._waiting > 0

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A connection waits for it meanwhile: its pool dials sooner."""
        self._waiting += 1
        self.pool.dial_soon()
        try:
            yield
        finally:
            self._waiting -= 1

    async def wait_ready(self) -> None:
        """Return when there are an endpoint and a tunnel, or there is no use in waiting."""
        while not self.unusable and (self.endpoint is None or self.pool.pick() is None):
            await self._changed.wait()

    async def wait_other(self, endpoint: Endpoint, timeout: float) -> None:
        """Return when the route no longer leads to `endpoint`, or after `timeout` seconds."""
        try:
            async with asyncio.timeout(timeout):
                while self.endpoint == endpoint:
                    await self._changed.wait()
        except TimeoutError:
            return


def _unusable(endpoint: Endpoint | None) -> str:
    if endpoint is None:
        return ""
    if endpoint.port == 0:
        return f"no connection can be made to port 0 of {endpoint.host[:80]!r}"
    try:
        Header(TCP, endpoint.host, endpoint.port).encode()
    except ValueError as exc:
        return f"the endpoint cannot be addressed: {exc}"
    return ""
