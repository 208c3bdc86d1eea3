"""What the bottom of the terminal shows while `krelay up` runs, for one moment; pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rich.console import Group, RenderableType
from rich.rule import Rule
from rich.text import Text

from krelay.cli import summary
from krelay.cli.rates import Rate
from krelay.cli.table import GLYPHS, reasons, table
from krelay.text import one_line

_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_TURNS = 10
"""How often it moves in a second."""

KEYS = (("r", "reload"), ("q", "quit"), ("?", "help"))
_HELP = (
    "r carries out what the file says now; q ends, and once more cuts what still drains;",
    "Ctrl-Z puts krelay to sleep.",
)


@dataclass(frozen=True, slots=True)
class Moment:
    """`report` is in its JSON form; `waiting` says what is waited for, and for how many seconds."""

    report: Mapping[str, Any]
    rates: Mapping[tuple[str, int], Rate]
    now: datetime
    waiting: tuple[str, float] | None = None
    keys: bool = True
    help: bool = False


def frame(moment: Moment, width: int, height: int) -> RenderableType:
    """All of it, in `height` lines at most."""
    report = moment.report
    above = [Rule(summary.head(report, moment.now), align="left", style="dim")]
    lines: list[Text] = []
    if drift := summary.drift(report, moment.now):
        lines.append(drift)
    below = [*_waiting(moment), *_keys(moment)]
    room = height - len(above) - len(lines) - len(below)
    return Group(*above, *lines, *_forwards(moment, width, room), *below)


def _forwards(moment: Moment, width: int, room: int) -> list[RenderableType]:
    """As many as there is room for, those with trouble first, and why they have it."""
    forwards = moment.report["forwards"]
    if not forwards or room < 2:
        return []
    # While an agent is waited for, that is what most of them wait for.
    told = [f for f in forwards if f["state"] != "pending"] if moment.waiting else forwards
    why = reasons(told, moment.now)
    # The title of the table, and a reason a line, but never more of these than of the rest.
    why = why[: max(room - 1 - len(forwards), (room - 1) // 3)]
    rows = room - 1 - len(why)
    more: list[RenderableType] = []
    if len(forwards) > rows:
        shown = chosen(forwards, rows - 1)
        left = len(forwards) - len(shown)
        more.append(Text(f"… and {left} more: `krelay status` has them all", "dim", no_wrap=True))
    else:
        shown = list(forwards)
    made = table(
        moment.report,
        forwards=shown,
        rates=moment.rates,
        width=width,
        now=moment.now,
        explained=False,
    )
    return [made, *more, *why]


def chosen(forwards: Sequence[Mapping[str, Any]], count: int) -> list[Mapping[str, Any]]:
    """`count` of them in their order: those that are not ready before those that are."""
    places = sorted(range(len(forwards)), key=lambda n: (forwards[n]["state"] == "ready", n))
    return [forwards[n] for n in sorted(places[: max(0, count)])]


def _waiting(moment: Moment) -> list[Text]:
    if moment.waiting is None:
        return []
    text, seconds = moment.waiting
    turn = _SPINNER[int(moment.now.timestamp() * _TURNS) % len(_SPINNER)]
    return [
        Text.assemble(
            (f"{turn} ", "cyan"),
            one_line(text),
            (f"  {seconds:.0f}s" if seconds >= 1 else "", "dim"),
            no_wrap=True,
            overflow="ellipsis",
        )
    ]


def _keys(moment: Moment) -> list[Text]:
    if not moment.keys:
        return []
    line = Text(no_wrap=True, overflow="ellipsis")
    for key, meaning in KEYS:
        line.append(f"{key} ", "bold").append(f"{meaning}   ", "dim")
    if not moment.help:
        return [line]
    legend = Text("   ").join(Text(f"{g} {word}", style) for word, (g, style) in GLYPHS.items())
    legend.no_wrap, legend.overflow = True, "ellipsis"
    return [legend, *(Text(text, "dim", no_wrap=True) for text in _HELP), line]
