"""Frames, the unit on the wire in session mode (protocol.md, section 4).

A frame has a head of 8 bytes, big-endian: type 1, payload length 3, stream id 4. The payload
follows; it has at most 64 KiB, so that streams interleave.
"""

from __future__ import annotations

from enum import IntEnum
from struct import Struct

from krelay.wire.errors import ProtocolError

MAX_PAYLOAD = 65_536
HEAD = Struct(">II")
HEAD_SIZE = HEAD.size

# A payload shorter than this, or than a fifth of its read, is copied: as a view it would keep the
# whole read in memory, for as long as a slow reader's buffer holds it. Bulk data is not copied: it
# comes in the longest frames, and a read has 272 KiB at most.
_COPY_BELOW = 4_096
_COPY_BELOW_SHARE = 5

Buffer = bytes | bytearray | memoryview


class FrameType(IntEnum):
    """Type of a frame. Those up to COMPRESSED are sequenced: numbered, kept and replayed."""

    OPEN = 1
    OPENED = 2
    REFUSED = 3
    DATA = 4
    END = 5
    RESET = 6
    WINDOW = 7
    COMPRESSED = 8
    DATAGRAM = 16
    ACK = 17
    PING = 18
    PONG = 19
    GOAWAY = 20
    LOST = 21
    HELLO = 32
    AUTH = 33
    WELCOME = 34


LAST_SEQUENCED = FrameType.COMPRESSED
_KNOWN = frozenset(int(frame_type) for frame_type in FrameType)

Frame = tuple[int, int, Buffer]
"""(type, stream id, payload)"""


def encode_frame(frame_type: int, stream_id: int, payload: Buffer = b"") -> bytes:
    """Return a whole frame. `payload` has at most MAX_PAYLOAD bytes."""
    return HEAD.pack(frame_type << 24 | len(payload), stream_id) + payload


class FrameDecoder:
    """Cuts a byte stream into frames, however the reads fall; copies a payload at most once.

    A frame that is split over reads is collected in one array: a list of small pieces would take
    many times their size.
    """

    __slots__ = ("_head", "_missing", "_partial", "_stream_id", "_type")

    def __init__(self) -> None:
        self._head = b""
        self._type = 0
        self._stream_id = 0
        self._missing = 0
        self._partial = bytearray()

    def feed(self, data: Buffer) -> list[Frame]:
        """Return the frames that `data` completes, in order.

        Raises:
            ProtocolError: a frame has an unknown type or too long a payload. Frames that the same
                call decoded before it are lost: a protocol error ends the session.
        """
        frames: list[Frame] = []
        view = memoryview(data)
        at, end = 0, len(view)
        copy_below = max(_COPY_BELOW, end // _COPY_BELOW_SHARE)
        if self._missing:
            if end < self._missing:
                self._partial += view
                self._missing -= end
                return frames
            at = self._missing
            self._partial += view[:at]
            frames.append((self._type, self._stream_id, self._partial))
            self._partial = bytearray()
            self._missing = 0
        while at < end:
            if self._head or end - at < HEAD_SIZE:
                take = HEAD_SIZE - len(self._head)
                self._head += bytes(view[at : at + take])
                at += take
                if len(self._head) < HEAD_SIZE:
                    break
                word, stream_id = HEAD.unpack(self._head)
                self._head = b""
            else:
                word, stream_id = HEAD.unpack_from(view, at)
                at += HEAD_SIZE
            frame_type, length = word >> 24, word & 0xFFFFFF
            if length > MAX_PAYLOAD or frame_type not in _KNOWN:
                raise ProtocolError(f"a frame of type {frame_type} with {length} bytes")
            if end - at >= length:
                payload: Buffer = view[at : at + length]
                frames.append(
                    (frame_type, stream_id, bytes(payload) if length < copy_below else payload)
                )
                at += length
            else:
                self._type, self._stream_id = frame_type, stream_id
                self._missing = length - (end - at)
                self._partial += view[at:]
                break
        return frames

    def pending(self) -> bytes:
        """Return the bytes of a partial frame."""
        if not self._missing:
            return self._head
        got = self._partial
        return HEAD.pack(self._type << 24 | len(got) + self._missing, self._stream_id) + got

    @property
    def held(self) -> int:
        """Bytes kept of a partial frame."""
        return len(self._partial)
