"""HTTP connection: one accepted connection whose requests go each to its own target.

`HttpRelay` says what goes where. This couples it to the client's socket and to one stream at a
time, and keeps its deadlines. After a CONNECT or a 101 it is a relay like any other.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from enum import Enum, auto
from typing import Generic, TypeVar

from krelay.datapath.connector import Forwarding, StreamRequest
from krelay.datapath.pool import Pool
from krelay.datapath.tcp import LocalRelay, TcpListener
from krelay.model import Protocol
from krelay.mux.sockets import close_socket, reset_socket
from krelay.mux.stream import Stream
from krelay.proxy.http_relay import (
    CloseTarget,
    CutClient,
    EndClient,
    EndTarget,
    Hop,
    HttpRelay,
    Open,
    RequestHead,
    Splice,
    ToClient,
    ToTarget,
)
from krelay.wire.errors import ErrorCode
from krelay.wire.frames import Buffer

logger = logging.getLogger("krelay.listener")

HEAD = 30.0
"""Seconds for a client to send its first request, and each further head once it has begun."""
IDLE = 120.0
"""Seconds for which a connection may wait for its next request."""
SILENCE = 3_600.0
"""Seconds in which neither end of an exchange says anything."""
LINGER_SILENCE, LINGER, LINGER_BYTES = 5.0, 30.0, 1 << 28
"""How long a client that has its last answer may go on sending: seconds without a byte, seconds in
all, bytes. If it were closed at once, the kernel would reset it, and the answer be lost."""
FAREWELL = 5.0
"""Seconds for a target to close a connection whose exchange is over."""
_EARLY = 1 << 16

TIMEOUTS = (ErrorCode.CONNECT_TIMEOUT, ErrorCode.RESOLVE_TIMEOUT)

P = TypeVar("P")


class _State(Enum):
    FIRST = auto()
    IDLE = auto()
    HEAD = auto()
    EXCHANGE = auto()
    ENDING = auto()
    SPLICED = auto()


_WAITING = (_State.FIRST, _State.IDLE, _State.HEAD)


class HttpConnection(LocalRelay, Generic[P]):
    """The client's end of an `HttpRelay`.

    `route` says where a request goes, `destination` what a connection to that place needs.
    `on_waiting` is called when the connection begins or stops to wait for a request.
    """

    def __init__(
        self,
        listener: TcpListener,
        route: Callable[[RequestHead], Hop[P]],
        destination: Callable[[P], Forwarding],
        *,
        on_waiting: Callable[[HttpConnection[P], bool], None] = lambda connection, waiting: None,
        head: float = HEAD,
    ) -> None:
        """`head` is the deadline for a head, in seconds."""
        super().__init__(listener)
        self._relay: HttpRelay[P] = HttpRelay(route, self._refused)
        self._destination = destination
        self._on_waiting = on_waiting
        self._head = head
        self._loop = asyncio.get_running_loop()
        self._state: _State | None = None
        self._since = self._active = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._served = False
        self._acting = False
        self._scheduled = False
        self._to_open = False
        """Whether bytes for the target have one to go to, or will."""
        self._queued = 0
        self._full = False
        self._target_ended = False
        self._farewell: _Farewell | None = None
        self._drained = 0

    @property
    def idle(self) -> bool:
        """Whether nothing of a next request has arrived after the last one."""
        return self._state is _State.IDLE

    def finish(self) -> None:
        """Serve no request but the current one."""
        if self.idle and self.transport is not None:
            close_socket(self.transport)
        elif not self._relay.switched:
            self._run(self._relay.finish)

    def move(self, pool: Pool) -> None:
        """Take the next stream from there."""
        if self.stream is None:
            self._forwarding.route.pool = pool

    def cut(self) -> None:
        if self._remote_ended and not self._relay.switched and not self._unwritten:
            # It has its last answer, which a reset could take away from it.
            self._close()
            return
        if self.stream is not None:
            self.stream.reset(ErrorCode.CANCELLED)
        super().on_reset(ErrorCode.CANCELLED)

    def _refused(self, status: int, message: str) -> None:
        logger.info("%s: refused (%d): %s", self._listener.name, status, message)

    # -- the socket's side ---------------------------------------------------------------------

    def _begin(self) -> None:
        self._look()

    def data_received(self, data: bytes) -> None:
        relay = self._relay
        if relay.switched:
            super().data_received(data)
            return
        self._active = self._loop.time()
        if relay.discarding:
            self._drained += len(data)
            if self._drained > LINGER_BYTES:
                self._close()
            return
        self._run(relay.receive_from_client, data)

    def eof_received(self) -> bool:
        if self._relay.switched:
            return super().eof_received()
        self._run(self._relay.client_sent_end)
        if self._relay.ending and self.transport is not None:
            close_socket(self.transport)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._state in _WAITING:
            self._on_waiting(self, False)
        self._state = _State.ENDING
        super().connection_lost(exc)

    def pause_writing(self) -> None:
        super().pause_writing()
        self._relay.blocked = True

    def resume_writing(self) -> None:
        self._relay.blocked = False
        if self._relay.switched:
            super().resume_writing()
            return
        held, self._held = self._held, 0
        super().resume_writing()
        self._held = held
        self._active = self._loop.time()
        self._run(self._relay.go_on)

    # -- the stream's side ---------------------------------------------------------------------

    def on_stream(self, stream: Stream) -> None:
        self._full = False
        super().on_stream(stream)
        self._look()

    def on_open_failed(self, reason: str) -> None:
        logger.warning("%s: no stream: %s", self._forwarding.name, reason)
        if self._entry is not None:
            self._entry.unserved()
        self._fail(ErrorCode.CANCELLED, reason)

    def on_accepted(self) -> None:
        super().on_accepted()
        self._run(self._relay.target_accepted)

    def on_refused(self, code: ErrorCode, message: str) -> None:
        super().on_refused(code, message)
        self._run(lambda: None)

    def drop(self, reason: str) -> None:
        super().drop(reason)
        self.cut()

    def _fail(self, code: ErrorCode, message: str) -> None:
        self._queue.leave(self)
        self.stream = None
        self._to_open = False
        status = 504 if code in TIMEOUTS else 502
        where = f"{self._forwarding.route.endpoint or self._forwarding.name}: "
        why = (message or code.text).removeprefix(where)
        self._run(self._relay.target_refused, status, where + why)

    def on_data(self, data: Buffer) -> None:
        if self._relay.switched:
            super().on_data(data)
            return
        self._active = self._loop.time()
        self._held += len(data)
        self._run(self._relay.receive_from_target, bytes(data))

    def on_end(self) -> None:
        self._target_ended = True
        if self._relay.switched:
            super().on_end()
        else:
            self._run(self._relay.target_sent_end)

    def on_reset(self, code: ErrorCode) -> None:
        if self._relay.switched:
            super().on_reset(code)
            return
        if self._entry is not None:
            self._entry.reset(code)
        self.stream = None
        self._run(self._relay.target_lost)

    def on_writable(self) -> None:
        self._full = False
        if self._relay.switched:
            super().on_writable()
        else:
            self._look()

    # -- what the relay wants ------------------------------------------------------------------

    def _run(self, event: Callable[..., None], *args: object) -> None:
        """Tell the relay, and do what it wants."""
        try:
            event(*args)
            # An action may call back at once. What follows from that is done in its order.
            if not self._acting:
                self._acting = True
                try:
                    self._act()
                finally:
                    self._acting = False
        except Exception:
            # One connection's bug is its own.
            logger.exception("%s: the HTTP relay failed", self._listener.name)
            self.cut()
        if not self._acting:
            self._look()

    def _act(self) -> None:
        while self.transport is not None:
            actions = self._relay.actions()
            for action in actions:
                if self.transport is None:
                    return
                match action:
                    case ToClient(data):
                        self.sent_bytes += len(data)
                        self.transport.write(data)
                    case ToTarget(data):
                        self._send(data)
                    case Open(place):
                        self._open(place)
                    case EndTarget():
                        self._local_ended = True
                        if self.stream is not None:
                            self.stream.end()
                    case CloseTarget(clean):
                        self._close_target(clean=clean)
                    case EndClient():
                        self._end_client()
                    case CutClient():
                        self.cut()
                    case Splice(to_target, to_client):
                        self._splice(to_target, to_client)
            if self._relay.client_ended and self._to_open and self.stream is None:
                # A client that has gone looks like this, and must not keep a place while it waits.
                self._close_target(clean=False)
                self._relay.target_refused(502, "no stream yet, and the client has ended")
            elif not actions:
                return

    def _open(self, place: P) -> None:
        self._served = True
        self._forwarding = self._destination(place)
        self._opening = StreamRequest(
            self._forwarding, Protocol.TCP, self, on_queued=self.on_queued
        )
        self._endpoint = None
        self._sent, self._queued, self._full = [], 0, False
        self._retried = False
        self._local_ended = self._target_ended = False
        self._held = self.received_bytes = self.sent_bytes = 0
        self._entry = self._forwarding.metrics.begin(self)
        self._to_open = True
        self._opening.start()

    def _send(self, data: bytes) -> None:
        if not self._to_open or not data:
            return
        if self._sent is not None:
            self._sent.append(data)
            self._queued += len(data)
        if self.stream is None:
            self._queue.received(self, len(data))
        self.received_bytes += len(data)
        if self.stream is None:
            self._full = self._queued >= _EARLY
        elif not self.stream.write(data):
            self._full = True

    def _close_target(self, *, clean: bool) -> None:
        self._opening.cancel()
        self._queue.leave(self)
        stream, self.stream = self.stream, None
        self._to_open = self._full = False
        self._held = 0
        if stream is not None:
            if clean:
                # One at a time: many targets that stay would use up the session's streams.
                if self._farewell is not None:
                    self._farewell.cut()
                self._farewell = _Farewell(stream, ended=self._target_ended)
            else:
                stream.reset(ErrorCode.CANCELLED)
        entry, self._entry = self._entry, None
        if entry is not None:
            entry.left(clean=clean)

    def _end_client(self) -> None:
        assert self.transport is not None
        if self._relay.client_ended:
            close_socket(self.transport)
        else:
            self._remote_ended = True
            self._end_socket(self.transport)

    def _close(self) -> None:
        """Close the client's connection, for whose last bytes there was time."""
        if self.transport is None:
            return
        if self._unwritten:
            reset_socket(self.transport)
        else:
            close_socket(self.transport)

    def _splice(self, to_target: bytes, to_client: bytes) -> None:
        assert self.transport is not None
        if to_client:
            self.sent_bytes += len(to_client)
            self.transport.write(to_client)
        self.transport.resume_reading()
        if to_target:
            super().data_received(to_target)
        if self._relay.client_ended:
            super().eof_received()
        if self._target_ended:
            super().on_end()

    # -- its pace and its deadlines ------------------------------------------------------------

    def _look(self) -> None:
        """Read the client or not, return credit, go on, keep time: as things are now."""
        relay, transport = self._relay, self.transport
        if transport is None:
            return
        if self.stream is not None and not self._paused and (relay.switched or not relay.more):
            held, self._held = self._held, 0
            if held:
                self.stream.consume(held)
        state = self._state_now()
        if state is not self._state:
            self._enter(state)
        if relay.switched or transport.is_closing():
            return
        if relay.more and not self._scheduled:
            self._scheduled = True
            self._loop.call_soon(self._go_on)
        if relay.discarding or (relay.wants_client and not relay.more and not self._full):
            transport.resume_reading()
        else:
            transport.pause_reading()

    def _go_on(self) -> None:
        self._scheduled = False
        if self.transport is not None and not self._relay.switched:
            self._run(self._relay.go_on)

    def _state_now(self) -> _State:
        relay = self._relay
        if relay.switched:
            return _State.SPLICED
        if relay.ending:
            return _State.ENDING
        if not relay.idle:
            return _State.EXCHANGE
        if not self._served:
            return _State.FIRST
        return _State.HEAD if relay.in_head else _State.IDLE

    def _enter(self, state: _State) -> None:
        before, self._state = self._state, state
        self._since = self._active = self._loop.time()
        if (before in _WAITING) is not (state in _WAITING):
            self._on_waiting(self, state in _WAITING)
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if state is not _State.SPLICED:
            self._arm()

    def _arm(self) -> None:
        due = self._due()
        if self._relay.ending:
            # What it waits for changes without an event: the last byte is written.
            due = min(due, self._loop.time() + LINGER_SILENCE)
        self._timer = self._loop.call_at(due, self._expire)

    def _due(self) -> float:
        """When the present state has lasted too long."""
        match self._state:
            case _State.FIRST | _State.HEAD:
                return self._since + self._head
            case _State.IDLE:
                return self._since + IDLE
            case _State.ENDING if self._relay.discarding and not self._unwritten:
                return min(self._active + LINGER_SILENCE, self._since + LINGER)
            case _:
                return self._active + SILENCE

    @property
    def _unwritten(self) -> bool:
        return self.transport is not None and bool(self.transport.get_write_buffer_size())

    def _expire(self) -> None:
        self._timer = None
        if self.transport is None:
            return
        if self._loop.time() < self._due():
            self._arm()
        elif self._state in (_State.IDLE, _State.ENDING):
            self._close()
        else:
            why = "no request came in time" if self._state in _WAITING else "both ends were silent"
            logger.info("%s: %s", self._listener.name, why)
            self.cut()


class _Farewell:
    """A stream whose exchange is over: lets the target close its end, for a moment."""

    def __init__(self, stream: Stream, *, ended: bool) -> None:
        self._stream = stream
        self._timer: asyncio.TimerHandle | None = None
        stream.handler = None if ended else self
        stream.end()
        if not ended:
            self._timer = asyncio.get_running_loop().call_later(FAREWELL, self.cut)

    def on_end(self) -> None:
        self._done()

    def on_reset(self, code: ErrorCode) -> None:
        self._done()

    def on_refused(self, code: ErrorCode, message: str) -> None:
        self._done()

    def on_data(self, data: Buffer) -> None:
        # Nothing may follow the response.
        self.cut()

    def on_accepted(self) -> None:
        """It was accepted before."""

    def on_datagram(self, data: Buffer) -> None:
        """A datagram on a TCP stream has no meaning."""

    def on_writable(self) -> None:
        """Nothing is to be written."""

    def cut(self) -> None:
        """Reset it, unless it has ended."""
        self._done()
        self._stream.reset(ErrorCode.CANCELLED)

    def _done(self) -> None:
        self._stream.handler = None
        if self._timer is not None:
            self._timer.cancel()
