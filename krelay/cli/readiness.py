"""Whether what was asked for is ready, by a report in its JSON form; and if not, why."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from datetime import datetime
from typing import Any

from krelay.state.readiness import readiness_of
from krelay.state.snapshot import ForwardState, State, told

Report = Mapping[str, Any]


def targets(report: Report) -> set[str]:
    """The names of the targets that are relayed."""
    return {forward["target"] for forward in report["forwards"]}


def unready(report: Report, names: Collection[str] = ()) -> list[str]:
    """What is not ready, a line each: of all forwards but those that an edit took away and that
    only finish, or of those of the targets in `names`."""
    found = readiness_of([_forward(each) for each in report["forwards"]], names)
    missing = names if found.starting else found.unknown
    lines = [told(forward.name, forward.state, forward.reason) for forward in found.waiting]
    lines += [f"{name}: not relayed (yet)" for name in sorted(set(missing))]
    return lines or (["krelay is starting"] if found.starting else [])


def _forward(found: Mapping[str, Any]) -> ForwardState:
    """As much of it as tells whether it is ready."""
    return ForwardState(
        found["target"],
        found["index"],
        found["name"],
        found["to"],
        State(found["state"]),
        found.get("reason") or "",
        datetime.fromisoformat(found["since"]),
    )
