"""DirectPool: streams straight into the pods behind the targets, as kubectl's port-forward.

Each pod that is used has a connection, and more of them if it carries many streams or one of them
is stalled. A route always has a connection to one of its pods, so that its state is the truth.
"""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Callable
from typing import Protocol
from weakref import WeakSet

from krelay import model
from krelay.datapath.stream_pool import PoolUser
from krelay.errors import AccessDeniedError, CredentialsError, KrelayError
from krelay.model import PodPort, Resolution
from krelay.mux.log import about
from krelay.mux.stream import Stream, StreamHandler
from krelay.retry import Backoff, OnceUntilChanged
from krelay.tasks import TaskGroup
from krelay.wire.errors import ErrorCode, ProtocolError

logger = logging.getLogger("krelay.direct")

CROWDED, CONNECTIONS = 16, 4
"""Streams of a connection from which on a pod gets another one, and the most of them."""
IDLE = 60.0
"""Seconds without a stream after which a connection that no route needs is closed."""
LOOK_EVERY = 15.0
REFUSED_FOR = 5.0
"""Seconds for which a pod that refused a stream comes after the others."""
SPARE_DIALS = 3
"""Pods of a route that are dialled at once, if the first ones fail."""
RETRY_FIRST, RETRY_MOST, DENIED_PAUSE = 0.2, 10.0, 30.0
"""Seconds between two dials to a pod, and after a refusal that only a person can end."""
LASTING = 10.0
"""Seconds between two dials to a pod after which the second one is the first of a new try."""
WANTED_PAUSE = 1.0
"""The longest pause while a connection waits, in seconds."""

_TCP_ONLY = "it is UDP, and `via: direct` carries TCP only"
_MEANINGS = {
    ErrorCode.REFUSED: "refused: nothing listens on this port inside the pod",
    ErrorCode.CONNECT_TIMEOUT: "timed out: the pod's node gave no answer",
}


class Connection(Protocol):
    """A connection to a pod that carries many streams (`krelay.transport.pod_connection`)."""

    name: str
    carrier: str
    expires: float
    failure: KrelayError | None

    @property
    def count(self) -> int:
        """The number of live streams."""

    @property
    def takes_streams(self) -> bool:
        """Whether it takes new streams."""

    @property
    def stalled(self) -> bool:
        """Whether new streams would wait for others."""

    def open(self, port: int, handler: StreamHandler, /) -> Stream:
        """Open a stream to a port. Raises ProtocolError."""

    def verify(self) -> None:
        """Find out soon whether it still works."""

    def close(self) -> None:
        """End it, and reset its streams."""


class PodLink(Protocol):
    """How pods are reached."""

    async def dial(
        self, pod: PodPort, on_change: Callable[[], None], on_refused: Callable[[int], None]
    ) -> Connection:
        """Open a connection to a pod, within its own deadline.

        Raises:
            KrelayError, OSError: the pod cannot be reached.
        """


Key = tuple[str, str, str]


def _key(pod: PodPort) -> Key:
    return pod.namespace, pod.name, pod.uid


class _Pod:
    """What is known of one pod: the connections to it, and how the last dial went."""

    def __init__(self, pod: PodPort) -> None:
        self.pod = pod
        self.connections: list[Connection] = []
        self.dialling = False
        self.failure: Exception | None = None
        self.due = 0.0
        self.dialled_at = -math.inf
        self.backoff = Backoff(RETRY_FIRST, RETRY_MOST)
        self.failures = OnceUntilChanged()
        self.used_at = -math.inf
        self.refused_at: dict[int, float] = {}

    def __str__(self) -> str:
        return f"{self.pod.namespace}/{self.pod.name}"

    @property
    def count(self) -> int:
        return sum(connection.count for connection in self.connections)

    def best(self) -> Connection | None:
        """Return the connection for a new stream."""
        usable = [connection for connection in self.connections if connection.takes_streams]
        return min(
            usable,
            key=lambda found: (found.stalled, found.expires <= time.time(), found.count),
            default=None,
        )

    def wants_another(self) -> bool:
        """Whether one more connection would help the next stream."""
        best = self.best()
        if best is None:
            return True
        helps = best.stalled or best.count >= CROWDED or best.expires <= time.time()
        return helps and len(self.connections) < CONNECTIONS


