"""Rates: bytes a second of each forward, from the reports of two moments."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Rate = tuple[float, float]
"""To the remote end, and to the local one."""

_UNITS = ("B", "kB", "MB", "GB", "TB")


class Rates:
    """Remembers the last report that it saw, in its JSON form."""

    def __init__(self) -> None:
        self._time: float | None = None
        self._started: object = None
        self._bytes: dict[tuple[str, int], tuple[int, int]] = {}

    def update(self, report: Mapping[str, Any], now: float) -> dict[tuple[str, int], Rate]:
        """By target and index, since the report before; empty for the first one, or where that
        was another krelay's."""
        before, self._bytes = self._bytes, dict(map(_counts, report["forwards"]))
        then, self._time = self._time, now
        run = (report["pid"], report["started"])
        former, self._started = self._started, run
        if then is None or now <= then or former != run:
            return {}
        found = {}
        for key, counts in self._bytes.items():
            up, down = (
                max(0, new - old) / (now - then)
                for new, old in zip(counts, before.get(key, counts), strict=True)
            )
            found[key] = (up, down)
        return found


def _counts(forward: Mapping[str, Any]) -> tuple[tuple[str, int], tuple[int, int]]:
    traffic = forward["traffic"]
    return (forward["target"], forward["index"]), (
        traffic["toRemoteBytes"],
        traffic["toLocalBytes"],
    )


def size(count: float) -> str:
    """`0 B`, `999 B`, `1.2 kB`, `340 MB`: three digits at most."""
    unit = 0
    while count >= 999.5 and unit < len(_UNITS) - 1:
        count /= 1000
        unit += 1
    return f"{count:.1f} {_UNITS[unit]}" if unit and count < 9.95 else f"{count:.0f} {_UNITS[unit]}"
