"""`krelay ps`: every krelay of this user that runs a file, and how it does."""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from krelay.cli.output import echo, note
from krelay.config import files
from krelay.errors import KrelayError
from krelay.state.states import State
from krelay.status.client import NotRunningError, ask
from krelay.status.instances import Instance, instances
from krelay.text import one_line

_ANSWER_DEADLINE = 2.0
_MOST_AT_ONCE = 64
_TITLES = ("READY", "PID", "UP", "CONTEXT", "FILE")


@dataclass(frozen=True, slots=True)
class Row:
    """An instance, and what it answered: the targets by whether they are ready, the contexts that
    it uses, and when it started; or the `problem` that kept it from answering."""

    instance: Instance
    targets: Mapping[str, bool]
    contexts: tuple[str, ...]
    started: datetime
    ending: bool = False
    problem: str = ""

    @property
    def ready(self) -> str:
        """How many targets are ready, as `2/3`."""
        if self.problem:
            return "?"
        return f"{sum(self.targets.values())}/{len(self.targets)}"

    def as_json(self) -> dict[str, Any]:
        """Return the form for programs."""
        return {
            "file": self.instance.file,
            "pid": self.instance.pid,
            "started": self.started.isoformat(),
            "ready": sum(self.targets.values()),
            "total": len(self.targets),
            "contexts": list(self.contexts),
            "ending": self.ending,
            "error": self.problem or None,
        }


def ps(*, as_json: bool) -> int:
    """Print a line for each krelay that runs a file."""
    found = instances()
    with ThreadPoolExecutor(_MOST_AT_ONCE) as threads:
        # One that ends meanwhile is left out.
        rows = [row for row in threads.map(_row, found) if row]
    if as_json:
        echo(json.dumps([row.as_json() for row in rows], indent=2))
        return 0
    if not rows:
        note("no krelay runs a file")
        return 0
    from krelay.cli.terminal.figures import age

    now = datetime.now(UTC)
    lines = [_TITLES, *(_cells(row, age(row.started.isoformat(), now)) for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        # The file is last: however long it is, it moves no other column.
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        echo("  ".join(cells).rstrip())
    for row in rows:
        if row.problem:
            note(row.problem)
    return 0


def _row(instance: Instance) -> Row | None:
    """Return what an instance answers; None if it does not run any more."""
    since = datetime.strptime(instance.since, "%Y-%m-%d %H:%M:%S").astimezone()
    try:
        found = ask(instance, "GET", "/v1/status", timeout=_ANSWER_DEADLINE)
    except NotRunningError:
        return None
    except KrelayError as exc:
        return Row(instance, {}, (), since, problem=f"{exc} (pid {instance.pid})")
    try:
        return _row_of(instance, found)
    except (LookupError, TypeError, ValueError):  # it is of another version
        problem = f"krelay for {instance.file} gave an unknown answer (pid {instance.pid})"
        return Row(instance, {}, (), since, problem=problem)


def _row_of(instance: Instance, found: Any) -> Row:
    targets: dict[str, bool] = {}
    for forward in found["forwards"]:
        if forward["state"] != State.DRAINING:
            name, ready = forward["target"], forward["state"] == State.READY
            targets[name] = targets.get(name, True) and ready
    contexts = tuple(context["name"] or "in the cluster" for context in found["contexts"])
    started = datetime.fromisoformat(found["started"])
    return Row(instance, targets, contexts, started, found["ending"])


def _cells(row: Row, age: str) -> tuple[str, ...]:
    contexts = ", ".join(row.contexts) or "-"
    up = "ending" if row.ending else age
    cells = row.ready, str(row.instance.pid), up, contexts, files.shortened(row.instance.file)
    return tuple(map(one_line, cells))
