"""DatagramEndpoint: a UDP socket on the event loop, read and written in batches.

asyncio's datagram transport reads one datagram a turn of the loop, and a turn costs many times as
much as the system call. The endpoint reads until the socket is empty, up to a bound, and sends
what a turn has queued at its end. Datagrams of one size to one address then go out in one call if
the kernel can cut them apart (UDP_SEGMENT, Linux 4.18). Boundaries and order stay.

A socket that is bound to a wildcard address tells at which of this machine's addresses a datagram
arrived (IP_PKTINFO, RFC 3542), since the answer has to come from there.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
import sys
from collections import deque
from collections.abc import Callable
from itertools import islice
from typing import Any, NamedTuple, Protocol

from krelay.wire.frames import Buffer

Ancillary = tuple[int, int, bytes]
"""Level, type and data of a control message."""


class Asked(NamedTuple):
    """The peer of a wildcard socket, with the control message that answers from the address that
    the peer asked."""

    peer: tuple[Any, ...]
    source: Ancillary


Address = tuple[Any, ...]
"""A socket address, or an `Asked`."""

BUFFER = 1 << 20
"""Bytes to ask of the kernel for each direction of a socket."""
MAX_READS = 128
MAX_READ = 128 << 10
"""Datagrams, and about as many bytes, that one turn of the loop reads from a socket; the other work
of the loop goes on then."""
MAX_WAITING = 256 << 10
"""Bytes of datagrams that may wait for the kernel, past its own buffer."""
COST = 128
"""Bytes that a queued datagram counts besides its payload."""

_LONGEST = 1 << 16
_FLUSH_AT = 64 << 10
"""Queued bytes from which on the end of the turn is too late."""

# linux/in.h; Python has the name since 3.14.
_IP_PKTINFO = 8
_IN_PKTINFO = struct.Struct("=i4s4s")
_IN6_PKTINFO = struct.Struct("=16si")
_ANCILLARY = socket.CMSG_SPACE(_IN6_PKTINFO.size) if hasattr(socket, "CMSG_SPACE") else 0

# linux/udp.h; Python has names for neither.
_SOL_UDP = 17
_UDP_SEGMENT = 103
_MAX_SEGMENTS = 64
_MAX_SEGMENTED = 65_000
"""Most bytes of one call: an IP packet with its headers."""
_SIZE = struct.Struct("=H")
_NOT_SEGMENTED = (errno.EINVAL, errno.EMSGSIZE, errno.EIO, errno.EOPNOTSUPP, errno.ENOPROTOOPT)
"""Errors of segments that are longer than the path allows, or of a device that lacks checksums."""


class DatagramHandler(Protocol):
    """Callbacks of an endpoint. They run on the event loop and may close the endpoint."""

    def datagram_received(self, data: bytes, addr: Address) -> None:
        """A datagram arrived."""

    def error_received(self, exc: OSError) -> None:
        """A datagram was not sent, or ICMP reported that an earlier one did not arrive."""

    def datagrams_sent(self, size: int) -> None:
        """The kernel took datagrams of `size` bytes in all."""

    def datagrams_dropped(self, count: int) -> None:
        """Queued datagrams were not sent."""


class Room(Protocol):
    """Counts the bytes that wait for one socket or for several."""

    def take(self, size: int) -> bool:
        """Count `size` more bytes; return False, and count nothing, if they are too many."""

    def give_back(self, size: int) -> None:
        """Count `size` bytes less."""


class FixedRoom:
    """A Room of `left` bytes."""

    __slots__ = ("left",)

    def __init__(self, left: int = MAX_WAITING) -> None:
        self.left = left

    def take(self, size: int) -> bool:
        if size > self.left:
            return False
        self.left -= size
        return True

    def give_back(self, size: int) -> None:
        self.left += size


class DatagramEndpoint:
    """A non-blocking UDP socket, bound or connected, that belongs to this object from now on.

    The owner ends it with `close`. Datagrams that the kernel does not take at once take `room`.
    """

    def __init__(
        self,
        sock: socket.socket,
        handler: DatagramHandler,
        room: Room | None = None,
        *,
        receive_buffer: int = BUFFER,
    ) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, BUFFER)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket = sock
        self.closed = False
        self._loop = asyncio.get_running_loop()
        self._handler = handler
        self._room = room or FixedRoom()
        self._queue: deque[tuple[Buffer, Address | None]] = deque()
        self._cost = 0
        """That of the whole queue."""
        self._blocked = False
        """Whether the queue waits for the kernel, and takes room."""
        self._longest_segment = _MAX_SEGMENTED // 2 if _can_segment(sock) else 0
        self._receive: Callable[[], tuple[bytes, Address]] = (
            self._receive_asked if _report_asked(sock) else self._receive_one
        )
        self._loop.add_reader(sock, self._readable)

    def send(self, data: Buffer, addr: Address | None = None) -> None:
        """Send a datagram at the end of this turn; `addr` is None for a connected socket.

        It is dropped if too much waits for the kernel.
        """
        if self.closed:
            return
        cost = len(data) + COST
        if self._blocked and not self._room.take(cost):
            self._handler.datagrams_dropped(1)
            return
        # A view would keep the whole read that it is part of.
        self._queue.append((bytes(data) if isinstance(data, memoryview) else data, addr))
        self._cost += cost
        if self._blocked:
            return
        if self._cost >= _FLUSH_AT:
            self._flush()
        elif len(self._queue) == 1:
            self._loop.call_soon(self._flush)

    def close(self) -> None:
        """Send what is queued if the kernel takes it now, and close the socket."""
        if self.closed:
            return
        if not self._blocked:
            self._flush()
        if self.closed:
            # An error made the handler close it meanwhile.
            return
        self.closed = True
        if self._blocked:
            self._room.give_back(self._cost)
            self._loop.remove_writer(self.socket)
        self._loop.remove_reader(self.socket)
        self.socket.close()
        if dropped := len(self._queue):
            self._queue.clear()
            self._handler.datagrams_dropped(dropped)

    # -- receiving -----------------------------------------------------------------------------

    def _readable(self) -> None:
        receive, handler = self._receive, self._handler
        left = MAX_READ
        for _ in range(MAX_READS):
            try:
                data, addr = receive()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as exc:
                handler.error_received(exc)
            else:
                handler.datagram_received(data, addr)
                left -= len(data)
            if self.closed or left <= 0:
                return

    def _receive_one(self) -> tuple[bytes, Address]:
        return self.socket.recvfrom(_LONGEST)

    def _receive_asked(self) -> tuple[bytes, Address]:
        data, ancillary, _, peer = self.socket.recvmsg(_LONGEST, _ANCILLARY)
        source = next((found for message in ancillary if (found := _source(*message))), None)
        return data, peer if source is None else Asked(peer, source)

    # -- sending -------------------------------------------------------------------------------

    def _flush(self) -> None:
        """Send the queue until the kernel takes no more."""
        queue = self._queue
        size = 0
        while queue and not self._blocked and not self.closed:
            count = self._segments()
            try:
                size += self._send_segments(count) if count > 1 else self._send_one()
            except (BlockingIOError, InterruptedError):
                self._block()
            except OSError as exc:
                if count > 1 and exc.errno in _NOT_SEGMENTED:
                    self._longest_segment = len(queue[0][0]) - 1 if exc.errno != errno.EIO else 0
                    continue
                # An error that ICMP has reported, or that of this datagram: the others go on.
                self._remove(1)
                self._handler.datagrams_dropped(1)
                self._handler.error_received(exc)
            else:
                self._remove(count)
        if size:
            self._handler.datagrams_sent(size)

    def _remove(self, count: int) -> None:
        for _ in range(count):
            self._cost -= len(self._queue.popleft()[0]) + COST

    def _block(self) -> None:
        """Wait for the kernel; drop the last datagrams if the queue finds no room."""
        self._blocked = True
        self._loop.add_writer(self.socket, self._writable)
        dropped = 0
        while self._queue and not self._room.take(self._cost):
            self._cost -= len(self._queue.pop()[0]) + COST
            dropped += 1
        if dropped:
            self._handler.datagrams_dropped(dropped)

    def _writable(self) -> None:
        self._blocked = False
        self._loop.remove_writer(self.socket)
        self._room.give_back(self._cost)
        self._flush()

    def _segments(self) -> int:
        """Return how many datagrams from the first on can go in one call.

        They have one address and one size; the last may be shorter.
        """
        queue = self._queue
        first, addr = queue[0]
        size = len(first)
        if len(queue) == 1 or not 0 < size <= self._longest_segment:
            return 1
        limit = min(_MAX_SEGMENTS, _MAX_SEGMENTED // size)
        count = 0
        for data, to in queue:
            if count == limit or to is not addr or not 0 < len(data) <= size:
                break
            count += 1
            if len(data) < size:
                break
        return count

    def _send_segments(self, count: int) -> int:
        first, addr = self._queue[0]
        buffers = [data for data, _ in islice(self._queue, count)]
        ancillary = [(_SOL_UDP, _UDP_SEGMENT, _SIZE.pack(len(first)))]
        if isinstance(addr, Asked):
            addr, source = addr
            ancillary.append(source)
        return self.socket.sendmsg(buffers, ancillary, 0, addr)

    def _send_one(self) -> int:
        data, addr = self._queue[0]
        if addr is None:
            return self.socket.send(data)
        if isinstance(addr, Asked):
            return self.socket.sendmsg((data,), (addr.source,), 0, addr.peer)
        return self.socket.sendto(data, addr)


def _can_segment(sock: socket.socket) -> bool:
    """Return whether the kernel knows UDP_SEGMENT: an older one would send all as one datagram."""
    if sys.platform != "linux":
        return False
    try:
        sock.getsockopt(_SOL_UDP, _UDP_SEGMENT)
    except OSError:
        return False
    return True


def _report_asked(sock: socket.socket) -> bool:
    """Have a wildcard socket report the address that each datagram was sent to; return whether it
    does."""
    if sys.platform != "linux" or sock.family not in (socket.AF_INET, socket.AF_INET6):
        return False
    if sock.getsockname()[0] not in ("0.0.0.0", "::"):
        return False
    try:
        if sock.family == socket.AF_INET:
            sock.setsockopt(socket.IPPROTO_IP, _IP_PKTINFO, 1)
        else:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_RECVPKTINFO, 1)
    except OSError:
        return False
    return True


def _source(level: int, kind: int, data: bytes) -> Ancillary | None:
    """Return the message for an answer to a datagram that came with this one (RFC 3542, s. 6)."""
    if (level, kind) == (socket.IPPROTO_IP, _IP_PKTINFO) and len(data) == _IN_PKTINFO.size:
        # The second field is this machine's address, also if the datagram was a broadcast.
        _, local, _ = _IN_PKTINFO.unpack(data)
        return level, kind, _IN_PKTINFO.pack(0, local, bytes(4))
    if (level, kind) == (socket.IPPROTO_IPV6, socket.IPV6_PKTINFO) and (
        len(data) == _IN6_PKTINFO.size
    ):
        address, interface = _IN6_PKTINFO.unpack(data)
        if address[0] == 0xFF:  # multicast, which cannot be a source
            return None
        # Only a link-local address needs its interface; the route decides for the others.
        local = address[:2] >= b"\xfe\x80" and address[:2] < b"\xfe\xc0"
        return level, kind, _IN6_PKTINFO.pack(address, interface if local else 0)
    return None
