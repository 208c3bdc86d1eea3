"""StreamRequest: get a stream for a new connection, at once or after a wait in the queue."""

from __future__ import annotations

import asyncio
import logging
import select
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import KW_ONLY, dataclass, field, replace
from typing import Any
from typing import Protocol as Shape
from weakref import WeakKeyDictionary

from krelay.datapath.metrics import ForwardMetrics, Relay, StreamMetrics
from krelay.datapath.route import Route
from krelay.model import Endpoint, Protocol, Target, is_loopback
from krelay.mux.log import About, about
from krelay.mux.stream import Stream, StreamHandler
from krelay.net.accept import descriptor_budget
from krelay.tasks import TaskGroup
from krelay.wire.errors import ErrorCode, ProtocolError
from krelay.wire.stream import INITIAL_WINDOW

logger = logging.getLogger("krelay.listener")

RETRIED = frozenset(
    {ErrorCode.REFUSED, ErrorCode.UNREACHABLE, ErrorCode.CONNECT_TIMEOUT, ErrorCode.GOING_AWAY}
)
"""Refusals of an endpoint that may have just gone away."""
RETRY_WAIT = 0.5
"""Longest wait for the route to lead elsewhere before a refused dial is tried again, in seconds."""
SETTLE = 10.0
"""How long an endpoint that has just appeared may refuse, in seconds. The cluster's own proxies
learn of it later than the watch does: kube-proxy writes its rules once a second at best."""

EARLY = INITIAL_WINDOW
"""Bytes, roughly, that are read of a queued connection: as many as it may send at once later."""
EARLY_OF_ALL = 16 << 20
"""The same for all queued connections together."""

FALLBACK_WAIT = 5.0
"""Longest wait for a way to the pod that a connection falls back to, in seconds."""

_ENDING = "krelay is stopping"


@dataclass(eq=False, repr=False)
class Forwarding:
    """Where streams go and how they are opened: a listener, or one destination of a proxy.

    `name` is for the log, as is the name of its `target`, by default the same. `tasks` runs what
    waits, for up to `open_timeout` seconds.
    """

    name: str
    route: Route
    tasks: TaskGroup
    _: KW_ONLY
    open_timeout: float
    metrics: ForwardMetrics = field(default_factory=ForwardMetrics)
    target: str = ""
    log: About = field(init=False)

    def __post_init__(self) -> None:
        self.target = self.target or self.name
        self.log = about(logger, target=self.target, name=self.name)

    def update(self, target: Target, open_timeout: float) -> None:
        """Follow an edit of the target, whose route may have another pool now."""
        self.open_timeout = open_timeout


class StreamRequester(StreamHandler, Shape):
    """Receives the result of a StreamRequest, then the events of the stream."""

    def on_queued(self) -> None:
        """Handle that the request has to wait."""

    def on_stream(self, stream: Stream) -> None:
        """Take the stream."""

    def on_open_failed(self, reason: str) -> None:
        """Handle that there will be no stream."""


