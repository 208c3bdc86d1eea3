"""What a loop of attempts needs: how long to wait, and whether a failure is news."""

from __future__ import annotations

import random


class Backoff:
    """Exponential delays with full jitter, in seconds.

    The first delay is 0. Each further one is random up to a ceiling that doubles from `first` to
    `most` (https://aws.amazon.com/blogs/architecture/exponential-backoff-and-jitter/).
    """

    def __init__(self, first: float = 0.1, most: float = 10.0) -> None:
        self._first = first
        self._most = most
        self._ceiling = 0.0

    def delay(self) -> float:
        """Return the delay before the next attempt, and raise the ceiling."""
        ceiling = self._ceiling
        self._ceiling = min(max(self._first, ceiling * 2), self._most)
        return random.uniform(0, ceiling)

    def reset(self) -> None:
        """Start over after a success."""
        self._ceiling = 0.0


class OnceUntilChanged:
    """Tell a new failure from a repeat of the last one, so that each is logged once.

    Two failures are the same if they have the same type and the same message. After a success,
    call `clear`, so that the next failure is new again.
    """

    def __init__(self) -> None:
        self._last: tuple[type[BaseException], str] | None = None

    def is_new(self, failure: BaseException) -> bool:
        """Return whether `failure` differs from the last one, and remember it."""
        last, self._last = self._last, (type(failure), str(failure))
        return self._last != last

    @property
    def failing(self) -> bool:
        """Whether there was a failure since the last success."""
        return self._last is not None

    def clear(self) -> None:
        """Forget the last failure: the next one is new."""
        self._last = None
