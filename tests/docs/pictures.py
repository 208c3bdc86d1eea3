"""Draw docs/pictures/*.svg from the texts beside them: `python -m tests.docs.pictures`.

A text has one of two forms. A chain is a row of boxes in frames, and the arrows between them. The
word before a colon is the frame; `/` begins a second line::

    chain
    This machine: your app | krelay / listener, session
    Cluster: API server | agent | pod
    your app -> krelay: TCP
    krelay => agent: tunnel / TLS

A sequence has lanes, and messages from the top down. `-x` is a message that is lost. A line without
an arrow is a note across all lanes::

    sequence
    app | krelay | agent
    app -> krelay: bytes
    krelay -x agent: frames 4 and 5
    The tunnel is lost.

A picture has both lights: it takes that of the reader's system, or of the page around it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from html import escape
from pathlib import Path

from tests.docs import pages

FOLDER = pages.DOCS / "pictures"

_ARROW = re.compile(r"(.+?) (->|=>|-x) (.+?)(?:: (.*))?$")
_BOX, _GAP, _TOP, _HEIGHT = 118, 74, 34, 58
_LANE, _STEP = 190, 40
_STYLE = """\
svg { font: 13px system-ui, sans-serif; --text: #1f2328; --soft: #59636e; --line: #8c959f;
  --box: #ffffff; --frame: #f3f5f8; --strong: #4051b5; --lost: #c93c37; }
@media (prefers-color-scheme: dark) { svg { --text: #e6edf3; --soft: #9198a1; --line: #656c76;
  --box: #161a22; --frame: #0f131a; --strong: #8c9eff; --lost: #f47067; } }
text { fill: var(--text); text-anchor: middle }
.soft { fill: var(--soft); font-size: 11.5px }
.title { fill: var(--soft); text-anchor: start; font-size: 12px; font-weight: 600 }
.name { font-weight: 600 }
.frame { fill: var(--frame) }
.box { fill: var(--box); stroke: var(--line) }
path { fill: none; stroke: var(--line); stroke-width: 1.5 }
.head { fill: var(--line); stroke: none }
.strong { stroke: var(--strong); stroke-width: 4 }
.head.strong { fill: var(--strong); stroke: none }
.lost { stroke: var(--lost); stroke-dasharray: 5 4 }
.cross { stroke: var(--lost); stroke-width: 2.5 }
.lane { stroke-dasharray: 2 4; stroke-width: 1 }
"""


@dataclass(frozen=True)
class Arrow:
    """An arrow between two names: `->`, `=>` (a tunnel) or `-x` (lost)."""

    start: str
    kind: str
    end: str
    label: str


def drawn(source: str) -> str:
    """Return the SVG of a picture's text."""
    kind, *lines = filter(None, source.splitlines())
    width, height, parts = {"chain": _chain, "sequence": _sequence}[kind](lines)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
    head += f'width="{width}" height="{height}">'
    return "\n".join([head, f"<style>\n{_STYLE}</style>", *parts, "</svg>", ""])


def _arrow(line: str) -> Arrow | None:
    found = _ARROW.match(line)
    return Arrow(*found.groups(default="")) if found else None


def _text(x: float, y: float, text: str, kind: str = "") -> str:
    return f'<text x="{x:g}" y="{y:g}" class="{kind}">{escape(text)}</text>'


def _line(x: float, y: float, to: float, arrow: Arrow) -> str:
    """Return a horizontal arrow."""
    ahead = 1 if to > x else -1
    kind = {"=>": "strong", "-x": "lost"}.get(arrow.kind, "")
    if arrow.kind == "-x":
        to = x + (to - x) * 0.72
        ends = f'<path class="cross" d="M{to - 5:g} {y - 5:g}l10 10m0 -10l-10 10"/>'
        return f'<path class="{kind}" d="M{x:g} {y:g}H{to:g}"/>\n{ends}'
    tip = f"M{to:g} {y:g}l{-9 * ahead} -5v10z"
    path = f'<path class="{kind}" d="M{x:g} {y:g}H{to - 8 * ahead:g}"/>'
    return f'{path}\n<path class="head {kind}" d="{tip}"/>'


def _chain(lines: list[str]) -> tuple[int, int, list[str]]:
    frames: list[str] = []
    boxes: list[str] = []
    arrows: list[str] = []
    places: dict[str, int] = {}
    x = 24
    for line in lines:
        if arrow := _arrow(line):
            start, end = places[arrow.start] + _BOX, places[arrow.end]
            y = _TOP + _HEIGHT / 2 + 10
            arrows.append(_line(start, y, end, arrow))
            for word, beside in zip(arrow.label.split(" / "), (-9, 19), strict=False):
                arrows.append(_text((start + end) / 2, y + beside, word, "soft"))
            continue
        title, _, names = line.partition(": ")
        first = x
        for box in names.split(" | "):
            name, *details = box.split(" / ")
            places[name] = x
            size = f'width="{_BOX}" height="{_HEIGHT}" rx="7"'
            boxes.append(f'<rect class="box" x="{x}" y="{_TOP + 10}" {size}/>')
            middle = _TOP + 10 + _HEIGHT / 2 + 5 - 9 * bool(details)
            boxes.append(_text(x + _BOX / 2, middle, name, "name"))
            boxes += [_text(x + _BOX / 2, middle + 18, detail, "soft") for detail in details]
            x += _BOX + _GAP
        size = f'width="{x - _GAP - first + 28}" height="{_TOP + _HEIGHT + 20}" rx="10"'
        frames.append(f'<rect class="frame" x="{first - 14}" y="6" {size}/>')
        frames.append(_text(first, 26, title, "title"))
    return x - _GAP + 24, _TOP + _HEIGHT + 32, [*frames, *arrows, *boxes]


def _sequence(lines: list[str]) -> tuple[int, int, list[str]]:
    lanes = lines[0].split(" | ")
    places = {lane: 80 + _LANE * row for row, lane in enumerate(lanes)}
    width = 160 + _LANE * (len(lanes) - 1)
    height = 66 + _STEP * len(lines[1:])
    parts = [f'<path class="lane" d="M{x} 40V{height - 10}"/>' for x in places.values()]
    for lane, x in places.items():
        parts.append(f'<rect class="box" x="{x - 62}" y="8" width="124" height="32" rx="7"/>')
        parts.append(_text(x, 29, lane, "name"))
    for row, line in enumerate(lines[1:]):
        y = 82 + _STEP * row
        if arrow := _arrow(line):
            start, end = places[arrow.start], places[arrow.end]
            parts.append(_line(start, y, end, arrow))
            parts.append(_text((start + end) / 2, y - 7, arrow.label, "soft"))
        else:
            size = f'width="{width - 12}" height="28" rx="7"'
            parts.append(f'<rect class="frame" x="6" y="{y - 22}" {size}/>')
            parts.append(_text(width / 2, y - 3, line))
    return width, height, parts


def sources() -> list[Path]:
    return sorted(FOLDER.glob("*.txt"))


if __name__ == "__main__":
    for path in sources():
        path.with_suffix(".svg").write_text(drawn(path.read_text("utf-8")), "utf-8")
