"""StreamRequest: get a stream for a new connection, at once or after a wait in the queue."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol as Shape

from krelay.datapath.metrics import ForwardMetrics
from krelay.datapath.route import Route
from krelay.model import Endpoint, Protocol
from krelay.mux.stream import Stream, StreamHandler
from krelay.tasks import TaskGroup
from krelay.wire import header
from krelay.wire.errors import ErrorCode, ProtocolError
from krelay.wire.header import Header

logger = logging.getLogger("krelay.listener")

_ENDING = "krelay is ending"
_NUMBERS = {Protocol.TCP: header.TCP, Protocol.UDP: header.UDP}

RETRY_WAIT = 0.5
"""How long, in seconds, a refused dial waits for the route to lead elsewhere."""

RETRIED = frozenset(
    {ErrorCode.REFUSED, ErrorCode.UNREACHABLE, ErrorCode.CONNECT_TIMEOUT, ErrorCode.GOING_AWAY}
)
"""Refusals that an endpoint gives that has just gone away."""


class Forwarding(Shape):
    """What an opening needs of its listener."""

    name: str
    route: Route
    open_timeout: float
    tasks: TaskGroup
    metrics: ForwardMetrics


class StreamRequester(StreamHandler, Shape):
    """Whoever asks for a stream: it is told of that, then of what happens on it."""

    def on_stream(self, stream: Stream) -> None:
        """Here it is."""

    def on_open_failed(self, reason: str) -> None:
        """There will be none."""


class StreamRequest:
    """The way of one connection or flow to its stream; `opener` learns how it ends."""

    def __init__(
        self,
        forwarding: Forwarding,
        protocol: Protocol,
        opener: StreamRequester,
        *,
        on_queued: Callable[[], None] | None = None,
    ) -> None:
        """`on_queued` is called when there is no stream at once, and each time that one is waited
        for."""
        self._forwarding = forwarding
        self._protocol = protocol
        self._opener = opener
        self._on_queued = on_queued
        self._task: asyncio.Task[None] | None = None

    @property
    def parked(self) -> bool:
        """Whether it waits."""
        return self._task is not None

    def start(self, after: Endpoint | None = None) -> None:
        """Ask for a stream. `after` is an endpoint that refused: another is waited for a little."""
        if after is None:
            try:
                stream = open_now(self._forwarding.route, self._protocol, self._opener)
            except Exception as exc:
                self._refuse(self._why(exc))
                return
            if stream is not None:
                self._give(stream)
                return
        waiting = self._wait(after)
        try:
            task = self._forwarding.tasks.create_task(waiting, name=self._forwarding.name)
        except RuntimeError:
            # The group has ended, and what it started with it.
            waiting.close()
            self._refuse(_ENDING)
            return
        self._task = task
        task.add_done_callback(self._ended)
        if self._on_queued is not None:
            self._on_queued()

    def cancel(self) -> None:
        """Nobody waits any more; the opener is told nothing."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()

    async def _wait(self, after: Endpoint | None) -> None:
        route, open_timeout = self._forwarding.route, self._forwarding.open_timeout
        reason = ""
        stream = None
        try:
            stream = await open_parked(
                route, self._protocol, self._opener, open_timeout, after=after
            )
        except TimeoutError:
            why = route.reason if route.endpoint is None else "no tunnel to the agent"
            reason = f"waited {open_timeout:g} s: {why}"
        except Exception as exc:
            reason = self._why(exc)
        self._task = None
        if stream is not None:
            self._give(stream)
        else:
            self._refuse(reason)

    def _give(self, stream: Stream) -> None:
        try:
            self._opener.on_stream(stream)
        except Exception as exc:
            stream.reset(ErrorCode.INTERNAL)
            self._refuse(self._why(exc))

    def _refuse(self, reason: str) -> None:
        try:
            self._opener.on_open_failed(reason)
        except Exception as exc:
            self._why(exc)

    def _why(self, exc: Exception) -> str:
        """Why there is no stream. One connection's bug is its own; let through, it would leave the
        connection open for ever, or end every forward."""
        if isinstance(exc, ProtocolError):
            return str(exc)
        logger.error("%s: opening failed", self._forwarding.name, exc_info=exc)
        return "internal error"

    def _ended(self, task: asyncio.Task[None]) -> None:
        if self._task is task:  # the group ended it, perhaps before it began
            self._task = None
            self._refuse(_ENDING)


def open_now(route: Route, protocol: Protocol, handler: StreamHandler) -> Stream | None:
    """A stream to where `route` leads; None while there is no endpoint or no tunnel.

    Raises:
        ProtocolError: the session takes no more streams, or the endpoint cannot be addressed.
    """
    if route.unusable:
        raise ProtocolError(route.unusable, ErrorCode.NO_SUCH_HOST)
    endpoint, driver = route.endpoint, route.pool.pick()
    if endpoint is None or driver is None:
        return None
    try:
        return driver.open(Header(_NUMBERS[protocol], endpoint.host, endpoint.port), handler)
    except ValueError as exc:
        raise ProtocolError(str(exc), ErrorCode.NO_SUCH_HOST) from exc


async def open_parked(
    route: Route,
    protocol: Protocol,
    handler: StreamHandler,
    open_timeout: float,
    *,
    after: Endpoint | None = None,
) -> Stream:
    """The same, waiting up to `open_timeout` seconds for an endpoint and a tunnel.

    `after` is an endpoint that refused: a route that leads elsewhere is waited for a little.

    Raises:
        TimeoutError: that was not enough.
        ProtocolError: as `open_now`.
    """
    async with asyncio.timeout(open_timeout):
        if after is not None:
            await route.wait_other(after, RETRY_WAIT)
        with route.waiting():
            while True:
                if (stream := open_now(route, protocol, handler)) is not None:
                    return stream
                await route.wait_ready()
