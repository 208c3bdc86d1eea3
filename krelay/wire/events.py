"""Events that a Session returns to the layer above (protocol.md, sections 5 to 8)."""

from __future__ import annotations

from dataclasses import dataclass

from krelay.wire.errors import ErrorCode
from krelay.wire.frames import Buffer
from krelay.wire.stream import Stream


@dataclass(slots=True)
class StreamOpened:
    """The peer opened a stream; the answer is `Session.accept` or `Session.refuse`."""

    stream: Stream


@dataclass(slots=True)
class StreamAccepted:
    """The peer reached the target of a stream that this end opened."""

    stream: Stream


@dataclass(slots=True)
class StreamRefused:
    """The peer did not reach the target; the stream is closed."""

    stream: Stream
    code: ErrorCode
    message: str


@dataclass(slots=True)
class DataReceived:
    """Bytes of a stream arrived; `Session.consume` returns their credit."""

    stream: Stream
    data: Buffer


@dataclass(slots=True)
class DatagramReceived:
    """A whole datagram of a flow arrived."""

    stream: Stream
    data: Buffer


@dataclass(slots=True)
class StreamEnded:
    """The peer sends no more on this stream (half-close)."""

    stream: Stream


@dataclass(slots=True)
class StreamReset:
    """The stream was reset; no more bytes go either way."""

    stream: Stream
    code: ErrorCode


@dataclass(slots=True)
class GoAway:
    """The peer opens and accepts no more streams; open ones may finish."""

    code: ErrorCode
    message: str


@dataclass(slots=True)
class DatagramsLost:
    """Datagrams that the peer has lost since the session began, by place.

    The four counts are: received by its sockets, sent by its sockets, before a target was reached,
    and queued towards this end.
    """

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
