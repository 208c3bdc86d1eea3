"""PodConnection: many forwarded connections into one pod over one upgraded connection.

As kubectl's port-forward, each stream is a pair of SPDY streams: `data`, and `error`, on which the
node says why a dial failed. Traps of the other end (client-go tools/portforward, the container
runtimes' streaming servers, moby/spdystream):

- It accepts a pair before it dials. Only an error says that the dial failed.
- It has no flow control. A client that reads one stream slowly must stop reading all of them, and a
  target that reads slowly may stop all other streams of the connection in the runtime.
- It passes no half-close on: a second after one direction has ended, the runtime ends both.
- A pod that is deleted ends its streams, and leaves the connection open.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import re
import socket
from collections.abc import Callable
from typing import cast

from krelay.errors import KrelayError, NotListeningError, PodGoneError, TunnelError
from krelay.mux.log import about
from krelay.mux.sockets import no_delay
from krelay.mux.stream import StreamHandler
from krelay.transport import spdy
from krelay.transport.spdy import Buffer
from krelay.transport.upgrade import Carrier, stream_error
from krelay.wire.errors import ErrorCode, ProtocolError
from krelay.wire.stream import INITIAL_WINDOW

logger = logging.getLogger("krelay.transport")

MAX_STREAMS = 1_024
"""Streams of one connection."""
WINDOW = 1 << 20
"""Bytes that may wait for the consumer of one stream before the connection stops being read."""
SETTLE = 0.2
"""Seconds without an error, after the node has taken a stream, that count as a dial that worked.
The node dials its own loopback; a refusal follows at once."""
ANSWER_TIMEOUT = 30.0
"""Seconds for the node to take a stream."""
STALL = 0.5
"""Seconds after which a connection that is not read, or takes no more bytes, counts as stalled."""
PING_EVERY, PING_TIMEOUT = 10.0, 5.0
"""Seconds between two PINGs, and for the node to answer one."""
SILENCE = 15_000
"""Milliseconds that the other end has to acknowledge what was sent, on Linux (TCP_USER_TIMEOUT)."""

# asyncio's TLS decrypts reads of 256 KiB. With room for a record that the last read cut in two, one
# call takes all of it.
_READ_SIZE = 272 << 10
_TEXT_LIMIT = 4 << 10  # bytes of an error stream that are kept
_TEXT_DEADLINE = 0.25  # seconds from the end of a data stream in which its error stream may say why
_WRITE_HIGH_WATER = 256 << 10
_REPLIES_LIMIT = 1 << 20  # unsent bytes above which pings get no reply
_LAST_ID = (1 << 30) - 1  # SPDY has 31 bits
_TIMED_OUT = re.compile(r"timed? ?out|deadline exceeded", re.IGNORECASE)
_UNREACHABLE = re.compile(r"no route to host|unreachable", re.IGNORECASE)


class PodConnection(asyncio.BufferedProtocol):
    """One connection to a pod, the protocol of the transport below; `open` adds streams."""

    _below: asyncio.Transport

    def __init__(
        self,
        carrier: Carrier,
        name: str,
        *,
        on_change: Callable[[], None],
        on_refused: Callable[[int], None],
    ) -> None:
        """`on_change` is called when the last stream has ended, and when the connection begins or
        ceases to take streams; `on_refused` with each port to which a stream was refused."""
        self.name = name
        self.expires = math.inf
        """Expiry of the credentials that opened it (Unix time; `inf` if unknown)."""
        self.on_refused = on_refused
        self.carrier = carrier.name
        self.failure: KrelayError | None = None
        """Why the connection has ended; None while it is open."""
        self.streams: dict[int, PodStream] = {}
        """The live streams by the ids of both SPDY streams of each."""
        self._on_change = on_change
        self._loop = asyncio.get_running_loop()
        self._carrier = carrier
        self._decoder = spdy.Decoder()
        self._opener = spdy.Opener()
        self._next_id = 1
        self._view = memoryview(bytearray(_READ_SIZE))
        self._going_away = False
        self._held: set[PodStream] = set()
        self._held_since = self._writing_paused_since = math.inf
        self._waiting: set[PodStream] = set()
        self._pings = 0
        self._answered = 0
        self._stalled = False
        self._timer: asyncio.TimerHandle | None = None

    # -- called by the layers above ------------------------------------------------------------

    @property
    def count(self) -> int:
        """The number of live streams."""
        return len(self.streams) // 2

    @property
    def takes_streams(self) -> bool:
        """Whether it takes new streams."""
        room = self.count < MAX_STREAMS and self._next_id < _LAST_ID
        return self.failure is None and not self._going_away and room

    @property
    def held(self) -> bool:
        """Whether it is not read, since a consumer is behind."""
        return bool(self._held)

    @property
    def stalled(self) -> bool:
        """Whether a slow stream, or the node, holds up all streams now."""
        since = min(self._held_since, self._writing_paused_since)
        return self._stalled or self._loop.time() - since > STALL

    def open(self, port: int, handler: StreamHandler) -> PodStream:
        """Open a stream to `port` of the pod.

        Raises:
            ProtocolError: the connection takes no more streams.
        """
        if not self.takes_streams:
            raise ProtocolError(f"no more streams to {self.name}", ErrorCode.LIMIT)
        error_id, data_id = self._next_id, self._next_id + 2
        self._next_id += 4
        self._decoder.opened = data_id
        stream = PodStream(self, error_id, port, handler)
        self.streams[error_id] = self.streams[data_id] = stream
        # As kubectl, end our side of the error stream: only the node writes there.
        self.write(self._opener.open_pair(port, error_id, data_id), spdy.end_frame(error_id))
        return stream

    def verify(self) -> None:
        """Find out soon whether the node still answers."""
        if self.failure is None and self._pings == self._answered:
            self._ping()

    def retire(self) -> None:
        """Take no more streams; live ones go on."""
        if not self._going_away:
            self._going_away = True
            self._on_change()

    def close(self, reason: str = "the connection was closed") -> None:
        """End the connection, and reset its streams."""
        self._end(TunnelError(reason))

    # -- called by the streams -----------------------------------------------------------------

    def write(self, *frames: bytes) -> bool:
        """Send frames; return whether more may follow at once."""
        if self.failure is None:
            for frame in frames:
                self._below.write(self._carrier.wrap(frame))
        return self._writing_paused_since == math.inf

    def wait_writable(self, stream: PodStream) -> None:
        """Have `on_writable` of a stream called once more may be written."""
        self._waiting.add(stream)

    def hold(self, stream: PodStream, held: bool) -> None:
        """Stop reading while a stream's consumer is behind, since there is no other brake."""
        before = bool(self._held)
        (self._held.add if held else self._held.discard)(stream)
        if before is bool(self._held):
            return
        self._held_since = self._loop.time() if self._held else math.inf
        if self.failure is None and not self._below.is_closing():
            (self._below.pause_reading if self._held else self._below.resume_reading)()

    def left(self, stream: PodStream) -> None:
        """Forget a stream that has ended."""
        self.streams.pop(stream.error_id, None)
        self.streams.pop(stream.data_id, None)
        self._waiting.discard(stream)
        self.hold(stream, False)
        if not self.streams:
            self._on_change()

    # -- the protocol of the transport below ---------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._below = cast(asyncio.Transport, transport)
        self._below.set_write_buffer_limits(high=_WRITE_HIGH_WATER)
        no_delay(transport)
        self._set_user_timeout(SILENCE)
        self._timer = self._loop.call_later(PING_EVERY, self._ping)

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        self.received(self._view[:nbytes])

    def eof_received(self) -> bool:
        return False

    def pause_writing(self) -> None:
        self._writing_paused_since = self._loop.time()
        # A slow target may keep the other end from taking more, which is no sign of a dead one.
        self._set_user_timeout(0)

    def resume_writing(self) -> None:
        self._writing_paused_since = math.inf
        self._set_user_timeout(SILENCE)
        waiting, self._waiting = self._waiting, set()
        for stream in waiting:
            if self._writing_paused_since == math.inf:
                stream.writable()
            else:
                self._waiting.add(stream)

    def connection_lost(self, exc: Exception | None) -> None:
        reason = TunnelError(f"the connection to the API server was lost: {exc or 'it ended'}")
        reason.__cause__ = exc
        self._end(reason)

    # -- received bytes ------------------------------------------------------------------------

    def received(self, data: Buffer) -> None:
        """Take bytes of the connection, also those that arrived before this object took it over."""
        if self.failure is not None:
            return
        pieces: dict[PodStream, list[Buffer]] = {}
        fault = ""
        try:
            for part in self._carrier.unwrap(data):
                for event in self._decoder.receive_data(part):
                    self._handle(event, pieces)
        except spdy.SpdyError as exc:
            fault = f"the API server does not speak SPDY: {exc}"
        if replies := self._carrier.replies():
            self._reply(replies)
        for stream in list(pieces):
            stream.deliver(pieces)
        if why := fault or self._carrier.ended:
            self._end(TunnelError(why))

    def _handle(self, event: spdy.Event, pieces: dict[PodStream, list[Buffer]]) -> None:
        if isinstance(event, spdy.Ping):
            self._pinged(event)
            return
        if isinstance(event, spdy.GoAway):
            self.retire()
            return
        stream = self.streams.get(event.stream_id)
        if stream is None:
            return  # it ended here, and the node did not know yet
        if isinstance(event, spdy.Data):
            if event.stream_id == stream.data_id:
                pieces.setdefault(stream, []).append(event.payload)
            else:
                stream.text = (stream.text + event.payload)[:_TEXT_LIMIT]
            return
        stream.deliver(pieces)
        if isinstance(event, spdy.Reply):
            if event.stream_id == stream.data_id:
                stream.taken()
        elif event.stream_id == stream.data_id:
            stream.data_ended(reset=event.reset)
        else:
            stream.error_ended()

    def _pinged(self, event: spdy.Ping) -> None:
        number = int.from_bytes(event.frame[-4:], "big")
        if not number & 1:
            self._reply(self._carrier.wrap(event.frame))
        elif number == 2 * self._pings - 1:
            self._answered = self._pings
            if self._stalled:
                self._stalled = False
                self._on_change()

    def _reply(self, data: bytes) -> None:
        # A peer that sends pings without reading the replies gets no more of them.
        if self._below.get_write_buffer_size() < _REPLIES_LIMIT:
            self._below.write(data)

    def _ping(self) -> None:
        """Ask the node for a sign of life."""
        self._pings += 1
        self.write(spdy.ping_frame(2 * self._pings - 1))
        self._arm(PING_TIMEOUT, self._check)

    def _check(self) -> None:
        if self._pings == self._answered:
            self._arm(PING_EVERY - PING_TIMEOUT, self._ping)
        elif not self.streams:
            self._end(TunnelError(f"the node gave no sign of life within {PING_TIMEOUT:g} s"))
        else:
            # A slow target may hold up its node. Its streams may still go on; new ones would not.
            self._stalled = True
            self._arm(PING_TIMEOUT, self._check)
            self._on_change()

    def _arm(self, delay: float, callback: Callable[[], None]) -> None:
        if self._timer is not None:
            self._timer.cancel()
        self._timer = self._loop.call_later(delay, callback)

    def _end(self, reason: KrelayError) -> None:
        if self.failure is not None:
            return
        self.failure = reason
        if self._timer is not None:
            self._timer.cancel()
        self._below.abort()
        for stream in list(dict.fromkeys(self.streams.values())):
            stream.lost(reason)
        self._on_change()

    def _set_user_timeout(self, milliseconds: int) -> None:
        sock = self._below.get_extra_info("socket")
        if sock is not None and hasattr(socket, "TCP_USER_TIMEOUT"):
            with contextlib.suppress(OSError):  # it is closed, or no TCP socket
                sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, milliseconds)


