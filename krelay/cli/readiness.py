"""Whether what was asked for is ready, by a report in its JSON form; and if not, why."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from krelay.status.report import told as _told

Report = Mapping[str, Any]


def targets(report: Report) -> set[str]:
    """The names of the targets that are relayed."""
    return {forward["target"] for forward in report["forwards"]}


def unready(report: Report, names: Collection[str] = ()) -> list[str]:
    """What is not ready, a line each: of all forwards but those that an edit took away and that
    only finish, or of those of the targets in `names`."""
    forwards = [f for f in report["forwards"] if not names or f["target"] in names]
    if any(forward["state"] != "draining" for forward in forwards):
        forwards = [forward for forward in forwards if forward["state"] != "draining"]
    found = [told(forward) for forward in forwards if forward["state"] != "ready"]
    missing = sorted(set(names) - {forward["target"] for forward in forwards})
    found += [f"{name}: not relayed (yet)" for name in missing]
    if not forwards and not missing:
        found.append("krelay is starting")
    return found


def told(forward: Mapping[str, Any]) -> str:
    """`web: failed: connection refused`."""
    return _told(forward["name"], forward["state"], forward.get("reason") or "")
