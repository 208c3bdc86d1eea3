"""Flow-control credit of one stream: how much the peer may send before we have consumed it."""

from __future__ import annotations

from krelay.wire.errors import FlowControlError

INITIAL_WINDOW = 65_536
MAX_WINDOW = 4 << 20


class RecvWindow:
    """The credit we granted. It is returned at half a window, and grows while it is the brake.

    A window that is used up twice within a few round trips is what limits the rate, so it is
    doubled (protocol.md, section 6), up to `MAX_WINDOW`.
    """

    __slots__ = ("_consumed", "_credit", "_returned_at", "size")

    def __init__(self, now: float, size: int = INITIAL_WINDOW) -> None:
        self.size = size
        self._credit = size
        self._consumed = 0
        self._returned_at = now

    def receive(self, count: int) -> None:
        """Account for `count` bytes from the peer.

        Raises:
            FlowControlError: it had no credit for them.
        """
        self._credit -= count
        if self._credit < 0:
            raise FlowControlError(f"{-self._credit} bytes over the window")

    def consume(self, count: int, now: float, rtt: float, room: int) -> int:
        """Account for `count` bytes handed on; the credit to return now, 0 for none yet.

        `room` is how many bytes the window may still grow by, `rtt` the round trip in seconds.
        Where it is negative the window gives up what it had grown by: credit is kept back.
        """
        self._consumed += count
        if self._consumed * 2 < self.size:
            return 0
        increment, self._consumed = self._consumed, 0
        if room < 0:
            shrink = min(-room, increment, self.size - INITIAL_WINDOW)
            if shrink > 0:
                self.size -= shrink
                increment -= shrink
        elif now - self._returned_at < 4 * rtt:
            growth = min(self.size, MAX_WINDOW - self.size, room)
            if growth > 0:
                self.size += growth
                increment += growth
        self._returned_at = now
        self._credit += increment
        return increment
