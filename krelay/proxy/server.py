"""Proxy: another first stage of the data path; a port that asks each connection where it wants to
go, in SOCKS5 or HTTP. Names are resolved by the agent, in the cluster."""

from __future__ import annotations

import asyncio
import logging
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, runtime_checkable
from typing import Protocol as Shape

from krelay.datapath.connector import StreamRequest
from krelay.datapath.metrics import ForwardMetrics
from krelay.datapath.pool import Pool
from krelay.datapath.route import Route
from krelay.datapath.tcp import LocalRelay, TcpListener
from krelay.model import Endpoint, Protocol, Resolution, is_loopback
from krelay.mux.sockets import close_socket
from krelay.proxy.socks5 import Acceptor, Command, Reply, SocksRefusal, reply
from krelay.proxy.udp_associate import Association
from krelay.tasks import TaskGroup, guard
from krelay.wire.errors import ErrorCode

if TYPE_CHECKING:
    from krelay.proxy.http_connection import HttpConnection

logger = logging.getLogger("krelay.listener")

PATIENCE = 30.0
"""Seconds for a client to say where it wants to go."""
MAX_ASKING = 1_024
"""Connections that have not said it yet, those that wait for another HTTP request included."""
LINGER, LINGER_BYTES = 5.0, 1 << 20
"""How long a refused client may go on sending, in seconds and bytes. If it were closed at once, the
kernel would reset it, and the answer be lost."""

_REPLIES = {
    ErrorCode.REFUSED: Reply.REFUSED,
    ErrorCode.NO_SUCH_HOST: Reply.HOST_UNREACHABLE,
    ErrorCode.UNREACHABLE: Reply.NETWORK_UNREACHABLE,
    ErrorCode.CONNECT_TIMEOUT: Reply.EXPIRED,
    ErrorCode.RESOLVE_TIMEOUT: Reply.EXPIRED,
}


@dataclass(slots=True)
class Destination:
    """Where one connection wants to go; what an StreamRequest needs to know."""

    name: str
    route: Route
    open_timeout: float
    tasks: TaskGroup
    metrics: ForwardMetrics

    @classmethod
    def of(cls, listener: ProxyListener, protocol: Protocol, host: str, port: int) -> Destination:
        """A destination that is dialled as it stands, through the listener's pool."""
        route = Route(listener.pool, followed=False)
        route.update(Resolution(protocol, Endpoint(host, port)))
        name = f"{listener.name}: {Endpoint(host, port)}"
        return cls(name, route, listener.open_timeout, listener.tasks, listener.metrics)


class ProxyListener(TcpListener):
    """The proxy's local end: a TcpListener whose connections say themselves where they go.

    `credentials` are a user's name and password, where the proxy asks for them.
    """

    def __init__(
        self,
        name: str,
        pool: Pool,
        tasks: TaskGroup,
        *,
        open_timeout: float,
        credentials: tuple[str, str] | None = None,
        metrics: ForwardMetrics | None = None,
    ) -> None:
        super().__init__(
            name, Route(pool, followed=False), tasks, open_timeout=open_timeout, metrics=metrics
        )
        self.credentials = credentials
        self.negotiating = 0
        self._waiting: dict[HttpConnection[Endpoint], None] = {}

    @property
    def asking(self) -> int:
        """How many connections have not said where they, or their next requests, want to go."""
        return self.negotiating + len(self._waiting)

    @property
    def pool(self) -> Pool:
        """What new connections ride on, and those that still wait."""
        return self.route.pool

    @pool.setter
    def pool(self, pool: Pool) -> None:
        self.route.pool = pool
        for connection in self.connections:
            if isinstance(connection, _Movable):
                connection.move(pool)

    async def open(self, address: str, port: int) -> None:
        """As its parent; and say so where it leads everybody into the cluster."""
        await super().open(address, port)
        if not is_loopback(address) and self.credentials is None:
            logger.warning(
                "%s: open to other machines without a password: whoever reaches it reaches all"
                " that the agent does",
                self.name,
            )

    async def drain(self, timeout: float) -> None:
        """As its parent. Idle HTTP connections close, others end behind their current request."""
        self.close()
        for connection in list(self.connections):
            if isinstance(connection, _Finishing):
                connection.finish()
        await asyncio.sleep(0)
        await super().drain(timeout)

    def waits(self, connection: HttpConnection[Endpoint], waiting: bool) -> None:
        """An HTTP connection waits for a request, or no longer."""
        self._waiting.pop(connection, None)
        if waiting:
            self._waiting[connection] = None
            if self.asking > MAX_ASKING:
                self.make_room()

    def make_room(self) -> bool:
        """Close the HTTP connection that has been idle for the longest; whether there was one."""
        idle = next((found for found in self._waiting if found.idle), None)
        if idle is None:
            return False
        del self._waiting[idle]
        idle.finish()
        return True

    def http(self) -> HttpConnection[Endpoint]:
        """Return what takes a connection over that speaks HTTP."""
        # h11 is loaded only where it is used.
        from krelay.proxy.http_connection import HttpConnection
        from krelay.proxy.http_proxy import route

        return HttpConnection(
            self,
            lambda head: route(head, self.credentials),
            lambda place: Destination.of(self, Protocol.TCP, place.host, place.port),
            on_waiting=self.waits,
            head=PATIENCE,
        )

    def _accept(self) -> LocalRelay:
        return ProxyConnection(self)


@runtime_checkable
class _Movable(Shape):
    def move(self, pool: Pool) -> None:
        """Take the next stream from there."""


@runtime_checkable
class _Finishing(Shape):
    def finish(self) -> None:
        """Serve no request but the current one."""


