"""Compression of a stream's bytes, a frame at a time, while the tunnel is slower than compressing.

Each COMPRESSED frame stands alone (protocol.md, section 4): no state per stream takes memory, and a
frame is repeated unchanged on another tunnel. With 64 KiB a frame, text shrinks as well as with one
state for a whole stream, to within 3 %.
"""

from __future__ import annotations

import math
import sys
import zlib
from collections.abc import Callable
from enum import IntFlag

from krelay.wire.errors import ProtocolError
from krelay.wire.frames import MAX_PAYLOAD, Buffer
from krelay.wire.stream import Stream

if sys.version_info >= (3, 14):
    from compression import zstd

_LEVEL = 1
_BITS = 15
_MEMORY_LEVEL = 9
# Smaller frames are keystrokes and queries: nothing is gained, and no secret stands beside a guess.
_SMALLEST = 512
# A frame that shrinks by less is sent as it is, and so are the next bytes of its stream: at first
# `_PASS`, then twice as many each time that they do not shrink either.
_WORTH = 0.9
_PASS = 256 << 10
_LONGEST_PASS = 16 << 20
# Stream bytes for each byte that the in-flight limit leaves, at most.
_MOST = 16.0
# Bytes a second that compressing is taken to manage until it is measured, over `_WINDOW` seconds.
_SPEED = 64e6
_WINDOW = 1.0
# Compressing must be so many times as fast as the tunnel to begin, and to go on. If it is slower,
# it pauses, in seconds: at first `_PAUSE`, then twice as long each time that it is still slower.
_BEGIN, _GO_ON = 4, 2
_PAUSE = 0.5
_LONGEST_PAUSE = 60.0
# Compressing that takes more than this share of the time is itself what limits the rate. It pauses
# until the tunnel's own rate is measured, first after `_PERIOD` seconds, then after twice as many.
_SHARE = 0.7
_PERIOD = 1.0
_LONGEST_PERIOD = 60.0


# By default a frame takes a window of 512 KiB, and may ask for one of 128 MiB, whatever it holds.
_ZSTD_WINDOW = MAX_PAYLOAD.bit_length() - 1
if sys.version_info >= (3, 14):
    _ZSTD_PACK = {
        zstd.CompressionParameter.compression_level: _LEVEL,
        zstd.CompressionParameter.window_log: _ZSTD_WINDOW,
    }
    _ZSTD_UNPACK = {zstd.DecompressionParameter.window_log_max: _ZSTD_WINDOW}
    _ZSTD_ERRORS: tuple[type[Exception], ...] = (zstd.ZstdError,)
else:
    _ZSTD_ERRORS = ()


class Algorithm(IntFlag):
    """Algorithms, as bits: HELLO has those of the agent, AUTH the one that the client chose."""

    NONE = 0
    DEFLATE = 1
    ZSTD = 2


if sys.version_info >= (3, 14):
    KNOWN = Algorithm.DEFLATE | Algorithm.ZSTD
else:
    KNOWN = Algorithm.DEFLATE
"""The algorithms of this Python."""


def choose(offered: int) -> Algorithm:
    """Return the best of the algorithms that both ends know; NONE if they share none."""
    both = KNOWN & offered
    return max((one for one in Algorithm if one & both), default=Algorithm.NONE)


def compress(algorithm: Algorithm, pieces: list[Buffer]) -> bytes:
    """Return the payload of a COMPRESSED frame for these bytes."""
    if sys.version_info >= (3, 14) and algorithm is Algorithm.ZSTD:
        packer = zstd.ZstdCompressor(options=_ZSTD_PACK)
    else:
        packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, -_BITS, _MEMORY_LEVEL)
    return b"".join([*map(packer.compress, pieces), packer.flush()])


def decompress(algorithm: Algorithm, payload: Buffer) -> bytes:
    """Return the stream's bytes in the payload of a COMPRESSED frame.

    Raises:
        ProtocolError: the payload is not one whole block of 1 to MAX_PAYLOAD bytes.
    """
    try:
        if sys.version_info >= (3, 14) and algorithm is Algorithm.ZSTD:
            unpacker = zstd.ZstdDecompressor(options=_ZSTD_UNPACK)
        else:
            unpacker = zlib.decompressobj(-_BITS)
        data = unpacker.decompress(payload, MAX_PAYLOAD + 1)
    except (zlib.error, *_ZSTD_ERRORS) as exc:
        raise ProtocolError(f"a COMPRESSED frame that cannot be read: {exc}") from exc
    if not unpacker.eof or unpacker.unused_data or not 0 < len(data) <= MAX_PAYLOAD:
        raise ProtocolError("a COMPRESSED frame that is not one block of 1 to 65536 bytes")
    return data


