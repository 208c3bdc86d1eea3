"""Options and counters of sockets that asyncio's transports do not offer.

macOS refuses to set options of a socket that is shut in both directions, as after a reset. They
would have no effect then, so that is not an error.
"""

from __future__ import annotations

import asyncio
import socket
import struct
import sys
from contextlib import suppress
from typing import cast

_RST_ON_CLOSE = struct.pack("ii", 1, 0)
_FIN_ON_CLOSE = struct.pack("ii", 0, 0)
_FAMILIES = (socket.AF_INET, socket.AF_INET6)
_SO_MEMINFO = 55
_DROPS = 8
"""The index of SK_MEMINFO_DROPS (linux/sock_diag.h)."""
_VALUES = struct.Struct("=9I")


def no_delay(transport: asyncio.BaseTransport) -> None:
    """Send small writes at once (TCP_NODELAY).

    asyncio sets it too, but not on connections that a socket without its protocol's number has
    accepted (asyncio, `base_events._set_nodelay`).
    """
    _set(transport, socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def end_socket(transport: asyncio.Transport) -> None:
    """Send no more (FIN); drop the connection if its peer has just reset it."""
    try:
        transport.write_eof()
    except OSError:
        transport.abort()


def close_socket(transport: asyncio.Transport) -> None:
    """Close a connection that both ends have ended."""
    fin_on_close(transport)
    transport.close()


def reset_on_close(transport: asyncio.BaseTransport) -> None:
    """Close the connection with RST, also if this process dies, until `fin_on_close` is called.

    So its peer never takes a part of the data for the whole.
    """
    _set(transport, socket.SOL_SOCKET, socket.SO_LINGER, _RST_ON_CLOSE)


def fin_on_close(transport: asyncio.BaseTransport) -> None:
    """Close the connection with FIN, after the written bytes."""
    _set(transport, socket.SOL_SOCKET, socket.SO_LINGER, _FIN_ON_CLOSE)


def reset_socket(transport: asyncio.BaseTransport) -> None:
    """Close a TCP connection with RST, which its peer cannot take for an orderly end."""
    reset_on_close(transport)
    cast(asyncio.Transport, transport).abort()


def _set(transport: asyncio.BaseTransport, level: int, option: int, value: int | bytes) -> None:
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family in _FAMILIES:
        with suppress(OSError):
            sock.setsockopt(level, option, value)


class ReceiveDrops:
    """Datagrams that the kernel dropped at one socket, since its reader was too slow.

    Linux returns the count at any time (SO_MEMINFO, since 4.12), which costs a datagram nothing;
    SO_RXQ_OVFL would need a `recvmsg` for each, and shows a loss only with the next datagram. On
    other systems the count stays 0. Call `close` before the socket closes, to keep the last value.
    """

    __slots__ = ("_last", "_sock", "_wraps")

    def __init__(self, sock: socket.socket) -> None:
        self._sock: socket.socket | None = sock if sys.platform == "linux" else None
        self._last = 0
        self._wraps = 0

    @property
    def count(self) -> int:
        """Datagrams dropped so far."""
        if self._sock is not None:
            try:
                values = self._sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _VALUES.size)
                now = _VALUES.unpack(values)[_DROPS]
            except (OSError, struct.error):
                self._sock = None
            else:
                self._wraps += now < self._last
                self._last = now
        return (self._wraps << 32) + self._last

    def close(self) -> int:
        """Return the final count."""
        count = self.count
        self._sock = None
        return count
