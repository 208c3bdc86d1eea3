"""What a terminal shows of a krelay: pure functions of a snapshot.

A snapshot is taken in its JSON form (`schema/status.schema.json`), since `krelay status` receives
it from another process. It may come from a krelay that cleans nothing, so every text passes
`krelay.text`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.text import Text

from krelay.cli.terminal.figures import Rates, age, size
from krelay.cli.terminal.table import GLYPHS, Forward, by_urgency, cut, table, tunnels, wrapped
from krelay.state.states import leads_to
from krelay.text import one_line

Snapshot = Mapping[str, Any]

_HELP = (
    "j, k, the arrows and the page keys scroll, g and G go to the ends. / shows only what contains "
    "a text, Esc shows all again. Ctrl-Z suspends."
)
_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_TURNS = 10
"""Steps of the spinner per second."""
_MOST_LINES = 3
"""Lines of one reason in a live table that cannot show all of them."""
_MOST_NAMES = 3
"""Names of forwards with the same reason."""
_DOT = " · "
_COMMAND = re.compile("`[^`]+`|kubectl [^;,`]+")
_SPACE = "\ue000"
"""Stands for a space of a command while lines are broken."""


# -- the live table --------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Selection:
    """Which forwards to show: those that contain `pattern`, from the row `first`.

    The pattern is being entered while `typing`.
    """

    first: int = 0
    pattern: str = ""
    typing: bool = False


@dataclass(frozen=True, slots=True)
class ViewModel:
    """All that the live table shows.

    `waiting` holds what krelay waits for, and for how many seconds it has. `keys` has the keys and
    their meanings; without any, no line shows them. `help` explains them while it is not empty.
    `wide` shows every column, and the tunnels.
    """

    snapshot: Snapshot
    rates: Rates
    now: datetime
    waiting: tuple[str, float] | None = None
    keys: Sequence[tuple[str, str]] = ()
    help: str = ""
    selection: Selection = Selection()
    wide: bool = False


@dataclass(frozen=True, slots=True)
class Frame:
    """The lines of the live table, and which rows they show: `page` of them from `first`."""

    lines: Sequence[Text]
    first: int = 0
    page: int = 0


def frame(model: ViewModel, width: int, height: int) -> Frame:
    """Return the live table, at most `height` lines of it."""
    snapshot, now = model.snapshot, model.now
    below = [*_waiting(model, width), *_keys(model, width)]
    if "error" in snapshot:
        return Frame([*_error(snapshot["error"], "", width), *below][:height])
    head = headline(snapshot, now, width - 2)
    rule = Text.assemble(head, " ", ("─" * (width - head.cell_len - 1), "dim"))
    above = [rule, *_limited([out_of_sync(snapshot, now, width)], height // 4)]
    body = _body(model, width, height - len(above) - len(below))
    lines = [cut(line, width) for line in (*above, *body.lines, *below)]
    return Frame(lines[:height], body.first, body.page)


def _body(model: ViewModel, width: int, room: int) -> Frame:
    """Return the table in `room` lines, and below it why forwards are not ready."""
    forwards = matching(model.snapshot["forwards"], model.selection.pattern)
    if room < 2 or not (forwards or model.selection.pattern):
        return Frame(())
    if not forwards:
        return Frame([Text("no forward contains this text", "yellow")])
    made = table(forwards, model.now, width=width, rates=model.rates, wide=model.wide)
    rows = [line for row in made.rows for line in row]
    if model.wide:
        rows += _footer(model.snapshot, model.now, width)
    # While krelay waits for an agent, most pending forwards wait for the same.
    explained = [f for f in forwards if not (model.waiting and f["state"] == "pending")]
    # A line is for the titles. Reasons take what the rows leave, or a third of the room.
    most = max(room - 1 - len(rows), (room - 1) // 3)
    why = [] if model.wide else _limited(reasons(explained, model.now, width), most)
    room -= 1 + len(why)
    if len(rows) <= room:
        return Frame([made.titles, *rows, *why], 0, len(rows))
    shown = max(0, room - 1)
    first = max(0, min(model.selection.first, len(rows) - shown))
    hidden = [forward["state"] for forward in forwards[first + shown :]]
    left = len(rows) - first - shown
    more = _more(first, f"{left} more lines" if model.wide and left else _counted(hidden))
    if model.keys:
        more.append("  j k ", "bold").append("scroll", "dim")
    return Frame([made.titles, *rows[first : first + shown], more, *why], first, shown)


def matching(forwards: Iterable[Forward], pattern: str) -> list[Forward]:
    """Return the forwards with `pattern` in a text of theirs, the most urgent ones first."""
    wanted = pattern.casefold()
    found = [forward for forward in forwards if wanted in _texts(forward).casefold()]
    return by_urgency(found)


def _texts(forward: Forward) -> str:
    keys = ["name", "state", "to", "endpoint", "namespace", "context"]
    if forward["state"] != "ready":
        keys.append("reason")
    return "\n".join([*(str(forward.get(key) or "") for key in keys), *forward["listen"]])


def _more(above: int, below: str) -> Text:
    parts = [*([f"{above} above"] if above else []), *([below] if below else [])]
    return Text(f"… {' · '.join(parts)}", "dim")


def _counted(states: Collection[str]) -> str:
    """Return `3 more ready`, or `5 more: 2 pending, 3 ready`."""
    counts = Counter(states)
    kinds = [state for state in (*GLYPHS, *sorted(set(counts) - set(GLYPHS))) if counts[state]]
    if len(kinds) == 1:
        return f"{len(states)} more {one_line(kinds[0])}"
    found = ", ".join(f"{counts[state]} {one_line(state)}" for state in kinds)
    return f"{len(states)} more: {found}" if found else ""


def _limited(blocks: Sequence[Sequence[Text]], room: int) -> list[Text]:
    """Return the blocks in `room` lines: all of each, or else its first lines; an ellipsis ends a
    block that was cut."""
    most = room if sum(map(len, blocks)) <= room else _MOST_LINES
    found: list[Text] = []
    for block in blocks:
        lines = list(block[: max(0, min(most, room - len(found)))])
        if lines and len(lines) < len(block):
            lines[-1] = Text.assemble(lines[-1], " …")
        found += lines
    return found


def _waiting(model: ViewModel, width: int) -> list[Text]:
    if model.waiting is None:
        return []
    text, seconds = model.waiting
    turn = _SPINNER[int(model.now.timestamp() * _TURNS) % len(_SPINNER)]
    elapsed = f"  {seconds:.0f}s" if seconds >= 1 else ""
    shown = cut(Text(one_line(text)), width - 2 - len(elapsed))
    return [Text.assemble((f"{turn} ", "cyan"), shown, (elapsed, "dim"))]


def _keys(model: ViewModel, width: int) -> list[Text]:
    if not model.keys:
        return []
    pattern = one_line(model.selection.pattern)
    if model.selection.typing:
        return [Text.assemble((f"/{pattern}▏", "bold"), ("   Enter keeps it, Esc drops it", "dim"))]
    line = Text(f"/{pattern}   " if pattern else "", "bold")
    for key, meaning in model.keys:
        line.append(f"{key} ", "bold").append(f"{meaning}   ", "dim")
    line.rstrip()
    if not model.help:
        return [line]
    legend = "   ".join(f"{glyph} {word}" for word, (glyph, _) in GLYPHS.items())
    text = Text(f"{model.help} {_HELP}", "dim")
    return [*wrapped(Text(legend), width), *wrapped(text, width), line]


# -- `krelay status` -------------------------------------------------------------------------------


def summary(
    snapshot: Snapshot,
    now: datetime,
    width: int,
    *,
    rates: Rates | None = None,
    wide: bool = False,
) -> list[Text]:
    """Return what `krelay status` prints at a terminal of `width` columns."""
    if "error" in snapshot:
        return _error(snapshot["error"], "", width)
    forwards = by_urgency(snapshot["forwards"])
    made = table(forwards, now, width=width, rates=rates, wide=wide)
    return [
        headline(snapshot, now, width),
        *([] if wide else contexts(snapshot, width)),
        *out_of_sync(snapshot, now, width),
        Text(),
        *made.lines,
        *(_footer(snapshot, now, width) if wide else _joined(reasons(forwards, now, width))),
    ]


def lines(snapshot: Snapshot, now: datetime, rates: Rates | None, *, wide: bool) -> list[Text]:
    """Return what `krelay status` prints into a pipe: a line for each forward."""
    made = table(by_urgency(snapshot["forwards"]), now, rates=rates, wide=wide, reasons=True)
    return [*made.lines, *(_footer(snapshot, now, None) if wide else ())]


def _footer(snapshot: Snapshot, now: datetime, width: int | None) -> list[Text]:
    """Return what `wide` shows below the table: the tunnels, and where they lead."""
    engine = Text(f"connections to the cluster: {one_line(snapshot.get('engine', 'asyncio'))}")
    found = [*tunnels(snapshot, now), Text(), engine, *contexts(snapshot, width)]
    return [Text(), *_joined(_wrapped(text, width) for text in found)]


def _wrapped(text: Text, width: int | None, indent: int = 2) -> list[Text]:
    return [text] if width is None else wrapped(text, width, indent)


def _joined(blocks: Iterable[Iterable[Text]]) -> list[Text]:
    return [line for block in blocks for line in block]


# -- around the table ------------------------------------------------------------------------------


def headline(snapshot: Snapshot, now: datetime, width: int) -> Text:
    """Return the summary of a run, without the last parts if it does not fit.

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
    name = Text(one_line(Path(path).name) if path else "krelay", "bold")
    found = cut(name, width - verdict.cell_len - len(_DOT))
    parts: list[tuple[Text, ...]] = [(verdict,)]
    if snapshot["draining"]:
        parts.append((Text(f"{snapshot['draining']} draining", "magenta"),))
    agents = snapshot["agents"]
    lost = [agent for agent in agents if not any(tunnel["up"] for tunnel in agent["tunnels"])]
    parts += [_agent(agent) for agent in lost]
    parts.append((Text(f"up {age(snapshot['started'], now)}", "dim"),))
    parts += [_agent(agent) for agent in agents if agent not in lost]
    for forms in parts:
        for form in forms:
            if found.cell_len + len(_DOT) + form.cell_len <= width:
                found = Text.assemble(found, (_DOT, "dim"), form)
                break
    return found