class DirectPool:
    """The connections to the pods of its routes; the StreamPool of the way without an agent.

    `run` keeps them up.
    """

    multiplexed = True

    def __init__(self, name: str, link: PodLink) -> None:
        self.name = name
        self.quiet = False
        """Whether only `report` logs why a pod is not reached, not each failure."""
        self.users: WeakSet[PoolUser] = WeakSet()
        self._link = link
        self._loop = asyncio.get_running_loop()
        self._pods: dict[Key, _Pod] = {}
        self._tasks: TaskGroup | None = None
        self._look_again = asyncio.Event()
        self._changed = asyncio.Event()
        self._usable: frozenset[Key] = frozenset()
        self._log = about(logger, name=name)

    # -- figures -------------------------------------------------------------------------------

    @property
    def streams(self) -> int:
        """The number of live streams."""
        return sum(pod.count for pod in self._pods.values())

    @property
    def connections(self) -> list[Connection]:
        """The connections that are open."""
        return [connection for pod in self._pods.values() for connection in pod.connections]

    @property
    def dialling(self) -> bool:
        """Whether a pod is being dialled."""
        return any(pod.dialling for pod in self._pods.values())

    @property
    def failure(self) -> Exception | None:
        """Why a pod could not be reached; None if all can."""
        return next((pod.failure for pod in self._pods.values() if pod.failure), None)

    @property
    def wanted(self) -> bool:
        """Whether a route leads to a pod that is not reached yet."""
        return any(
            found.pods and found.protocol is model.Protocol.TCP and not self.reaches(found)
            for user in self.users
            if (found := user.resolution) is not None and found.endpoint is not None
        )

    # -- the interface of StreamPool -----------------------------------------------------------

    def carriers(self, resolution: Resolution) -> list[Connection]:
        known = (self._pods.get(_key(pod)) for pod in _usable_pods(resolution))
        return [connection for pod in known if pod for connection in pod.connections]

    def reaches(self, resolution: Resolution) -> bool:
        is_tcp = resolution.protocol is model.Protocol.TCP
        return is_tcp and any(self._best(pod) is not None for pod in resolution.pods)

    def obstacle(self, resolution: Resolution) -> str:
        if resolution.protocol is not model.Protocol.TCP:
            return _TCP_ONLY
        if not resolution.pods:
            return "no pod is behind it, and `via: direct` reaches pods only"
        for pod in self._order(resolution):
            known = self._pods.get(_key(pod))
            if known is not None and known.failure is not None:
                reason = str(known.failure) or type(known.failure).__name__
                return f"no port-forward to pod {pod.name}: {reason}"
        return f"no port-forward to pod {resolution.pods[0].name} yet"

    def open(
        self, resolution: Resolution, protocol: model.Protocol, handler: StreamHandler
    ) -> Stream | None:
        if protocol is not model.Protocol.TCP:
            raise ProtocolError(_TCP_ONLY, ErrorCode.DIAL_FAILED)
        if not resolution.pods:
            raise ProtocolError(self.obstacle(resolution), ErrorCode.NO_SUCH_HOST)
        stalled: PodPort | None = None
        dialling = False
        for pod in self._order(resolution):
            known = self._known(pod)
            best = known.best()
            if known.wants_another():
                self._dial(known)
            if best is not None and not (best.stalled and len(known.connections) < CONNECTIONS):
                return self._open(best, pod, handler)
            dialling = dialling or known.dialling
            stalled = stalled or (pod if best is not None else None)
            if not resolution.balanced and not self._troubled(pod):
                break  # it stays with this pod
        if stalled is None or dialling:
            return None
        best = self._best(stalled)
        return self._open(best, stalled, handler) if best is not None else None

    def _open(self, connection: Connection, pod: PodPort, handler: StreamHandler) -> Stream:
        self._known(pod).used_at = self._loop.time()
        return connection.open(pod.port, handler)

    def explain(self, code: ErrorCode, message: str) -> str:
        return _MEANINGS.get(code) or code.text + (f" ({message})" if message else "")

    def has_other(self, resolution: Resolution) -> bool:
        return any(not self._troubled(pod) for pod in _usable_pods(resolution))

    def user_changed(self, user: PoolUser) -> None:
        self._look_again.set()

    def dial_soon(self) -> None:
        soon = self._loop.time() + WANTED_PAUSE
        for pod in self._pods.values():
            pod.due = min(pod.due, soon)
        self._look_again.set()

    def renew(self, resolution: Resolution) -> None:
        """Dial the pods of `resolution` anew, whatever happened before.

        Connections without streams are closed. Those with streams of other routes live on, beside
        a new one.
        """
        for pod in resolution.pods:
            known = self._pods.get(_key(pod))
            if known is None:
                continue
            for connection in known.connections:
                if connection.count:
                    connection.expires = 0.0
                else:
                    connection.close()
            known.connections = [found for found in known.connections if found.count]
            known.failure, known.due = None, 0.0
            known.backoff.reset()
            known.refused_at.clear()
        self._publish()
        self._look_again.set()

    # -- its life ------------------------------------------------------------------------------

    async def run(self) -> None:
        """Keep a connection for each route until cancelled; close all at the end."""
        try:
            async with TaskGroup() as self._tasks:
                while True:
                    pause = min(LOOK_EVERY, self._look())
                    try:
                        async with asyncio.timeout(pause):
                            await self._look_again.wait()
                    except TimeoutError:
                        pass
                    self._look_again.clear()
        finally:
            self._tasks = None
            for connection in self.connections:
                connection.close()

    def report(self) -> None:
        """Log why pods are not reached now."""
        for pod in self._pods.values():
            if pod.failure is not None:
                _log_failure(pod, logging.WARNING)

    async def wait_change(self) -> None:
        """Return when a pod was reached, lost, or could not be reached."""
        await self._changed.wait()

    async def wait_idle(self) -> None:
        """Return when no stream is left."""
        while self.streams:
            await self._changed.wait()

    def network_changed(self, *, broken: bool) -> None:
        """React to another network or a wake-up of this machine; `broken`: no connection works."""
        for connection in self.connections:
            if broken:
                connection.close()
            else:
                connection.verify()
        self.dial_soon()

    # -- pods ----------------------------------------------------------------------------------

    def _known(self, pod: PodPort) -> _Pod:
        key = _key(pod)
        if key not in self._pods:
            self._pods[key] = _Pod(pod)
        return self._pods[key]

    def _best(self, pod: PodPort) -> Connection | None:
        known = self._pods.get(_key(pod))
        return known.best() if known is not None else None

    def _troubled(self, pod: PodPort) -> bool:
        known = self._pods.get(_key(pod))
        if known is None:
            return False
        refused_at = known.refused_at.get(pod.port, -math.inf)
        unreached = known.failure is not None and known.best() is None
        return unreached or self._loop.time() < refused_at + REFUSED_FOR

    def _order(self, resolution: Resolution) -> list[PodPort]:
        """Return the pods of a resolution, the best one for the next stream first."""

        def rank(pod: PodPort) -> tuple[object, ...]:
            known = self._pods.get(_key(pod))
            if known is None or not resolution.balanced:
                return self._troubled(pod), 0, -math.inf
            return self._troubled(pod), known.count, known.used_at

        return sorted(_usable_pods(resolution), key=rank)

    # -- connections ---------------------------------------------------------------------------

    def _look(self) -> float:
        """Dial what is missing and close what is not needed.

        Return the seconds until something is due.
        """
        now = self._loop.time()
        pause = math.inf
        listed: set[Key] = set()
        needed: set[Connection] = set()
        for user in list(self.users):
            resolution = user.resolution
            if resolution is None or resolution.endpoint is None:
                continue
            listed.update(map(_key, resolution.pods))
            order = self._order(resolution)
            reached = next((best for pod in order if (best := self._best(pod))), None)
            if reached is not None:
                needed.add(reached)
                continue
            for pod in order[:SPARE_DIALS]:
                known = self._known(pod)
                if now >= known.due:
                    self._dial(known)
                if known.dialling:
                    break
                pause = min(pause, max(known.due - now, 0.0))
        for key, known in list(self._pods.items()):
            known.connections = [found for found in known.connections if found.failure is None]
            idle = key not in listed or now > known.used_at + IDLE
            for found in list(known.connections):
                if not found.count and (not found.takes_streams or (found not in needed and idle)):
                    known.connections.remove(found)
                    found.close()
            if key not in listed and not known.connections and not known.dialling:
                del self._pods[key]
        self._publish()
        return pause

    def _publish(self, *, news: bool = False) -> None:
        """Wake the users if another set of pods is reached, or if there is `news`."""
        usable = frozenset(key for key, pod in self._pods.items() if pod.best() is not None)
        before, self._usable = self._usable, usable
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        if news or usable != before:
            for user in list(self.users):
                user.wake()

    def _dial(self, known: _Pod) -> None:
        if self._tasks is not None and not known.dialling and self._loop.time() >= known.due:
            known.dialling = True
            if self._loop.time() > known.dialled_at + LASTING:
                known.backoff.reset()
            known.dialled_at = self._loop.time()
            self._tasks.create_task(self._connect(known), name=f"{self.name} {known}")

    async def _connect(self, known: _Pod) -> None:
        def refused(port: int) -> None:
            known.refused_at[port] = self._loop.time()

        pause = known.backoff.delay()
        news = False
        try:
            connection = await self._link.dial(known.pod, self._look_again.set, refused)
        except (KrelayError, OSError) as exc:
            denied = isinstance(exc, AccessDeniedError | CredentialsError)
            pause += DENIED_PAUSE if denied else RETRY_FIRST
            news = self._failed(known, exc)
        except Exception:
            # A bug in a transport must not end every forward.
            self._log.exception("dialling failed")
            pause = DENIED_PAUSE
            news = self._failed(known, KrelayError("internal error"))
        else:
            known.failure = None
            known.failures.clear()
            known.connections.append(connection)
            known.used_at = max(known.used_at, self._loop.time())
            about(logger, name=str(known)).info("port-forward by %s", connection.carrier)
        finally:
            known.dialling = False
            known.due = self._loop.time() + pause
        # Streams that would not use a stalled connection wait for the end of this.
        self._publish(news=news or known.best() is not None)
        self._look_again.set()

    def _failed(self, known: _Pod, exc: Exception) -> bool:
        """Record why a pod is not reached; return whether that is news."""
        known.failure = exc
        news = known.failures.is_new(exc)
        _log_failure(known, logging.WARNING if news and not self.quiet else logging.DEBUG)
        return news


def _log_failure(pod: _Pod, level: int) -> None:
    text = pod.failure.line() if isinstance(pod.failure, KrelayError) else pod.failure
    about(logger, name=str(pod)).log(level, "no port-forward: %s", text)


def _usable_pods(resolution: Resolution) -> list[PodPort]:
    """Return the ready pods, or all if none is ready."""
    return [pod for pod in resolution.pods if pod.ready] or list(resolution.pods)
