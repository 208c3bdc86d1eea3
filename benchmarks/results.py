"""The samples of a run, and what is computed from them."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

BASE = "kubectl"
"""The contender that the ratios refer to: kubectl's default."""
DIRECT = "direct"
"""The control: the loads without any forwarder."""


class FailedError(Exception):
    """A load that could not be measured; the text is a line of the result."""


@dataclass(frozen=True)
class Spread:
    """The median of samples, and how far they lie apart."""

    median: float
    least: float
    most: float
    count: int


def spread(samples: Iterable[float]) -> Spread | None:
    """Summarise samples; None if there are none."""
    values = sorted(samples)
    if not values:
        return None
    return Spread(statistics.median(values), values[0], values[-1], len(values))


def figure(value: float) -> str:
    """Write a number with three digits and no more."""
    if value >= 100:
        return f"{value:,.0f}"
    return f"{value:.3g}" if value >= 0.001 or not value else f"{value:.1g}"


@dataclass
class Results:
    """Every sample of a run, by figure and contender; failures are kept beside them."""

    about: dict[str, Any] = field(default_factory=dict)
    units: dict[str, str] = field(default_factory=dict)
    samples: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    failures: dict[str, dict[str, str]] = field(default_factory=dict)
    series: dict[str, dict[str, list[tuple[float, float]]]] = field(default_factory=dict)

    def add(self, figure: str, unit: str, contender: str, value: float) -> None:
        """Keep a sample."""
        self.units[figure] = unit
        self.samples.setdefault(figure, {}).setdefault(contender, []).append(value)

    def grow(self, series: str, contender: str, number: float, value: float) -> None:
        """Keep a point of a line: what was measured at a number of something."""
        self.series.setdefault(series, {}).setdefault(contender, []).append((number, value))

    def fail(self, figure: str, contender: str, reason: str) -> None:
        """Keep why a contender has no sample."""
        self.failures.setdefault(figure, {})[contender] = reason

    def spread(self, figure: str, contender: str) -> Spread | None:
        """Summarise a contender's samples of a figure."""
        return spread(self.samples.get(figure, {}).get(contender, ()))

    def ratio(self, figure: str, contender: str, base: str) -> float | None:
        """Divide the medians of two contenders."""
        ours, theirs = self.spread(figure, contender), self.spread(figure, base)
        if ours is None or theirs is None or not theirs.median:
            return None
        return ours.median / theirs.median

    def contenders(self) -> list[str]:
        """Return the contenders in the order of their first sample."""
        names: dict[str, None] = {}
        for samples in self.samples.values():
            names.update(dict.fromkeys(samples))
        for reasons in self.failures.values():
            names.update(dict.fromkeys(reasons))
        return list(names)

    def save(self, path: Path) -> None:
        """Write all as JSON."""
        path.write_text(json.dumps(vars(self), indent=1) + "\n")

    @classmethod
    def load(cls, path: Path) -> Results:
        """Read what `save` has written."""
        found = cls(**json.loads(path.read_text()))
        for lines in found.series.values():
            for contender, points in lines.items():
                lines[contender] = [(number, value) for number, value in points]
        return found