def _agent(agent: Mapping[str, Any]) -> tuple[Text, Text]:
    """Return what a headline says of an agent, and the same without its place."""
    tunnels = agent["tunnels"]
    up = [tunnel for tunnel in tunnels if tunnel["up"]]
    where = one_line(", ".join(agent["where"]))
    if up:
        count = f"{len(up)}" if len(up) == len(tunnels) else f"{len(up)} of {len(tunnels)}"
        text = f"{count} tunnel{'' if count == '1' else 's'}"
        delays = [tunnel["rtt"] for tunnel in up if tunnel["rtt"] is not None]
        if delays:
            ms = min(delays) * 1000
            text += f", {ms:.0f} ms" if ms >= 1 else ", <1 ms"
        if compressed := sum(tunnel["compressionInput"] for tunnel in tunnels):
            took = sum(tunnel["compressionOutput"] for tunnel in tunnels)
            text += f", {size(compressed)} compressed to {size(took)}"
    else:
        text = "no tunnel"
    style = "" if up else "yellow"
    whole = f"agent {where}: {text}" if where else f"agent: {text}"
    return Text(whole, style), Text(text if up else "agent: no tunnel", style)


def out_of_sync(snapshot: Snapshot, now: datetime, width: int | None = None) -> list[Text]:
    """Return lines that say since when and why the file is not what runs, if it is not."""
    file = snapshot["file"]
    if file["inStep"]:
        return []
    since = f" for {age(file['since'], now)}" if file["since"] else ""
    if file["error"] is None:
        return _wrapped(Text(f"! not in sync with the file yet{since}", "yellow"), width)
    return _error(file["error"], f"! out of sync with the file{since}: ", width)