class StreamRequest:
    """Requests a stream for one connection or flow, and has its metrics.

    It also decides whether a refused dial is tried again. An endpoint that goes away in a rolling
    update refuses for a moment before the watch knows, and one that has just appeared may refuse
    until the cluster's own proxies know. So if the route may lead elsewhere, the first refusal is
    followed by another dial, and further ones are while the endpoint is new or another pod is left.
    """

    def __init__(
        self,
        forwarding: Forwarding,
        protocol: Protocol,
        requester: StreamRequester,
        relay: Relay | None = None,
    ) -> None:
        """`relay` counts the bytes of the stream itself."""
        self.forwarding = forwarding
        self.metrics = StreamMetrics(forwarding.metrics, relay, protocol)
        self._protocol = protocol
        self._requester = requester
        self.peer: Callable[[], Sequence[Any] | None] = _no_address
        """Returns the socket address of the local application."""
        self.endpoint: Endpoint | None = None
        """Where its last stream went."""
        self._refused: Endpoint | None = None
        self._retried = False
        self._task: asyncio.Task[None] | None = None

    @property
    def queued(self) -> bool:
        """Whether the request waits."""
        return self._task is not None

    def start(self) -> None:
        """Open a stream at once, or else wait for an endpoint and a tunnel."""
        self.metrics.stream_requested(self.peer())
        try:
            stream = self._open()
        except Exception as exc:
            self._fail(self._explain(exc))
            return
        if stream is not None:
            self._give(stream)
        else:
            self._queue(None)

    def may_retry(self, code: ErrorCode) -> bool:
        """Return whether another dial may succeed after a refusal by `code`."""
        route = self.forwarding.route
        if code not in RETRIED or not (route.followed or code is ErrorCode.GOING_AWAY):
            return False
        if not self._retried or route.has_other:
            return True
        return asyncio.get_running_loop().time() < route.appeared_at + SETTLE

    def retry(self) -> None:
        """Dial again, after a short wait for the route to lead elsewhere."""
        self._retried = True
        self._refused = self.endpoint
        self._queue(self.endpoint)

    def accepted(self) -> None:
        """Learn that the endpoint took the stream; avoid one that had refused it before."""
        refused, route = self._refused, self.forwarding.route
        if refused is not None and refused == route.endpoint != self.endpoint:
            text = "%s refused and %s, behind it, did not: new connections go there"
            self.forwarding.log.info(text, refused, self.endpoint)
            route.avoid(refused)

    def cancel(self) -> None:
        """Stop waiting, without a call of the requester."""
        task, self._task = self._task, None
        if task is not None:
            task.cancel()

    def _queue(self, refused: Endpoint | None) -> None:
        waiting = self._wait(refused)
        try:
            task = self.forwarding.tasks.create_task(waiting, name=self.forwarding.name)
        except RuntimeError:
            # The listener's task group has ended.
            waiting.close()
            self._fail(_ENDING)
            return
        self._task = task
        task.add_done_callback(self._task_ended)
        self._requester.on_queued()

    async def _wait(self, refused: Endpoint | None) -> None:
        route, timeout = self.forwarding.route, self.forwarding.open_timeout
        reason = ""
        stream = None
        try:
            stream = await open_within(
                timeout, route, self._protocol, self._requester, refused=refused, pick=self._pick
            )
        except TimeoutError:
            reason = f"waited {timeout:g} s: {route.obstacle}"
            if route.fall_back() and route.resolution is not None:
                self.forwarding.log.warning("%s; using %s", reason, route.resolution.via)
                with suppress(ProtocolError, TimeoutError):
                    stream = await open_within(
                        FALLBACK_WAIT, route, self._protocol, self._requester, pick=self._pick
                    )
        except Exception as exc:
            reason = self._explain(exc)
        self._task = None
        if stream is not None:
            self._give(stream)
        else:
            self._fail(reason)

    def _open(self) -> Stream | None:
        return open_now(self.forwarding.route, self._protocol, self._requester, self._pick)

    def _pick(self) -> Endpoint | None:
        self.endpoint = self.forwarding.route.pick(self._client, self._refused)
        return self.endpoint

    def _client(self) -> str:
        return client_of(self.metrics.peer)

    def _give(self, stream: Stream) -> None:
        resolution = self.forwarding.route.resolution
        # A port-forward knows its pod; an agent's stream may lead to any pod of the Service.
        via = getattr(stream, "pod", "") or (resolution.via if resolution is not None else "")
        self.metrics.dialled(self.endpoint, via)
        try:
            self._requester.on_stream(stream)
        except Exception as exc:
            stream.reset(ErrorCode.INTERNAL)
            self._fail(self._explain(exc))

    def _fail(self, reason: str) -> None:
        self.metrics.open_failed(reason)
        try:
            self._requester.on_open_failed(reason)
        except Exception as exc:
            self._explain(exc)

    def _explain(self, exc: Exception) -> str:
        """Return why there is no stream, and log a bug.

        An error that went further would leave the connection open, or end every forward.
        """
        if isinstance(exc, ProtocolError):
            return str(exc)
        self.forwarding.log.error("opening failed", exc_info=exc)
        return "internal error"

    def _task_ended(self, task: asyncio.Task[None]) -> None:
        if self._task is task:  # the group cancelled it, perhaps before its first step
            self._task = None
            self._fail(_ENDING)


def _no_address() -> None:
    return None


def client_of(address: Sequence[Any] | None) -> str:
    """Return the client of a socket's peer address; this machine's loopback is one client."""
    host = str(address[0]) if address else ""
    return "" if not host or is_loopback(host) else host


def open_now(
    route: Route,
    protocol: Protocol,
    handler: StreamHandler,
    pick: Callable[[], Endpoint | None] | None = None,
) -> Stream | None:
    """Open a stream to where `route` leads; return None if there is no endpoint or no way to it.

    `pick` chooses among several endpoints. Raises ProtocolError as `StreamPool.open`.
    """
    if hopeless := route.hopeless:
        raise ProtocolError(hopeless, ErrorCode.NO_SUCH_HOST)
    resolution = route.resolution
    endpoint = pick() if pick is not None else route.endpoint
    if resolution is None or endpoint is None:
        return None
    if endpoint != resolution.endpoint:
        resolution = replace(resolution, endpoint=endpoint)
    return route.pool.open(resolution, protocol, handler)


async def open_within(
    timeout: float,
    route: Route,
    protocol: Protocol,
    handler: StreamHandler,
    *,
    refused: Endpoint | None = None,
    pick: Callable[[], Endpoint | None] | None = None,
) -> Stream:
    """Open a stream as soon as there are an endpoint and a tunnel.

    If an endpoint has `refused`, and no other is known, wait `RETRY_WAIT` for one first.

    Raises:
        TimeoutError: there was none within `timeout` seconds.
        ProtocolError: as `open_now`.
    """
    async with asyncio.timeout(timeout):
        if refused is not None and not route.has_other:
            await route.wait_other(refused, RETRY_WAIT)
        with route.waiting():
            while True:
                if (stream := open_now(route, protocol, handler, pick)) is not None:
                    return stream
                if route.reached:
                    await route.changed()  # a better connection is about to be there
                await route.wait_ready()


