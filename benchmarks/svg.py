"""Small charts as SVG: legible at a page's width, on a light and on a dark ground."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape

WIDTH = 800
LEFT, RIGHT, TOP, BOTTOM = 250, 60, 64, 52
BAR, GAP = 15, 14
COLOURS = ("#2f81f7", "#39b5a8", "#8b949e", "#d29922", "#a371f7", "#f4715c")
STYLE = """
text { font: 13px system-ui, sans-serif; fill: #1f2328 }
.title { font-size: 16px; font-weight: 600 } .value { font-size: 12px }
.grid { stroke: #8b949e; stroke-opacity: .3 } .one { stroke: #8b949e; stroke-width: 2 }
@media (prefers-color-scheme: dark) { text { fill: #e6edf3 } }
"""


def text(x: float, y: float, words: str, anchor: str = "start", kind: str = "") -> str:
    """Return words at a place."""
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">'
        f"{escape(words)}</text>"
    )


def line(x1: float, y1: float, x2: float, y2: float, kind: str = "grid") -> str:
    """Return a straight line."""
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" class="{kind}"/>'


def short(value: float) -> str:
    """Write a number in few characters: 0.25, 40, 1k, 2.5M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}"
    return f"{value:.3g}"


def colours(names: Sequence[str]) -> dict[str, str]:
    """Return a colour for each name, the same in every chart of these names."""
    return {name: COLOURS[number % len(COLOURS)] for number, name in enumerate(names)}


def legend(names: Mapping[str, str], y: float) -> Iterable[str]:
    """Return the names in their colours, in a row."""
    x = 16.0
    for name, colour in names.items():
        yield f'<rect x="{x:.1f}" y="{y - 10:.1f}" width="11" height="11" fill="{colour}"/>'
        yield text(x + 16, y, name)
        x += 34 + 7.5 * len(name)


def document(height: float, title: str, parts: Iterable[str]) -> str:
    """Return the SVG."""
    size = f'viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" height="{height:.0f}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} role="img">'
    about = f"<title>{escape(title)}</title>\n<style>{STYLE}</style>"
    return "\n".join([head, about, text(16, 26, title, kind="title"), *parts, "</svg>\n"])


class Scale:
    """Places values between two ends of the picture, on a logarithmic or a linear axis."""

    def __init__(self, values: Iterable[float], begin: float, end: float, *, log: bool) -> None:
        found = [value for value in values if value > 0 or not log]
        low, high = min(found, default=1.0), max(found, default=10.0) or 1.0
        self._log = log
        self._begin, self._end = begin, end
        if log:
            self._low, self._high = math.floor(math.log10(low)), math.ceil(math.log10(high))
            self._high = max(self._high, self._low + 1)
            self.ticks = [10.0**power for power in range(self._low, self._high + 1)]
        else:
            step = 10 ** math.floor(math.log10(high))
            step = next(s for s in (step / 5, step / 2, step, step * 2) if high / s <= 6)
            self._low, self._high = 0, math.ceil(high / step) * step
            self.ticks = [step * n for n in range(round(self._high / step) + 1)]

    def __call__(self, value: float) -> float:
        """Return the coordinate of a value."""
        place = math.log10(max(value, 10.0**self._low)) if self._log else value
        share = (place - self._low) / (self._high - self._low)
        return self._begin + share * (self._end - self._begin)


def bars(title: str, rows: Mapping[str, Mapping[str, float]], names: Mapping[str, str]) -> str:
    """Return horizontal bars on a logarithmic axis: a row for each figure, 1 as the line.

    `names` are the bars of a row, and their colours.
    """
    step = BAR * len(names) + GAP
    bottom = TOP + step * len(rows)
    every = [value for row in rows.values() for value in row.values()]
    scale = Scale([*every, 1.0], LEFT, WIDTH - RIGHT, log=True)
    parts = [*legend(names, 48)]
    for tick in scale.ticks:
        parts.append(line(scale(tick), TOP, scale(tick), bottom))
        parts.append(text(scale(tick), bottom + 18, f"{short(tick)}x", "middle"))
    for number, (label, row) in enumerate(rows.items()):
        y = TOP + GAP / 2 + step * number
        parts.append(text(LEFT - 12, y + BAR * len(names) / 2 + 5, label, "end"))
        for place, (name, colour) in enumerate(names.items()):
            if name in row:
                begin, end = sorted((scale(1.0), scale(row[name])))
                top = y + BAR * place
                parts.append(
                    f'<rect x="{begin:.1f}" y="{top:.1f}" width="{max(1.0, end - begin):.1f}" '
                    f'height="{BAR - 2}" fill="{colour}"/>'
                )
                parts.append(text(end + 5, top + 11, f"{short(row[name])}x", kind="value"))
    parts.append(line(scale(1.0), TOP, scale(1.0), bottom, "one"))
    return document(bottom + 30, title, parts)


def lines(
    title: str,
    across: str,
    series: Mapping[str, Sequence[tuple[float, float]]],
    names: Mapping[str, str],
    *,
    log_x: bool = True,
    log_y: bool = True,
) -> str:
    """Return a line for each name through its points; `across` names the horizontal axis."""
    left, right, bottom = 70, WIDTH - 30, 340
    points = [point for line in series.values() for point in line]
    x = Scale((point[0] for point in points), left, right, log=log_x)
    y = Scale((point[1] for point in points), bottom, TOP + 6, log=log_y)
    parts = [*legend({name: names[name] for name in series}, 48)]
    for tick in y.ticks:
        parts.append(line(left, y(tick), right, y(tick)))
        parts.append(text(left - 8, y(tick) + 4, short(tick), "end"))
    for tick in x.ticks:
        parts.append(line(x(tick), bottom, x(tick), bottom + 5))
        parts.append(text(x(tick), bottom + 20, short(tick), "middle"))
    parts.append(text((left + right) / 2, bottom + 42, across, "middle"))
    for name, found in series.items():
        colour = names[name]
        path = " ".join(f"{x(a):.1f},{y(b):.1f}" for a, b in found)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [
            f'<circle cx="{x(a):.1f}" cy="{y(b):.1f}" r="3" fill="{colour}"/>' for a, b in found
        ]
    return document(bottom + BOTTOM, title, parts)