def _error(error: Mapping[str, Any], start: str, width: int | None) -> list[Text]:
    """Return the lines of an error, with its first problem and its hint."""
    found = _wrapped(Text(f"{start}{one_line(error['message'])}", "red"), width)
    if problems := error.get("problems"):
        first = _problem(problems[0], error.get("path"), len(problems) - 1)
        found += _wrapped(Text(f"  {first}", "red"), width, 4)
    return [*found, *_hint(error.get("hint"), width)]


def _problem(problem: Mapping[str, Any], path: str | None, others: int) -> str:
    """Return a problem with its place as `path:line:column`; `path` is that of the first file."""
    numbers = (problem.get("line"), problem.get("column"))
    where = ":".join(str(part) for part in (problem.get("path") or path, *numbers) if part)
    place = f"{where}: " if where else ""
    more = f" (and {others} more)" if others else ""
    return one_line(f"{place}{problem.get('message')}{more}")


def _hint(hint: object, width: int | None) -> list[Text]:
    """Return the lines of a hint, if there is one; a command in it is broken only if it must be."""
    if not hint:
        return []
    text = _COMMAND.sub(lambda found: found[0].replace(" ", _SPACE), one_line(hint))
    lines = _wrapped(Text(f"  hint: {text}"), width, 4)
    return [Text(line.plain.replace(_SPACE, " "), "dim") for line in lines]


