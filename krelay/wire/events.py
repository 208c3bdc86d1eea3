"""What a Session tells the layer above (protocol.md, sections 5 to 8)."""

from __future__ import annotations

from dataclasses import dataclass

from krelay.wire.errors import ErrorCode
from krelay.wire.frames import Buffer
from krelay.wire.stream import Stream


@dataclass(slots=True)
class StreamOpened:
    """The peer opened a stream; answer with `accept` or `refuse`."""

    stream: Stream


@dataclass(slots=True)
class StreamAccepted:
    """The peer reached the target of a stream that we opened."""

    stream: Stream


@dataclass(slots=True)
class StreamRefused:
    """The peer did not; the stream is closed."""

    stream: Stream
    code: ErrorCode
    message: str


@dataclass(slots=True)
class DataReceived:
    """Bytes of a stream; give their credit back with `consume`."""

    stream: Stream
    data: Buffer


@dataclass(slots=True)
class DatagramReceived:
    """One whole datagram of a flow."""

    stream: Stream
    data: Buffer


@dataclass(slots=True)
class StreamEnded:
    """The peer sends no more on this stream (half-close)."""

    stream: Stream


@dataclass(slots=True)
class StreamReset:
    """The stream was cut; nothing more comes and nothing more is sent."""

    stream: Stream
    code: ErrorCode


@dataclass(slots=True)
class GoAway:
    """The peer opens and accepts no more streams; those that live may finish."""

    code: ErrorCode
    message: str


@dataclass(slots=True)
class DatagramsLost:
    """How many datagrams the peer has lost in this session, in all: at its sockets (received, then
    sent), before their targets were reached, and for want of room towards us."""

    counts: tuple[int, ...]


Event = (
    StreamOpened
    | StreamAccepted
    | StreamRefused
    | DataReceived
    | DatagramReceived
    | StreamEnded
    | StreamReset
    | GoAway
    | DatagramsLost
)
