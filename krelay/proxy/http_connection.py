"""HTTP connection: one accepted connection, each of whose requests goes to its own target.

`HttpRelay` decides what goes where. This couples it to the client's socket and to one stream at a
time, and enforces the deadlines. After a CONNECT or a 101 it relays like any other connection.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from enum import Enum, auto
from functools import partial
from typing import Generic, TypeVar

from krelay.datapath.connector import Forwarding
from krelay.datapath.tcp import QUIET, LocalRelay, TcpListener
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

HEAD = 30.0
"""Seconds for a client to send its first head, and each further head once that has begun."""
IDLE = 120.0
"""Seconds for which a connection may wait for its next request."""
SILENCE = 3_600.0
"""Seconds for which both ends of an exchange may be silent."""
LINGER_SILENCE, LINGER, LINGER_BYTES = 5.0, 30.0, 1 << 28
"""How long a client with its last answer may go on sending: seconds without a byte, seconds in all,
bytes. If its connection were closed at once, the kernel would reset it and the answer be lost."""
CLOSE_TIMEOUT = 5.0
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
    """The client's end of an `HttpRelay`."""

    def __init__(
        self,
        listener: TcpListener,
        route: Callable[[RequestHead], Hop[P]],
        destination: Callable[[P], Forwarding],
        *,
        on_waiting: Callable[[HttpConnection[P], bool], None] = lambda connection, waiting: None,
        head: float = HEAD,
    ) -> None:
        """`route` returns where a request goes, `destination` what a connection to that place
        needs. `on_waiting` is called when the connection begins and when it stops to wait for a
        request. `head` is the deadline for a head, in seconds.
        """
        super().__init__(listener)
        self._relay: HttpRelay[P] = HttpRelay(route, partial(listener.log.info, "refused (%d): %s"))
        self._destination = destination
        self._on_waiting = on_waiting
        self._head = head
        self._loop = asyncio.get_running_loop()
        self._state: _State | None = None
        self._state_since = self._active_at = 0.0
        self._timer: asyncio.TimerHandle | None = None
        self._had_request = False
        self._acting = False
        self._scheduled = False
        self._has_target = False
        """Whether a target is there for the bytes of the request, or will be."""
        self._unaccepted_size = 0
        self._target_full = False
        self._target_ended = False
        self._closing: _ClosingStream | None = None
        self._discarded = 0

    @property
    def idle(self) -> bool:
        """Whether it waits for another request, of which nothing has arrived."""
        return self._state is _State.IDLE

    def is_quiet(self, now: float) -> bool:
        # A request that is under way says nothing of the pauses in reading.
        if self._relay.switched:
            return super().is_quiet(now)
        return now - self.moved_at >= QUIET and not self._unwritten

    def finish(self) -> None:
        if self.idle and self.transport is not None:
            close_socket(self.transport)
        elif not self._relay.switched:
            self._run(self._relay.finish)

    def cut(self) -> None:
        if self._remote_ended and not self._relay.switched and not self._unwritten:
            # The client has its last answer, which a reset could destroy.
            self._close()
            return
        if self.stream is not None:
            self.stream.reset(ErrorCode.CANCELLED)
        super().on_reset(ErrorCode.CANCELLED)

    # -- the socket's side ---------------------------------------------------------------------

    def _begin(self) -> None:
        self._update()

    def data_received(self, data: bytes) -> None:
        relay = self._relay
        if relay.switched:
            super().data_received(data)
            return
        self._active_at = self._loop.time()
        self.moved_at = time.monotonic()
        if relay.discarding:
            self._discarded += len(data)
            if self._discarded > LINGER_BYTES:
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
        self._active_at = self._loop.time()
        self._run(self._relay.go_on)

    # -- the stream's side ---------------------------------------------------------------------

    def on_stream(self, stream: Stream) -> None:
        self._target_full = False
        super().on_stream(stream)
        self._update()

    def on_open_failed(self, reason: str) -> None:
        self._request.forwarding.log.warning("no stream: %s", reason)
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
        self._has_target = False
        status = 504 if code in TIMEOUTS else 502
        forwarding = self._request.forwarding
        where = f"{forwarding.route.endpoint or forwarding.name}: "
        why = (message or code.text).removeprefix(where)
        self._run(self._relay.target_refused, status, where + why)

    def on_data(self, data: Buffer) -> None:
        if self._relay.switched:
            super().on_data(data)
            return
        self._active_at = self._loop.time()
        self.moved_at = time.monotonic()
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
        self._request.metrics.reset(code)
        self.stream = None
        self._run(self._relay.target_lost)

    def on_writable(self) -> None:
        self._target_full = False
        if self._relay.switched:
            super().on_writable()
        else:
            self._update()

    # -- the relay's actions -------------------------------------------------------------------

    def _run(self, event: Callable[..., None], *args: object) -> None:
        """Hand an event to the relay and carry out its actions."""
        try:
            event(*args)
            # An action may call back at once. The actions that follow from that keep their order.
            if not self._acting:
                self._acting = True
                try:
                    self._act()
                finally:
                    self._acting = False
        except Exception:
            # A bug costs this connection only.
            self._listener.log.exception("the HTTP relay failed")
            self.cut()
        if not self._acting:
            self._update()

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
            if self._relay.client_ended and self._has_target and self.stream is None:
                # A client that has gone looks like this, and must not stay in the queue.
                self._close_target(clean=False)
                self._relay.target_refused(502, "no stream yet, and the client has ended")
            elif not actions:
                return

    def _open(self, place: P) -> None:
        self._had_request = True
        self._unaccepted, self._unaccepted_size, self._target_full = [], 0, False
        self._local_ended = self._target_ended = False
        self._held = self.received_bytes = self.sent_bytes = 0
        self._has_target = True
        self._request = self._make_request(self._destination(place))
        self._request.start()

    def _send(self, data: bytes) -> None:
        if not self._has_target or not data:
            return
        if self._unaccepted is not None:
            self._unaccepted.append(data)
            self._unaccepted_size += len(data)
        self.received_bytes += len(data)
        if self.stream is None:
            self._queue.data_received(self, len(data))
            self._target_full = self._unaccepted_size >= _EARLY
        elif not self.stream.write(data):
            self._target_full = True

    def _close_target(self, *, clean: bool) -> None:
        self._request.cancel()
        self._queue.leave(self)
        stream, self.stream = self.stream, None
        self._has_target = self._target_full = False
        self._held = 0
        if stream is not None:
            if not clean:
                stream.reset(ErrorCode.CANCELLED)
            elif self._target_ended:
                stream.handler = None
                stream.end()
            else:
                # One at a time: many targets that stay would use up the session's streams.
                if self._closing is not None:
                    self._closing.cut()
                self._closing = _ClosingStream(stream)
        self._request.metrics.closed(clean=clean)

    def _end_client(self) -> None:
        assert self.transport is not None
        if self._relay.client_ended:
            close_socket(self.transport)
        else:
            self._remote_ended = True
            self._end_socket(self.transport)

    def _close(self) -> None:
        """Close the client's connection; its last bytes have had their time."""
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

    # -- pace and deadlines --------------------------------------------------------------------

    def _update(self) -> None:
        """Bring reading, credit and the deadline in line with the present state."""
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
        if relay.discarding or (relay.wants_client and not relay.more and not self._target_full):
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
        if not self._had_request:
            return _State.FIRST
        return _State.HEAD if relay.in_head else _State.IDLE

    def _enter(self, state: _State) -> None:
        before, self._state = self._state, state
        self._state_since = self._active_at = self._loop.time()
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
            # No event says that the last byte has been written.
            due = min(due, self._loop.time() + LINGER_SILENCE)
        self._timer = self._loop.call_at(due, self._expire)

    def _due(self) -> float:
        """Return the time of the loop at which the present state has lasted too long."""
        match self._state:
            case _State.FIRST | _State.HEAD:
                return self._state_since + self._head
            case _State.IDLE:
                return self._state_since + IDLE
            case _State.ENDING if self._relay.discarding and not self._unwritten:
                return min(self._active_at + LINGER_SILENCE, self._state_since + LINGER)
            case _:
                return self._active_at + SILENCE

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
            self._listener.log.info("%s", why)
            self.cut()


class _ClosingStream:
    """A stream whose exchange is over: gives the target a moment to close its end."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        stream.handler = self
        stream.end()
        self._timer = asyncio.get_running_loop().call_later(CLOSE_TIMEOUT, self.cut)

    def on_end(self) -> None:
        self._detach()

    def on_reset(self, code: ErrorCode) -> None:
        self._detach()

    def on_refused(self, code: ErrorCode, message: str) -> None:
        self._detach()

    def on_data(self, data: Buffer) -> None:
        # Nothing may follow the response.
        self.cut()

    def on_accepted(self) -> None:
        """Nothing to do: the stream was accepted before."""

    def on_datagram(self, data: Buffer) -> None:
        """Ignore a datagram: it has no meaning on a TCP stream."""

    def on_writable(self) -> None:
        """Nothing to do: all is written."""

    def cut(self) -> None:
        """Reset the stream, unless it has ended."""
        self._detach()
        self._stream.reset(ErrorCode.CANCELLED)

    def _detach(self) -> None:
        self._stream.handler = None
        self._timer.cancel()
