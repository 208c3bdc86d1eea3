"""LogRing: the last lines of the log of a running krelay, for `krelay logs`.

A line is about a target if its record says so (`krelay.mux.log.about`), never by its text.
"""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Collection, Mapping
from typing import Any

from krelay.errors import UsageError

KEPT = 1_000
"""Lines that are kept."""
LONGEST = 4_000
"""Characters of a line; the rest is cut off."""


Line = tuple[int, str]
"""The number of a line, from 1, and its text."""


class LogRing(logging.Handler):
    """A logging handler that keeps lines, bounded in number and in length."""

    def __init__(self, *, kept: int = KEPT) -> None:
        super().__init__()
        self._lines: deque[tuple[Line, frozenset[str]]] = deque(maxlen=kept)
        """With the targets that each is about."""
        self._count = 0
        # Records come from any thread.
        self._mutex = threading.Lock()

    def emit(self, record: logging.LogRecord) -> None:
        """Keep the formatted record."""
        try:
            text = self.format(record)
        except Exception:
            self.handleError(record)
            return
        if len(text) > LONGEST:
            text = text[:LONGEST] + " …"
        with self._mutex:
            self._count += 1
            self._lines.append(((self._count, text), _targets(record)))

    def after(
        self, number: int, most: int = KEPT, targets: Collection[str] | None = None
    ) -> list[Line]:
        """Return the newest `most` lines with a number above `number`, oldest first; only those
        about one of `targets`, if given."""
        with self._mutex:
            kept = list(self._lines)
        found = [
            line
            for line, about in kept
            if line[0] > number and (targets is None or not about.isdisjoint(targets))
        ]
        return found[max(0, len(found) - most) :]

    async def answer(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Answer `GET /v1/logs`: the last `lines` lines with a number above `after`, of those about
        `targets`. Raises UsageError if one of them is of another type."""
        after, most = body.get("after", 0), body.get("lines", KEPT)
        for value in (after, most):
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise UsageError("`after` and `lines` are numbers from 0")
        targets = body.get("targets")
        if targets is not None and not (
            isinstance(targets, list) and all(isinstance(name, str) for name in targets)
        ):
            raise UsageError("`targets` is a list of names")
        last = self._count
        found = self.after(after, most, targets)
        lines = [{"number": number, "text": text} for number, text in found]
        return {"last": found[-1][0] if found else last, "lines": lines}


def _targets(record: logging.LogRecord) -> frozenset[str]:
    """Return the targets that a record is about."""
    one, several = getattr(record, "target", None), getattr(record, "targets", ())
    return frozenset(several) | ({one} if one else frozenset())