class ProxyConnection(LocalRelay):
    """One accepted connection. Its first byte says what it speaks: HTTP is handed over, SOCKS5
    negotiates, and then it is a relay like any other."""

    def __init__(self, listener: ProxyListener) -> None:
        super().__init__(listener)
        self._proxy = listener
        self._asking = False
        self._acceptor: Acceptor | None = None
        self._association: Association | None = None
        self._success = b""
        self._timer: asyncio.TimerHandle | None = None
        self._refused = False
        self._drained = 0

    def move(self, pool: Pool) -> None:
        """A connection that still waits gets its stream from there."""
        if self.stream is None:
            self._forwarding.route.pool = pool
        if self._association is not None:
            self._association.pool = pool

    # -- the negotiation -----------------------------------------------------------------------

    def _begin(self) -> None:
        assert self.transport is not None
        if self._proxy.asking >= MAX_ASKING and not self._proxy.make_room():
            logger.warning("%s: too many connections that ask for nothing", self._proxy.name)
            self.cut()
            return
        self._asking = True
        self._proxy.negotiating += 1
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(PATIENCE, self._late)
        self.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            self._drained += len(data)
            if self._drained > LINGER_BYTES and self.transport is not None:
                close_socket(self.transport)
            return
        if not self._asking:
            if self._association is None:
                super().data_received(data)
            return
        try:
            self._negotiate(data)
        except SocksRefusal as exc:
            logger.info("%s: refused: %s", self._proxy.name, exc)
            self._end(exc.reply)
        except Exception:
            # One connection's bug is its own.
            logger.exception("%s: the negotiation failed", self._proxy.name)
            self.cut()

    def eof_received(self) -> bool:
        if self._asking or self._refused or self._association is not None:
            # Nothing was cut short: it is an end like any other.
            if self.transport is not None:
                close_socket(self.transport)
            return True
        return super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._asked()
        if self._association is not None:
            self._association.close()
        super().connection_lost(exc)

    def _negotiate(self, data: bytes) -> None:
        if self._acceptor is None:
            if data[:1] not in (b"\4", b"\5"):
                self._hand_over(data)
                return
            self._acceptor = Acceptor(self._proxy.credentials)
        self._socks(self._acceptor, data)

    def _hand_over(self, data: bytes) -> None:
        """Let an HTTP connection have the socket, and what came by it."""
        transport, self.transport = self.transport, None
        assert transport is not None
        http = self._proxy.http()
        transport.set_protocol(http)
        self._asked()
        http.connection_made(transport)
        self._proxy.left(self)
        http.data_received(data)

    def _socks(self, acceptor: Acceptor, data: bytes) -> None:
        out = acceptor.receive(data)
        if out and self.transport is not None:
            self.transport.write(out)
        asked = acceptor.asked
        if asked is None:
            return
        if asked.command is Command.UDP_ASSOCIATE:
            self._asked()
            self._associate(asked.port)
            return
        self._success = reply(Reply.OK)
        self._open(asked.host, asked.port, acceptor.rest)

    def _open(self, host: str, port: int, early: bytes) -> None:
        """It said where it wants to go: from here on it is a relay."""
        assert self.transport is not None
        self._asked()
        self.transport.pause_reading()
        destination = Destination.of(self._proxy, Protocol.TCP, host, port)
        self._forwarding = destination
        self._opening = StreamRequest(destination, Protocol.TCP, self, on_queued=self.on_queued)
        self._entry = destination.metrics.begin(self)
        if early and self._sent is not None:
            self._sent.append(early)
            self.received_bytes += len(early)
        self._opening.start()

    def _associate(self, port: int) -> None:
        assert self.transport is not None
        here = self.transport.get_extra_info("sockname")
        client = self.transport.get_extra_info("peername")
        if here is None or client is None:
            # It was reset before it was accepted.
            self.cut()
            return
        self._association = association = Association(
            client[:2],
            lambda *place: Destination.of(self._proxy, Protocol.UDP, *place),
            self._proxy.metrics,
            tasks=self._proxy.tasks,
            port=port,
        )
        binding = guard(partial(self._bind, association, here[0]), self._proxy.name)
        self._proxy.tasks.create_task(binding, name=self._proxy.name)

    async def _bind(self, association: Association, host: str) -> None:
        try:
            port = await association.open(host)
        except OSError as exc:
            logger.warning("%s: no UDP: %s", self._proxy.name, exc)
            self._end(reply(Reply.FAILURE))
        else:
            if self.transport is None:
                association.close()
            else:
                self.transport.write(reply(Reply.OK, host, port))

    # -- its end -------------------------------------------------------------------------------

    def on_accepted(self) -> None:
        if self.transport is not None and self._success:
            self.transport.write(self._success)
        super().on_accepted()

    def _fail(self, code: ErrorCode, message: str) -> None:
        self._end(reply(_REPLIES.get(code, Reply.FAILURE)))

    def _late(self) -> None:
        logger.info("%s: a connection asked for nothing in time", self._proxy.name)
        self.cut()

    def _asked(self) -> None:
        """The negotiation is over."""
        if self._timer is not None:
            self._timer.cancel()
        if self._asking:
            self._asking = False
            self._proxy.negotiating -= 1

    def _end(self, last: bytes) -> None:
        """Send why, and close when the client has read it."""
        self._asked()
        self.stream = None
        self._refused = self._remote_ended = True
        transport = self.transport
        if transport is not None:
            transport.write(last)
            self._end_socket(transport)
            transport.resume_reading()
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(LINGER, close_socket, transport)
