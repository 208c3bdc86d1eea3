"""`krelay wait`: return when forwards are ready; cheap enough for a health check."""

from __future__ import annotations

import os
import time
from collections.abc import Collection
from typing import Any

from krelay.cli.output import note, say
from krelay.cli.readiness import targets, unready
from krelay.errors import KrelayError, NotReadyError
from krelay.status.client import ask

_LOOK_FIRST, _LOOK_EVERY = 0.1, 0.5
_ANSWER_DEADLINE = 5.0


def run(file: str, names: Collection[str], *, timeout: float) -> int:
    """Wait, at most `timeout` seconds; 0.

    Raises:
        NotReadyError: something is not ready in time.
        UsageError: there is no target of such a name, or no such file.
        ConfigError: the file is wrong, so that nobody can say whether there is.
    """
    until = time.monotonic() + timeout
    wait, known, told = _LOOK_FIRST, False, False
    while True:
        report, missing = _asked(file, until)
        relayed = targets(report) if report else set()
        if not known and not relayed.issuperset(names):
            check_names(file, names, relayed)
            known = True
        late = unready(report, names) if report else [missing]
        if not late:
            break
        left = until - time.monotonic()
        if left <= 0:
            raise NotReadyError(f"not ready after {timeout:g} s", late)
        if not report and not told:
            note(f"{missing}; waiting")
            told = True
        time.sleep(min(wait, left))
        wait = min(2 * wait, _LOOK_EVERY)
    assert report is not None
    count = sum(not names or forward["target"] in names for forward in report["forwards"])
    say("1 forward is ready" if count == 1 else f"{count} forwards are ready")
    return 0


def check_names(file: str, names: Collection[str], relayed: Collection[str]) -> None:
    """See to it that each name is one of the file's, or of what runs.

    Raises:
        UsageError: one is not, or the file cannot be read.
        ConfigError: the file is wrong.
    """
    from krelay.config.selection import Selection

    others = tuple(name for name in names if name not in relayed)
    if others:
        Selection(file, others, environ=os.environ).load()


def _asked(file: str, until: float) -> tuple[Any, str]:
    """The report; or None, and why there is none."""
    timeout = min(_ANSWER_DEADLINE, max(until - time.monotonic(), _LOOK_EVERY))
    try:
        return ask(file, "GET", "/v1/status", timeout=timeout), ""
    except KrelayError as exc:
        return None, exc.message
