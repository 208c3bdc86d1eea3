"""LogRing: the last lines of the log of a running krelay, for `krelay logs`."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Mapping
from typing import Any

from krelay.errors import UsageError

KEPT = 1_000
"""Lines that are kept."""
LONGEST = 4_000
"""Characters of a line; the rest is cut off."""


class LogRing(logging.Handler):
    """A logging handler that keeps lines, bounded in number and in length."""

    def __init__(self, *, kept: int = KEPT) -> None:
        super().__init__()
        self._lines: deque[tuple[int, str]] = deque(maxlen=kept)
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
            self._lines.append((self._count, text))

    def after(self, number: int, most: int = KEPT) -> list[tuple[int, str]]:
        """Return the newest `most` lines with a number above `number`, oldest first."""
        with self._mutex:
            found = [line for line in self._lines if line[0] > number]
        return found[max(0, len(found) - most) :]

    async def answer(self, body: Mapping[str, Any]) -> dict[str, Any]:
        """Answer `GET /v1/logs`: the last `lines` lines with a number above `after`. Raises
        UsageError if one of the two is not a count."""
        after, most = body.get("after", 0), body.get("lines", KEPT)
        for value in (after, most):
            if not isinstance(value, int) or isinstance(value, bool) or value < 0:
                raise UsageError("`after` and `lines` are numbers from 0")
        found = self.after(after, most)
        last = found[-1][0] if found else self._count
        lines = [{"number": number, "text": text} for number, text in found]
        return {"last": last, "lines": lines}
