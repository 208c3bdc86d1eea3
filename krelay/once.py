"""Tell a new failure from a repeat of the last one, so that each is logged once."""

from __future__ import annotations


class OnceUntilChanged:
    """Remembers the last failure of something that is tried again and again.

    Two failures are the same if they have the same type and the same message. After a success,
    call `clear`, so that the next failure is new again.
    """

    def __init__(self) -> None:
        self._last: tuple[type[BaseException], str] | None = None

    def is_new(self, failure: BaseException) -> bool:
        """Return whether `failure` differs from the last one, and remember it."""
        last, self._last = self._last, (type(failure), str(failure))
        return self._last != last

    def clear(self) -> None:
        """Forget the last failure: the next one is new."""
        self._last = None
