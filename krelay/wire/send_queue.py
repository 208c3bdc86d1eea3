"""SendQueue: what one end of a session has to send, in the order in which it goes out.

Control first, then datagrams, then the streams with little to say, then a turn for each of those
with more: a keystroke never waits behind a download (protocol.md, section 7).
"""

from __future__ import annotations

from collections import deque

from krelay.wire.frames import HEAD, HEAD_SIZE, MAX_PAYLOAD, Buffer, FrameType, encode_frame
from krelay.wire.replay import FRAME_COST, KeptFrame, ReplayBuffer
from krelay.wire.stream import State, Stream

# A stream with this little to send goes before those with more.
_SMALL = 16 << 10
# Queued bytes of a stream below which its writer is told to go on.
_LOW_WATER = 64 << 10


class SendQueue:
    """Queues of frames and of streams. What is sequenced goes to `kept` when it goes out.

    `writable` are streams whose writers may go on, for the caller to take out; `ended` those that
    have nothing more to say nor to hear.
    """

    __slots__ = (
        "_bulk",
        "_control",
        "_datagrams",
        "_max_datagrams",
        "_replay",
        "_kept",
        "_small",
        "control_bytes",
        "datagram_bytes",
        "ended",
        "dropped_datagrams",
        "queued",
        "window_stalls",
        "writable",
    )

    def __init__(self, kept: ReplayBuffer, *, replay: int, datagrams: int) -> None:
        """`replay` is what `kept` may keep of DATA, `datagrams` what may queue of UDP; in bytes."""
        self.queued = 0
        """Bytes of all streams."""
        self.control_bytes = 0
        """What the control frames that wait take."""
        self.datagram_bytes = 0
        """What the datagrams that wait take."""
        self.dropped_datagrams = 0
        """Datagrams that were queued when the tunnel was lost, or their stream ended."""
        self.window_stalls = 0
        self.writable: list[Stream] = []
        self.ended: list[Stream] = []
        self._kept = kept
        self._replay = replay
        self._max_datagrams = datagrams
        self._control: deque[bytes] = deque()
        self._datagrams: deque[tuple[Stream, Buffer]] = deque()
        self._small: deque[Stream] = deque()
        self._bulk: deque[Stream] = deque()

    @property
    def urgent(self) -> bool:
        """Whether something waits that goes before the bulk."""
        return bool(self._control or self._small)

    def queue_control(self, frame: bytes) -> None:
        """Queue a sequenced frame that is no DATA."""
        self._control.append(frame)
        self.control_bytes += len(frame) + FRAME_COST

    def queue_data(self, stream: Stream, data: Buffer) -> None:
        """Queue bytes of a stream."""
        if not stream.credit and not stream.queue:
            self.window_stalls += 1
        stream.add(data)
        self.queued += len(data)
        self.schedule(stream)

    def queue_datagram(self, stream: Stream, data: Buffer) -> bool:
        """Queue a datagram; False when it was dropped, since too much waits already."""
        cost = len(data) + FRAME_COST
        if self.datagram_bytes + cost > self._max_datagrams:
            return False
        self._datagrams.append((stream, data))
        self.datagram_bytes += cost
        return True

    def schedule(self, stream: Stream) -> None:
        """Give a stream its turn, if it has something to send that its credit allows."""
        if not stream.scheduled and stream.sendable:
            stream.scheduled = True
            (self._small if stream.queued <= _SMALL else self._bulk).append(stream)

    def discard(self, stream: Stream) -> None:
        """Drop what is queued of a stream."""
        stream.queue.clear()
        self.queued -= stream.queued
        stream.queued = stream.taken = 0

    def drop_datagrams(self) -> None:
        """They do not wait for another tunnel."""
        self.dropped_datagrams += len(self._datagrams)
        self._datagrams.clear()
        self.datagram_bytes = 0

    def clear(self) -> None:
        """The session is over: nothing is sent any more, nor again."""
        self._kept.clear()
        self._control.clear()
        self.control_bytes = 0

    def next_buffers(self, out: list[Buffer], limit: int, room: int) -> tuple[int, bool]:
        """Append what is due to `out`, until about `limit` octets, or the `room` that is in flight
        (which control frames need not have), are taken. How many it were; and whether it was the
        room that held back a stream."""
        sent = 0
        resend = self._kept.resend
        while resend and sent < min(limit, room):
            kept = resend.popleft()
            out.extend(kept)
            sent += sum(map(len, kept))
        if not resend:
            while self._control:
                frame = self._control.popleft()
                out.append(frame)
                sent += self._kept.keep((frame,))
            self.control_bytes = 0
            while self._datagrams and sent < min(limit, room):
                stream, data = self._datagrams.popleft()
                self.datagram_bytes -= len(data) + FRAME_COST
                if stream.state is State.CLOSED:
                    self.dropped_datagrams += 1
                    continue
                out += (HEAD.pack(FrameType.DATAGRAM << 24 | len(data), stream.id), data)
                sent += HEAD_SIZE + len(data)
            room = min(room, self._replay - self._kept.cost)
            while (self._small or self._bulk) and sent < min(limit, room):
                sent += self._send_from(out, room - sent)
        return sent, sent >= room and bool(self._small or self._bulk)

    def _send_from(self, out: list[Buffer], room: int) -> int:
        """One turn of one stream; how many octets it took."""
        stream = self._small.popleft() if self._small else self._bulk.popleft()
        stream.scheduled = False
        if stream.state is State.CLOSED:
            return 0
        sent = 0
        budget = min(MAX_PAYLOAD, stream.credit, max(room, _SMALL))
        chunks: list[Buffer] = []
        size = 0
        while stream.queue and size < budget:
            chunk = stream.take(budget - size)
            chunks.append(chunk)
            size += len(chunk)
        if size:
            self.queued -= size
            stream.credit -= size
            frame: KeptFrame = (HEAD.pack(FrameType.DATA << 24 | size, stream.id), *chunks)
            out.extend(frame)
            sent += self._kept.keep(frame)
            if stream.queue and not stream.credit:
                self.window_stalls += 1
            if stream.wants_writable and stream.queued <= _LOW_WATER:
                stream.wants_writable = False
                self.writable.append(stream)
        if stream.end_queued and not stream.queue and not stream.end_sent:
            stream.end_sent = True
            frame = (encode_frame(FrameType.END, stream.id),)
            out.extend(frame)
            sent += self._kept.keep(frame)
            if stream.state is State.ENDED:
                self.ended.append(stream)
        self.schedule(stream)
        return sent
