"""A session: the streams of one client and one agent, and the state that outlives a tunnel.

Sans-I/O: `receive_data` turns bytes into events, `data_to_send` returns the bytes that are due, and
`tick` keeps time. No call waits. Normative: protocol.md.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct

from krelay.wire.compression import Algorithm, Compressor, decompress
from krelay.wire.congestion import AckTimer, CongestionWindow
from krelay.wire.errors import ErrorCode, ProtocolError
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
from krelay.wire.frames import (
    HEAD_SIZE,
    LAST_SEQUENCED,
    MAX_PAYLOAD,
    Buffer,
    Frame,
    FrameDecoder,
    FrameType,
    encode_frame,
)
from krelay.wire.header import Header, decode_header
from krelay.wire.keepalive import Keepalive
from krelay.wire.replay import FRAME_COST, ReceiveCounter, ReplayBuffer
from krelay.wire.send_queue import SendQueue
from krelay.wire.stream import State, Stream

_COUNT = Struct(">I")
_ACK = Struct(">QQ")
_PING = Struct(">Q")
_LOST = Struct(">QQQQ")
_MAX_REASON = 255
_LOST_SINCE = 2

MAX_ID = (1 << 32) - 1
LOW_ID = 1 << 31
"""Stream id from which on a session should be replaced: half of all ids are used."""

# Bytes for frames other than DATA, besides the replay limit: enough for every stream to open and
# close a few times within a round trip. A peer that causes more acknowledges nothing.
_CONTROL_ROOM = 4 << 20
_MOST_DECOMPRESSED = 256 << 10
"""Bytes that compressed frames may yield in one call of `receive_data`, and a frame more."""


class Side(IntEnum):
    """End of a session; the value is the first id of the streams that it opens."""

    CLIENT = 1
    AGENT = 2


@dataclass(frozen=True, slots=True)
class Limits:
    """Limits of a session. Sizes are in bytes, times in seconds.

    `replay`: DATA that is sent and not yet acknowledged. `windows`: sum to which the windows of all
    streams may grow. `datagrams`: queued datagrams, past which they are dropped.
    """

    streams: int = 4_096
    replay: int = 4 << 20
    windows: int = 32 << 20
    datagrams: int = 1 << 20
    ping_interval: float = 3.0
    ping_timeout: float = 6.0


class Session:
    """One end of a session. It outlives its tunnels: see `attach` and `detach`."""

    def __init__(self, side: Side, now: float, limits: Limits = Limits()) -> None:
        self.side = side
        self.limits = limits
        self.streams: dict[int, Stream] = {}
        self.attached = False
        self.going_away = False
        self.peer_going_away = False
        self.limit_stalls = 0
        self.late_datagrams = 0
        """Datagrams that arrived for streams that had ended."""
        self._receive_counter = ReceiveCounter()
        self._replay_buffer = ReplayBuffer()
        self._send_queue = SendQueue(
            self._replay_buffer, replay=limits.replay, datagrams=limits.datagrams
        )
        self.writable = self._send_queue.writable
        """Streams whose writers may go on; the caller empties it."""
        self._congestion = CongestionWindow(limits.replay)
        self._next_id = int(side)
        self._last_peer_id = 0
        self.windows_limit = limits.windows
        """Sum to which windows may grow now; smaller if memory is short."""
        self._windows = 0
        self._decoder = FrameDecoder()
        self._frames: list[Frame] = []  # that the next `receive_data` begins with
        self._pong: bytes | None = None
        self._goaway: bytes | None = None
        self._lost: bytes | None = None
        self.version = 1
        """Protocol version of the present tunnel."""
        self._algorithm = Algorithm.NONE
        self._compressor: Compressor | None = None
        self._decompressed = 0
        self._compressed = 0
        self._undelivered: list[Event] = []
        self._ack_timer = AckTimer(now)
        self._limited = False
        self._keepalive = Keepalive(limits.ping_interval, limits.ping_timeout, now)

    def use_compression(self, algorithm: Algorithm, stopwatch: Callable[[], float]) -> None:
        """Compress in both directions, as the handshake of a new session has agreed.

        `stopwatch` returns seconds, to learn what compressing costs.
        """
        self._algorithm = algorithm
        self._compressor = Compressor(algorithm, stopwatch) if algorithm else None

    # -- streams -------------------------------------------------------------------------------

    def open(self, header: Header, now: float) -> Stream:
        """Open a stream to `header`'s target; data may follow at once, within the first window.

        Raises:
            ProtocolError: too many streams are open, no ids are left, or the session is going away.
            ValueError: a Header cannot carry this host or port.
        """
        if self.exhausted:
            raise ProtocolError("the session has no stream ids left", ErrorCode.LIMIT)
        if len(self.streams) >= self.limits.streams:
            raise ProtocolError(f"{len(self.streams)} streams are open", ErrorCode.LIMIT)
        if self.going_away or self.peer_going_away:
            raise ProtocolError("the session is going away", ErrorCode.GOING_AWAY)
        frame = encode_frame(FrameType.OPEN, self._next_id, header.encode())
        stream = Stream(self._next_id, header, now, State.OPENING)
        self._next_id += 2
        self._add(stream)
        self._send_queue.queue_control(frame)
        return stream

    @property
    def ids_low(self) -> bool:
        """Whether another session should take the new streams, as ids are not used twice."""
        return self._next_id >= LOW_ID

    @property
    def exhausted(self) -> bool:
        """Whether all stream ids are used."""
        return self._next_id > MAX_ID

    def accept(self, stream: Stream) -> None:
        """Tell the peer that the target of its stream was reached."""
        self._send_queue.queue_control(encode_frame(FrameType.OPENED, stream.id))

    def refuse(self, stream: Stream, code: ErrorCode, message: str) -> None:
        """Close a stream of the peer: its target was not reached. `message` is cut to 255 bytes."""
        if self._drop(stream):
            payload = bytes([code]) + message.encode()[:_MAX_REASON]
            self._send_queue.queue_control(encode_frame(FrameType.REFUSED, stream.id, payload))

    def write(self, stream: Stream, data: Buffer) -> int:
        """Queue bytes; return how many the whole session has queued now.

        A caller that finds too many on `stream` or on the session sets `wants_writable`, stops, and
        goes on when the stream turns up in `writable`. On a stream that is ended or closed the
        bytes are dropped.
        """
        if data and not stream.end_queued and stream.state is not State.CLOSED:
            self._send_queue.queue_data(stream, data)
        return self._send_queue.queued

    def end(self, stream: Stream) -> None:
        """Send no more on this stream after the queued bytes."""
        if stream.state is not State.CLOSED:
            stream.end_queued = True
            self._send_queue.schedule(stream)

    def reset(self, stream: Stream, code: ErrorCode = ErrorCode.CANCELLED) -> None:
        """Cut a stream at once and drop its queued bytes. Do nothing on a closed stream."""
        if self._drop(stream):
            self._send_queue.queue_control(encode_frame(FrameType.RESET, stream.id, bytes([code])))

    def consume(self, stream: Stream, count: int, now: float) -> None:
        """Return the credit for `count` received bytes, which the layer above has taken."""
        if stream.state is not State.OPEN and stream.state is not State.OPENING:
            return
        before = stream.window.size
        room = self.windows_limit - self._windows
        increment = stream.window.consume(count, now, max(self._congestion.rtt, 0.001), room)
        self._windows += stream.window.size - before
        if increment:
            frame = encode_frame(FrameType.WINDOW, stream.id, _COUNT.pack(increment))
            self._send_queue.queue_control(frame)

    def datagram(self, stream: Stream, data: Buffer) -> bool:
        """Queue a datagram; return False if it was dropped, for the caller to count.

        It is dropped if too much waits already, or without a tunnel.
        """
        if stream.state is State.CLOSED or len(data) > MAX_PAYLOAD:
            return False
        return self.attached and self._send_queue.queue_datagram(stream, data)

    def go_away(self, code: ErrorCode, message: str = "") -> None:
        """Tell the peer that this end opens and accepts no more streams."""
        self.going_away = True
        payload = bytes([code]) + message.encode()[:_MAX_REASON]
        self._goaway = encode_frame(FrameType.GOAWAY, 0, payload)

    def report_losses(self, counts: tuple[int, ...]) -> None:
        """Send LOST with these counts, if the peer's version has that frame."""
        if self.version >= _LOST_SINCE:
            self._lost = encode_frame(FrameType.LOST, 0, _LOST.pack(*counts))

    def close(self, code: ErrorCode) -> list[Event]:
        """End the session: reset every stream, without a frame to the peer; return the events.

        Events that a failed `receive_data` had completed come first.
        """
        self.detach()
        events, self._undelivered = self._undelivered, []
        streams = list(self.streams.values())
        for stream in streams:
            self._drop(stream)
        self._send_queue.clear()
        return [*events, *(StreamReset(stream, code) for stream in streams)]

    # -- tunnels -------------------------------------------------------------------------------

    def attach(self, peer_received: int, now: float) -> int:
        """Go on with a new tunnel; the peer has received `peer_received` sequenced frames.

        Return how many bytes are sent again.

        Raises:
            ProtocolError: frames that the peer lacks are no longer kept; nothing has changed.
        """
        again = self._replay_buffer.rewind(peer_received)
        self._receive_counter.resumed()
        self._decoder = FrameDecoder()
        self._frames = []
        self._congestion = CongestionWindow(self.limits.replay)
        self._send_queue.compressor = None
        if self._compressor is not None:
            self._compressor.restart()
        self._ack_timer.reset()
        self._pong = None
        self._lost = None
        self._limited = False
        self._keepalive.reset(now)
        self.attached = True
        return again

    def detach(self) -> None:
        """Lose the tunnel: sequenced frames wait for the next one, datagrams are dropped."""
        self.attached = False
        self._send_queue.drop_datagrams()
        self._ack_timer.reset()

    def begin_resume(self) -> int:
        """Return the count of received frames to resume from on another tunnel.

        The present tunnel may go on meanwhile: what it brings from now on is not acknowledged, and
        is passed over when the new tunnel repeats it. `attach` or `abort_resume` ends this state.
        """
        return self._receive_counter.begin_resume()

    def abort_resume(self) -> None:
        """Stay on the present tunnel, if any: the session was not resumed on another."""
        self._receive_counter.abort_resume()

    # -- bytes out -----------------------------------------------------------------------------

    def data_to_send(self, limit: int, now: float) -> list[Buffer]:
        """Return the buffers to write to the tunnel: about `limit` bytes, empty if none are due.

        They hold whole frames. Streams whose writers may go on are then in `writable`.
        """
        if not self.attached:
            return []
        out: list[Buffer] = []
        self._send_urgent(out, now)
        flight = self._congestion
        sent, limited = self._send_queue.next_buffers(out, limit, flight.room)
        while self._send_queue.ended:
            self._drop(self._send_queue.ended.pop())
        if sent or limited:
            flight.on_sent(sent, now, limited=limited)
        if limited and self._compressor is not None:
            self._compressor.limited(flight.rate)
            self._send_queue.compressor = self._compressor if self._compressor.active else None
        if limited and not self._limited:
            self.limit_stalls += 1
        self._limited = limited
        return out

    def _send_urgent(self, out: list[Buffer], now: float) -> None:
        if self._goaway:
            out.append(self._goaway)
            self._goaway = None
        if self._pong is not None:
            out.append(encode_frame(FrameType.PONG, 0, self._pong))
            self._pong = None
        if self._lost is not None:
            out.append(self._lost)
            self._lost = None
        if self._keepalive.due:
            self._keepalive.due = False
            out.append(encode_frame(FrameType.PING, 0, _PING.pack(int(now * 1e6) & (1 << 63) - 1)))
        # An ACK that waits for its time goes with other frames.
        if self._ack_timer.due or (self._ack_timer.waiting and self._send_queue.urgent):
            octets = self._ack_timer.next_ack(now)
            payload = _ACK.pack(self._receive_counter.acknowledged, octets)
            out.append(encode_frame(FrameType.ACK, 0, payload))

    def _add(self, stream: Stream) -> None:
        self.streams[stream.id] = stream
        self._windows += stream.window.size

    def _drop(self, stream: Stream) -> bool:
        """Forget a stream; return False if it was forgotten before."""
        stream.state = State.CLOSED
        self._send_queue.discard(stream)
        if self.streams.pop(stream.id, None) is None:
            return False
        self._windows -= stream.window.size
        return True

    # -- bytes in ------------------------------------------------------------------------------

    def receive_data(self, data: Buffer, now: float) -> list[Event]:
        """Return the events that these bytes of the tunnel complete.

        Compressed frames may yield far more than their size. So what has to wait until the caller
        has handled these events is kept: while there is `more`, call this again with no bytes.

        Raises:
            ProtocolError: the peer broke the protocol. The session is over: `close` returns the
                events of the frames before the error.
        """
        self._keepalive.received()
        # Kept for `close`: if this fails, handlers of streams that earlier frames of this read have
        # closed must still learn of that.
        events = self._undelivered = []
        frames = self._decoder.feed(data)
        if self._frames:
            frames, self._frames = self._frames + frames, []
        most = self._decompressed + _MOST_DECOMPRESSED
        for index, (frame_type, stream_id, payload) in enumerate(frames, 1):
            if frame_type <= FrameType.DATAGRAM:
                self._ack_timer.received(HEAD_SIZE + len(payload), now)
                if frame_type <= LAST_SEQUENCED and not self._receive_counter.accept_frame():
                    continue
                self._receive_frame(frame_type, stream_id, payload, now, events)
                if self._decompressed >= most:
                    self._frames = frames[index:]
                    break
            else:
                self._receive_control(frame_type, stream_id, payload, now, events)
        self._ack_timer.flush_if_due(now)
        if self.memory > self.limits.replay + _CONTROL_ROOM:
            raise ProtocolError("the peer acknowledges nothing", ErrorCode.LIMIT)
        self._undelivered = []
        return events

    @property
    def more(self) -> bool:
        """Whether frames wait for another `receive_data`."""
        return bool(self._frames)

    def _receive_frame(
        self, frame_type: int, stream_id: int, payload: Buffer, now: float, events: list[Event]
    ) -> None:
        stream = self.streams.get(stream_id)
        if frame_type == FrameType.OPEN:
            self._receive_open(stream_id, payload, now, events)
            return
        if stream is None:
            # Frames that were in flight when this end closed the stream are not an error.
            if not 0 < stream_id <= self._highest(stream_id):
                raise ProtocolError(
                    f"{FrameType(frame_type).name} on stream {stream_id}, never opened"
                )
            self.late_datagrams += frame_type == FrameType.DATAGRAM
            return
        if frame_type == FrameType.DATAGRAM:
            events.append(DatagramReceived(stream, payload))
            return
        if frame_type == FrameType.DATA and stream.state is State.OPEN:
            if payload:
                stream.window.receive(len(payload))
                events.append(DataReceived(stream, payload))
            return
        if frame_type == FrameType.COMPRESSED and not self._algorithm:
            raise ProtocolError("COMPRESSED in a session without compression")
        stream.receive(frame_type)
        if frame_type == FrameType.COMPRESSED:
            data = decompress(self._algorithm, payload)
            stream.window.receive(len(data))
            self._compressed += len(payload)
            self._decompressed += len(data)
            events.append(DataReceived(stream, data))
        elif frame_type == FrameType.WINDOW:
            stream.credit += _unpack(_COUNT, payload)[0]
            self._send_queue.schedule(stream)
        elif frame_type == FrameType.END:
            events.append(StreamEnded(stream))
            if stream.end_sent:
                self._drop(stream)
        elif frame_type == FrameType.OPENED:
            events.append(StreamAccepted(stream))
        else:
            code, message = _reason(payload)
            self._drop(stream)
            if frame_type == FrameType.REFUSED:
                events.append(StreamRefused(stream, code, message))
            else:
                events.append(StreamReset(stream, code))

    def _receive_open(
        self, stream_id: int, payload: Buffer, now: float, events: list[Event]
    ) -> None:
        if stream_id <= self._last_peer_id or stream_id % 2 == self.side % 2:
            raise ProtocolError(f"OPEN of stream {stream_id} after {self._last_peer_id}")
        self._last_peer_id = stream_id
        stream = Stream(stream_id, decode_header(payload), now, State.OPEN)
        full = len(self.streams) >= self.limits.streams
        self._add(stream)
        if self.going_away:
            self.refuse(stream, ErrorCode.GOING_AWAY, "the agent is going away")
        elif full:
            self.refuse(stream, ErrorCode.LIMIT, f"more than {self.limits.streams} streams")
        else:
            events.append(StreamOpened(stream))

    def _receive_control(
        self, frame_type: int, stream_id: int, payload: Buffer, now: float, events: list[Event]
    ) -> None:
        if stream_id:
            raise ProtocolError(f"{FrameType(frame_type).name} on stream {stream_id}")
        if frame_type == FrameType.ACK:
            received, octets = _unpack(_ACK, payload)
            self._replay_buffer.acknowledge(received)
            if not self._congestion.on_ack(octets, now):
                raise ProtocolError(f"ACK of {octets} octets after {self._congestion.acked}")
        elif frame_type == FrameType.PING:
            if len(payload) != _PING.size:
                raise ProtocolError(f"PING with {len(payload)} bytes")
            self._pong = bytes(payload)
        elif frame_type == FrameType.PONG:
            sent = _unpack(_PING, payload)[0] / 1e6
            if sent <= now:
                self._congestion.on_rtt(max(now - sent, 1e-6), now)
        elif frame_type == FrameType.GOAWAY:
            self.peer_going_away = True
            events.append(GoAway(*_reason(payload)))
        elif frame_type == FrameType.LOST:
            if len(payload) < _LOST.size:
                raise ProtocolError(f"LOST with {len(payload)} bytes")
            events.append(DatagramsLost(_LOST.unpack_from(payload)))
        else:
            raise ProtocolError(f"{FrameType(frame_type).name} in a session")

    def _highest(self, stream_id: int) -> int:
        """Return the highest id that was used by the end that `stream_id` belongs to."""
        return self._next_id - 2 if stream_id % 2 == self.side % 2 else self._last_peer_id

    # -- time ----------------------------------------------------------------------------------

    def tick(self, now: float) -> float | None:
        """Do what is due by `now`; return when to call again, None without a tunnel."""
        if not self.attached:
            return None
        return min(self._keepalive.tick(now), self._ack_timer.tick(now))

    def verify_within(self, seconds: float, now: float) -> None:
        """Send a PING, and time out if the tunnel delivers nothing within `seconds`."""
        if self.attached:
            self._keepalive.verify_within(seconds, now)

    def timed_out(self, now: float) -> bool:
        """Return whether the tunnel has delivered nothing since a PING was due, for too long."""
        return self._keepalive.expired(now)

    # -- figures -------------------------------------------------------------------------------

    @property
    def rtt(self) -> float:
        """Shortest recent round trip of the present tunnel, in seconds; 0.0 before the first."""
        return self._congestion.rtt

    @property
    def queued(self) -> int:
        """Bytes that wait on all streams together."""
        return self._send_queue.queued

    @property
    def compression_input(self) -> int:
        """Bytes of streams that were compressed, in both directions."""
        sent = self._compressor.input_bytes if self._compressor is not None else 0
        return sent + self._decompressed

    @property
    def compression_output(self) -> int:
        """Bytes that those took on the wire."""
        sent = self._compressor.output_bytes if self._compressor is not None else 0
        return sent + self._compressed

    @property
    def window_stalls(self) -> int:
        """How often a stream had bytes to send and no credit."""
        return self._send_queue.window_stalls

    @property
    def dropped_datagrams(self) -> int:
        """Datagrams that were still queued when the tunnel was lost or their stream ended."""
        return self._send_queue.dropped_datagrams

    @property
    def received_count(self) -> int:
        """Sequenced frames received from the peer."""
        return self._receive_counter.count

    @property
    def acknowledged(self) -> int:
        """Sequenced frames that the peer has acknowledged."""
        return self._replay_buffer.acked

    @property
    def memory(self) -> int:
        """Memory of frames that wait for an ACK, and of queued control frames, in bytes."""
        return self._replay_buffer.cost + self._send_queue.control_bytes

    @property
    def held(self) -> int:
        """Bytes of everything that waits in this session, in both directions."""
        send_queue = self._send_queue
        waiting = send_queue.queued + send_queue.datagram_bytes + self._decoder.held
        return self.memory + waiting

    @property
    def unacknowledged(self) -> int:
        """Bytes of sequenced frames that would be sent again if the tunnel was lost."""
        return self._replay_buffer.cost - FRAME_COST * len(self._replay_buffer)


def _unpack(layout: Struct, payload: Buffer) -> tuple[int, ...]:
    if len(payload) != layout.size:
        raise ProtocolError(f"a payload of {len(payload)} bytes where {layout.size} belong")
    return layout.unpack(payload)


def _reason(payload: Buffer) -> tuple[ErrorCode, str]:
    if not payload or len(payload) > 1 + _MAX_REASON:
        raise ProtocolError(f"a reason of {len(payload)} bytes")
    return ErrorCode.of(payload[0]), bytes(payload[1:]).decode(errors="replace")
