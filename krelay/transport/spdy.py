"""SPDY: the framing of port-forwards, between a carrier and what uses it; sans-I/O.

This is the part of SPDY/3.1 that Kubernetes needs: a connection carries pairs of streams, `error`
and `data` (k8s.io/client-go tools/portforward/portforward.go). Header blocks are plain zlib,
without the dictionary of the specification (2.6.10.1); those of the replies are not read.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from struct import Struct
from typing import NamedTuple

Buffer = bytes | bytearray | memoryview

ERROR_STREAM = 1
DATA_STREAM = 3

MAX_PAYLOAD = 64 << 10
"""Bytes of one DATA frame sent. The node's runtime reads a whole frame before it passes it on."""

_HEAD = Struct(">II")
_HEAD_SIZE = _HEAD.size
_CONTROL = 0x8003 << 16
_SYN_STREAM, _SYN_REPLY, _RST_STREAM, _PING, _GOAWAY = 1, 2, 3, 6, 7
_CANCEL = 5
_FIN = 1
_KEPT = {_RST_STREAM: 8, _PING: 4, _GOAWAY: 8}
_ID_SIZE = 4


class SpdyError(Exception):
    """The peer sent something other than SPDY/3.1, or data of a stream that was never opened."""


class Reply(NamedTuple):
    """The server has taken a stream."""

    stream_id: int


class Data(NamedTuple):
    """A piece of a stream's bytes; a view of the data passed to `receive_data`."""

    stream_id: int
    payload: memoryview


class End(NamedTuple):
    """The server sends no more on a stream: it has ended it, or `reset` it."""

    stream_id: int
    reset: bool = False


class Ping(NamedTuple):
    """A whole frame, to be sent back unchanged."""

    frame: bytes


class GoAway(NamedTuple):
    """The server takes no more streams."""


Event = Reply | Data | End | Ping | GoAway


class Opener:
    """Opens pairs of streams on one connection, whose header blocks share their compression."""

    def __init__(self) -> None:
        self._deflate = zlib.compressobj()

    def open_pair(self, port: int, error_id: int, data_id: int) -> bytes:
        """Return the frames that open both streams of a forward to `port` of the pod."""
        frames = bytearray()
        request = b"%d" % (error_id // 4)
        for stream_id, kind in ((error_id, b"error"), (data_id, b"data")):
            headers = {b"streamtype": kind, b"port": b"%d" % port, b"requestid": request}
            block = len(headers).to_bytes(4, "big")
            for text in (text for pair in headers.items() for text in pair):
                block += len(text).to_bytes(4, "big") + text
            packed = self._deflate.compress(block) + self._deflate.flush(zlib.Z_SYNC_FLUSH)
            frames += _HEAD.pack(_CONTROL | _SYN_STREAM, len(packed) + 10)
            frames += _HEAD.pack(stream_id, 0) + b"\0\0" + packed
        return bytes(frames)


def open_streams(port: int) -> bytes:
    """Return the frames that open the only pair of a connection."""
    return Opener().open_pair(port, ERROR_STREAM, DATA_STREAM)


def reset_frame(stream_id: int) -> bytes:
    """Return the RST_STREAM frame that cancels a stream."""
    return _HEAD.pack(_CONTROL | _RST_STREAM, 8) + _HEAD.pack(stream_id, _CANCEL)


def ping_frame(number: int) -> bytes:
    """Return a PING; a client's `number` is odd, and the server sends it back."""
    return _HEAD.pack(_CONTROL | _PING, 4) + number.to_bytes(4, "big")


def end_frame(stream_id: int) -> bytes:
    """Return the DATA frame that ends this side of a stream."""
    return _HEAD.pack(stream_id, _FIN << 24)


def data_frames(stream_id: int, data: Buffer) -> Iterator[bytes]:
    """Yield `data` as DATA frames; it is copied once."""
    view = memoryview(data)
    for at in range(0, len(view), MAX_PAYLOAD):
        piece = view[at : at + MAX_PAYLOAD]
        yield b"".join((_HEAD.pack(stream_id, len(piece)), piece))


class Decoder:
    """Split a byte stream into events. Keeps a dozen bytes at most between reads."""

    __slots__ = ("_body", "_head", "_kind", "_last", "_missing", "_stream_id", "opened")

    def __init__(self) -> None:
        self.opened = DATA_STREAM
        """The highest id of a stream that was opened."""
        self._head = b""
        self._missing = 0  # bytes of the current frame's payload
        self._kind = 0  # of control frame, 0 for DATA
        self._stream_id = 0
        self._last = False
        self._body = b""

    def receive_data(self, data: Buffer) -> list[Event]:
        """Return the events in `data`, in order. Payloads are views of it: use or copy them.

        Raises:
            SpdyError: the connection can no longer be used.
        """
        events: list[Event] = []
        view = memoryview(data)
        at, end = 0, len(view)
        while at < end:
            if not self._missing:
                start = at
                at = min(end, at + _HEAD_SIZE - len(self._head))
                self._head += bytes(view[start:at])
                if len(self._head) < _HEAD_SIZE:
                    break
                self._begin()
            piece = view[at : at + self._missing]
            at += len(piece)
            self._missing -= len(piece)
            if self._kind == _SYN_REPLY:
                if len(self._body) < _ID_SIZE:
                    self._body += bytes(piece[: _ID_SIZE - len(self._body)])
                    if len(self._body) == _ID_SIZE:
                        events.append(Reply(int.from_bytes(self._body, "big")))
                continue
            if self._kind:
                if self._kind in _KEPT:
                    self._body += bytes(piece)
                    if not self._missing:
                        events.append(self._control())
                continue
            if piece:
                events.append(Data(self._stream_id, piece))
            if self._last and not self._missing:
                events.append(End(self._stream_id))
        return events

    def _begin(self) -> None:
        word, tail = _HEAD.unpack(self._head)
        self._head = b""
        self._missing = tail & 0xFFFFFF
        if not word >> 31:
            if not word & 1 or word > self.opened:
                raise SpdyError(f"data of stream {word}, which was never opened")
            self._kind, self._stream_id = 0, word
            self._last = bool(tail >> 24 & _FIN)
            return
        if word >> 16 != _CONTROL >> 16:
            raise SpdyError(f"version {word >> 16 & 0x7FFF} of SPDY")
        self._kind, self._body = word & 0xFFFF, b""
        if self._missing != _KEPT.get(self._kind, self._missing):
            raise SpdyError(f"a control frame of type {self._kind} with {self._missing} bytes")

    def _control(self) -> Event:
        if self._kind == _PING:
            return Ping(_HEAD.pack(_CONTROL | _PING, 4) + self._body)
        if self._kind == _GOAWAY:
            return GoAway()
        return End(_HEAD.unpack(self._body)[0], reset=True)
