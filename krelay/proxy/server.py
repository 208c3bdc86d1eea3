"""Proxy listener: a first stage of the data path whose connections say where they go.

A connection does so in SOCKS5 or HTTP. The agent resolves names, in the cluster.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from functools import partial
from typing import TYPE_CHECKING

from krelay.datapath.connector import Forwarding
from krelay.datapath.route import Route
from krelay.datapath.stream_pool import StreamPool
from krelay.datapath.tcp import LocalRelay, TcpListener
from krelay.errors import ListenError
from krelay.model import Endpoint, Protocol, Resolution, Target, is_loopback
from krelay.mux.sockets import close_socket
from krelay.proxy.socks5 import Command, Negotiation, Reply, SocksRefusal, reply
from krelay.proxy.udp_associate import Association
from krelay.tasks import guard
from krelay.wire.errors import ErrorCode

if TYPE_CHECKING:
    from krelay.proxy.http_connection import HttpConnection

REQUEST_TIMEOUT = 30.0
"""Seconds for a client to say where it wants to go."""
MAX_PENDING = 1_024
"""Connections without a destination, which includes those that wait for another HTTP request."""
LINGER, LINGER_BYTES = 5.0, 1 << 20
"""How long a refused client may go on sending, in seconds and bytes. If its connection were closed
at once, the kernel would reset it and the answer be lost."""

_REPLIES = {
    ErrorCode.REFUSED: Reply.REFUSED,
    ErrorCode.NO_SUCH_HOST: Reply.HOST_UNREACHABLE,
    ErrorCode.UNREACHABLE: Reply.NETWORK_UNREACHABLE,
    ErrorCode.CONNECT_TIMEOUT: Reply.EXPIRED,
    ErrorCode.RESOLVE_TIMEOUT: Reply.EXPIRED,
}


@dataclass(eq=False, repr=False)
class ProxyListener(TcpListener):
    """The local end of a proxy. Its route only says by which pool its connections go."""

    credentials: tuple[str, str] | None = field(default=None, kw_only=True)
    """The user name and password that clients must give, if any."""
    negotiating: int = field(default=0, init=False)
    """The number of connections whose negotiation is not over."""
    _waiting: dict[HttpConnection[Endpoint], None] = field(default_factory=dict, init=False)

    @property
    def pending(self) -> int:
        """The number of connections that have no destination now."""
        return self.negotiating + len(self._waiting)

    def update(self, target: Target, open_timeout: float) -> None:
        super().update(target, open_timeout)
        self.credentials = target.credentials
        for connection in self.connections:
            connection.move(self.route.pool)

    async def open(self, address: str, port: int) -> None:
        """Bind and accept as a TcpListener does, and warn if others may use the proxy."""
        await super().open(address, port)
        if not is_loopback(address) and self.credentials is None:
            self.log.warning(
                "open to other machines without a password: they can reach everything"
                " that the agent can"
            )

    async def drain(self, timeout: float) -> None:
        """Drain as a TcpListener does; an HTTP connection ends after its current request."""
        self.close()
        for connection in list(self.connections):
            connection.finish()
        await asyncio.sleep(0)
        await super().drain(timeout)

    def reset(self) -> int:
        """Reset every connection; return how many."""
        found = list(self.connections)
        for connection in found:
            connection.cut()
        return len(found)

    def destination(self, protocol: Protocol, host: str, port: int) -> Forwarding:
        """Return a destination that is dialled by name, as it stands, through the pool."""
        endpoint = Endpoint(host, port)
        route = Route(self.route.pool, followed=False)
        route.update(Resolution(protocol, endpoint))
        name = f"{self.name}: {endpoint}"
        return Forwarding(
            name,
            route,
            self.tasks,
            open_timeout=self.open_timeout,
            metrics=self.metrics,
            target=self.target,
        )

    def on_waiting(self, connection: HttpConnection[Endpoint], waiting: bool) -> None:
        """Note that an HTTP connection begins, or ceases, to wait for a request."""
        self._waiting.pop(connection, None)
        if waiting:
            self._waiting[connection] = None
            if self.pending > MAX_PENDING:
                self.make_room()

    def make_room(self) -> bool:
        """Close the HTTP connection that is idle for the longest; return whether one was."""
        idle = next((found for found in self._waiting if found.idle), None)
        if idle is None:
            return False
        del self._waiting[idle]
        idle.finish()
        return True

    def http_connection(self) -> HttpConnection[Endpoint]:
        """Return a protocol that takes over a connection that speaks HTTP."""
        # h11 is loaded only where it is used.
        from krelay.proxy.http_connection import HttpConnection
        from krelay.proxy.http_proxy import route

        return HttpConnection(
            self,
            lambda head: route(head, self.credentials),
            lambda place: self.destination(Protocol.TCP, place.host, place.port),
            on_waiting=self.on_waiting,
            head=REQUEST_TIMEOUT,
        )

    def _accept(self) -> LocalRelay:
        return ProxyConnection(self)


class ProxyConnection(LocalRelay):
    """One accepted connection.

    Its first byte tells the protocol. An HTTP connection is handed over; after a SOCKS5
    negotiation it relays like any other connection.
    """

    def __init__(self, listener: ProxyListener) -> None:
        super().__init__(listener)
        self._proxy = listener
        self._negotiating = False
        self._negotiation: Negotiation | None = None
        self._association: Association | None = None
        self._success = b""
        self._timer: asyncio.TimerHandle | None = None
        self._refused = False
        self._discarded = 0

    def move(self, pool: StreamPool) -> None:
        super().move(pool)
        if self._association is not None:
            self._association.move(pool)

    # -- the negotiation -----------------------------------------------------------------------

    def _begin(self) -> None:
        assert self.transport is not None
        if self._proxy.pending >= MAX_PENDING and not self._proxy.make_room():
            self._proxy.log.warning("too many connections without a request")
            self.cut()
            return
        self._negotiating = True
        self._proxy.negotiating += 1
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(REQUEST_TIMEOUT, self._timed_out)
        self.transport.resume_reading()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            self._discarded += len(data)
            if self._discarded > LINGER_BYTES and self.transport is not None:
                close_socket(self.transport)
        elif self._negotiating:
            self._negotiate(data)
        elif self._association is None:
            super().data_received(data)

    def eof_received(self) -> bool:
        if self._negotiating or self._refused or self._association is not None:
            # Nothing was cut short: the connection closes in good order.
            if self.transport is not None:
                close_socket(self.transport)
            return True
        return super().eof_received()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end_negotiation()
        if self._association is not None:
            self._association.close()
        super().connection_lost(exc)

    def _negotiate(self, data: bytes) -> None:
        try:
            if self._negotiation is None and data[:1] in (b"\4", b"\5"):
                self._negotiation = Negotiation(self._proxy.credentials)
            if self._negotiation is not None:
                self._negotiate_socks(self._negotiation, data)
            else:
                self._hand_over(data)
        except SocksRefusal as exc:
            self._proxy.log.info("refused: %s", exc)
            self._refuse(exc.reply)
        except Exception:
            # A bug costs this connection only.
            self._proxy.log.exception("the negotiation failed")
            self.cut()

    def _hand_over(self, data: bytes) -> None:
        """Hand the socket and its first bytes to an HTTP connection."""
        transport, self.transport = self.transport, None
        assert transport is not None
        http = self._proxy.http_connection()
        transport.set_protocol(http)
        self._end_negotiation()
        http.connection_made(transport)
        self._proxy.disconnected(self)
        http.data_received(data)

    def _negotiate_socks(self, negotiation: Negotiation, data: bytes) -> None:
        out = negotiation.receive(data)
        if out and self.transport is not None:
            self.transport.write(out)
        request = negotiation.request
        if request is None:
            return
        self._end_negotiation()
        if request.command is Command.UDP_ASSOCIATE:
            self._associate(request.port)
        else:
            assert self.transport is not None
            self.transport.pause_reading()
            self._success = reply(Reply.OK)
            if negotiation.rest and self._unaccepted is not None:
                self._unaccepted.append(negotiation.rest)
                self.received_bytes += len(negotiation.rest)
            destination = self._proxy.destination(Protocol.TCP, request.host, request.port)
            self._request = self._make_request(destination)
            self._request.start()

    def _associate(self, port: int) -> None:
        assert self.transport is not None
        here = self.transport.get_extra_info("sockname")
        client = self.transport.get_extra_info("peername")
        if here is None or client is None:
            # The client reset the connection before it was accepted.
            self.cut()
            return
        self._association = association = Association(
            client[:2],
            partial(self._proxy.destination, Protocol.UDP),
            self._proxy.metrics,
            tasks=self._proxy.tasks,
            port=port,
        )
        binding = guard(partial(self._bind, association, here[0]), self._proxy.name)
        self._proxy.tasks.create_task(binding, name=self._proxy.name)

    async def _bind(self, association: Association, host: str) -> None:
        try:
            port = await association.open(host)
        except (OSError, ListenError) as exc:
            self._proxy.log.warning("no UDP: %s", exc)
            self._refuse(reply(Reply.FAILURE))
        else:
            if self.transport is None:
                association.close()
            else:
                self.transport.write(reply(Reply.OK, host, port))

    # -- ends ----------------------------------------------------------------------------------

    def on_accepted(self) -> None:
        if self.transport is not None and self._success:
            self.transport.write(self._success)
        super().on_accepted()

    def _fail(self, code: ErrorCode, message: str) -> None:
        self._refuse(reply(_REPLIES.get(code, Reply.FAILURE)))

    def _timed_out(self) -> None:
        self._proxy.log.info("a connection sent no request in time")
        self.cut()

    def _end_negotiation(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._negotiating:
            self._negotiating = False
            self._proxy.negotiating -= 1

    def _refuse(self, answer: bytes) -> None:
        """Send the answer, and close when the client has read it."""
        self._end_negotiation()
        self.stream = None
        self._refused = self._remote_ended = True
        transport = self.transport
        if transport is not None:
            transport.write(answer)
            self._end_socket(transport)
            transport.resume_reading()
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(LINGER, close_socket, transport)
