"""Wire trace: one log line for each frame of a tunnel, in either direction, never a payload.

`KRELAY_TRACE=wire` in the environment turns it on, in the client and in the agent. A line names the
tunnel, the direction, the frame's type, stream and payload size, and the credit or number that it
carries::

    web/1: > DATA s5 size=1024
    web/1: < ACK s0 size=16 frames=12 octets=3456
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping
from struct import Struct

from krelay.mux.log import about
from krelay.wire.errors import ErrorCode
from krelay.wire.frames import HEAD, HEAD_SIZE, Buffer, FrameType

logger = logging.getLogger("krelay.wire.trace")

ENV = "KRELAY_TRACE"
"""Variable with the names of traces, separated by commas."""
_ENDLESS = 1 << 62


def traces_wire(environ: Mapping[str, str] = os.environ) -> bool:
    """Return whether the environment asks for the wire trace."""
    return "wire" in environ.get(ENV, "").split(",")


def show_wire_trace(environ: Mapping[str, str] = os.environ) -> None:
    """Let the trace through whatever the log's level is; for the code that sets the log up."""
    logger.setLevel(logging.DEBUG if traces_wire(environ) else logging.NOTSET)


def wire_trace(name: str, *, skip_sent: int = 0, skip_received: int = 0) -> WireTrace | None:
    """Return the trace of a connection, None if the trace is off.

    `skip_sent` and `skip_received` are the bytes before the first frame in each direction.
    """
    if not traces_wire():
        return None
    return WireTrace(name, skip_sent=skip_sent, skip_received=skip_received)


class WireTrace:
    """Logs what one connection sends and receives; `name` is that of its session or its peer."""

    def __init__(self, name: str, *, skip_sent: int = 0, skip_received: int = 0) -> None:
        self._log = about(logger, tunnel=name)
        self.begin(skip_sent=skip_sent, skip_received=skip_received)

    def begin(self, *, skip_sent: int = 0, skip_received: int = 0) -> None:
        """Start again: another tunnel carries the session."""
        self.sent = _Frames(">", self._log.debug, skip_sent).feed
        self.received = _Frames("<", self._log.debug, skip_received).feed


class _Frames:
    """Cuts one direction into frames, keeping no more of a payload than its line shows."""

    __slots__ = ("_arrow", "_log", "_seen", "_skip", "_wanted")

    def __init__(self, arrow: str, log: Callable[..., None], skip: int) -> None:
        self._arrow = arrow
        self._log = log
        self._skip = skip
        self._seen = bytearray()
        self._wanted = HEAD_SIZE

    def feed(self, data: Buffer) -> None:
        """Log the frames that `data` begins or completes."""
        at, end = 0, len(data)
        while at < end:
            if self._skip:
                step = min(self._skip, end - at)
                self._skip -= step
                at += step
                continue
            step = min(self._wanted - len(self._seen), end - at)
            self._seen += memoryview(data)[at : at + step]
            at += step
            if len(self._seen) == self._wanted:
                self._read()

    def _read(self) -> None:
        word, stream_id = HEAD.unpack_from(self._seen)
        number, size = word >> 24, word & 0xFFFFFF
        shown = min(size, _SHOWN.get(number, 0))
        if len(self._seen) < HEAD_SIZE + shown:
            self._wanted = HEAD_SIZE + shown
            return
        name = FrameType(number).name if number in _KNOWN else f"type {number}"
        fields = _fields(number, bytes(self._seen[HEAD_SIZE:]))
        self._log("%s %s s%d size=%d%s", self._arrow, name, stream_id, size, fields)
        # AUTH and WELCOME end the handshake: the session has its own trace.
        self._skip = _ENDLESS if number in _LAST else size - shown
        self._seen.clear()
        self._wanted = HEAD_SIZE


_KNOWN = frozenset(int(frame_type) for frame_type in FrameType)
_LAST = (FrameType.AUTH, FrameType.WELCOME)
_CODED = (FrameType.REFUSED, FrameType.RESET, FrameType.GOAWAY)
# The numbers at the beginning of a payload, and their names (docs/protocol.md, sections 3 and 4).
_NUMBERS: dict[int, tuple[Struct, tuple[str, ...]]] = {
    FrameType.WINDOW: (Struct(">I"), ("credit",)),
    FrameType.ACK: (Struct(">QQ"), ("frames", "octets")),
    FrameType.PING: (Struct(">Q"), ("number",)),
    FrameType.PONG: (Struct(">Q"), ("number",)),
    FrameType.LOST: (Struct(">QQQQ"), ("receive", "send", "early", "backlog")),
    FrameType.WELCOME: (Struct(">16xQI"), ("received", "streams")),
}
_SHOWN: dict[int, int] = {
    **{number: layout.size for number, (layout, _) in _NUMBERS.items()},
    **dict.fromkeys(_CODED, 1),
}


def _fields(number: int, payload: bytes) -> str:
    if not payload or len(payload) < _SHOWN[number]:
        return ""
    if number in _CODED:
        return f" code={ErrorCode.of(payload[0]).name}"
    layout, names = _NUMBERS[number]
    values = zip(names, layout.unpack(payload), strict=True)
    return "".join(f" {name}={value}" for name, value in values)
