"""A loop whose clock jumps to the next timer, for what does no I/O: hours pass in milliseconds.

looptime does more, and for that turns the loop dozens of times for each jump; that is too slow for
thousands of schedules. Here a loop with nothing left to wait for is an error, and so is its end.
"""

from __future__ import annotations

import asyncio
import selectors
from typing import Any


class DeadlockError(Exception):
    """Nothing will ever happen any more, or too much has."""


class _Selector(selectors.DefaultSelector):
    now = 0.0
    end = float("inf")

    def select(self, timeout: float | None = None) -> list[Any]:
        """Nothing is ever ready: it is later at once."""
        if timeout is None:
            raise DeadlockError("nothing is left to wait for")
        self.now += timeout
        if self.now > self.end:
            raise DeadlockError(f"it still goes on after {self.end:g} s")
        return []


class JumpingLoop(asyncio.SelectorEventLoop):
    """`end`: the time, in seconds from 0, that nothing may outlast."""

    def __init__(self, end: float) -> None:
        self._jumps = _Selector()
        self._jumps.end = end
        super().__init__(self._jumps)

    def time(self) -> float:
        return self._jumps.now
