"""MuxConnection: runs one Session over its present tunnel; TunnelProtocol is a tunnel's protocol.

Both consist of callbacks on asyncio's transport interface: no task per stream or frame. Reading
never waits for a consumer; credit and the session's limits bound what arrives. The owner of a
connection ends it with `close`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable
from typing import cast

from krelay.mux.log import about
from krelay.mux.sockets import no_delay
from krelay.mux.stream import MuxStream, StreamHandler
from krelay.mux.trace import wire_trace
from krelay.mux.transport import SocketTransport
from krelay.wire.compression import Algorithm
from krelay.wire.errors import ErrorCode, ProtocolError, WireError
from krelay.wire.events import (
    DatagramReceived,
    DatagramsLost,
    DataReceived,
    Event,
    GoAway,
    StreamAccepted,
    StreamEnded,
    StreamOpened,
    StreamRefused,
    StreamReset,
)
from krelay.wire.frames import Buffer
from krelay.wire.handshake import OPENING, ClientHandshake, Welcome
from krelay.wire.header import Header
from krelay.wire.session import Limits, Session, Side
from krelay.wire.stream import State, Stream

logger = logging.getLogger("krelay.mux")

_BATCH = 256 << 10
_TURN = 0.0002
"""Seconds after a flush in which another one waits for the end of the turn of the loop."""
_FEW = 4
"""Streams up to which a write is flushed at once: of more, several write in a turn."""
_SOON = 0.010
"""Seconds from now before which no deadline of a session comes up (protocol.md, section 7)."""


class MuxConnection:
    """One live session.

    `on_open` gets each stream that the peer opens. `on_detached` gets the error that cost the
    tunnel, or None if the session has ended as well. `on_go_away` gets the code and message of the
    peer's GOAWAY. `on_ids_low` is called once, when another session should take the new streams.
    `name` is that of the tunnel in the log.
    """

    def __init__(
        self,
        side: Side,
        name: str,
        *,
        limits: Limits = Limits(),  # noqa: B008
        on_open: Callable[[MuxStream], None] | None = None,
        on_detached: Callable[[Exception | None], None] | None = None,
        on_go_away: Callable[[ErrorCode, str], None] | None = None,
        on_ids_low: Callable[[], None] | None = None,
    ) -> None:
        self._loop = asyncio.get_running_loop()
        self.name = name
        self.session = Session(side, self._loop.time(), limits)
        self.closed = False
        self.replayed_bytes = 0
        self.peer_lost: tuple[int, ...] = (0, 0, 0, 0)
        """Datagrams that the peer has lost, by the fields of its last LOST frame."""
        self.on_detached = on_detached
        self.on_go_away = on_go_away
        self.on_idle: Callable[[], None] | None = None
        """Called when no stream is left, maybe repeatedly."""
        self._on_open = on_open
        self._on_ids_low = on_ids_low
        self._waker: asyncio.TimerHandle | None = None
        self._transport: asyncio.Transport | None = None
        self._paused = False
        self._awake = False
        self._flushed_at = 0.0
        self._idle = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._debug = logger.isEnabledFor(logging.DEBUG)
        self._trace = wire_trace(name)

    def __repr__(self) -> str:
        return f"<MuxConnection {self.name} streams={len(self.session.streams)}>"

    @property
    def attached(self) -> bool:
        """Whether a tunnel carries the session now."""
        return self._transport is not None

    @property
    def ready(self) -> bool:
        """Whether new streams can be opened now."""
        session = self.session
        return self.attached and not session.peer_going_away and not session.exhausted

    @property
    def count(self) -> int:
        """Number of open streams."""
        return len(self.session.streams)

    async def idle(self) -> None:
        """Return when no stream lives on it."""
        while self.count:
            self._idle.clear()
            await self._idle.wait()

    @property
    def load(self) -> int:
        """Bytes queued or not yet acknowledged, and 1 KiB for each stream."""
        return self.session.queued + self.session.unacknowledged + 1024 * self.count

    def use_compression(self, algorithm: Algorithm) -> None:
        """Use what the handshake of a new session has agreed; NONE changes nothing."""
        if algorithm:
            self.session.use_compression(algorithm, time.perf_counter)

    # -- streams -------------------------------------------------------------------------------

    def open(self, header: Header, handler: StreamHandler) -> MuxStream:
        """Open a stream whose events go to `handler`.

        Raises:
            ProtocolError: too many streams, no ids left, or the session is going away.
            ValueError: no Header can carry this host or port.
        """
        stream = MuxStream(self, self.session.open(header, self._loop.time()), handler)
        if self._on_ids_low is not None and self.session.ids_low:
            on_ids_low, self._on_ids_low = self._on_ids_low, None
            self._loop.call_soon(on_ids_low)
        if self._debug:
            logger.debug("> OPEN %r %s:%d", stream, header.host, header.port)
        # Two turns later than other frames: an application that sends first has done so by then,
        # its bytes are read in the first turn, and they go with the OPEN.
        self._loop.call_soon(self._loop.call_soon, self.wake)
        return stream

    def consume(self, stream: Stream, count: int) -> None:
        """Return the credit for `count` bytes that the layer above has taken."""
        self.session.consume(stream, count, self._loop.time())
        self.wake()

    # -- tunnels -------------------------------------------------------------------------------

    def attach(self, transport: asyncio.Transport, peer_received: int) -> None:
        """Use `transport` as the session's tunnel, and abort the former one.

        Its data goes to `receive_data` from now on. `peer_received` is the number of sequenced
        frames that the peer has received.

        Raises:
            ProtocolError: the session is over, or cannot resume from there; nothing has changed.
        """
        if self.closed:
            raise ProtocolError("the session is over", ErrorCode.GOING_AWAY)
        self.replayed_bytes += self.session.attach(peer_received, self._loop.time())
        former, self._transport = self._transport, transport
        if self._trace is not None:
            self._trace.begin()
        if former is not None:
            former.abort()
        self._paused = False
        transport.set_write_buffer_limits(high=_BATCH)
        self._awake = True
        self._loop.call_soon(self._flush)

    def tunnel_lost(self, transport: asyncio.BaseTransport, exc: Exception | None) -> None:
        """Detach the session from `transport`, which has closed; do nothing for a former tunnel."""
        if transport is not self._transport:
            return
        self._transport = None
        self._disarm()
        self.session.detach()
        if self.on_detached is not None and not self.closed:
            self.on_detached(exc or ConnectionResetError("the tunnel was closed"))

    def receive_data(self, transport: asyncio.BaseTransport, data: Buffer) -> None:
        """Process bytes from a tunnel; drop those of a former one."""
        if transport is not self._transport:
            return
        if self._trace is not None:
            self._trace.received(data)
        self._awake = True
        while transport is self._transport:
            try:
                events = self.session.receive_data(data, self._loop.time())
            except ProtocolError as exc:
                self._awake = False
                about(logger, tunnel=self.name).error("protocol error: %s", exc)
                self.close(exc.code, str(exc))
                if self.on_detached is not None:
                    self.on_detached(None)
                return
            self._dispatch(events)
            if not self.session.more:
                break
            data = b""
        self._flush()

    def pause_writing(self, transport: asyncio.BaseTransport) -> None:
        """Stop sending: the tunnel's buffer is full."""
        self._paused = self._paused or transport is self._transport

    def resume_writing(self, transport: asyncio.BaseTransport) -> None:
        """Send again: the tunnel's buffer has drained."""
        if transport is self._transport:
            self._paused = False
            self._flush()

    def verify_within(self, seconds: float) -> None:
        """Send a PING, and drop the tunnel if nothing arrives within `seconds`."""
        self.session.verify_within(seconds, self._loop.time())
        self._disarm()
        self.wake()
        self._arm()

    def go_away(self, code: ErrorCode, message: str = "") -> None:
        """Tell the peer that this end opens and accepts no more streams."""
        self.session.go_away(code, message)
        self.wake()

    def report_losses(self, counts: tuple[int, ...]) -> None:
        """Tell the peer how many datagrams this end has lost, by the fields of LOST."""
        self.session.report_losses(counts)
        self.wake()

    def close(self, code: ErrorCode, message: str = "") -> None:
        """End the session: send GOAWAY if a tunnel is attached, reset every stream."""
        if self.closed:
            return
        self.closed = True
        transport, self._transport = self._transport, None
        if transport is not None:
            self.session.go_away(code, message)
            self._write(transport, self.session.data_to_send(_BATCH, self._loop.time()))
            transport.close()
        self._disarm()
        self._dispatch(self.session.close(code))
        self._idle.set()

    # -- pumping -------------------------------------------------------------------------------

    def wake(self) -> None:
        """Send what is due: now, or soon after another flush at the end of this turn of the loop.

        So a lone write waits for nothing, and many writes of one turn go out together.
        """
        if self._awake:
            return
        if self._transport is not None:
            self._awake = True
            if len(self.session.streams) > _FEW or self._loop.time() - self._flushed_at < _TURN:
                self._loop.call_soon(self._flush)
            else:
                self._flush()
        elif self.on_idle is not None and not self.session.streams:
            self.on_idle()

    def wake_within(self, delay: float) -> None:
        """Send what is due within `delay` seconds, together with what is queued until then."""
        if self._waker is None:
            self._waker = self._loop.call_later(delay, self._flush)

    def _flush(self) -> None:
        session = self.session
        self._awake = True
        if self._waker is not None:
            self._waker.cancel()
            self._waker = None
        while self._transport is not None and not self._paused:
            buffers = session.data_to_send(_BATCH, self._loop.time())
            if not buffers:
                break
            self._write(self._transport, buffers)
            while session.writable:
                stream = session.writable.pop()
                self._call(stream, "on_writable")
        self._awake = False
        self._flushed_at = self._loop.time()
        if self.on_idle is not None and not session.streams:
            self.on_idle()
        self._arm()

    def _write(self, transport: asyncio.Transport, buffers: list[Buffer]) -> None:
        if self._trace is None and isinstance(transport, SocketTransport):
            transport.writelines(buffers)
            return
        # Not `writelines`: in releases of Python 3.12 and 3.13 asyncio's never calls
        # `pause_writing`, and writes to a closed descriptor (cpython 127655, 136234).
        data = b"".join(buffers)
        if self._trace is not None:
            self._trace.sent(data)
        transport.write(data)

    def _dispatch(self, events: list[Event]) -> None:
        for event in events:
            if isinstance(event, DataReceived):
                self._call(event.stream, "on_data", event.data)
            elif isinstance(event, DatagramReceived):
                self._call(event.stream, "on_datagram", event.data)
            elif isinstance(event, StreamEnded):
                self._call(event.stream, "on_end")
            elif isinstance(event, StreamAccepted):
                self._call(event.stream, "on_accepted")
            elif isinstance(event, StreamReset):
                self._call(event.stream, "on_reset", event.code)
            elif isinstance(event, StreamRefused):
                self._call(event.stream, "on_refused", event.code, event.message)
            elif isinstance(event, StreamOpened):
                # The same read, or the end of the session, may have closed it again.
                if event.stream.state is not State.CLOSED:
                    self._opened(event.stream)
            elif isinstance(event, GoAway) and self.on_go_away is not None:
                self.on_go_away(event.code, event.message)
            elif isinstance(event, DatagramsLost):
                self.peer_lost = event.counts

    def _opened(self, stream: Stream) -> None:
        opened = MuxStream(self, stream)
        if self._on_open is None:
            opened.refuse(ErrorCode.PROTOCOL, "this end opens streams")
        else:
            try:
                self._on_open(opened)
            except Exception:
                # The read's other events must reach their streams: they are not sent again.
                about(logger, stream=repr(opened)).exception("opening failed; the stream is reset")
                self._reset_after_bug(stream, opened)

    def _call(self, stream: Stream, method: str, *args: object) -> None:
        owner: MuxStream = stream.owner
        if owner is None or owner.handler is None:
            return
        if self._debug:
            logger.debug("< %s %r", method[3:].upper(), owner)
        try:
            getattr(owner.handler, method)(*args)
        except Exception:
            # A bug in one stream's handler costs that stream alone: both of its ends see a reset.
            log = about(logger, stream=repr(owner))
            log.exception("%s failed; the stream is reset", method)
            self._reset_after_bug(stream, owner, tell=method != "on_reset")

    def _reset_after_bug(self, stream: Stream, owner: MuxStream, *, tell: bool = True) -> None:
        handler = owner.handler
        owner.reset(ErrorCode.INTERNAL)
        if tell:
            owner.handler = handler
            self._call(stream, "on_reset", ErrorCode.INTERNAL)
            owner.handler = None

    def _arm(self) -> None:
        """Schedule `_tick` for the session's next deadline."""
        if self._transport is None:
            return
        now = self._loop.time()
        if self._timer is not None and self._timer.when() <= now + _SOON:
            return
        deadline = self.session.tick(now)
        if deadline is None:
            return
        if self._timer is not None:
            if self._timer.when() <= deadline:
                return
            self._timer.cancel()
        self._timer = self._loop.call_at(deadline, self._tick)

    def _disarm(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _tick(self) -> None:
        self._timer = None
        if self._transport is not None and self.session.timed_out(self._loop.time()):
            about(logger, tunnel=self.name).warning(
                "no answer from the other end; dropping the tunnel"
            )
            transport = self._transport
            self.tunnel_lost(transport, TimeoutError("no answer to a ping"))
            transport.abort()
            return
        self._arm()
        self._flush()


class TunnelProtocol(asyncio.Protocol):
    """Forwards a transport's callbacks to `connection`, once that is set."""

    connection: MuxConnection | None = None
    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        no_delay(transport)

    def data_received(self, data: bytes) -> None:
        if self.connection is not None:
            self.connection.receive_data(self.transport, data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.connection is not None:
            self.connection.tunnel_lost(self.transport, exc)

    def pause_writing(self) -> None:
        if self.connection is not None:
            self.connection.pause_writing(self.transport)

    def resume_writing(self) -> None:
        if self.connection is not None:
            self.connection.resume_writing(self.transport)


class ClientTunnelProtocol(TunnelProtocol):
    """The client's end of a tunnel: does the handshake, then attaches the tunnel to `target`.

    `welcome` is the outcome: the agent's WELCOME, or the error that ended the handshake.
    """

    def __init__(self, target: MuxConnection, handshake: ClientHandshake) -> None:
        self._target = target
        self._handshake = handshake
        # A Header goes before the first frame, and a status byte answers it.
        self._trace = wire_trace(target.name, skip_sent=len(OPENING), skip_received=1)
        self.welcome: asyncio.Future[Welcome] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self._send_due()

    def data_received(self, data: bytes) -> None:
        if self.connection is not None:
            self.connection.receive_data(self.transport, data)
            return
        if self.welcome.done():
            return
        if self._trace is not None:
            self._trace.received(data)
        try:
            welcome = self._handshake.receive_data(data)
            if welcome is not None:
                self._target.attach(self.transport, welcome.received)
                self._target.session.version = self._handshake.version
                self._target.use_compression(self._handshake.compression)
        except WireError as exc:
            self.welcome.set_exception(exc)
            self.transport.abort()
            return
        self._send_due()
        if welcome is not None:
            self.connection = self._target
            self.welcome.set_result(welcome)
            if welcome.rest:
                self.connection.receive_data(self.transport, welcome.rest)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.welcome.done():
            # Not a refusal: another attempt may succeed.
            lost = exc or ConnectionResetError("the connection ended during the handshake")
            self.welcome.set_exception(lost)
        super().connection_lost(exc)

    def _send_due(self) -> None:
        if data := self._handshake.data_to_send():
            if self._trace is not None:
                self._trace.sent(data)
            self.transport.write(data)
