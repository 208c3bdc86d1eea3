"""`krelay status`: how the forwards of a running krelay are, once or again and again."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from krelay.cli.output import say
from krelay.cli.readiness import targets
from krelay.cli.wait import check_names
from krelay.errors import KrelayError
from krelay.state.error_codec import to_json
from krelay.status.client import NotRunningError, ask

if TYPE_CHECKING:
    from rich.console import RenderableType

    from krelay.cli.rates import Rate

_DEADLINE = 10.0
_WATCH_EVERY = 1.0
_ANY = 10_000
"""Columns of what is not to be cut."""


def run(file: str, names: Collection[str], *, output: str, watch: bool) -> int:
    """Show it; 0. `output` is `text`, `wide` or `json`.

    Raises:
        NotRunningError: no krelay runs the file.
        UsageError: there is no target of such a name.
        KrelayError: it gave no answer.
    """
    report = _asked(file, names)
    check_names(file, names, targets(report))
    if watch:
        _watch(file, names, output)
    elif output == "json":
        say(json.dumps(report, indent=2))
    else:
        _print(_shown(report, None, _columns(), wide=output == "wide"))
    return 0


def _watch(file: str, names: Collection[str], output: str) -> None:
    """Until somebody interrupts it; one that has ended may come again."""
    from rich.text import Text

    from krelay.cli.rates import Rates
    from krelay.cli.screen import Painter

    rates = Rates()
    painter = Painter(sys.stdout) if _columns() and output != "json" else None
    try:
        while True:
            block: Any
            try:
                report = _asked(file, names)
            except KrelayError as exc:
                if not isinstance(exc, NotRunningError) and not painter:
                    raise
                found: Mapping[str, Any] = {"error": to_json(exc)}
                block = Text(exc.message)
            else:
                found = report
                now = rates.update(report, time.monotonic())
                block = _shown(report, now, _columns(), wide=output == "wide")
            if output == "json":
                say(json.dumps(found))
            elif painter:
                painter.paint(block)
            else:
                _print(block)
                say("")
            time.sleep(_WATCH_EVERY)
    finally:
        if painter:
            painter.leave()


def _asked(file: str, names: Collection[str]) -> dict[str, Any]:
    """The report, of the targets in `names` only if there are any."""
    report: dict[str, Any] = ask(file, "GET", "/v1/status", timeout=_DEADLINE)
    if names:
        report["forwards"] = [f for f in report["forwards"] if f["target"] in names]
    return report


def _shown(
    report: Mapping[str, Any],
    rates: Mapping[tuple[str, int], Rate] | None,
    width: int | None,
    *,
    wide: bool,
) -> RenderableType:
    """On a terminal with a line on the run, and one on the file where that is out of step."""
    from rich.console import Group

    from krelay.cli import summary
    from krelay.cli.table import table

    now = datetime.now(UTC)
    shown = table(report, rates=rates, width=width, wide=wide, now=now)
    if width is None:
        return shown
    drift = summary.drift(report, now)
    return Group(summary.head(report, now), *([drift] if drift else []), "", shown)


def _columns() -> int | None:
    """The width of the terminal; None where there is none, and lines may have any length."""
    if not sys.stdout.isatty():
        return None
    import shutil

    return shutil.get_terminal_size().columns - 1


def _print(block: RenderableType) -> None:
    from rich.console import Console

    console = Console(file=sys.stdout, highlight=False, markup=False, emoji=False, width=_ANY)
    with console.capture() as captured:
        console.print(block)
    for line in captured.get().splitlines():
        say(line.rstrip())
