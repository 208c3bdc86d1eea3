"""Forward: one port of a target, from the file to a bound listener on a route."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from collections.abc import Callable
from functools import partial

from krelay.config.diff import Spec
from krelay.datapath.metrics import ForwardMetrics
from krelay.datapath.pool import Pool
from krelay.datapath.route import Route
from krelay.datapath.tcp import TcpListener
from krelay.datapath.udp import UdpListener
from krelay.errors import KrelayError, ListenError
from krelay.model import Endpoint, Kind, Protocol
from krelay.net.port_owner import port_owner
from krelay.proxy.server import ProxyListener
from krelay.retry import Backoff
from krelay.state.events import EventBus
from krelay.supervisor.health import Health
from krelay.tasks import TaskGroup, guard
from krelay.threads import in_thread

logger = logging.getLogger("krelay.forward")

# How long a forward without a protocol of its own waits for its Service to say one, in seconds.
_PROTOCOL_WAIT = 5.0
# Between tries to bind, in seconds: whoever has the port may leave at any time.
_RETRY_FIRST, _RETRY_MOST = 0.5, 5.0

Listener = TcpListener | UdpListener


class Forward:
    """Binds when it knows its protocol and local port, and tries again where that fails.

    `settled` is set when it is bound, has failed for the first time, or cannot learn what to bind;
    `failure` says why it is not bound now. `on_bound` is told each time that it is. Its tasks, and
    its connections', belong to `tasks`; whoever made it ends it with `drain` or `cut`.
    """

    def __init__(
        self,
        spec: Spec,
        route: Route,
        tasks: TaskGroup,
        *,
        park: float,
        on_bound: Callable[[Forward], None],
        bus: EventBus | None = None,
    ) -> None:
        """`park` is how long, in seconds, a new connection may wait for a stream; `bus` is told
        how it is."""
        self.spec = spec
        self.route = route
        self.park = park
        self.listener: Listener | None = None
        self.failure: ListenError | None = None
        self.settled = asyncio.Event()
        self.metrics = ForwardMetrics()
        self._tasks = tasks
        self._on_bound = on_bound
        self._binding: asyncio.Task[bool] | None = None
        # One of each protocol at most: connections outlive a change of it.
        self._listeners: dict[Protocol, Listener] = {}
        self.health = Health(self, bus or EventBus())

    @property
    def name(self) -> str:
        """For people: the target's name, and the port where it has several."""
        target = self.spec.target
        return target.name if len(target.ports) == 1 else f"{target.name}[{self.spec.port}]"

    @property
    def certain(self) -> bool:
        """Whether the file alone says what to listen on."""
        return self.spec.protocol is not None and self.spec.port.local is not None

    @property
    def live(self) -> int:
        """How many connections and flows it carries now."""
        return sum(listener.live for listener in self._listeners.values())

    @property
    def protocol(self) -> Protocol | None:
        """What it is bound for; None while it is not."""
        return next((p for p, found in self._listeners.items() if found is self.listener), None)

    @property
    def speaks(self) -> Protocol | None:
        """What it is bound for, or will be as far as that is known."""
        resolution = self.route.resolution
        return self.protocol or self.spec.protocol or (resolution.protocol if resolution else None)

    @property
    def addresses(self) -> list[str]:
        """`127.0.0.1:8080` for each bound address."""
        bound = self.listener.addresses if self.listener else ()
        return [str(Endpoint(*address)) for address in bound]

    def describe(self) -> list[str]:
        """A line for each bound address: `NAME: ADDRESS:PORT -> TARGET:PORT (PROTOCOL)`."""
        target, remote = self.spec.target, self.spec.port.remote
        end = (
            f"{target} (tcp)"
            if target.kind is Kind.PROXY
            else f"{target}:{remote} ({self.protocol})"
        )
        return [f"{target.name}: {local} -> {end}" for local in self.addresses]

    def bind(self) -> None:
        """Listen where the file says now, as soon as that is known."""
        self.unbind()
        self._binding = self._tasks.create_task(guard(self._bind, self.name), name=self.name)
        self.health.start(self._tasks)

    def unbind(self) -> None:
        """Free the address; connections live on, datagrams do not."""
        binding, self._binding = self._binding, None
        if binding is not None:
            binding.cancel()
        if self.listener is not None:
            self.listener.close()
            self.listener = None
        self.failure = None
        self.settled.clear()

    def update(self, spec: Spec, pool: Pool, park: float) -> None:
        """What the file says now, short of where to listen; live connections do not feel it."""
        self.spec, self.park = spec, park
        if self.route.pool is not pool:
            self.route.pool = pool
        for listener in self._listeners.values():
            listener.open_timeout = park
            if isinstance(listener, ProxyListener):
                listener.pool = pool
                listener.credentials = spec.target.credentials
        self.health.look()

    async def drain(self, timeout: float) -> None:
        """Accept no more; cut what is left after `timeout` seconds."""
        self.health.drain()
        self.unbind()
        async with TaskGroup() as draining:
            for listener in self._listeners.values():
                draining.create_task(guard(partial(listener.drain, timeout), self.name))

    def cut(self) -> None:
        """Free the address and reset what lives, now."""
        self.health.drain()
        self.unbind()
        for listener in self._listeners.values():
            listener.cut()

    async def _bind(self) -> None:
        try:
            await self._bind_until_bound()
        except Exception:
            self.failure = ListenError("internal error")
            self.settled.set()
            self.health.look()
            raise

    async def _bind_until_bound(self) -> None:
        backoff = Backoff(_RETRY_FIRST, _RETRY_MOST)
        protocol = self.spec.protocol or await self._protocol()
        local = self.spec.port.local
        if local is None:
            local = (await self.route.wait_endpoint()).port
        while True:
            try:
                await self._open(protocol, local)
            except ListenError as exc:
                await self._failed(exc, protocol, local)
            except Exception:
                # One forward's bug is its own; let through, it would end every other.
                logger.exception("%s: binding failed", self.name)
                await self._failed(ListenError("internal error"), protocol, local)
            else:
                break
            self.settled.set()
            await asyncio.sleep(backoff.delay())
        self.failure = None
        self.settled.set()
        self.health.look()
        self._on_bound(self)

    async def _open(self, protocol: Protocol, local: int) -> None:
        listener = self._listeners.get(protocol) or self._listener(protocol)
        await listener.open(self.spec.target.listen, local)
        self.listener = self._listeners[protocol] = listener

    def _listener(self, protocol: Protocol) -> Listener:
        if self.spec.target.kind is Kind.PROXY:
            pool, credentials = self.route.pool, self.spec.target.credentials
            return ProxyListener(
                self.name,
                pool,
                self._tasks,
                open_timeout=self.park,
                credentials=credentials,
                metrics=self.metrics,
            )
        make = UdpListener if protocol is Protocol.UDP else TcpListener
        return make(
            self.name, self.route, self._tasks, open_timeout=self.park, metrics=self.metrics
        )

    async def _failed(self, exc: ListenError, protocol: Protocol, local: int) -> None:
        """Say so, once for each reason."""
        cause = exc.__cause__
        if isinstance(cause, OSError) and cause.errno == errno.EADDRINUSE:
            who: str | None = None
            with contextlib.suppress(KrelayError):  # no thread can be had
                who = await in_thread(lambda: port_owner(protocol, self.spec.target.listen, local))
            if who:
                exc = ListenError(f"{exc} by {who}", hint=exc.hint)
        if str(exc) != str(self.failure):
            logger.error("%s: %s", self.name, exc.line())
        self.failure = exc
        self.health.look()

    async def _protocol(self) -> Protocol:
        if not await self.route.heard():
            self.settled.set()  # perhaps it never will be
        resolution = await self.route.resolved()
        try:
            async with asyncio.timeout(_PROTOCOL_WAIT):
                await self.route.wait_endpoint()
        except TimeoutError:
            return resolution.protocol
        assert self.route.resolution is not None
        return self.route.resolution.protocol
