"""SocketTransport: a connected TCP socket as an asyncio transport, without a turn to spare.

It differs from asyncio's own in what a relay feels. It exists as soon as it is made: no task and no
turns of the loop between an accepted socket and its protocol. What the kernel does not take at once
waits as it came, in a queue of buffers that `sendmsg` sends without joining them; asyncio copies it
into one array, and moves the array after each send. `writelines` costs one system call.
"""

from __future__ import annotations

import asyncio
import socket
from collections import deque
from collections.abc import Iterable
from contextlib import suppress
from typing import Any, cast

from krelay.wire.frames import Buffer

READ_SIZE = 256 << 10
"""Most bytes of one read, for a protocol without its own buffer."""
_HIGH_WATER = 64 << 10
_MOST_BUFFERS = 64
_LAST_READS = 4
_INTERRUPTED = (BlockingIOError, InterruptedError)


class SocketTransport(asyncio.Transport):
    """Owns `sock`, which is connected and does not block, and tells `protocol` what happens.

    The constructor calls `connection_made`; if that fails, the socket stays the caller's. It reads
    the socket from the next turn of the loop on, unless the protocol has paused that. Buffers that
    are written must not change.
    """

    def __init__(self, sock: socket.socket, protocol: asyncio.BaseProtocol) -> None:
        super().__init__()
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._number = sock.fileno()
        self._backlog: deque[Buffer] = deque()
        self._size = 0
        self._high, self._low = _HIGH_WATER, _HIGH_WATER // 4
        self._blocked = False  # the protocol was told to pause writing
        self._reading = False  # the loop watches the socket for bytes
        self._paused = False
        self._eof_read = False
        self._eof_written = False
        self._broken = False  # a write has failed
        self._cut = False  # by an error that the kernel reports once
        self._shut_down = False
        self._closing = False
        self._lost = False
        self.set_protocol(protocol)
        try:
            protocol.connection_made(self)
        except BaseException:
            self._unwatch()
            self._drop_backlog()
            self._lost = self._closing = True
            raise
        self._watch()

    def __repr__(self) -> str:
        return f"<SocketTransport fd={self._number} closing={self._closing} queued={self._size}>"

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._protocol = cast(asyncio.Protocol, protocol)
        self._buffered = isinstance(protocol, asyncio.BufferedProtocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        if name == "socket":
            return self._sock
        if name in ("peername", "sockname"):
            with suppress(OSError):
                return self._sock.getpeername() if name == "peername" else self._sock.getsockname()
        return default

    # -- reading -------------------------------------------------------------------------------

    def is_reading(self) -> bool:
        return not self._paused and not self._closing

    def pause_reading(self) -> None:
        self._paused = True
        self._unwatch()

    def resume_reading(self) -> None:
        self._paused = False
        self._watch()

    def _watch(self) -> None:
        if not (self._reading or self._paused or self._closing or self._eof_read):
            self._reading = True
            self._loop.add_reader(self._number, self._read_ready)

    def _unwatch(self) -> None:
        if self._reading:
            self._reading = False
            self._loop.remove_reader(self._number)

    def _read_ready(self) -> None:
        if not self._reading:
            return
        try:
            if self._buffered:
                protocol = cast(asyncio.BufferedProtocol, self._protocol)
                count = self._sock.recv_into(protocol.get_buffer(-1))
            else:
                data = self._sock.recv(READ_SIZE)
                count = len(data)
        except _INTERRUPTED:
            return
        except OSError as exc:
            self._force_close(exc)
            return
        except Exception as exc:  # from `get_buffer`
            self._failed(exc)
            return
        try:
            if not count:
                self._receive_eof()
            elif self._buffered:
                protocol.buffer_updated(count)
            else:
                self._protocol.data_received(data)
        except Exception as exc:
            self._failed(exc)

    def _receive_eof(self) -> None:
        self._unwatch()
        self._eof_read = True
        if self._cut:
            return  # no peer has sent this end
        if not self._protocol.eof_received():
            self.close()

    # -- writing -------------------------------------------------------------------------------

    def write(self, data: Buffer) -> None:
        if not data or self._lost or self._eof_written or self._broken:
            return
        if not self._backlog:
            try:
                sent = self._sock.send(data)
            except _INTERRUPTED:
                sent = 0
            except OSError as exc:
                self._write_failed(exc)
                return
            if sent == len(data):
                return
            if sent:
                data = memoryview(data)[sent:]
        self._queue(data)

    def writelines(self, list_of_data: Iterable[Buffer]) -> None:
        if self._lost or self._eof_written or self._broken:
            return
        buffers = deque(list_of_data)
        if not self._backlog:
            try:
                _send(self._sock, buffers)
            except OSError as exc:
                self._write_failed(exc)
                return
        for data in buffers:
            self._queue(data)

    def _queue(self, data: Buffer) -> None:
        """Keep what the kernel has not taken."""
        if not self._backlog:
            self._loop.add_writer(self._number, self._write_ready)
        self._backlog.append(data)
        self._size += len(data)
        if self._size > self._high and not self._blocked:
            self._blocked = True
            self._protocol.pause_writing()

    def _write_ready(self) -> None:
        if self._lost:
            return
        try:
            self._size -= _send(self._sock, self._backlog)
        except OSError as exc:
            self._write_failed(exc)
            return
        if not self._backlog:
            self._loop.remove_writer(self._number)
        self._resume()
        if not self._backlog and not self._lost:
            if self._closing:
                self._end(None)
            elif self._eof_written:
                try:
                    self._shut()
                except OSError as exc:
                    self._force_close(exc)

    def _resume(self) -> None:
        if self._blocked and self._size <= self._low:
            self._blocked = False
            try:
                self._protocol.resume_writing()
            except Exception as exc:
                self._failed(exc)

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        if not (self._closing or self._eof_written):
            self._eof_written = True
            if not self._backlog:
                self._shut()

    def _shut(self) -> None:
        """Send the end, once: after the peer's end the kernel takes a second one for an error."""
        if not self._shut_down:
            self._shut_down = True
            self._sock.shutdown(socket.SHUT_WR)

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        if high is None:
            high = _HIGH_WATER if low is None else 4 * low
        self._high, self._low = high, high // 4 if low is None else low
        if self._size > self._high and not self._blocked:
            self._blocked = True
            self._protocol.pause_writing()

    def get_write_buffer_limits(self) -> tuple[int, int]:
        return self._low, self._high

    def get_write_buffer_size(self) -> int:
        return self._size

    # -- the end -------------------------------------------------------------------------------

    def is_closing(self) -> bool:
        return self._closing

    def close(self) -> None:
        """Close the socket once the written bytes are sent."""
        if self._closing:
            return
        self._closing = True
        self._unwatch()
        if not self._backlog:
            self._end(None)

    def abort(self) -> None:
        """Close the socket at once."""
        self._force_close(None)

    def _force_close(self, exc: Exception | None) -> None:
        if self._lost:
            return
        self._closing = True
        self._unwatch()
        self._drop_backlog()
        self._end(exc)

    def _write_failed(self, exc: OSError) -> None:
        """Write no more, and close the socket once what the peer sent before has been read.

        A server that refuses a request answers, then resets a client that still sends.
        """
        self._broken = True
        # After any other error than EPIPE, the kernel shows the end of a peer that has sent none.
        self._cut = not isinstance(exc, BrokenPipeError)
        self._drop_backlog()
        self._loop.call_soon(self._read_last, exc)

    def _read_last(self, exc: OSError) -> None:
        for _ in range(_LAST_READS):
            self._read_ready()
        self._force_close(exc)

    def _drop_backlog(self) -> None:
        if self._backlog:
            self._backlog.clear()
            self._size = 0
            self._loop.remove_writer(self._number)

    def _failed(self, exc: Exception) -> None:
        """Close the socket after an error in the protocol, and report it as asyncio does."""
        self._loop.call_exception_handler(
            {
                "message": "the protocol of a connection failed",
                "exception": exc,
                "transport": self,
                "protocol": self._protocol,
            }
        )
        self._force_close(exc)

    def _end(self, exc: Exception | None) -> None:
        self._lost = True
        self._loop.call_soon(self._finish, exc)

    def _finish(self, exc: Exception | None) -> None:
        try:
            self._protocol.connection_lost(exc)
        finally:
            self._sock.close()


def _send(sock: socket.socket, buffers: deque[Buffer]) -> int:
    """Send from the front of `buffers` until the kernel takes no more; return how much it took."""
    total = 0
    while buffers:
        batch = [buffers[i] for i in range(min(len(buffers), _MOST_BUFFERS))]
        try:
            sent = sock.send(batch[0]) if len(batch) == 1 else sock.sendmsg(batch)
        except _INTERRUPTED:
            break
        total += sent
        for data in batch:
            if sent < len(data):
                if sent:
                    buffers[0] = memoryview(data)[sent:]
                return total
            sent -= len(data)
            buffers.popleft()
    return total
