"""TCP listener: first stage of the data path; bound sockets, and a relay for each connection."""

from __future__ import annotations

import asyncio
import socket
import sys
import time
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from krelay.datapath.connector import Forwarding, StreamRequest, connection_queue
from krelay.datapath.stream_pool import StreamPool
from krelay.errors import ListenError
from krelay.model import Endpoint, Protocol
from krelay.mux.relay import TcpRelay
from krelay.mux.sockets import close_socket
from krelay.mux.stream import Stream
from krelay.net.accept import AcceptLoop, descriptor_budget
from krelay.net.bind import bind
from krelay.wire.errors import ErrorCode
from krelay.wire.frames import Buffer

QUIET = 1.0
"""Seconds without a byte after which a connection is quiet."""
_SIOCOUTQ = 0x5411  # linux/sockios.h


@dataclass(eq=False, repr=False)
class TcpListener(Forwarding):
    """The local end of a TCP forward."""

    addresses: list[tuple[str, int]] = field(default_factory=list, init=False)
    connections: set[LocalRelay] = field(default_factory=set, init=False)
    _accepts: list[AcceptLoop] = field(default_factory=list, init=False)
    _wake: asyncio.Event = field(default_factory=asyncio.Event, init=False)
    _ends_quiet: bool = field(default=False, init=False)

    @property
    def accepting(self) -> bool:
        """Whether it accepts new connections."""
        return bool(self._accepts)

    @property
    def live(self) -> int:
        """The number of connections."""
        return len(self.connections)

    @property
    def moving(self) -> int:
        """The number of connections that have a stream and are not quiet."""
        now = time.monotonic()
        return sum(c.stream is not None and not c.is_quiet(now) for c in self.connections)

    async def open(self, address: str, port: int) -> None:
        """Bind and accept. Raises ListenError if the address cannot be bound."""
        sockets = bind(address, port, socket.SOCK_STREAM)
        self.addresses = [sock.getsockname()[:2] for sock in sockets]
        make_room = connection_queue().make_room
        try:
            for sock in sockets:
                self._accepts.append(
                    AcceptLoop(
                        self.name, sock, self._accept, target=self.target, make_room=make_room
                    )
                )
        except OSError as exc:  # the loop cannot watch the socket
            self.close()
            for sock in sockets:
                sock.close()
            raise ListenError(f"cannot listen on {Endpoint(address, port)}: {exc}") from exc

    def _accept(self) -> LocalRelay:
        return LocalRelay(self)

    def close(self) -> None:
        """Stop accepting; live connections go on."""
        for accept in self._accepts:
            accept.close()
        self._accepts.clear()

    async def drain(self, timeout: float) -> None:
        """Stop accepting, let live connections finish within `timeout` seconds, then reset them.

        Connections that still wait for a stream are reset at once.
        """
        self.close()
        for connection in list(self.connections):
            if connection.stream is None:
                connection.cut()
        try:
            async with asyncio.timeout(timeout):
                while self.connections:
                    self._wake.clear()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(self._look()):
                            await self._wake.wait()
        except TimeoutError:
            self.log.warning("%d connections are cut", len(self.connections))
        finally:
            self.cut()

    def end_quiet(self) -> None:
        """While draining, close connections that are quiet, and those that become so."""
        self._ends_quiet = True
        self._wake.set()

    def _look(self) -> float | None:
        """Close quiet connections if asked to; return the time until the next look."""
        if not self._ends_quiet:
            return None
        now = time.monotonic()
        for connection in list(self.connections):
            if connection.is_quiet(now):
                connection.end()
        return QUIET

    def reset(self) -> int:
        """Reset the connections that have a stream; return how many. New ones are accepted, and
        those that wait for a stream go on waiting."""
        found = [connection for connection in self.connections if connection.stream is not None]
        for connection in found:
            connection.cut()
        return len(found)

    def cut(self) -> None:
        """Stop accepting and reset every connection."""
        self.close()
        for connection in list(self.connections):
            connection.cut()

    def disconnected(self, connection: LocalRelay) -> None:
        """Forget a connection that has ended."""
        self.connections.discard(connection)
        if not self.connections:
            self._wake.set()


