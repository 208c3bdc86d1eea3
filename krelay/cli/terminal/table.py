"""The table of forwards, and that of tunnels: pure functions of a snapshot's JSON form.

Each column knows what a narrow terminal does to it, and `table` fits the columns into the width.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from rich.cells import cell_len
from rich.text import Text

from krelay.cli.terminal.figures import Rates, age, size
from krelay.text import one_line

Forward = Mapping[str, Any]
Cell = Callable[[Forward, Rates, datetime], Text]

GLYPHS = {
    "failed": ("✗", "red"),
    "degraded": ("◐", "yellow"),
    "pending": ("○", "cyan"),
    "ready": ("●", "green"),
    "draining": ("◌", "magenta"),
}
"""A symbol, which tells states apart without colour, and a style; the most urgent state first."""
_URGENCY = {state: place for place, state in enumerate(GLYPHS)}
_GAP = 2
_NONE = "–"
_LEAST_NAME = 8
_NAME, _STATE, _LOCAL = 0, 1, 2
"""The columns that never go, by number."""


def by_urgency(forwards: Iterable[Forward]) -> list[Forward]:
    """Return the forwards that need attention first; forwards of a state keep their order."""
    return sorted(forwards, key=lambda forward: _URGENCY.get(forward["state"], -1))


@dataclass(frozen=True, slots=True)
class Table:
    """The line of titles, and the lines of each forward."""

    titles: Text
    rows: Sequence[Sequence[Text]]

    @property
    def lines(self) -> list[Text]:
        """All lines."""
        return [self.titles, *(line for row in self.rows for line in row)]


def table(
    forwards: Sequence[Forward],
    now: datetime,
    *,
    width: int | None = None,
    rates: Rates | None = None,
    wide: bool = False,
    reasons: bool = False,
) -> Table:
    """Return the table of `forwards`, with their throughput if `rates` is not None.

    The table fits into `width` columns of a terminal: those that carry nothing go first, then the
    less important ones, and only then does it cut names. It never cuts a local address. `wide`
    adds columns; what of them does not fit follows below each forward. `reasons` adds a column
    with the reason of each forward that is not ready. Ages count to `now`.
    """
    columns = [*_COLUMNS, *(_RATES if rates is not None else ()), _SINCE, *(_WIDE if wide else ())]
    if reasons:
        columns.append(_WIDE_REASON if wide else _REASON)
    found = rates or {}
    cells = [[column.cell(row, found, now) for column in columns] for row in forwards]
    whole = [row.copy() for row in cells]
    widths = _natural(columns, cells)
    if width is not None:
        widths = _fit(columns, cells, forwards, width, busy=bool(found))
    right = {n for n, column in enumerate(columns) if column.right}
    titles = [
        Text(column.title if cell_len(column.title) <= widths.get(n, 0) else "", "dim")
        for n, column in enumerate(columns)
    ]
    rows = []
    for row, full in zip(cells, whole, strict=True):
        hidden = [n for n, cell in enumerate(full) if n not in widths or cell != row[n]]
        details = [(columns[n].title, full[n]) for n in hidden] if wide else []
        rows.append([_line(row, widths, right), *_details(details, width or 0)])
    return Table(_line(titles, widths, right), rows)


def tunnels(snapshot: Mapping[str, Any], now: datetime) -> list[Text]:
    """Return a table of the tunnels: what carries each, and why not by the faster way."""
    titles = ("TUNNEL", "CARRIER", "STREAMS", "RTT", "REASON")
    rows = [[Text(title, "dim") for title in titles]]
    for agent in snapshot["agents"]:
        for tunnel in agent["tunnels"]:
            rtt = tunnel["rtt"]
            rows.append(
                [
                    Text(one_line(tunnel["name"]), "bold"),
                    Text(one_line(tunnel.get("carrier") or _NONE)),
                    Text(str(tunnel["streams"])),
                    Text(_NONE if rtt is None else f"{rtt * 1000:.1f} ms"),
                    Text(one_line(_tunnel_reason(tunnel, now))),
                ]
            )
    widths = {n: max(row[n].cell_len for row in rows) for n in range(len(titles))}
    return [_line(row, widths, {2, 3}) for row in rows]


def _tunnel_reason(tunnel: Mapping[str, Any], now: datetime) -> str:
    if tunnel["failure"]:
        return str(tunnel["failure"])
    shortcut = tunnel.get("shortcut")
    if shortcut is None:
        return ""
    # `age` counts from the first time to the second.
    wait = age(now.isoformat(), max(now, datetime.fromisoformat(shortcut["nextAttempt"])))
    return f"not by proxy: {shortcut['reason']} (next attempt in {wait})"


# -- lines -----------------------------------------------------------------------------------------


def wrapped(text: Text, width: int, indent: int = 0) -> list[Text]:
    """Return `text` broken between words into lines of `width` columns; `indent` moves all but the
    first to the right."""
    from rich.console import Console

    lines = text.wrap(Console(width=width), max(2, width - indent), overflow="fold")
    for number, line in enumerate(lines):
        line.rstrip()
        if number and indent:
            line.pad_left(indent)
    return list(lines)


def cut(text: Text, width: int) -> Text:
    """Return `text`, shortened to `width` columns with an ellipsis if it is longer."""
    found = text.copy()
    found.truncate(max(0, width), overflow="ellipsis")
    return found


def _details(cells: Sequence[tuple[str, Text]], width: int) -> list[Text]:
    """Return the cells that no column shows, as indented lines."""
    shown = [f"{title.lower()} {cell.plain}" for title, cell in cells if not _empty(cell)]
    if not shown:
        return []
    text = wrapped(Text(" · ".join(shown), "dim"), max(1, width - 2))
    return [Text.assemble("  ", line) for line in text]


def _line(row: Sequence[Text], widths: Mapping[int, int], right: Collection[int]) -> Text:
    line = Text()
    for number, width in widths.items():
        cell = cut(row[number], width)
        space = Text(" " * (width - cell.cell_len))
        line.append(" " * _GAP if line else "")
        line.append_text(space + cell if number in right else cell + space)
    line.rstrip()
    return line


# -- columns ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Column:
    """A column of the table.

    `spare` orders the columns that a narrow terminal drops: the highest goes first, 0 never goes.
    A column with a `least` width is cut down to it before it is dropped. `room` is the width
    reserved for content that changes all the time, so that other columns do not move; such a
    column counts as empty only while nothing is relayed.
    """

    title: str
    cell: Cell
    spare: int = 0
    right: bool = False
    least: int = 0
    room: int = 0


def _natural(columns: Sequence[_Column], cells: Sequence[Sequence[Text]]) -> dict[int, int]:
    return {
        n: max((column.room, cell_len(column.title), *(row[n].cell_len for row in cells)))
        for n, column in enumerate(columns)
    }


def _excess(widths: Mapping[int, int], width: int) -> int:
    return sum(widths.values()) + _GAP * (len(widths) - 1) - width


def _fit(
    columns: Sequence[_Column],
    cells: list[list[Text]],
    forwards: Sequence[Forward],
    width: int,
    *,
    busy: bool,
) -> dict[int, int]:
    """Return the numbers of the columns that fit into `width`, and their widths.

    May replace cells with shorter ones.
    """
    widths = _natural(columns, cells)
    if _excess(widths, width) <= 0:
        return widths
    for n, column in enumerate(columns):
        kept = column.spare == 0 or (column.room and busy)
        if not kept and all(_empty(row[n]) for row in cells):
            del widths[n]

    def shorten(number: int, cell: Cell) -> None:
        for row, forward in zip(cells, forwards, strict=True):
            row[number] = cell(forward, {}, datetime.min)
        widths[number] = max((1, *(row[number].cell_len for row in cells)))

    if _excess(widths, width) > 0:
        shorten(_LOCAL, _plain(_first_local))
    widths = _drop(columns, widths, width)
    for number, cell in ((_STATE, _glyph), (_LOCAL, _plain(_local_port))):
        # Names keep a few letters as long as there is another way.
        if _excess({**widths, _NAME: min(widths[_NAME], _LEAST_NAME)}, width) > 0:
            shorten(number, cell)
    widths[_NAME] -= max(0, min(_excess(widths, width), widths[_NAME] - 1))
    return widths


def _drop(columns: Sequence[_Column], widths: Mapping[int, int], width: int) -> dict[int, int]:
    """Return the widths of the most important columns that fit; the last one may be cut."""
    kept = {n: found for n, found in widths.items() if columns[n].spare == 0}
    for spare in sorted({columns[n].spare for n in widths} - {0}):
        alike = [n for n in widths if columns[n].spare == spare]
        room = -_excess(kept, width) - _GAP * len(alike)
        if sum(widths[n] for n in alike) <= room:
            kept.update((n, widths[n]) for n in alike)
        elif all(columns[n].least for n in alike) and room >= sum(columns[n].least for n in alike):
            kept.update((n, room // len(alike)) for n in alike)
    return {n: kept[n] for n in sorted(kept)}


def _empty(cell: Text) -> bool:
    return cell.plain in ("", _NONE)


def _plain(of: Callable[[Forward], Any], style: str = "") -> Cell:
    def cell(forward: Forward, rates: Rates, now: datetime) -> Text:
        value = of(forward)
        return Text(_NONE, "dim") if value in (None, "") else Text(one_line(value), style)

    return cell


def _state_cell(forward: Forward, rates: Rates, now: datetime) -> Text:
    glyph, style = GLYPHS.get(forward["state"], ("?", ""))
    return Text(f"{glyph} {one_line(forward['state'])}", style)


def _glyph(forward: Forward, rates: Rates, now: datetime) -> Text:
    return Text(*GLYPHS.get(forward["state"], ("?", "")))


def _first_local(forward: Forward) -> str:
    first, *others = forward["listen"] or [""]
    return f"{first} +{len(others)}" if others else first


def _local_port(forward: Forward) -> str:
    return ":" + forward["listen"][0].rpartition(":")[2] if forward["listen"] else ""


def _to(forward: Forward) -> str:
    return f"{forward['to']}/udp" if forward["protocol"] == "udp" else str(forward["to"])


def _rate(direction: int) -> Cell:
    def cell(forward: Forward, rates: Rates, now: datetime) -> Text:
        rate = rates.get((forward["target"], forward["index"]), (0.0, 0.0))[direction]
        return Text(f"{size(rate)}/s") if rate >= 0.5 else Text(_NONE, "dim")

    return cell


def _why_unready(forward: Forward) -> str:
    return "" if forward["state"] == "ready" else one_line(forward["reason"])


def _bytes(key: str) -> Cell:
    return _plain(lambda f: size(f["traffic"][key]) if f["traffic"][key] else None)


_COLUMNS = (
    _Column("TARGET", _plain(lambda f: f["name"], "bold")),
    _Column("STATE", _state_cell),
    _Column("LOCAL", _plain(lambda f: ", ".join(f["listen"]))),
    _Column("TO", _plain(_to), 3, least=14),
    _Column("ENDPOINT", _plain(lambda f: f["endpoint"]), 4),
    _Column("LIVE", _plain(lambda f: f["live"] or None), 1, right=True, room=4),
)
_RATES = (
    _Column("UP", _rate(0), 2, right=True, room=8),
    _Column("DOWN", _rate(1), 2, right=True, room=8),
)
_SINCE = _Column("SINCE", lambda f, rates, now: Text(age(f["since"], now)), 5, right=True)
_WIDE = (
    _Column("CONTEXT", _plain(lambda f: f["context"]), 6),
    _Column("NAMESPACE", _plain(lambda f: f["namespace"]), 7),
    _Column("WAY", _plain(lambda f: f.get("way")), 8),
    _Column("VIA", _plain(lambda f: f["via"]), 9),
    _Column("CHECK", _plain(lambda f: f["check"]), 10),
    _Column("OPENED", _plain(lambda f: f["traffic"]["opened"] or None), 11, right=True),
    _Column("SENT", _bytes("toRemoteBytes"), 12, right=True),
    _Column("RECEIVED", _bytes("toLocalBytes"), 13, right=True),
)
_WIDE_REASON = _Column("REASON", lambda f, rates, now: Text(one_line(f["reason"])), 14)
_REASON = _Column("REASON", lambda f, rates, now: Text(_why_unready(f)))
