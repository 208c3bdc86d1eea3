"""Figures of the table: times, sizes and throughput, as pure functions of snapshots."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime
from typing import Any

Rate = tuple[float, float]
"""Bytes per second to the remote end, and to the local end."""
Rates = Mapping[tuple[str, int], Rate]
"""Rates by target and index of its port."""

_UNITS = ("B", "kB", "MB", "GB", "TB")
_IDLE = 30.0
"""Seconds without a byte after which there are no rates to show."""


def age(since: str, now: datetime) -> str:
    """Return the time from `since` (ISO 8601) to `now`: `12s`, `5m`, `3h` or `2d`."""
    seconds = max(0.0, (now - datetime.fromisoformat(since)).total_seconds())
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= length:
            return f"{int(seconds // length)}{unit}"
    return f"{int(seconds)}s"


def size(count: float) -> str:
    """Return a number of bytes with at most three digits: `0 B`, `999 B`, `1.2 kB`, `340 MB`."""
    unit = 0
    while count >= 999.5 and unit < len(_UNITS) - 1:
        count /= 1000
        unit += 1
    return f"{count:.1f} {_UNITS[unit]}" if unit and count < 9.95 else f"{count:.0f} {_UNITS[unit]}"


class RateMeter:
    """Computes the throughput of each forward from successive snapshots of one run."""

    def __init__(self) -> None:
        self._time = 0.0
        self._run: object = None
        self._bytes: dict[tuple[str, int], tuple[int, int]] = {}
        self._moved: float | None = None

    def update(self, snapshot: Mapping[str, Any], now: float) -> dict[tuple[str, int], Rate]:
        """Return the rates since the previous snapshot; `now` is monotonic, in seconds.

        The result is empty for the first snapshot of a run, and while the whole run is idle.
        """
        before, self._bytes = self._bytes, dict(map(_counts, snapshot["forwards"]))
        elapsed, self._time = now - self._time, now
        run = (snapshot["pid"], snapshot["started"])
        previous, self._run = self._run, run
        if previous != run or elapsed <= 0:
            return {}
        found = {}
        for key, counts in self._bytes.items():
            up, down = (
                max(0, new - old) / elapsed
                for new, old in zip(counts, before.get(key, counts), strict=True)
            )
            found[key] = (up, down)
            if up or down:
                self._moved = now
        idle = self._moved is None or now - self._moved > _IDLE
        return {} if idle else found


def _counts(forward: Mapping[str, Any]) -> tuple[tuple[str, int], tuple[int, int]]:
    traffic = forward["traffic"]
    counts = (traffic["toRemoteBytes"], traffic["toLocalBytes"])
    return (forward["target"], forward["index"]), counts