def contexts(snapshot: Snapshot, width: int | None = None) -> list[Text]:
    """Return lines about each kubeconfig context in use and where it leads, and about each reason
    why forwards go directly although the file does not say so."""
    reasons: dict[str, list[str]] = {}
    for forward in snapshot["forwards"]:
        if reason := forward.get("wayReason"):
            reasons.setdefault(reason, []).append(forward["name"])
    found = []
    for reason, names in reasons.items():
        text = f"direct, TCP only and without resumption: {_names(names)}: {reason}"
        found += _wrapped(Text(one_line(text), "yellow"), width)
    for context in snapshot.get("contexts", ()):
        name = f"context {context['name']}" if context["name"] else "in the cluster"
        text = f"{name}: {leads_to(context['server'], context.get('namespaces', ()))}"
        found += _wrapped(Text(one_line(text), "dim"), width)
    return found


def reasons(forwards: Iterable[Forward], now: datetime, width: int) -> list[list[Text]]:
    """Return, for each reason why forwards are not ready, its lines, with a hint if there is one.

    Forwards with the same reason share it.
    """
    alike: dict[tuple[str, str, str], list[Forward]] = {}
    for forward in forwards:
        if forward["state"] != "ready" and (why := one_line(forward["reason"])):
            hint = (forward.get("lastError") or {}).get("hint") or ""
            alike.setdefault((forward["state"], why, hint), []).append(forward)
    found = []
    for (state, why, hint), same in alike.items():
        glyph, style = GLYPHS.get(state, ("?", ""))
        since = age(min(forward["since"] for forward in same), now)
        text = one_line(f"{_names([forward['name'] for forward in same])} ({since}): {why}")
        shown = wrapped(Text.assemble((f"{glyph} ", style), text), width, 2)
        found.append([*shown, *_hint(hint, width)])
    return found


def _names(names: Sequence[str]) -> str:
    left = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {left} more" if left > 0 else "")
