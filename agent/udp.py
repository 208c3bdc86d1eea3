"""UDP sockets to targets, and the count of the datagrams that this agent loses."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable

from agent.dial import DEFAULT_LOOKUPS, DialError, Lookups, check_descriptors, code_of, literal
from krelay.mux.sockets import ReceiveDrops

logger = logging.getLogger("krelay.agent")

_BUFFER = 1 << 20
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


class UdpSocket(asyncio.DatagramProtocol):
    """A connected UDP socket that sends or drops, and never waits.

    `on_datagram` gets the target's datagrams. `on_gone` is called when ICMP reports that the target
    is not there.
    """

    def __init__(
        self,
        sock: socket.socket,
        on_datagram: Callable[[bytes], None],
        on_gone: Callable[[], None],
        losses: Losses,
    ) -> None:
        # Used directly: before Python 3.13 asyncio's own `sendto` drops empty datagrams.
        self._sock = sock
        self._on_datagram = on_datagram
        self._on_gone = on_gone
        self._losses = losses
        self._drops = losses.watch(sock)
        self._transport: asyncio.BaseTransport | None = None
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, _BUFFER)

    def send(self, data: bytes | bytearray | memoryview) -> None:
        """Send one datagram; drop it if the kernel does not take it at once."""
        if self._transport is None:
            return
        try:
            self._sock.send(data)
        except BlockingIOError:
            self._losses.send += 1
        except OSError as exc:
            self.error_received(exc)

    def close(self) -> None:
        """Close the socket; no callback follows."""
        transport, self._transport = self._transport, None
        if transport is not None:
            self._losses.unwatch(self._drops)
            transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport

    def datagram_received(self, data: bytes, addr: object) -> None:
        if self._transport is not None:
            self._on_datagram(data)

    def error_received(self, exc: Exception) -> None:
        if self._transport is None:
            return
        if isinstance(exc, OSError) and exc.errno in _GONE:
            self._on_gone()
        else:
            self._losses.send += 1
            logger.debug("datagram not sent: %s", exc)


async def dial_udp(
    host: str,
    port: int,
    timeout: float,
    on_datagram: Callable[[bytes], None],
    on_gone: Callable[[], None],
    losses: Losses | None = None,
    lookups: Lookups = DEFAULT_LOOKUPS,
    client: object = None,
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
            _, connected = await asyncio.get_running_loop().create_datagram_endpoint(
                lambda: UdpSocket(sock, on_datagram, on_gone, losses or Losses()), sock=sock
            )
        except BaseException:
            sock.close()
            raise
        return connected
    except OSError as exc:
        raise DialError(code_of(exc), f"{host}:{port}: {exc.strerror or exc}") from exc
