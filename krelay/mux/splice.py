"""Splice: two TCP sockets coupled, for plain mode, where a connection is one relayed stream."""

from __future__ import annotations

import asyncio
from typing import cast

from krelay.mux.sockets import end_socket, no_delay, reset_socket

_HIGH_WATER = 256 << 10


class Splice(asyncio.Protocol):
    """One half of a pair; `join` couples it with the other. Ends and resets are handed on.

    What arrives before that waits in the socket: reading starts with `join`.
    """

    write_high_water = _HIGH_WATER
    """Bytes that may wait for a half's socket before the other is read no more."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.other: Splice | None = None
        self.ended = False

    def join(self, other: Splice, early: bytes = b"") -> None:
        """Couple both halves; `early` are bytes that this half has read already."""
        self.other, other.other = other, self
        if early:
            self.data_received(early)
        for half in (self, other):
            if half.transport is not None:
                half.transport.resume_reading()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.transport.pause_reading()
        self.transport.set_write_buffer_limits(high=self.write_high_water)
        no_delay(transport)

    def data_received(self, data: bytes) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.write(data)

    def eof_received(self) -> bool:
        self.ended = True
        if self.other is None or self.other.transport is None:
            return False
        if self.other.ended:
            self.other.transport.close()
            return False
        end_socket(self.other.transport)
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        self.transport = None
        other, self.other = self.other, None
        if other is not None and other.transport is not None:
            if exc is not None or not self.ended:
                reset_socket(other.transport)
            else:
                other.transport.close()

    def pause_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.pause_reading()

    def resume_writing(self) -> None:
        if self.other is not None and self.other.transport is not None:
            self.other.transport.resume_reading()
