"""Forward: one port of a target, from the file to a bound listener on a route."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import logging
from collections.abc import Callable, Iterable
from functools import partial

from krelay.config.diff import Spec
from krelay.datapath.metrics import ForwardMetrics
from krelay.datapath.route import Route
from krelay.datapath.stream_pool import StreamPool
from krelay.datapath.tcp import TcpListener
from krelay.datapath.udp import UdpListener
from krelay.errors import KrelayError, ListenError
from krelay.model import Endpoint, Kind, Protocol
from krelay.mux.log import About, about
from krelay.net.bind import is_free, port_owner, unbound_loopback
from krelay.proxy.server import ProxyListener
from krelay.retry import Backoff, OnceUntilChanged
from krelay.state.bus import EventBus
from krelay.supervisor.health import Health
from krelay.tasks import TaskGroup, guard
from krelay.threads import in_thread

logger = logging.getLogger("krelay.forward")

_RETRY_FIRST, _RETRY_MOST = 0.5, 5.0
"""Seconds between two attempts to bind: the owner of the port may leave at any time."""
_SETTLE_DEADLINE = 10.0

Listener = TcpListener | UdpListener


class Forward:
    """Binds once its protocol and local port are known, and tries again while that fails.

    A target that does not exist yet, or has no pod, is taken for TCP; it is bound again once it
    turns out to be UDP.

    `settled` is set when it is bound, has failed for the first time, or cannot learn what to bind.
    `failure` says why it is not bound now. Its tasks, and those of its connections, belong to
    `tasks`; `drain` or `cut` ends it.
    """

    def __init__(
        self,
        spec: Spec,
        route: Route,
        tasks: TaskGroup,
        open_timeout: float,
        *,
        bus: EventBus,
        on_bound: Callable[[Forward], None],
    ) -> None:
        """Publish the states of the forward on `bus`, and call `on_bound` each time it was bound.

        A new connection waits for a stream for up to `open_timeout` seconds.
        """
        self.spec = spec
        self.route = route
        self.open_timeout = open_timeout
        self.listener: Listener | None = None
        self.failure: ListenError | None = None
        self.direct_only = ""
        """Why the agent cannot reach it, although its pod can be; empty if it can."""
        self.settled = asyncio.Event()
        self.quiet = False
        """Whether only `report` logs why it is not bound, not each failure."""
        self.metrics = ForwardMetrics()
        self.health = Health(spec, route, self.metrics, bus)
        self._tasks = tasks
        self._on_bound = on_bound
        self._binding: asyncio.Task[bool] | None = None
        self._failures = OnceUntilChanged()
        # At most one of each protocol: connections outlive a change of it.
        self._listeners: dict[Protocol, Listener] = {}

    @property
    def name(self) -> str:
        return self.spec.name

    @property
    def certain(self) -> bool:
        """Whether the file alone says what to listen on."""
        return self.spec.protocol is not None and self.spec.port.local is not None

    @property
    def live(self) -> int:
        """Connections and flows that it carries now."""
        return sum(listener.live for listener in self._listeners.values())

    @property
    def moving(self) -> int:
        """Connections that a drain waits for after `end_quiet`."""
        return sum(listener.moving for listener in self._listeners.values())

    @property
    def protocol(self) -> Protocol | None:
        """The protocol that it is bound for; None while it is not bound."""
        return next((p for p, found in self._listeners.items() if found is self.listener), None)

    @property
    def addresses(self) -> list[str]:
        """The bound addresses, each as `127.0.0.1:8080`."""
        bound = self.listener.addresses if self.listener else ()
        return [str(Endpoint(*address)) for address in bound]

    def bind(self) -> None:
        """Listen where the file says, as soon as that is known."""
        self.unbind()
        self._binding = self._tasks.create_task(guard(self._bind, self.name), name=self.name)
        self.health.start(self._tasks)

    def port_may_be_taken(self) -> bool:
        """Return whether the local port of the file may be in use, by one protocol or the other."""
        local = self.spec.port.local
        return bool(local) and not is_free(self.spec.target.listen, local or 0)

    def report(self) -> None:
        """Log why it is not bound, each reason once."""
        if self.failure is not None and self._failures.is_new(self.failure):
            self._log.error("%s", self.failure.line())

    def unbind(self) -> None:
        """Free the address; connections live on, datagrams do not."""
        binding, self._binding = self._binding, None
        if binding is not None:
            binding.cancel()
        self._close()
        self.failure = None
        self._failures.clear()
        self.settled.clear()

    def _close(self) -> None:
        if self.listener is not None:
            self.listener.close()
            self.listener = None
        self.health.unbound()

    def update(self, spec: Spec, pool: StreamPool, open_timeout: float) -> None:
        """Follow an edit that does not change where to listen; live connections stay untouched."""
        if spec.leads != self.spec.leads:
            self.route.redirect()
        self.spec = self.health.spec = spec
        self.open_timeout = open_timeout
        self.route.move(pool)
        for listener in self._listeners.values():
            listener.update(spec.target, open_timeout)
        self.health.judge()

    def restart(self) -> int:
        """Reset its connections, and forget what is known of its endpoint; return how many.

        Its listeners stay: new connections wait for the next answer about the target.
        """
        count = sum(listener.reset() for listener in self._listeners.values())
        self.direct_only = ""
        self.route.redirect()
        self.health.restart()
        self._log.info("restarted, %d connection%s reset", count, "s" * (count != 1))
        return count

    async def drain(self, timeout: float) -> None:
        """Accept no more connections; cut those left after `timeout` seconds."""
        self.health.drain()
        self.unbind()
        async with TaskGroup() as draining:
            for listener in self._listeners.values():
                draining.create_task(guard(partial(listener.drain, timeout), self.name))

    def end_quiet(self) -> None:
        """While draining, close connections that are quiet, and those that become so."""
        for listener in self._listeners.values():
            listener.end_quiet()

    def cut(self) -> None:
        """Free the address and reset all connections, now."""
        self.health.drain()
        self.unbind()
        for listener in self._listeners.values():
            listener.cut()

    async def _bind(self) -> None:
        try:
            await self._bind_until_bound()
        except Exception:
            self._not_bound(ListenError("internal error"))
            self.settled.set()
            raise

    async def _bind_until_bound(self) -> None:
        protocol = self.spec.protocol or await self._protocol()
        local = self.spec.port.local
        if local is None:
            if await self.route.heard() and self.route.endpoint is None:
                self.settled.set()  # it may never have one
            local = (await self.route.wait_endpoint()).port
        while True:
            bound = await self._listen(protocol, local)
            if self.spec.protocol is None:
                await self.route.wait_endpoint()
            protocol = self._known_protocol or bound
            if protocol is bound:
                return
            self._close()

    async def _listen(self, protocol: Protocol, local: int) -> Protocol:
        """Listen as soon as the port is free; return the protocol, which may become known only
        then."""
        backoff = Backoff(_RETRY_FIRST, _RETRY_MOST)
        while True:
            protocol = self._known_protocol or protocol
            try:
                await self._open(protocol, local)
            except ListenError as exc:
                await self._failed(exc, protocol, local)
            except Exception:
                # Let through, a bug in one forward would end all forwards.
                self._log.exception("binding failed")
                await self._failed(ListenError("internal error"), protocol, local)
            else:
                break
            self.settled.set()
            await asyncio.sleep(backoff.delay())
        self.failure = None
        self._failures.clear()
        self.settled.set()
        self.health.bound(protocol)
        self._on_bound(self)
        return protocol

    @property
    def _known_protocol(self) -> Protocol | None:
        """The protocol that the file says, or that of the endpoint."""
        resolution = self.route.resolution
        found = resolution.protocol if resolution and resolution.endpoint else None
        return self.spec.protocol or found

    async def _open(self, protocol: Protocol, local: int) -> None:
        target, timeout = self.spec.target, self.open_timeout
        listener = self._listeners.get(protocol)
        if listener is None:
            make: type[Listener] = UdpListener if protocol is Protocol.UDP else TcpListener
            if target.kind is Kind.PROXY:
                make = ProxyListener
            listener = make(
                self.name,
                self.route,
                self._tasks,
                open_timeout=timeout,
                metrics=self.metrics,
                target=target.name,
            )
            listener.update(target, timeout)
        await listener.open(target.listen, local)
        self.listener = self._listeners[protocol] = listener
        missing = unbound_loopback(target.listen, (host for host, _ in listener.addresses))
        if missing is not None:
            where = Endpoint(missing, listener.addresses[0][1])
            owner = await self._owner(protocol, missing, where.port)
            by = f" by {owner}" if owner else ""
            bound = " and ".join(str(Endpoint(*bound)) for bound in listener.addresses)
            self._log.warning("it listens only on %s: %s is taken%s", bound, where, by)

    async def _owner(self, protocol: Protocol, address: str, port: int) -> str | None:
        """Return who has the port, if the system says so."""
        with contextlib.suppress(KrelayError):  # no thread is available
            return await in_thread(lambda: port_owner(protocol, address, port))
        return None

    async def _failed(self, exc: ListenError, protocol: Protocol, local: int) -> None:
        """Record why it is not bound, with the owner of the port; log each reason once."""
        cause = exc.__cause__
        if isinstance(cause, OSError) and cause.errno == errno.EADDRINUSE:
            owner = await self._owner(protocol, self.spec.target.listen, local)
            if owner:
                exc = ListenError(f"{exc} by {owner}", hint=exc.hint)
        self._not_bound(exc)
        if not self.quiet:
            self.report()

    def _not_bound(self, failure: ListenError) -> None:
        self.failure = failure
        self.health.bind_failed(failure)

    @property
    def _log(self) -> About:
        return about(logger, target=self.spec.target.name, name=self.name)

    async def _protocol(self) -> Protocol:
        if not await self.route.heard():
            self.settled.set()  # it may never be resolved
        return (await self.route.resolved()).protocol


async def wait_settled(forwards: Iterable[Forward]) -> None:
    """Wait until each forward is bound or has failed, for a limited time."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_SETTLE_DEADLINE):
            for forward in forwards:
                await forward.settled.wait()
