"""When to acknowledge: every few milliseconds whatever the rate, fine on a slow path, cheap on a
fast one (protocol.md, section 7)."""

from __future__ import annotations

import math

_DELAY = 0.010
_EVERY_MIN = 16 << 10
_EVERY_MAX = 256 << 10


class AckTimer:
    """Octets that came on this tunnel, and what its peer was told of them. `due`: tell it now."""

    __slots__ = ("_deadline", "_every", "_octets", "_acked", "_acked_at", "due")

    def __init__(self, now: float) -> None:
        self.due = False
        self._octets = self._acked = 0
        self._every = _EVERY_MIN
        self._deadline: float | None = None
        self._acked_at = now

    @property
    def waiting(self) -> bool:
        """Whether there is something to tell, sooner or later."""
        return self._deadline is not None

    def reset(self) -> None:
        """Another tunnel, or none: octets count from zero."""
        self.due = False
        self._octets = self._acked = 0
        self._deadline = None

    def received(self, octets: int, now: float) -> None:
        """A frame that wants to be acknowledged came."""
        self._octets += octets
        if self._deadline is None:
            self._deadline = now + _DELAY

    def flush_if_due(self, now: float) -> None:
        """A read is over: perhaps that was enough."""
        if self._octets - self._acked < self._every:
            return
        self.due = True
        since = now - self._acked_at
        if since < 0.001:
            self._every = min(self._every * 2, _EVERY_MAX)
        elif since > 0.004:
            self._every = max(self._every // 2, _EVERY_MIN)

    def tick(self, now: float) -> float:
        """When to look again; infinite where nothing waits."""
        if self._deadline is not None and now >= self._deadline:
            self.due = True
            self._deadline = None
        return math.inf if self._deadline is None else self._deadline

    def next_ack(self, now: float) -> int:
        """The octets to acknowledge now."""
        self.due = False
        self._deadline = None
        self._acked_at = now
        self._acked = self._octets
        return self._octets
