"""Drops: how many datagrams the kernel threw away at a socket, since its reader was too slow.

Linux counts them for each socket and tells the count at any time (SO_MEMINFO, since 4.12), which
costs a datagram nothing; SO_RXQ_OVFL would need a `recvmsg` for each, and tells of a loss only with
the next datagram. Other systems do not tell: there the count stays 0.
"""

from __future__ import annotations

import socket
import struct
import sys

_SO_MEMINFO = 55
_DROPS = 8
"""The index of SK_MEMINFO_DROPS (linux/sock_diag.h)."""
_VALUES = struct.Struct("=9I")


class ReceiveDrops:
    """The count of one socket; `close` it before the socket, to keep its last value."""

    __slots__ = ("_last", "_sock", "_wraps")

    def __init__(self, sock: socket.socket) -> None:
        self._sock: socket.socket | None = sock if sys.platform == "linux" else None
        self._last = 0
        self._wraps = 0

    @property
    def count(self) -> int:
        """Datagrams lost so far."""
        if self._sock is not None:
            try:
                told = self._sock.getsockopt(socket.SOL_SOCKET, _SO_MEMINFO, _VALUES.size)
                now = _VALUES.unpack(told)[_DROPS]
            except (OSError, struct.error):
                self._sock = None
            else:
                self._wraps += now < self._last
                self._last = now
        return (self._wraps << 32) + self._last

    def close(self) -> int:
        """The same, for the last time."""
        count = self.count
        self._sock = None
        return count
