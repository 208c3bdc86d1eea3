"""Associate: SOCKS5's UDP, a socket for one client whose datagrams say themselves where they go
(RFC 1928, section 7). A flow for each destination, as any other UDP flow.

An association belongs to the client that made it: to the port that its request names, else to the
first sender with the client's address. On loopback, which all users of the machine share, that
sender must also be of the client's user, as far as the system tells.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import Any, cast

from krelay.datapath.connector import Forwarding
from krelay.datapath.metrics import EARLY, KERNEL, ForwardMetrics
from krelay.datapath.pool import Pool
from krelay.datapath.udp import IDLE, Flow
from krelay.model import is_loopback
from krelay.net.accept import descriptor_budget
from krelay.proxy.socket_owner import same_user
from krelay.proxy.socks5 import read_datagram, write_datagram
from krelay.tasks import TaskGroup, guard
from krelay.threads import in_thread
from krelay.wire.errors import ErrorCode
from krelay.wire.frames import Buffer

logger = logging.getLogger("krelay.listener")

MAX_DESTINATIONS = 64
_MAX_BACKLOG = 1 << 20
_MAX_SENDERS, _MAX_UNPROVEN = 64, 4
"""How many senders, and datagrams of each, wait until it is known whose they are."""

Place = tuple[str, int]


class Association(asyncio.DatagramProtocol):
    """Lives as long as the connection that asked for it, which calls `close`."""

    def __init__(
        self,
        client: tuple[str, int],
        destination: Callable[[str, int], Forwarding],
        metrics: ForwardMetrics | None = None,
        *,
        tasks: TaskGroup,
        port: int = 0,
    ) -> None:
        """`client` is the client's end of the connection that asked, `port` the UDP port that it
        named, if any; `destination` makes where a datagram goes."""
        self.metrics = metrics or ForwardMetrics()
        self.flows: OrderedDict[Any, Flow] = OrderedDict()
        self.loop = asyncio.get_running_loop()
        self._client = client
        self._named = port
        self._port: Any = None
        self._tasks = tasks
        self._unproven: dict[tuple[Any, ...], list[bytes]] = {}
        self._dropped: Counter[tuple[Any, ...]] = Counter()
        """Datagrams of each sender that were too many to keep."""
        self._proving: asyncio.Task[bool] | None = None
        self._destination = destination
        self._transport: asyncio.DatagramTransport | None = None
        self._sweeper: asyncio.TimerHandle | None = None

    async def open(self, host: str) -> int:
        """Bind beside the proxy; the port. The socket is one of those that clients take, as are
        accepted ones: it must leave the reserve alone.

        Raises:
            OSError: there is none.
        """
        if not descriptor_budget().has_room():
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        sock = _bound(host)
        descriptor_budget().accepted(sock)
        await self.loop.create_datagram_endpoint(lambda: self, sock=sock)
        assert self._transport is not None
        self._sweep()
        port: int = self._transport.get_extra_info("sockname")[1]
        return port

    def close(self) -> None:
        """End every flow, and free the socket."""
        if self._sweeper is not None:
            self._sweeper.cancel()
        if self._proving is not None:
            self._proving.cancel()
        for flow in list(self.flows.values()):
            flow.close(ErrorCode.CANCELLED)
        self.flows.clear()
        if self._transport is not None:
            self.metrics.leave_socket(self._drops)
            self._transport.close()

    @property
    def pool(self) -> Pool | None:
        """What the flows ride on; None where there are none."""
        return next((flow.route.pool for flow in self.flows.values()), None)

    @pool.setter
    def pool(self, pool: Pool) -> None:
        for flow in self.flows.values():
            flow.route.pool = pool

    # -- the socket's side ---------------------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.DatagramTransport, transport)
        self._drops = self.metrics.watch(transport.get_extra_info("socket"))

    def connection_lost(self, exc: Exception | None) -> None:
        descriptor_budget().closed()

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        if addr[0] != self._client[0] or self._port not in (None, addr):
            return
        found = read_datagram(data)
        if found is not None and (self._port is not None or self._claim(addr, data)):
            self._send(*found)

    def _claim(self, addr: tuple[Any, ...], data: bytes) -> bool:
        """Whether the first datagram of `addr` is the client's; if that is not known yet, keep it
        until it is."""
        if self._named:
            if addr[1] != self._named:
                return False
        elif is_loopback(addr[0]):
            if addr in self._unproven or len(self._unproven) < _MAX_SENDERS:
                kept = self._unproven.setdefault(addr, [])
                if len(kept) < _MAX_UNPROVEN:
                    kept.append(data)
                else:
                    self._dropped[addr] += 1
            if self._proving is None:
                proving = guard(self._prove, "UDP association")
                self._proving = self._tasks.create_task(proving, name="UDP association")
            return False
        self._port = addr
        return True

    async def _prove(self) -> None:
        try:
            while self._unproven and self._port is None:
                waiting, self._unproven = self._unproven, {}
                await self._prove_each(waiting)
                for addr in waiting:
                    self._dropped.pop(addr, None)
        finally:
            self._proving = None
            self._unproven.clear()
            self._dropped.clear()

    async def _prove_each(self, waiting: dict[tuple[Any, ...], list[bytes]]) -> None:
        senders = {addr[:2]: addr for addr in waiting}
        proven = await in_thread(lambda: same_user(self._client, list(senders)))
        addr = next((addr for place, addr in senders.items() if place in proven), None)
        if addr is None:
            logger.info("UDP association: dropped a datagram of another user")
            return
        self._port = addr
        self.metrics.drops[EARLY] += self._dropped[addr]
        # Others have come while it was asked.
        for data in [*waiting[addr], *self._unproven.get(addr, ())]:
            if (found := read_datagram(data)) is not None:
                self._send(*found)

    def _send(self, host: str, port: int, payload: bytes) -> None:
        place = host, port
        flow = self.flows.get(place)
        if flow is None:
            if len(self.flows) >= MAX_DESTINATIONS:
                _, oldest = self.flows.popitem(last=False)
                oldest.close(ErrorCode.IDLE)
            toward = _Toward(self, self._destination(host, port))
            flow = self.flows[place] = Flow(toward, place)
        flow.send(payload)

    def error_received(self, exc: Exception) -> None:
        logger.debug("UDP association: %s", exc)

    def answer(self, data: Buffer, place: Place) -> None:
        """To the client, from where it came."""
        transport = self._transport
        if transport is None or self._port is None or transport.is_closing():
            return
        if cast(Any, transport).get_write_buffer_size() < _MAX_BACKLOG:
            transport.sendto(write_datagram(*place, data), self._port)
            self.metrics.to_local += len(data)
        else:
            self.metrics.drops[KERNEL] += 1

    def _sweep(self) -> None:
        now = self.loop.time()
        for place, flow in list(self.flows.items()):
            if now - flow.active_at >= IDLE:
                del self.flows[place]
                flow.close(ErrorCode.IDLE)
        self._sweeper = self.loop.call_later(IDLE / 2, self._sweep)


def _bound(host: str) -> socket.socket:
    (family, kind, proto, _, address), *_ = socket.getaddrinfo(
        host, 0, type=socket.SOCK_DGRAM, flags=socket.AI_NUMERICHOST
    )
    sock = socket.socket(family, kind, proto)
    try:
        sock.bind(address)
    except OSError:
        sock.close()
        raise
    return sock


class _Toward:
    """What a Flow needs of its socket, for one destination."""

    def __init__(self, association: Association, destination: Forwarding) -> None:
        self.listener = destination
        self.flows = association.flows
        self.loop = association.loop
        self._association = association

    def reply(self, data: Buffer, place: Any) -> None:
        """An answer from the destination."""
        self._association.answer(data, place)
