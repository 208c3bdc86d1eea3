"""UdpSocket: a connected UDP socket, the far end of a flow; it sends or drops, and never waits."""

from __future__ import annotations

import asyncio
import errno
import logging
import socket
from collections.abc import Callable

from agent.losses import Losses

logger = logging.getLogger("krelay.agent")

_BUFFER = 1 << 20
# What says that nobody is there; any other error is one datagram's (too long, no buffers).
_GONE = (errno.ECONNREFUSED, errno.EHOSTUNREACH, errno.ENETUNREACH)


class UdpSocket(asyncio.DatagramProtocol):
    """`on_datagram` gets what the target sends; ICMP's word that it is not there calls `on_gone`.
    What is lost here counts in `losses`."""

    def __init__(
        self,
        sock: socket.socket,
        on_datagram: Callable[[bytes], None],
        on_gone: Callable[[], None],
        losses: Losses,
    ) -> None:
        # Sent on directly: before Python 3.13 asyncio's own `sendto` drops empty datagrams.
        self._sock = sock
        self._on_datagram = on_datagram
        self._on_gone = on_gone
        self._losses = losses
        self._drops = losses.watch(sock)
        self._transport: asyncio.BaseTransport | None = None
        for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
            sock.setsockopt(socket.SOL_SOCKET, option, _BUFFER)

    def send(self, data: bytes | bytearray | memoryview) -> None:
        """Send one datagram; it is lost where the kernel takes no more, as datagrams are."""
        if self._transport is None:
            return
        try:
            self._sock.send(data)
        except BlockingIOError:
            self._losses.send += 1
        except OSError as exc:
            self.error_received(exc)

    def close(self) -> None:
        """Free the socket; nothing more is told."""
        transport, self._transport = self._transport, None
        if transport is not None:
            self._losses.leave(self._drops)
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
            logger.debug("a datagram was not sent: %s", exc)