class LocalRelay(TcpRelay):
    """One accepted connection.

    Until its stream is accepted it keeps what the application has sent, so that a refused dial can
    be tried again.
    """

    def __init__(self, listener: TcpListener) -> None:
        super().__init__()
        self._listener = listener
        self._queue = connection_queue()
        self._request = self._make_request(listener)
        self._unaccepted: list[bytes] | None = []
        """What the application has sent; None once the stream is accepted."""
        self._early_bytes = 0
        self.moved_at = time.monotonic()
        """When it last moved a byte, or was accepted."""

    def _make_request(self, forwarding: Forwarding) -> StreamRequest:
        request = StreamRequest(forwarding, Protocol.TCP, self, relay=self)
        request.peer = self._peer
        return request

    def _peer(self) -> tuple[Any, ...] | None:
        transport = self.transport
        return transport.get_extra_info("peername") if transport is not None else None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._listener.connections.add(self)
        if self._listener.accepting:
            self._begin()
        else:
            # It was accepted in the turn of the loop in which the listener closed.
            self.cut()

    def _begin(self) -> None:
        """Start to serve a new connection."""
        self._request.start()

    def move(self, pool: StreamPool) -> None:
        """Use `pool` if there is no stream yet."""
        if self.stream is None:
            self._request.forwarding.route.move(pool)

    def finish(self) -> None:
        """Serve no further requests, if this connection has any."""

    def is_quiet(self, now: float) -> bool:
        """Return whether no byte moved for a while, and none waits for a reader at either end."""
        if now - self.moved_at < QUIET or self.transport is None:
            return False
        return self.transport.is_reading() and not _unacknowledged(self.transport)

    def end(self) -> None:
        """Close a quiet connection: in good order if the target has ended, else with a reset."""
        if self._remote_ended and self.transport is not None:
            close_socket(self.transport)
        else:
            self.cut()

    def cut(self) -> None:
        """Reset the connection at both ends."""
        if self.stream is not None:
            self.stream.reset(ErrorCode.CANCELLED)
        self.on_reset(ErrorCode.CANCELLED)

    def drop(self, reason: str) -> None:
        """Reset a connection that waits for a stream, to free its descriptor."""
        self._request.forwarding.log.debug("connection reset: %s", reason)
        self._request.cancel()
        self._request.metrics.open_failed(reason)
        self._fail(ErrorCode.CANCELLED, reason)

    # -- the socket's side ---------------------------------------------------------------------

    def data_received(self, data: bytes) -> None:
        self.moved_at = time.monotonic()
        if self._unaccepted is not None:
            self._unaccepted.append(data)
        if self.stream is None:
            self._early_bytes += len(data)
            self._queue.data_received(self, len(data))
        super().data_received(data)

    def eof_received(self) -> bool:
        keep = super().eof_received()
        self._queue.eof_received(self)
        return keep

    def resume_writing(self) -> None:
        self.moved_at = time.monotonic()
        super().resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        clean = exc is None and self._local_ended and self._remote_ended
        self._queue.leave(self)
        descriptor_budget().closed()
        super().connection_lost(exc)
        self._request.cancel()
        self._request.metrics.closed(clean=clean)
        self._listener.disconnected(self)

    # -- the stream's side ---------------------------------------------------------------------

    def on_queued(self) -> None:
        kept = sum(map(len, self._unaccepted or ()))
        self._queue.enter(self, kept, half_closed=self._local_ended)

    def on_stream(self, stream: Stream) -> None:
        """Send what the application has sent so far, and couple the socket to the stream."""
        self._queue.leave(self)
        self.received_bytes += self._early_bytes
        self._early_bytes = 0
        for data in self._unaccepted or ():
            stream.write(data)
        self.start(stream)
        if self._local_ended:
            stream.end()

    def on_data(self, data: Buffer) -> None:
        self.moved_at = time.monotonic()
        super().on_data(data)

    def on_writable(self) -> None:
        self.moved_at = time.monotonic()
        super().on_writable()

    def on_open_failed(self, reason: str) -> None:
        """Reset the connection: the application must not take it for one that has ended."""
        self._request.forwarding.log.warning("connection reset: %s", reason)
        self._fail(ErrorCode.CANCELLED, reason)

    def on_accepted(self) -> None:
        self._unaccepted = None
        self._request.metrics.accepted()
        self._request.accepted()

    def on_refused(self, code: ErrorCode, message: str) -> None:
        request, log = self._request, self._request.forwarding.log
        if self.transport is not None and request.may_retry(code):
            log.debug("%s; trying once more", message)
            self.stream = None
            self.transport.pause_reading()
            request.retry()
            return
        log.warning("%s%s", code.text, message and f": {message}")
        request.metrics.refused(code, message)
        self._fail(code, message)

    def on_reset(self, code: ErrorCode) -> None:
        self._request.metrics.reset(code)
        super().on_reset(code)

    def _fail(self, code: ErrorCode, message: str) -> None:
        """Handle that there is no stream, and will be none."""
        self.on_reset(code)


def _unacknowledged(transport: asyncio.Transport) -> int:
    """Return the bytes that the application's socket has not taken yet.

    Only Linux tells of those that wait in the kernel.
    """
    waiting = transport.get_write_buffer_size()
    sock = transport.get_extra_info("socket")
    if waiting or sock is None or sys.platform != "linux":
        return waiting
    from fcntl import ioctl

    try:
        return int.from_bytes(ioctl(sock.fileno(), _SIOCOUTQ, bytes(4)), sys.byteorder)
    except OSError:
        return 0
