"""MuxConnection: pumps one Session over whichever tunnel it has now.

Callbacks only, on asyncio's own transport interface: no task per stream or frame. The reader
never waits for a consumer; credit and the session's limits bound what arrives. Whoever made the
driver ends it with `close`.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from typing import cast

from krelay.mux.sockets import no_delay
from krelay.mux.stream import MuxStream, StreamHandler
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
from krelay.wire.handshake import ClientHandshake, Welcome
from krelay.wire.header import Header
from krelay.wire.session import Limits, Session, Side
from krelay.wire.stream import State, Stream

logger = logging.getLogger("krelay.mux")

_BATCH = 256 << 10


class MuxConnection:
    """One session, live. `on_open` is told of streams that the peer opens; `on_detached` of a
    lost tunnel (None when the session itself has ended with it); `on_go_away` of the peer's
    good-bye. `on_ids_low` is called once, when another session should take the new streams."""

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
        """Datagrams that the other end has lost, as its last LOST frame says."""
        self.on_detached = on_detached
        self.on_go_away = on_go_away
        self.on_idle: Callable[[], None] | None = None
        """Called after a flush when no stream is left, maybe repeatedly."""
        self._on_open = on_open
        self._on_ids_low = on_ids_low
        self._transport: asyncio.Transport | None = None
        self._paused = False
        self._awake = False
        self._idle = asyncio.Event()
        self._timer: asyncio.TimerHandle | None = None
        self._debug = logger.isEnabledFor(logging.DEBUG)

    def __repr__(self) -> str:
        return f"<MuxConnection {self.name} streams={len(self.session.streams)}>"

    @property
    def attached(self) -> bool:
        """Whether a tunnel carries it now."""
        return self._transport is not None

    @property
    def ready(self) -> bool:
        """Whether it takes new streams now."""
        session = self.session
        return self.attached and not session.peer_going_away and not session.exhausted

    @property
    def count(self) -> int:
        """How many streams live on it."""
        return len(self.session.streams)

    async def idle(self) -> None:
        """Return when no stream lives on it."""
        while self.count:
            self._idle.clear()
            await self._idle.wait()

    @property
    def load(self) -> int:
        """What waits or is under way on it, in bytes; each stream weighs a little too."""
        return self.session.queued + self.session.unacknowledged + 1024 * self.count

    # -- streams -------------------------------------------------------------------------------

    def open(self, header: Header, handler: StreamHandler) -> MuxStream:
        """Open a stream; `handler` learns what becomes of it.

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
        # A turn later than the rest: an application that speaks first has spoken by then, and
        # its bytes ride along.
        self._loop.call_soon(self.wake)
        return stream

    def consume(self, stream: Stream, count: int) -> None:
        """Return credit for bytes that were handed on."""
        self.session.consume(stream, count, self._loop.time())
        self.wake()

    # -- tunnels -------------------------------------------------------------------------------

    def attach(self, transport: asyncio.Transport, peer_received: int) -> None:
        """Carry the session on over `transport`, whose data comes to `receive` from now on. A
        tunnel that it had before is dropped.

        Raises:
            ProtocolError: it is over, or cannot be carried on from there: all is as it was.
        """
        if self.closed:
            raise ProtocolError("the session is over", ErrorCode.GOING_AWAY)
        self.replayed_bytes += self.session.attach(peer_received, self._loop.time())
        former, self._transport = self._transport, transport
        if former is not None:
            former.abort()
        self._paused = False
        transport.set_write_buffer_limits(high=_BATCH)
        self.wake()
        self._arm()

    def lost(self, transport: asyncio.BaseTransport, exc: Exception | None) -> None:
        """`transport` is gone; if it is the session's present one, it waits for another."""
        if transport is not self._transport:
            return
        self._transport = None
        self._disarm()
        self.session.detach()
        if self.on_detached is not None and not self.closed:
            self.on_detached(exc or ConnectionResetError("the tunnel was closed"))

    def receive(self, transport: asyncio.BaseTransport, data: Buffer) -> None:
        """Bytes of a tunnel; those of a former one are dropped."""
        if transport is not self._transport:
            return
        try:
            events = self.session.receive_data(data, self._loop.time())
        except ProtocolError as exc:
            logger.error("%s: protocol error: %s", self.name, exc)
            self.close(exc.code, str(exc))
            if self.on_detached is not None:
                self.on_detached(None)
            return
        self._dispatch(events)
        self.wake()
        self._arm()

    def pause_writing(self, transport: asyncio.BaseTransport) -> None:
        """The tunnel takes no more for now."""
        self._paused = self._paused or transport is self._transport

    def resume_writing(self, transport: asyncio.BaseTransport) -> None:
        """The tunnel takes bytes again."""
        if transport is self._transport:
            self._paused = False
            self._flush()

    def verify_within(self, seconds: float) -> None:
        """There is reason to doubt the tunnel: drop it unless it says something within `seconds`
        seconds."""
        self.session.verify_within(seconds, self._loop.time())
        self.wake()
        self._arm()

    def go_away(self, code: ErrorCode, message: str = "") -> None:
        """Say that this end opens and accepts no more streams."""
        self.session.go_away(code, message)
        self.wake()

    def report_losses(self, counts: tuple[int, ...]) -> None:
        """Tell the other end how many datagrams this one has lost so far."""
        self.session.report_losses(counts)
        self.wake()

    def close(self, code: ErrorCode, message: str = "") -> None:
        """End the session for good: say so if the tunnel still takes it, cut every stream."""
        if self.closed:
            return
        self.closed = True
        transport, self._transport = self._transport, None
        if transport is not None:
            self.session.go_away(code, message)
            transport.write(b"".join(self.session.data_to_send(_BATCH, self._loop.time())))
            transport.close()
        self._disarm()
        self._dispatch(self.session.close(code))
        self._idle.set()

    # -- pumping -------------------------------------------------------------------------------

    def wake(self) -> None:
        """Something may be due: send it at the end of this turn of the loop, with the rest."""
        if not self._awake and self._transport is not None:
            self._awake = True
            self._loop.call_soon(self._flush)

    def wake_within(self, delay: float) -> None:
        """The same, but up to `delay` seconds later: what is due may wait for company."""
        self._loop.call_later(delay, self.wake)

    def _flush(self) -> None:
        self._awake = False
        session = self.session
        while self._transport is not None and not self._paused:
            buffers = session.data_to_send(_BATCH, self._loop.time())
            if not buffers:
                break
            # Not `writelines`: releases of Python 3.12 and 3.13 pause nobody in that and take bytes
            # for a descriptor that is closed (cpython 127655, 136234). Nor does it take less time.
            self._transport.write(b"".join(buffers))
            while session.writable:
                stream = session.writable.pop()
                self._call(stream, "on_writable")
        if self.on_idle is not None and not session.streams:
            self.on_idle()
        self._arm()

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
                # Closed again by the same read, or with its session, it is nobody's.
                if event.stream.state is not State.CLOSED:
                    self._opened(event.stream)
            elif isinstance(event, GoAway) and self.on_go_away is not None:
                self.on_go_away(event.code, event.message)
            elif isinstance(event, DatagramsLost):
                self.peer_lost = event.counts

    def _opened(self, stream: Stream) -> None:
        handle = MuxStream(self, stream)
        if self._on_open is None:
            handle.refuse(ErrorCode.PROTOCOL, "this end opens streams")
        else:
            self._on_open(handle)

    def _call(self, stream: Stream, method: str, *args: object) -> None:
        handle: MuxStream = stream.owner
        if handle is None or handle.handler is None:
            return
        if self._debug:
            logger.debug("< %s %r", method[3:].upper(), handle)
        try:
            getattr(handle.handler, method)(*args)
        except Exception:
            # One stream's bug or bad luck is that stream's alone, and a reset at both of its ends.
            logger.exception("%r: %s failed; the stream is reset", handle, method)
            handler = handle.handler
            handle.reset(ErrorCode.INTERNAL)
            if method != "on_reset":
                handle.handler = handler
                self._call(stream, "on_reset", ErrorCode.INTERNAL)
                handle.handler = None

    def _arm(self) -> None:
        """Have `_tick` called when the session next needs it."""
        if self._transport is None:
            return
        deadline = self.session.tick(self._loop.time())
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
            logger.warning("%s: no answer from the other end; dropping the tunnel", self.name)
            transport = self._transport
            self.lost(transport, TimeoutError("no answer to a ping"))
            transport.abort()
            return
        self._arm()
        self._flush()