class PodStream:
    """One forwarded connection: a `krelay.mux.stream.Stream`."""

    def __init__(
        self, connection: PodConnection, error_id: int, port: int, handler: StreamHandler
    ) -> None:
        self.handler: StreamHandler | None = handler
        self.error_id, self.data_id = error_id, error_id + 2
        self.text = b""
        self._connection = connection
        self._port = port
        self._accepted = False
        self._sent = 0
        self._wants_writable = False
        self._ended = False
        """Whether this end sends no more."""
        self._gone = False
        """Whether the node has ended the stream."""
        self._data_ended = self._error_ended = False
        self._node_reset = False
        self._unconsumed = 0
        self._timer: asyncio.TimerHandle | None = None
        self._arm(ANSWER_TIMEOUT, self._unanswered)

    @property
    def pod(self) -> str:
        """The pod, for people."""
        return f"pod {self._connection.name.rpartition('/')[2]}"

    def __repr__(self) -> str:
        return f"<PodStream {self._connection.name}:{self._port}>"

    # -- called by the layers above: the interface of Stream -----------------------------------

    def write(self, data: Buffer) -> bool:
        if self._gone:
            asyncio.get_running_loop().call_soon(self._fail, ErrorCode.RESET)
            return True
        self._sent += len(data)
        more = self._connection.write(*spdy.data_frames(self.data_id, data))
        if more and (self._accepted or self._sent < INITIAL_WINDOW):
            return True
        self._wants_writable = True
        if not more:
            self._connection.wait_writable(self)
        return False

    def end(self) -> None:
        if self._ended:
            return
        self._ended = True
        if self._gone:
            self.reset()
        else:
            self._connection.write(spdy.end_frame(self.data_id))

    def reset(self, code: ErrorCode = ErrorCode.CANCELLED) -> None:
        if not self._gone:
            self._connection.write(spdy.reset_frame(self.data_id), spdy.reset_frame(self.error_id))
        self._leave()

    def consume(self, count: int) -> None:
        before, self._unconsumed = self._unconsumed, self._unconsumed - count
        if before > WINDOW // 2 >= self._unconsumed:
            self._connection.hold(self, False)

    def datagram(self, data: Buffer) -> bool:
        return False  # a port-forward carries TCP only

    # -- called by the connection --------------------------------------------------------------

    def taken(self) -> None:
        """Count the node's silence from now on as a dial that worked."""
        if not self._accepted and not self._gone and not self._data_ended:
            self._arm(SETTLE, self._accept)

    def deliver(self, pieces: dict[PodStream, list[Buffer]]) -> None:
        """Hand on the bytes that were received for this stream."""
        found = pieces.pop(self, None)
        if not found or self.handler is None or self._data_ended:
            return
        data = b"".join(found)
        self._unconsumed += len(data)
        if self._unconsumed > WINDOW:
            self._connection.hold(self, True)
        self._accept()
        self._call(lambda handler: handler.on_data(data))

    def writable(self) -> None:
        """Let the writer go on, unless it waits for the dial."""
        if self._wants_writable and (self._accepted or self._sent < INITIAL_WINDOW):
            self._wants_writable = False
            self._call(lambda handler: handler.on_writable())

    def data_ended(self, *, reset: bool) -> None:
        """Wait for the error stream, which may say why.

        A node that closes its connections resets their streams first, in the middle of their data.
        """
        if not self._data_ended:
            self._data_ended, self._node_reset = True, reset
        if self.text or self._error_ended:
            self._finish()
        elif not self._gone:
            self._arm(_TEXT_DEADLINE, self._finish)

    def error_ended(self) -> None:
        """End a stream that failed, or whose bytes have all arrived."""
        self._error_ended = True
        if self.text or self._data_ended:
            self._finish()

    def lost(self, reason: KrelayError) -> None:
        """End the stream with its connection.

        It is refused, so that the layers above may try again, if the pod cannot have had a byte.
        """
        self._gone = True
        if self._accepted or self._sent:
            self._fail(ErrorCode.RESET)
        else:
            self._refuse(ErrorCode.GOING_AWAY, str(reason))

    # -- its life ------------------------------------------------------------------------------

    def _accept(self) -> None:
        if self._accepted:
            return
        self._accepted = True
        self._disarm()
        self._call(lambda handler: handler.on_accepted())
        self.writable()

    def _unanswered(self) -> None:
        if self._connection.held:
            # The answer may wait behind the bytes of another stream.
            self._arm(ANSWER_TIMEOUT, self._unanswered)
            return
        self._connection.write(spdy.reset_frame(self.data_id), spdy.reset_frame(self.error_id))
        # The pod may have the early bytes: another one must not get them, too.
        code = ErrorCode.DIAL_FAILED if self._sent else ErrorCode.CONNECT_TIMEOUT
        self._refuse(code, f"no answer within {ANSWER_TIMEOUT:g} s")

    def _finish(self) -> None:
        """End the stream as its node has ended it."""
        if self._gone:
            return
        self._disarm()
        self._gone = True
        if not self._ended:
            # Otherwise the node would keep its side of the stream for ever.
            self._connection.write(spdy.end_frame(self.data_id))
        self._connection.left(self)
        if self.text:
            self._failed(self.text.decode("utf-8", "replace"))
            return
        if self._node_reset:
            self.lost(TunnelError("the node reset the stream"))
            return
        self._accept()
        self._call(lambda handler: handler.on_end())
        if self._ended:
            self._leave()

    def _failed(self, text: str) -> None:
        code, message = refusal(text)
        about(logger, stream=repr(self)).debug("ended: %s", message)
        if code is ErrorCode.GOING_AWAY:
            # It leads to a sandbox that has ended; a new one of the pod needs a new connection.
            self._connection.retire()
        if self._accepted:
            self._fail(ErrorCode.RESET)
        else:
            self._refuse(code, message)

    def _refuse(self, code: ErrorCode, message: str) -> None:
        self._connection.on_refused(self._port)
        if (handler := self._leave()) is not None:
            self._guarded(lambda: handler.on_refused(code, message))

    def _fail(self, code: ErrorCode) -> None:
        if (handler := self._leave()) is not None:
            self._guarded(lambda: handler.on_reset(code))

    def _call(self, event: Callable[[StreamHandler], None]) -> None:
        handler = self.handler
        if handler is not None and not self._guarded(lambda: event(handler)):
            self._connection.write(spdy.reset_frame(self.data_id))
            self._fail(ErrorCode.INTERNAL)

    def _guarded(self, call: Callable[[], None]) -> bool:
        try:
            call()
        except Exception:
            # A bug in one stream must not end the others.
            logger.exception("a stream failed")
            return False
        return True

    def _leave(self) -> StreamHandler | None:
        """Give up the stream; return the handler, which gets one more call at most."""
        handler, self.handler = self.handler, None
        self._disarm()
        self._gone = True
        self._connection.left(self)
        return handler

    def _arm(self, delay: float, callback: Callable[[], None]) -> None:
        self._disarm()
        self._timer = asyncio.get_running_loop().call_later(delay, callback)

    def _disarm(self) -> None:
        timer, self._timer = self._timer, None
        if timer is not None:
            timer.cancel()


def refusal(text: str) -> tuple[ErrorCode, str]:
    """Return what the text of an error stream says: a code, and words for people."""
    error = stream_error(text)
    message = " ".join(text.split())[-300:]
    if isinstance(error, PodGoneError):
        return ErrorCode.GOING_AWAY, message
    if isinstance(error, NotListeningError):
        return ErrorCode.REFUSED, "nothing listens on the port inside the pod"
    if _TIMED_OUT.search(message):
        return ErrorCode.CONNECT_TIMEOUT, message
    if _UNREACHABLE.search(message):
        return ErrorCode.UNREACHABLE, message
    return ErrorCode.DIAL_FAILED, message
