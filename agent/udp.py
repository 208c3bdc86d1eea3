"""UDP sockets to targets, and the count of the datagrams that this agent loses."""

from __future__ import annotations

import errno
import logging
import socket
from collections.abc import Callable

from agent.dial import DEFAULT_LOOKUPS, DialError, Lookups, check_descriptors, code_of, literal
from krelay.mux.datagrams import DatagramEndpoint, Room
from krelay.mux.sockets import ReceiveDrops

logger = logging.getLogger("krelay.agent")

# The target is not there. Any other error concerns one datagram (too long, no buffers).
_GONE = (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH)


class Losses:
    """Datagrams of one session that this agent has lost, by place.

    `early`: while the target was dialled; `send`: the kernel did not take it for the target;
    `backlog`: too much waited for the tunnel, or the session had none.
    """

    def __init__(self) -> None:
        self.early = 0
        self.send = 0
        self.backlog = 0
        self._received = 0
        self._live: set[ReceiveDrops] = set()

    @property
    def receive(self) -> int:
        """Datagrams that the kernel dropped at the targets' sockets."""
        return self._received + sum(drops.count for drops in self._live)

    def watch(self, sock: socket.socket) -> ReceiveDrops:
        """Count what the kernel drops at `sock`, until `unwatch`."""
        drops = ReceiveDrops(sock)
        self._live.add(drops)
        return drops

    def unwatch(self, drops: ReceiveDrops) -> None:
        """Keep the last count of a socket that is about to close."""
        self._live.discard(drops)
        self._received += drops.close()


class UdpSocket:
    """A connected UDP socket that sends or drops, and never waits.

    `on_datagram` gets the target's datagrams. `on_gone` is called when ICMP reports that the target
    is not there. What waits for the socket takes `room`.
    """

    def __init__(
        self,
        sock: socket.socket,
        on_datagram: Callable[[bytes], None],
        on_gone: Callable[[], None],
        losses: Losses,
        room: Room | None = None,
    ) -> None:
        self._on_datagram = on_datagram
        self._on_gone = on_gone
        self._losses = losses
        self._closed = False
        self._endpoint = DatagramEndpoint(sock, self, room)
        self._drops = losses.watch(sock)
        self.send = self._endpoint.send
        """Send one datagram; drop it if the kernel takes no more."""

    def close(self) -> None:
        """Close the socket; no callback follows."""
        if not self._closed:
            self._closed = True
            self._losses.unwatch(self._drops)
            self._endpoint.close()

    # -- the endpoint's side -------------------------------------------------------------------

    def datagram_received(self, data: bytes, addr: object) -> None:
        if not self._closed:
            self._on_datagram(data)

    def error_received(self, exc: OSError) -> None:
        if self._closed:
            return
        if exc.errno in _GONE:
            self._on_gone()
        else:
            logger.debug("datagram not sent: %s", exc)

    def datagrams_sent(self, size: int) -> None:
        """Not counted here: the client counts what it sends."""

    def datagrams_dropped(self, count: int) -> None:
        self._losses.send += count


async def dial_udp(
    host: str,
    port: int,
    timeout: float,
    on_datagram: Callable[[bytes], None],
    on_gone: Callable[[], None],
    losses: Losses | None = None,
    lookups: Lookups = DEFAULT_LOOKUPS,
    client: object = None,
    room: Room | None = None,
) -> UdpSocket:
    """Return a UDP socket that is connected to the first address of `host`.

    The lookup has `timeout` seconds and counts for `client`.

    Raises:
        DialError: `host` has no address, or the socket could not be made.
    """
    check_descriptors()
    addresses = await lookups.find(host, client, timeout)
    # IPv4 for loopback names: a connected UDP socket does not try a second address.
    family, address = addresses[-1] if addresses == literal("localhost") else addresses[0]
    try:
        sock = socket.socket(family, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            sock.connect((address, port))
            return UdpSocket(sock, on_datagram, on_gone, losses or Losses(), room)
        except BaseException:
            sock.close()
            raise
    except OSError as exc:
        raise DialError(code_of(exc), f"{host}:{port}: {exc.strerror or exc}") from exc
