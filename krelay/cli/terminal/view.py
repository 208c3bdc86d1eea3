"""The live table of `krelay up`, and the table of `krelay status`: pure functions of a snapshot.

A snapshot is taken in its JSON form (`schema/status.schema.json`), since `krelay status` receives
it from another process. It may come from a krelay that cleans nothing, so every text passes
`krelay.text`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from rich.cells import cell_len
from rich.console import Group, RenderableType
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from krelay.text import one_line

Snapshot = Mapping[str, Any]
Forward = Mapping[str, Any]
Rate = tuple[float, float]
"""Bytes per second to the remote end, and to the local end."""
Rates = Mapping[tuple[str, int], Rate]
"""Rates by target and index of its port."""

GLYPHS = {
    "ready": ("●", "green"),
    "degraded": ("◐", "yellow"),
    "pending": ("○", "cyan"),
    "failed": ("✗", "red"),
    "draining": ("◌", "magenta"),
}
KEYS = (("r", "reload"), ("q", "quit"), ("?", "help"))
_HELP = (
    "r applies the file as it is now; q quits, and a second q skips the drain;",
    "Ctrl-Z suspends krelay.",
)
_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_TURNS = 10
"""Steps of the spinner per second."""
_GAP = 2
_NONE = "–"
_UNITS = ("B", "kB", "MB", "GB", "TB")


# -- the live table --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ViewModel:
    """All that the live table shows.

    `waiting` holds what krelay waits for, and for how many seconds it has. `keys` shows the keys.
    """

    snapshot: Snapshot
    rates: Rates
    now: datetime
    waiting: tuple[str, float] | None = None
    keys: bool = True
    help: bool = False


def frame(model: ViewModel, width: int, height: int) -> RenderableType:
    """Return the live table, at most `height` lines of it."""
    snapshot = model.snapshot
    lines: list[RenderableType] = [
        Rule(headline(snapshot, model.now), align="left", style="dim"),
        *out_of_sync(snapshot, model.now),
    ]
    below = [*_waiting(model), *_keys(model)]
    room = height - len(lines) - len(below)
    return Group(*lines, *_forwards(model, width, room), *below)


def _forwards(model: ViewModel, width: int, room: int) -> list[RenderableType]:
    """Return the table in `room` lines: forwards in trouble first, and the reasons below."""
    forwards = model.snapshot["forwards"]
    if not forwards or room < 2:
        return []
    # While krelay waits for an agent, most pending forwards wait for the same.
    explained = [f for f in forwards if f["state"] != "pending"] if model.waiting else forwards
    why = reasons(explained, model.now)
    # A line is for the titles. Reasons take what the forwards leave, or a third of the room.
    why = why[: max(room - 1 - len(forwards), (room - 1) // 3)]
    rows = room - 1 - len(why)
    shown, more = list(forwards), []
    if len(forwards) > rows:
        shown = most_urgent(forwards, rows - 1)
        left = len(forwards) - len(shown)
        more = [Text(f"… and {left} more: `krelay status` shows them all", "dim", no_wrap=True)]
    made = table(shown, rates=model.rates, width=width, now=model.now, explained=False)
    return [made, *more, *why]


def most_urgent(forwards: Sequence[Forward], count: int) -> list[Forward]:
    """Return `count` forwards in their order, preferring those that are not ready."""
    places = sorted(range(len(forwards)), key=lambda n: (forwards[n]["state"] == "ready", n))
    return [forwards[n] for n in sorted(places[: max(0, count)])]


def _waiting(model: ViewModel) -> list[Text]:
    if model.waiting is None:
        return []
    text, seconds = model.waiting
    turn = _SPINNER[int(model.now.timestamp() * _TURNS) % len(_SPINNER)]
    elapsed = f"  {seconds:.0f}s" if seconds >= 1 else ""
    return [_line(Text.assemble((f"{turn} ", "cyan"), one_line(text), (elapsed, "dim")))]


def _keys(model: ViewModel) -> list[Text]:
    if not model.keys:
        return []
    line = _line(Text())
    for key, meaning in KEYS:
        line.append(f"{key} ", "bold").append(f"{meaning}   ", "dim")
    if not model.help:
        return [line]
    legend = Text("   ").join(Text(f"{g} {word}", style) for word, (g, style) in GLYPHS.items())
    return [_line(legend), *(Text(text, "dim", no_wrap=True) for text in _HELP), line]


# -- around the table ------------------------------------------------------------------------------


def headline(snapshot: Snapshot, now: datetime) -> Text:
    """Return the summary of a run.

    `krelay.yaml · 3 of 4 ready · up 5m · agent default/krelay-server-x4k2p: 2 tunnels, 3 ms`
    """
    forwards = snapshot["forwards"]
    staying = [forward for forward in forwards if forward["state"] != "draining"]
    ready = sum(forward["state"] == "ready" for forward in staying)
    if snapshot["ending"] or (forwards and not staying):
        verdict = Text("ending", "magenta")
    elif staying:
        style = "green" if snapshot["ready"] else "yellow"
        verdict = Text(f"{ready} of {len(staying)} ready", style)
    else:
        verdict = Text("starting", "yellow")
    path = snapshot["file"]["path"]
    parts = [Text(one_line(Path(path).name) if path else "krelay", "bold"), verdict]
    if snapshot["draining"]:
        parts.append(Text(f"{snapshot['draining']} draining", "magenta"))
    parts.append(Text(f"up {age(snapshot['started'], now)}", "dim"))
    parts += [_agent(agent) for agent in snapshot["agents"]]
    return _line(Text.assemble((" · ", "dim")).join(parts))


def out_of_sync(snapshot: Snapshot, now: datetime) -> list[Text]:
    """Return a line that says since when and why the file is not what runs, if it is not."""
    file = snapshot["file"]
    if file["inStep"]:
        return []
    since = f" for {age(file['since'], now)}" if file["since"] else ""
    if file["error"] is None:
        return [_line(Text(f"! not in sync with the file yet{since}", "yellow"))]
    message = one_line(file["error"]["message"])
    return [_line(Text(f"! out of sync with the file{since}: {message}", "red"))]


def contexts(snapshot: Snapshot) -> list[Text]:
    """Return a line for each kubeconfig context in use and where it leads, and for each reason why
    forwards go directly although the file does not say so."""
    found = []
    reasons: dict[str, list[str]] = {}
    for forward in snapshot["forwards"]:
        if reason := forward.get("wayReason"):
            reasons.setdefault(reason, []).append(forward["name"])
    for reason, names in reasons.items():
        shown = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
        text = f"direct, TCP only and without resumption: {shown}: {reason}"
        found.append(_line(Text(one_line(text), "yellow")))
    for context in snapshot.get("contexts", ()):
        name = f"context {context['name']}" if context["name"] else "in the cluster"
        text = f"{name}: {context['server']}, namespace {context['namespace']}"
        found.append(_line(Text(one_line(text), "dim")))
    return found


def _agent(agent: Mapping[str, Any]) -> Text:
    tunnels = agent["tunnels"]
    up = [tunnel for tunnel in tunnels if tunnel["up"]]
    where = one_line(", ".join(agent["where"]))
    text = f"agent {where}: " if where else "agent: "
    if not up:
        return Text(f"{text}no tunnel", "yellow")
    count = f"{len(up)}" if len(up) == len(tunnels) else f"{len(up)} of {len(tunnels)}"
    text += f"{count} tunnel{'' if count == '1' else 's'}"
    delays = [tunnel["rtt"] for tunnel in up if tunnel["rtt"] is not None]
    if delays:
        ms = min(delays) * 1000
        text += f", {ms:.0f} ms" if ms >= 1 else ", <1 ms"
    if compressed := sum(tunnel["compressionInput"] for tunnel in tunnels):
        took = sum(tunnel["compressionOutput"] for tunnel in tunnels)
        text += f", {size(compressed)} compressed to {size(took)}"
    return Text(text)


def _line(text: Text) -> Text:
    """Return `text` set to be cut, not broken, at the edge of the terminal."""
    text.no_wrap, text.overflow = True, "ellipsis"
    return text


# -- the table of forwards -------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Column:
    """A column of the table.

    `spare` orders the columns that a narrow terminal drops: the highest goes first, 0 never goes.
    A column with a `least` width is cut down to it before any column is dropped. `room` is the
    width reserved for content that changes all the time, so that other columns do not move.
    """

    title: str
    cell: Callable[[Forward, Rates | None, datetime], Text]
    spare: int = 0
    right: bool = False
    least: int = 0
    room: int = 0


def table(
    forwards: Sequence[Forward],
    *,
    rates: Rates | None = None,
    width: int | None = None,
    wide: bool = False,
    explained: bool = True,
    now: datetime | None = None,
) -> RenderableType:
    """Return the table of `forwards`, with their throughput if there are `rates`.

    The table fits into `width` columns of a terminal, and the reasons why forwards are not ready
    follow below it (if `explained`) instead of in a column. `wide` shows every column, whatever
    the width. Ages count to `now`.
    """
    now = now or datetime.now(UTC)
    columns = [*_COLUMNS, *(_RATES if rates is not None else ()), _SINCE, *(_WIDE if wide else ())]
    below = width is not None and not wide
    if not below:
        columns.append(_WIDE_REASON if wide else _REASON)
    cells = [[column.cell(row, rates, now) for column in columns] for row in forwards]
    widths = _fit(columns, cells, width if below else None)
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
    return Group(made, *reasons(forwards, now)) if below and explained else made


def reasons(forwards: Iterable[Forward], now: datetime) -> list[Text]:
    """Return a line for each forward that is not ready and says why."""
    found = []
    for forward in forwards:
        if why := _why_unready(forward):
            glyph, style = GLYPHS[forward["state"]]
            since = age(forward["since"], now)
            text = one_line(f"{forward['name']} ({since}): {why}")
            found.append(_line(Text.assemble((f"{glyph} ", style), text)))
    return found


def _why_unready(forward: Forward) -> str:
    return "" if forward["state"] == "ready" else one_line(forward["reason"])


def _fit(
    columns: Sequence[_Column], cells: Sequence[Sequence[Text]], width: int | None
) -> dict[int, int]:
    """Return the numbers of the columns that fit into `width`, and their widths.

    rich can shrink columns, but not drop them.
    """
    widths = {
        n: max((column.room, cell_len(column.title), *(row[n].cell_len for row in cells)))
        for n, column in enumerate(columns)
    }
    if width is None:
        return widths

    def excess(found: Mapping[int, int]) -> int:
        return sum(found.values()) + _GAP * (len(found) - 1) - width

    def least(n: int) -> int:
        return min(widths[n], columns[n].least or widths[n])

    while excess({n: least(n) for n in widths}) > 0:
        spare = max(columns[n].spare for n in widths)
        if spare == 0:
            break
        widths = {n: found for n, found in widths.items() if columns[n].spare != spare}
    for n in sorted(widths, key=lambda n: -columns[n].spare):
        widths[n] -= max(0, min(excess(widths), widths[n] - least(n)))
    return widths


def _plain(of: Callable[[Forward], Any], style: str = "") -> Callable[..., Text]:
    def cell(forward: Forward, rates: Rates | None, now: datetime) -> Text:
        value = of(forward)
        return Text(_NONE, "dim") if value in (None, "") else Text(one_line(value), style)

    return cell


def _state(forward: Forward, rates: Rates | None, now: datetime) -> Text:
    """Return the state with its glyph, which tells states apart without colour."""
    glyph, style = GLYPHS.get(forward["state"], ("?", ""))
    return Text(f"{glyph} {one_line(forward['state'])}", style)


def _to(forward: Forward) -> str:
    return f"{forward['to']}/udp" if forward["protocol"] == "udp" else str(forward["to"])


def _rate(direction: int) -> Callable[..., Text]:
    def cell(forward: Forward, rates: Rates | None, now: datetime) -> Text:
        rate = (rates or {}).get((forward["target"], forward["index"]), (0.0, 0.0))[direction]
        return Text(f"{size(rate)}/s") if rate >= 0.5 else Text(_NONE, "dim")

    return cell


_COLUMNS = (
    _Column("TARGET", _plain(lambda f: f["name"], "bold"), least=12),
    _Column("STATE", _state),
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
    _Column("WAY", _plain(lambda f: f.get("way"))),
    _Column("VIA", _plain(lambda f: f["via"])),
    _Column("CHECK", _plain(lambda f: f["check"])),
    _Column("OPENED", _plain(lambda f: f["traffic"]["opened"]), right=True),
    _Column("SENT", _plain(lambda f: size(f["traffic"]["toRemoteBytes"])), right=True),
    _Column("RECEIVED", _plain(lambda f: size(f["traffic"]["toLocalBytes"])), right=True),
)
_WIDE_REASON = _Column("REASON", lambda f, rates, now: Text(one_line(f["reason"])))
_REASON = _Column("REASON", lambda f, *_: Text(_why_unready(f)))


# -- the table of tunnels --------------------------------------------------------------------------


def tunnels(snapshot: Snapshot, now: datetime) -> RenderableType:
    """Return a table of the tunnels: what carries each, and why not by the faster way."""
    made = Table(box=None, pad_edge=False, padding=(0, _GAP, 0, 0), header_style="dim")
    for title in ("TUNNEL", "CARRIER", "STREAMS", "RTT", "REASON"):
        right = title in ("STREAMS", "RTT")
        made.add_column(title, justify="right" if right else "left", no_wrap=True)
    for agent in snapshot["agents"]:
        for tunnel in agent["tunnels"]:
            rtt = tunnel["rtt"]
            made.add_row(
                Text(one_line(tunnel["name"]), "bold"),
                Text(one_line(tunnel.get("carrier") or _NONE)),
                Text(str(tunnel["streams"])),
                Text(_NONE if rtt is None else f"{rtt * 1000:.1f} ms"),
                Text(one_line(_tunnel_reason(tunnel, now))),
            )
    return made


def _tunnel_reason(tunnel: Mapping[str, Any], now: datetime) -> str:
    if tunnel["failure"]:
        return str(tunnel["failure"])
    shortcut = tunnel.get("shortcut")
    if shortcut is None:
        return ""
    # `age` counts from the first time to the second.
    wait = age(now.isoformat(), max(now, datetime.fromisoformat(shortcut["nextAttempt"])))
    return f"not by proxy: {shortcut['reason']} (next attempt in {wait})"


# -- times, sizes and rates ------------------------------------------------------------------------


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

    def update(self, snapshot: Snapshot, now: float) -> dict[tuple[str, int], Rate]:
        """Return the rates since the previous snapshot; `now` is monotonic, in seconds.

        The result is empty for the first snapshot of a run.
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
        return found


def _counts(forward: Forward) -> tuple[tuple[str, int], tuple[int, int]]:
    traffic = forward["traffic"]
    counts = (traffic["toRemoteBytes"], traffic["toLocalBytes"])
    return (forward["target"], forward["index"]), counts
