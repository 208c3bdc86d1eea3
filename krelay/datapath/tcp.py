"""Listener: first stage of the data path; bound TCP sockets, and a relay for each connection."""

from __future__ import annotations

import asyncio
import logging
import socket

from krelay.datapath.connector import RETRIED, Forwarding, StreamRequest
from krelay.datapath.metrics import ForwardMetrics, StreamMetrics
from krelay.datapath.route import Route
from krelay.datapath.waiting import queue
from krelay.errors import ListenError
from krelay.model import Endpoint, Protocol
from krelay.mux.relay import TcpRelay
from krelay.mux.stream import Stream
from krelay.net.accept import AcceptLoop, descriptor_budget
from krelay.net.bind import bind
from krelay.tasks import TaskGroup
from krelay.wire.errors import ErrorCode

logger = logging.getLogger("krelay.listener")


class TcpListener:
    """A TCP forward's local end. `open` binds it, `close` stops accepting, `drain` ends it."""

    def __init__(
        self,
        name: str,
        route: Route,
        tasks: TaskGroup,
        *,
        open_timeout: float,
        metrics: ForwardMetrics | None = None,
    ) -> None:
        """`name` is for people; `open_timeout` is how long a connection may wait, in seconds."""
        self.name = name
        self.route = route
        self.open_timeout = open_timeout
        self.metrics = metrics or ForwardMetrics()
        self.tasks = tasks
        self.addresses: list[tuple[str, int]] = []
        self.connections: set[LocalRelay] = set()
        self._accepts: list[AcceptLoop] = []
        self._empty = asyncio.Event()

    @property
    def accepting(self) -> bool:
        """Whether it takes new connections."""
        return bool(self._accepts)

    @property
    def live(self) -> int:
        """How many connections it carries now."""
        return len(self.connections)

    async def open(self, address: str, port: int) -> None:
        """Bind and accept.

        Raises:
            ListenError: the address cannot be bound.
        """
        sockets = bind(address, port, socket.SOCK_STREAM)
        self.addresses = [sock.getsockname()[:2] for sock in sockets]
        make_room = queue().make_room
        try:
            for sock in sockets:
                accept = AcceptLoop(self.name, sock, self._accept, make_room=make_room)
                self._accepts.append(accept)
        except OSError as exc:  # the loop cannot watch it
            self.close()
            for sock in sockets:
                sock.close()
            raise ListenError(f"cannot listen on {Endpoint(address, port)}: {exc}") from exc

    def _accept(self) -> LocalRelay:
        return LocalRelay(self)

    def close(self) -> None:
        """Accept no more; live connections go on."""
        for accept in self._accepts:
            accept.close()
        self._accepts.clear()

    async def drain(self, timeout: float) -> None:
        """Close, let live connections finish within `timeout` seconds, then reset them.

        Those that still wait for a stream are reset at once.
        """
        self.close()
        for connection in list(self.connections):
            if connection.stream is None:
                connection.cut()
        try:
            async with asyncio.timeout(timeout):
                while self.connections:
                    self._empty.clear()
                    await self._empty.wait()
        except TimeoutError:
            logger.warning("%s: %d connections are cut", self.name, len(self.connections))
        finally:
            self.cut()

    def cut(self) -> None:
        """Reset every live connection."""
        self.close()
        for connection in list(self.connections):
            connection.cut()

    def left(self, connection: LocalRelay) -> None:
        """A connection is gone."""
        self.connections.discard(connection)
        if not self.connections:
            self._empty.set()


class LocalRelay(TcpRelay):
    """One accepted connection. Until its stream is accepted it keeps what the application sent,
    so that a dial which an endpoint refused while it went away can be tried on a fresh one."""

    def __init__(self, listener: TcpListener) -> None:
        super().__init__()
        self._listener = listener
        self._forwarding: Forwarding = listener
        self._queue = queue()
        self._opening = StreamRequest(listener, Protocol.TCP, self, on_queued=self.on_queued)
        self._endpoint: Endpoint | None = None
        self._sent: list[bytes] | None = []
        self._early_bytes = 0
        self._retried = False
        self._entry: StreamMetrics | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._listener.connections.add(self)
        if self._listener.accepting:
            self._begin()
        else:
            # Accepted in the very turn of the loop in which the listener closed.
            self.cut()

    def _begin(self) -> None:
        """The connection is there: ask for its stream."""
        self._entry = self._forwarding.metrics.begin(self)
        self._opening.start()

    def cut(self) -> None:
        """Reset it at both ends."""
        if self.stream is not None:
            self.stream.reset(ErrorCode.CANCELLED)
        self.on_reset(ErrorCode.CANCELLED)

    def drop(self, reason: str) -> None:
        """Reset it while it waits, to have its descriptor."""
        logger.debug("%s: connection reset: %s", self._forwarding.name, reason)
        self._opening.cancel()
        if self._entry is not None:
            self._entry.unserved()
        self._fail(ErrorCode.CANCELLED, reason)

    def data_received(self, data: bytes) -> None:
        if self._sent is not None:
            self._sent.append(data)
        if self.stream is None:
            self._early_bytes += len(data)
            self._queue.received(self, len(data))
        super().data_received(data)

    def eof_received(self) -> bool:
        keep = super().eof_received()
        self._queue.ended(self)
        return keep

    def connection_lost(self, exc: Exception | None) -> None:
        clean = exc is None and self._local_ended and self._remote_ended
        self._queue.leave(self)
        descriptor_budget().closed()
        super().connection_lost(exc)
        self._opening.cancel()
        if self._entry is not None:
            self._entry.left(clean=clean)
        self._listener.left(self)

    def on_queued(self) -> None:
        """It has to wait for a stream: its end is to be seen meanwhile."""
        kept = sum(map(len, self._sent or ()))
        self._queue.enter(self, kept, half_closed=self._local_ended)

    def on_stream(self, stream: Stream) -> None:
        """There is a stream: what the application sent so far goes first."""
        self._queue.leave(self)
        self.received_bytes += self._early_bytes
        self._early_bytes = 0
        self._endpoint = self._forwarding.route.endpoint
        if self._entry is not None:
            self._entry.asked()
        for data in self._sent or ():
            stream.write(data)
        self.start(stream)
        if self._local_ended:
            stream.end()

    def on_open_failed(self, reason: str) -> None:
        """There is none: whoever connected sees a reset."""
        logger.warning("%s: connection reset: %s", self._forwarding.name, reason)
        if self._entry is not None:
            self._entry.unserved()
        self._fail(ErrorCode.CANCELLED, reason)

    def on_accepted(self) -> None:
        self._sent = None
        if self._entry is not None:
            self._entry.accepted()

    def on_refused(self, code: ErrorCode, message: str) -> None:
        name, route = self._forwarding.name, self._forwarding.route
        again = not self._retried or route.settling
        elsewhere = route.followed or code is ErrorCode.GOING_AWAY
        if elsewhere and again and code in RETRIED:
            logger.debug("%s: %s; trying once more", name, message)
            self._retried = True
            self.stream = None
            if self.transport is not None:
                self.transport.pause_reading()
                self._opening.start(after=self._endpoint)
            return
        logger.warning("%s: %s%s", name, code.text, message and f": {message}")
        if self._entry is not None:
            self._entry.refused(code, message)
        self._fail(code, message)

    def on_reset(self, code: ErrorCode) -> None:
        if self._entry is not None:
            self._entry.reset(code)
        super().on_reset(code)

    def _fail(self, code: ErrorCode, message: str) -> None:
        """There is no stream, and there will be none."""
        self.on_reset(code)
