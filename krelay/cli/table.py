"""The table of forwards, of a report in its JSON form, as wide as there is room for."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from krelay.cli.rates import Rate, size
from krelay.text import one_line

Forward = Mapping[str, Any]
Rates = Mapping[tuple[str, int], Rate]

_GAP = 2
_NONE = "–"
GLYPHS = {
    "ready": ("●", "green"),
    "degraded": ("◐", "yellow"),
    "pending": ("○", "cyan"),
    "failed": ("✗", "red"),
    "draining": ("◌", "magenta"),
}


@dataclass(frozen=True, slots=True)
class _Column:
    """`spare`: where there is no room, the column with the highest one goes first; 0 stays. One
    with a `least` width can be cut down to that first; `room` is taken in any case, so that what
    changes all the time does not move the rest."""

    title: str
    cell: Callable[[Forward, Rates | None, datetime], Text]
    spare: int = 0
    right: bool = False
    least: int = 0
    room: int = 0


def table(
    report: Mapping[str, Any],
    *,
    forwards: Sequence[Forward] | None = None,
    rates: Rates | None = None,
    width: int | None = None,
    wide: bool = False,
    explained: bool = True,
    now: datetime | None = None,
) -> RenderableType:
    """The forwards, all or these; with `rates`, and within `width` where that is given: then why
    some are not ready comes below (if `explained`), else in a column. `wide` has all there is."""
    rows = report["forwards"] if forwards is None else forwards
    now = now or datetime.now(UTC)
    columns = [*_COLUMNS, *(_RATES if rates is not None else ()), _SINCE, *(_WIDE if wide else ())]
    if width is None or wide:
        columns.append(_REASON)
    cells = [[column.cell(row, rates, now) for column in columns] for row in rows]
    widths = _fit(columns, cells, width if not wide else None)
    made = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="dim")
    for number, cell_width in widths.items():
        column = columns[number]
        made.add_column(
            column.title,
            width=cell_width,
            justify="right" if column.right else "left",
            no_wrap=True,
            overflow="ellipsis",
        )
    for row in cells:
        made.add_row(*(row[number] for number in widths))
    return made if width is None or wide or not explained else Group(made, *reasons(rows, now))


def reasons(rows: Iterable[Forward], now: datetime) -> list[Text]:
    """A line for each that is not ready and says why."""
    found = []
    for row in rows:
        if row["state"] != "ready" and row["reason"]:
            glyph, style = GLYPHS[row["state"]]
            text = one_line(f"{row['name']} ({age(row['since'], now)}): {row['reason']}")
            found.append(
                Text.assemble((f"{glyph} ", style), text, no_wrap=True, overflow="ellipsis")
            )
    return found


def state(word: str) -> Text:
    """The state with its glyph: it can be told without colour."""
    glyph, style = GLYPHS.get(word, ("?", ""))
    return Text(f"{glyph} {one_line(word)}", style)


def age(since: str, now: datetime) -> str:
    """`12s`, `5m`, `3h`, `2d`: how long ago that was."""
    seconds = max(0.0, (now - datetime.fromisoformat(since)).total_seconds())
    for unit, length in (("d", 86_400), ("h", 3_600), ("m", 60)):
        if seconds >= length:
            return f"{int(seconds // length)}{unit}"
    return f"{int(seconds)}s"


def _fit(
    columns: Sequence[_Column], cells: Sequence[Sequence[Text]], width: int | None
) -> dict[int, int]:
    """The numbers of the columns that there is room for, and their widths."""
    widths = {
        n: max((column.room, cell_len(column.title), *(row[n].cell_len for row in cells)))
        for n, column in enumerate(columns)
    }
    if width is None:
        return widths

    def over(found: Mapping[int, int]) -> int:
        return sum(found.values()) + _GAP * (len(found) - 1) - width

    def least(n: int) -> int:
        return min(widths[n], columns[n].least or widths[n])

    while over({n: least(n) for n in widths}) > 0:
        spare = max(columns[n].spare for n in widths)
        if spare == 0:
            break
        widths = {n: found for n, found in widths.items() if columns[n].spare != spare}
    for n in sorted(widths, key=lambda n: -columns[n].spare):
        widths[n] -= max(0, min(over(widths), widths[n] - least(n)))
    return widths


def _plain(of: Callable[[Forward], Any], style: str = "") -> Callable[..., Text]:
    def cell(forward: Forward, rates: Rates | None, now: datetime) -> Text:
        value = of(forward)
        return Text(_NONE, "dim") if value in (None, "") else Text(one_line(str(value)), style)

    return cell


def _to(forward: Forward) -> str:
    return f"{forward['to']}/udp" if forward["protocol"] == "udp" else str(forward["to"])


def _rate(direction: int) -> Callable[..., Text]:
    def cell(forward: Forward, rates: Rates | None, now: datetime) -> Text:
        rate = (rates or {}).get((forward["target"], forward["index"]), (0.0, 0.0))[direction]
        return Text(f"{size(rate)}/s") if rate >= 0.5 else Text(_NONE, "dim")

    return cell


_COLUMNS = (
    _Column("TARGET", _plain(lambda f: f["name"], "bold"), least=12),
    _Column("STATE", lambda f, rates, now: state(f["state"])),
    _Column("LOCAL", _plain(lambda f: ", ".join(f["listen"]))),
    _Column("TO", _plain(_to), 3, least=12),
    _Column("ENDPOINT", _plain(lambda f: f["endpoint"]), 4, least=14),
    _Column("LIVE", _plain(lambda f: f["live"] or None), 1, right=True),
)
_RATES = (
    _Column("UP", _rate(0), 2, right=True, room=8),
    _Column("DOWN", _rate(1), 2, right=True, room=8),
)
_SINCE = _Column("SINCE", lambda f, rates, now: Text(age(f["since"], now)), 5, right=True)
_WIDE = (
    _Column("CONTEXT", _plain(lambda f: f["context"])),
    _Column("NAMESPACE", _plain(lambda f: f["namespace"])),
    _Column("VIA", _plain(lambda f: f["via"])),
    _Column("CHECK", _plain(lambda f: f["check"])),
    _Column("OPENED", _plain(lambda f: f["traffic"]["opened"]), right=True),
    _Column("SENT", _plain(lambda f: size(f["traffic"]["toRemoteBytes"])), right=True),
    _Column("RECEIVED", _plain(lambda f: size(f["traffic"]["toLocalBytes"])), right=True),
)
_REASON = _Column("REASON", lambda f, rates, now: Text(one_line(f["reason"])))