class Compressor:
    """Compresses what one end of a session sends, while that pays.

    `active` says whether it does. Without it, frames cost nothing more than before.
    """

    __slots__ = (
        "_algorithm",
        "_begun_at",
        "_held_back",
        "_pause",
        "_period",
        "_rate",
        "_rest_until",
        "_size",
        "_speed",
        "_spent",
        "_stopwatch",
        "_window_at",
        "active",
        "input_bytes",
        "output_bytes",
    )

    def __init__(self, algorithm: Algorithm, stopwatch: Callable[[], float]) -> None:
        """`stopwatch` returns seconds, to learn what compressing costs."""
        self.active = False
        self.input_bytes = 0
        """Stream bytes that were compressed."""
        self.output_bytes = 0
        """Bytes that they took on the wire."""
        self._algorithm = algorithm
        self._stopwatch = stopwatch
        self._rate = 0.0
        self._speed = _SPEED
        self._pause = _PAUSE
        self._period = _PERIOD
        self._rest_until = -math.inf
        self._held_back = False  # since the window began
        self._begun_at = self._window_at = 0.0
        self._size = 0
        self._spent = 0.0

    def limited(self, rate: float) -> None:
        """Begin or stop compressing. Call this when the in-flight limit holds back a stream.

        `rate` is what the tunnel delivers, in bytes a second; 0.0 if that is not known yet.
        """
        self._rate = rate
        if self.active:
            if rate * _GO_ON >= self._speed:
                self.active = False
                # What a busy second has measured must not keep it from beginning again.
                self._speed = max(self._speed, _SPEED)
        elif rate > 0.0 and rate * _BEGIN < self._speed:
            now = self._stopwatch()
            if now >= self._rest_until:
                self.active = True
                self._begun_at = now
                self._begin_window(now)
        self._held_back = True

    def restart(self) -> None:
        """Stop, and forget what was measured: the next tunnel may take another path."""
        self.active = False
        self._rate, self._speed = 0.0, _SPEED
        self._pause, self._period, self._rest_until = _PAUSE, _PERIOD, -math.inf

    def compress(self, stream: Stream, pieces: list[Buffer], size: int) -> bytes | None:
        """Return the payload for these `size` bytes of a stream; None if they are sent as such."""
        if size < _SMALLEST or not self.active:
            return None
        if stream.incompressible > 0:
            stream.incompressible -= size
            return None
        began = self._stopwatch()
        payload = compress(self._algorithm, pieces)
        self._measure(size, began, self._stopwatch())
        if len(payload) > size * _WORTH:
            stream.shrinks = 1.0
            stream.skip = stream.incompressible = min(max(stream.skip * 2, _PASS), _LONGEST_PASS)
            return None
        stream.shrinks = min(size / len(payload), _MOST)
        stream.skip = 0
        self.input_bytes += size
        self.output_bytes += len(payload)
        return payload

    def _measure(self, size: int, began: float, ended: float) -> None:
        self._size += size
        self._spent += ended - began
        past = ended - self._window_at
        if past < _WINDOW:
            return
        # Over a second: a single call is late by tens of milliseconds on a busy machine.
        self._speed = self._size / max(self._spent, 1e-6)
        if self._speed < self._rate * _GO_ON:
            self.active = False
            self._rest_until = ended + self._pause
            self._pause = min(self._pause * 2, _LONGEST_PAUSE)
            self._speed = _SPEED
        elif self._spent > past * _SHARE and ended - self._begun_at >= self._period:
            self.active = False
            self._rest_until = ended + _PAUSE
            self._period = min(self._period * 2, _LONGEST_PERIOD)
            self._speed = max(self._speed, _SPEED)
        elif not self._held_back:
            self.active = False
        else:
            self._pause = _PAUSE
        self._begin_window(ended)

    def _begin_window(self, now: float) -> None:
        self._window_at, self._size, self._spent = now, 0, 0.0
        self._held_back = False
