"""UDP ASSOCIATE: one client's SOCKS5 datagrams, each of which says where it goes (RFC 1928, s. 7).

Each destination has its own flow. An association belongs to the client that made it: to the
UDP port that its request names, or else to the first sender from the client's address. All users of
a machine share its loopback address, so such a sender must also be a socket of the client's user,
if the system can tell.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import logging
import os
import socket
import sys
from collections import Counter
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from krelay.datapath.connector import Forwarding
from krelay.datapath.metrics import EARLY, ForwardMetrics
from krelay.datapath.stream_pool import StreamPool
from krelay.datapath.udp import FlowSocket
from krelay.model import is_loopback
from krelay.net.accept import descriptor_budget
from krelay.net.bind import bind
from krelay.proxy.socks5 import read_datagram, write_datagram
from krelay.tasks import TaskGroup, guard
from krelay.threads import in_thread
from krelay.wire.frames import Buffer

logger = logging.getLogger("krelay.listener")

MAX_DESTINATIONS = 64
_MAX_BACKLOG = 1 << 20
_MAX_SENDERS, _MAX_UNPROVEN = 64, 4
"""How many senders, and datagrams of each, wait until their user is known."""
_TABLES = Path("/proc/net")
_ESTABLISHED = "01"

Address = tuple[str, int]


class Association(FlowSocket):
    """One association. The connection that requested it calls `close` at its end."""

    def __init__(
        self,
        client: Address,
        destination: Callable[[str, int], Forwarding],
        metrics: ForwardMetrics,
        *,
        tasks: TaskGroup,
        port: int = 0,
    ) -> None:
        """`client` is the client's end of the connection that requested the association, `port` the
        UDP port that the request names, if any. `destination` makes a destination of a host and a
        port."""
        super().__init__(metrics)
        self._client = client
        self._port = port
        self._sender: Any = None
        """The client's UDP address, once it is known."""
        self._tasks = tasks
        self._unproven: dict[tuple[Any, ...], list[bytes]] = {}
        self._dropped: Counter[tuple[Any, ...]] = Counter()
        """Datagrams of each unproven sender that were too many to keep."""
        self._proving: asyncio.Task[bool] | None = None
        self._destination = destination

    async def open(self, host: str) -> int:
        """Bind a UDP socket at `host` and return its port.

        The socket counts as a client's, like an accepted one: it leaves the descriptors that are
        reserved for the rest of the program.

        Raises:
            OSError, ListenError: no socket can be created.
        """
        if not descriptor_budget().has_room():
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        (sock,) = bind(host, 0, socket.SOCK_DGRAM)
        try:
            self.attach(sock)
        except BaseException:
            sock.close()
            raise
        descriptor_budget().accepted(sock)
        port: int = sock.getsockname()[1]
        return port

    def close(self) -> None:
        if self._proving is not None:
            self._proving.cancel()
        attached = self._endpoint is not None
        super().close()
        if attached:
            descriptor_budget().closed()

    def move(self, pool: StreamPool) -> None:
        """Have further streams of the flows use `pool`."""
        for flow in self.flows.values():
            flow.route.move(pool)

    # -- the socket's side ---------------------------------------------------------------------

    def datagram_received(self, data: bytes, addr: tuple[Any, ...]) -> None:
        if addr[0] != self._client[0] or self._sender not in (None, addr):
            return
        found = read_datagram(data)
        if found is not None and (self._sender is not None or self._is_client(addr, data)):
            self._send(*found)

    def _is_client(self, addr: tuple[Any, ...], data: bytes) -> bool:
        """Return whether a datagram of an unknown sender is the client's; keep it if that takes a
        look at the system's sockets."""
        if self._port:
            if addr[1] != self._port:
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
        self._sender = addr
        return True

    async def _prove(self) -> None:
        """Look for the client among the senders whose datagrams wait."""
        try:
            while self._unproven and self._sender is None:
                waiting, self._unproven = self._unproven, {}
                await self._prove_one_of(waiting)
                for addr in waiting:
                    self._dropped.pop(addr, None)
        finally:
            self._proving = None
            self._unproven.clear()
            self._dropped.clear()

    async def _prove_one_of(self, waiting: dict[tuple[Any, ...], list[bytes]]) -> None:
        senders = {addr[:2]: addr for addr in waiting}
        proven = await in_thread(lambda: same_user(self._client, list(senders)))
        addr = next((addr for place, addr in senders.items() if place in proven), None)
        if addr is None:
            logger.info("UDP association: dropped a datagram of another user")
            return
        self._sender = addr
        self.metrics.drops[EARLY] += self._dropped[addr]
        # More datagrams may have arrived meanwhile.
        for data in [*waiting[addr], *self._unproven.get(addr, ())]:
            if (found := read_datagram(data)) is not None:
                self._send(*found)

    def _send(self, host: str, port: int, payload: bytes) -> None:
        place = host, port
        flow = self.flows.get(place)
        if flow is None:
            flow = self._open(place, self._destination(host, port), MAX_DESTINATIONS)
        flow.send(payload)

    def error_received(self, exc: OSError) -> None:
        logger.debug("UDP association: %s", exc)

    def reply(self, data: Buffer, place: Address) -> None:
        if self._endpoint is not None and self._sender is not None:
            self._endpoint.send(write_datagram(*place, data), self._sender)
            self.metrics.to_local += len(data)

    def client(self, addr: Address) -> Address | None:
        """Return the client's address; destinations tell the flows apart."""
        return self._sender  # type: ignore[no-any-return]

    def datagrams_sent(self, size: int) -> None:
        """Count nothing: `size` includes the headers of SOCKS."""


# -- owners of sockets (Linux) -----------------------------------------------------------------


def same_user(client: Address, senders: Collection[Address]) -> set[Address]:
    """Return the UDP `senders` that belong to the user of the TCP connection from `client`.

    Return all of them if the system does not say who that user is. Blocks while it reads.
    """
    users = {
        user
        for host, port, state, user in _sockets("tcp")
        if (host, port) == client and state == _ESTABLISHED
    }
    if not users:
        return set(senders)
    found: dict[Address, set[int]] = {sender: set() for sender in senders}
    ports = {port for _, port in senders}
    for host, port, _, user in _sockets("udp"):
        if port in ports:
            for sender, owners in found.items():
                if sender[1] == port and host in (sender[0], "0.0.0.0", "::"):
                    owners.add(user)
    return {sender for sender, owners in found.items() if owners and owners <= users}


def _sockets(protocol: str) -> Iterator[tuple[str, int, str, int]]:
    """Yield the local address, port, state and user of each socket."""
    for name in (protocol, f"{protocol}6"):
        try:
            lines = (_TABLES / name).read_text().splitlines()[1:]
        except OSError:
            continue
        for line in lines:
            fields = line.split()
            host, _, port = fields[1].partition(":")
            yield _host(host), int(port, 16), fields[3], int(fields[7])


def _host(text: str) -> str:
    words = (int(text[at : at + 8], 16) for at in range(0, len(text), 8))
    packed = b"".join(word.to_bytes(4, sys.byteorder) for word in words)
    address = ipaddress.ip_address(packed)
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        address = address.ipv4_mapped
    return str(address)