class TunnelProtocol(asyncio.Protocol):
    """Hands what its transport says to the driver that it was given to, if any."""

    driver: MuxConnection | None = None
    transport: asyncio.Transport

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        no_delay(transport)

    def data_received(self, data: bytes) -> None:
        if self.driver is not None:
            self.driver.receive(self.transport, data)

    def connection_lost(self, exc: Exception | None) -> None:
        if self.driver is not None:
            self.driver.lost(self.transport, exc)

    def pause_writing(self) -> None:
        if self.driver is not None:
            self.driver.pause_writing(self.transport)

    def resume_writing(self) -> None:
        if self.driver is not None:
            self.driver.resume_writing(self.transport)


class ClientTunnelProtocol(TunnelProtocol):
    """The client's end: await `welcome` after connecting, then `driver` has the tunnel."""

    def __init__(self, driver: MuxConnection, handshake: ClientHandshake) -> None:
        self._driver = driver
        self._handshake = handshake
        self.welcome: asyncio.Future[Welcome] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.transport.write(self._handshake.data_to_send())

    def data_received(self, data: bytes) -> None:
        if self.driver is not None:
            self.driver.receive(self.transport, data)
            return
        if self.welcome.done():
            return
        try:
            welcome = self._handshake.receive_data(data)
            if welcome is not None:
                self._driver.attach(self.transport, welcome.received)
                self._driver.session.version = self._handshake.version
        except WireError as exc:
            self.welcome.set_exception(exc)
            self.transport.abort()
            return
        if out := self._handshake.data_to_send():
            self.transport.write(out)
        if welcome is not None:
            self.driver = self._driver
            self.welcome.set_result(welcome)
            if welcome.rest:
                self.driver.receive(self.transport, welcome.rest)

    def connection_lost(self, exc: Exception | None) -> None:
        if not self.welcome.done():
            # No answer is not a no: it is worth another try.
            lost = exc or ConnectionResetError("the connection ended during the handshake")
            self.welcome.set_exception(lost)
        super().connection_lost(exc)
