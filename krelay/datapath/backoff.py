"""How long to wait before the next try: exponential, capped, with full jitter."""

from __future__ import annotations

import random


class Backoff:
    """Delays in seconds: 0 at first, then random up to a ceiling that doubles from `first` to
    `most`. Full jitter: https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/"""

    def __init__(self, first: float = 0.1, most: float = 10.0) -> None:
        self._first = first
        self._most = most
        self._ceiling = 0.0

    def delay(self) -> float:
        """The next delay."""
        ceiling = self._ceiling
        self._ceiling = min(max(self._first, ceiling * 2), self._most)
        return random.uniform(0, ceiling)

    def reset(self) -> None:
        """It worked: begin anew."""
        self._ceiling = 0.0
