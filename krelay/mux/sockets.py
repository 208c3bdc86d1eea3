"""Sockets: what the mux asks of a transport beyond reading and writing, if it has a TCP socket.

macOS sets no option of a socket that is shut both ways, as after a reset: it is too late for any
then, and that is no error.
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
    """Send small writes at once. asyncio does so itself, but not on what is accepted by a socket
    that was made without its protocol's number (asyncio, `base_events._set_nodelay`)."""
    _set(transport, socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)


def end_socket(transport: asyncio.Transport) -> None:
    """Send no more. A connection that its peer has reset just now, unnoticed, is dropped."""
    try:
        transport.write_eof()
    except OSError:
        transport.abort()


def close_socket(transport: asyncio.Transport) -> None:
    """Close a connection whose both ends have said that they are done."""
    fin_on_close(transport)
    transport.close()


def reset_on_close(transport: asyncio.BaseTransport) -> None:
    """Whatever closes it, until `fin_on_close` is called, closes it with RST: also the kernel,
    where this process dies, so that nobody takes what is cut short for the whole."""
    _set(transport, socket.SOL_SOCKET, socket.SO_LINGER, _RST_ON_CLOSE)


def fin_on_close(transport: asyncio.BaseTransport) -> None:
    """Whatever closes it lets the peer have what is written, and then the end."""
    _set(transport, socket.SOL_SOCKET, socket.SO_LINGER, _FIN_ON_CLOSE)


def reset_socket(transport: asyncio.BaseTransport) -> None:
    """Close a TCP connection with RST, so that the peer cannot take it for an orderly end."""
    reset_on_close(transport)
    cast(asyncio.Transport, transport).abort()


def _set(transport: asyncio.BaseTransport, level: int, option: int, value: int | bytes) -> None:
    sock = transport.get_extra_info("socket")
    if sock is not None and sock.family in _FAMILIES:
        with suppress(OSError):
            sock.setsockopt(level, option, value)


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