# -- the queue ---------------------------------------------------------------------------------


class QueuedConnection(Shape):
    """A connection that waits for a stream."""

    transport: asyncio.Transport | None

    def drop(self, reason: str) -> None:
        """Reset the connection to free its descriptor."""


class ConnectionQueue:
    """The accepted connections that wait for a stream, of all listeners of a loop.

    Each holds a descriptor, so its end must be noticed while it waits. Its first bytes are read,
    and the end behind them is seen. When enough is kept, nothing more is read, and epoll reports a
    client that has gone (on Linux).

    A client that has sent its end may wait for an answer or may have gone: TCP does not tell the
    two apart. Such a connection stays queued, but is the first to be dropped when descriptors are
    short.
    """

    def __init__(self) -> None:
        self._sizes: dict[QueuedConnection, int] = {}
        self._total = 0
        self._half_closed: dict[QueuedConnection, None] = {}
        self._watched: dict[int, QueuedConnection] = {}
        self._numbers: dict[QueuedConnection, int] = {}
        self._epoll: select.epoll | None = None

    def __len__(self) -> int:
        return len(self._sizes)

    def enter(self, connection: QueuedConnection, kept: int, *, half_closed: bool) -> None:
        """Add a connection, of which `kept` bytes have been read, and the end if `half_closed`."""
        if connection in self._sizes or connection.transport is None:
            return
        self._sizes[connection] = kept
        self._total += kept
        if half_closed:
            self.eof_received(connection)
        elif kept < EARLY and self._total < EARLY_OF_ALL:
            connection.transport.resume_reading()
        else:
            self._stop_reading(connection)

    def leave(self, connection: QueuedConnection) -> None:
        """Remove a connection that has a stream, or is gone."""
        if connection not in self._sizes:
            return
        self._total -= self._sizes.pop(connection)
        self._half_closed.pop(connection, None)
        self._unwatch(connection)

    def data_received(self, connection: QueuedConnection, size: int) -> None:
        """Count `size` more bytes that are kept for a connection."""
        if connection not in self._sizes:
            return
        self._sizes[connection] += size
        self._total += size
        if self._total >= EARLY_OF_ALL:
            for each in self._sizes:
                self._stop_reading(each)
        elif self._sizes[connection] >= EARLY:
            self._stop_reading(connection)

    def eof_received(self, connection: QueuedConnection) -> None:
        """Record that the client sends no more."""
        if connection in self._sizes:
            self._half_closed.setdefault(connection)
            self._watch(connection)
            descriptor_budget().recheck()

    def make_room(self) -> bool:
        """Drop the connection half-closed for the longest; return whether one was."""
        connection = next(iter(self._half_closed), None)
        if connection is None:
            return False
        self.leave(connection)
        connection.drop("few descriptors are left, and its client has sent its end")
        return True

    def _stop_reading(self, connection: QueuedConnection) -> None:
        if connection not in self._half_closed and connection.transport is not None:
            connection.transport.pause_reading()
            self._watch(connection)

    def _watch(self, connection: QueuedConnection) -> None:
        """Have epoll report the end of a connection that is not read."""
        transport = connection.transport
        sock = transport.get_extra_info("socket") if transport is not None else None
        if sock is None or connection in self._numbers or not hasattr(select, "epoll"):
            return
        try:
            if self._epoll is None:
                self._epoll = select.epoll()
                asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._poll)
            # EPOLLHUP and EPOLLERR, a reset, are reported in any case.
            self._epoll.register(sock.fileno(), select.EPOLLRDHUP | select.EPOLLET)
        except (OSError, ValueError) as exc:
            logger.debug("cannot watch a queued connection: %s", exc)
        else:
            self._watched[sock.fileno()] = connection
            self._numbers[connection] = sock.fileno()

    def _unwatch(self, connection: QueuedConnection) -> None:
        number = self._numbers.pop(connection, None)
        if number is None or self._epoll is None:
            return
        del self._watched[number]
        with suppress(OSError):  # the descriptor is closed, and so unregistered
            self._epoll.unregister(number)
        if not self._watched:
            asyncio.get_running_loop().remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None

    def _poll(self) -> None:
        assert self._epoll is not None
        for number, event in self._epoll.poll(0):
            connection = self._watched.get(number)
            if connection is None:
                continue
            if event & (select.EPOLLHUP | select.EPOLLERR):
                self.leave(connection)
                if connection.transport is not None:
                    connection.transport.abort()
            elif event & select.EPOLLRDHUP:
                self._half_closed.setdefault(connection)
                descriptor_budget().recheck()


def connection_queue() -> ConnectionQueue:
    """Return the queue of the running loop."""
    loop = asyncio.get_running_loop()
    if (queue := _queues.get(loop)) is None:
        queue = _queues[loop] = ConnectionQueue()
    return queue


_queues: WeakKeyDictionary[asyncio.AbstractEventLoop, ConnectionQueue] = WeakKeyDictionary()
