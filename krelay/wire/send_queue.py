"""SendQueue: what one end of a session has to send, in the order in which it goes out.

Control frames go first, then datagrams, then streams with few bytes, then the others in turn. So a
keystroke never waits behind a download (protocol.md, section 7).
"""

from __future__ import annotations

from collections import deque

from krelay.wire.compression import Compressor
from krelay.wire.frames import HEAD, HEAD_SIZE, MAX_PAYLOAD, Buffer, FrameType, encode_frame
from krelay.wire.replay import FRAME_COST, KeptFrame, ReplayBuffer
from krelay.wire.stream import State, Stream

# Streams with at most so many queued bytes go before the others.
_SMALL = 16 << 10
# Queued bytes of a stream below which its writer may go on.
_LOW_WATER = 64 << 10


class SendQueue:
    """Queues of frames and of streams. A sequenced frame goes to the replay buffer when it is sent.

    `writable` has streams whose writers may go on, `ended` those that both ends have ended; the
    caller empties both.
    """

    __slots__ = (
        "_bulk",
        "_control",
        "_datagrams",
        "_max_datagrams",
        "_replay",
        "_kept",
        "_small",
        "compressor",
        "control_bytes",
        "datagram_bytes",
        "ended",
        "dropped_datagrams",
        "queued",
        "window_stalls",
        "writable",
    )

    def __init__(self, kept: ReplayBuffer, *, replay: int, datagrams: int) -> None:
        """`replay` limits the DATA in `kept`, `datagrams` the queued datagrams; in bytes."""
        self.compressor: Compressor | None = None
        """Compresses what streams send; None while that does not pay."""
        self.queued = 0
        """Bytes queued on all streams."""
        self.control_bytes = 0
        """Memory of the queued control frames, in bytes."""
        self.datagram_bytes = 0
        """Memory of the queued datagrams, in bytes."""
        self.dropped_datagrams = 0
        """Datagrams that were queued when the tunnel was lost or their stream ended."""
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
        """Whether control frames or small streams wait."""
        return bool(self._control or self._small)

    def queue_control(self, frame: bytes) -> None:
        """Queue a sequenced frame other than DATA."""
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
        """Queue a datagram; return False if too much waits, so that it was dropped."""
        cost = len(data) + FRAME_COST
        if self.datagram_bytes + cost > self._max_datagrams:
            return False
        self._datagrams.append((stream, data))
        self.datagram_bytes += cost
        return True

    def schedule(self, stream: Stream) -> None:
        """Queue a stream for its turn, if it has something to send and credit for it."""
        if not stream.scheduled and stream.sendable:
            stream.scheduled = True
            (self._small if stream.queued <= _SMALL else self._bulk).append(stream)

    def discard(self, stream: Stream) -> None:
        """Drop the queued bytes of a stream."""
        stream.queue.clear()
        self.queued -= stream.queued
        stream.queued = stream.taken = 0

    def drop_datagrams(self) -> None:
        """Drop the queued datagrams: they do not wait for another tunnel."""
        self.dropped_datagrams += len(self._datagrams)
        self._datagrams.clear()
        self.datagram_bytes = 0

    def clear(self) -> None:
        """Drop all queued and kept frames: the session is over."""
        self._kept.clear()
        self._control.clear()
        self.control_bytes = 0

    def next_buffers(self, out: list[Buffer], limit: int, room: int) -> tuple[int, bool]:
        """Append to `out` the buffers that are due: about `limit` octets, and at most `room`, which
        is what the congestion window leaves. Control frames may exceed both.

        Return the octets, and whether `room` held back a stream.
        """
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
        """Give one stream its turn; return the octets that it took."""
        stream = self._small.popleft() if self._small else self._bulk.popleft()
        stream.scheduled = False
        if stream.state is State.CLOSED:
            return 0
        sent = 0
        budget = max(room, _SMALL)
        if self.compressor is not None and self.compressor.active and stream.incompressible <= 0:
            budget = int(budget * stream.shrinks)
        budget = min(MAX_PAYLOAD, stream.credit, budget)
        chunks: list[Buffer] = []
        size = 0
        while stream.queue and size < budget:
            chunk = stream.take(budget - size)
            chunks.append(chunk)
            size += len(chunk)
        if size:
            self.queued -= size
            stream.credit -= size
            frame = self._data_frame(stream, chunks, size)
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

    def _data_frame(self, stream: Stream, chunks: list[Buffer], size: int) -> KeptFrame:
        if self.compressor is not None:
            payload = self.compressor.compress(stream, chunks, size)
            if payload is not None:
                return HEAD.pack(FrameType.COMPRESSED << 24 | len(payload), stream.id), payload
        return HEAD.pack(FrameType.DATA << 24 | size, stream.id), *chunks
