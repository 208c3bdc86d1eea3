"""Transports that the mux can sit on without a network: joined in memory, prompt or difficult."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any


class MemoryTransport(asyncio.Transport):
    """One end of a pair. `piece` cuts what is delivered, `lag` (seconds) delays it."""

    def __init__(self, piece: int = 1 << 20, lag: float = 0.0) -> None:
        super().__init__()
        self.loop = asyncio.get_running_loop()
        self.piece, self.lag = piece, lag
        self.protocol: asyncio.Protocol | None = None
        self.other: MemoryTransport | None = None
        self.buffer = bytearray()
        self.high = 64 << 10
        self.choked = False  # the other end reads nothing for now
        self._pumping = False
        self._paused = False
        self._closing = False

    def write(self, data: Any) -> None:
        if self._closing:
            return
        self.buffer += data
        if len(self.buffer) > self.high and not self._paused and self.protocol is not None:
            self._paused = True
            self.protocol.pause_writing()
        self._pump()

    def writelines(self, list_of_data: Iterable[Any]) -> None:
        self.write(b"".join(list_of_data))

    def choke(self, choked: bool) -> None:
        """A black hole, or the end of it."""
        self.choked = choked
        self._pump()

    def _pump(self) -> None:
        if not self._pumping and self.buffer and not self.choked:
            self._pumping = True
            self.loop.call_later(self.lag, self._deliver) if self.lag else self.loop.call_soon(
                self._deliver
            )

    def _deliver(self) -> None:
        self._pumping = False
        if self.choked or self.other is None or self.other._closing:
            return
        piece = bytes(self.buffer[: self.piece])
        del self.buffer[: self.piece]
        if piece and self.other.protocol is not None:
            self.other.protocol.data_received(piece)
        if self._paused and len(self.buffer) <= self.high // 4 and self.protocol is not None:
            self._paused = False
            self.protocol.resume_writing()
        self._pump()
        if self._closing and not self.buffer:
            self.abort()

    def close(self) -> None:
        self._closing = True
        if not self.buffer:
            self.abort()

    def abort(self) -> None:
        self._closing = True
        self.buffer.clear()
        for end in (self, self.other):
            if end is not None and end.protocol is not None:
                protocol, end.protocol = end.protocol, None
                end._closing = True
                self.loop.call_soon(protocol.connection_lost, None)

    def is_closing(self) -> bool:
        return self._closing

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self.high = high or self.high

    def get_write_buffer_size(self) -> int:
        return len(self.buffer)


def join(
    here: asyncio.Protocol, there: asyncio.Protocol, *, piece: int = 1 << 20, lag: float = 0.0
) -> tuple[MemoryTransport, MemoryTransport]:
    """Two protocols, connected."""
    ends = MemoryTransport(piece, lag), MemoryTransport(piece, lag)
    for end, other, protocol in zip(ends, reversed(ends), (here, there), strict=True):
        end.other, end.protocol = other, protocol
    for end, protocol in zip(ends, (here, there), strict=True):
        protocol.connection_made(end)
    return ends
