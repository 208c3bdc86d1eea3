"""`krelay logs`: the log of a running krelay, as far as it keeps it."""

from __future__ import annotations

import time
from typing import Any

from krelay.cli.output import note, say
from krelay.status.client import NotRunningError, ask

_DEADLINE = 10.0
_LOOK_EVERY = 0.3


def run(file: str, lines: int, *, follow: bool) -> int:
    """Print the last `lines`, and with `follow` what comes after, until it ends; 0.

    Raises:
        NotRunningError: none runs.
        KrelayError: it gave no answer.
    """
    found = _asked(file, lines=lines)
    last = found["last"]
    _print(found)
    while follow:
        time.sleep(_LOOK_EVERY)
        try:
            found = _asked(file, after=last)
            if found["last"] < last:  # another one, with a log of its own
                found = _asked(file)
        except NotRunningError:
            note("krelay has ended")
            break
        _print(found)
        last = found["last"]
    return 0


def _asked(file: str, **body: int) -> Any:
    return ask(file, "GET", "/v1/logs", body, timeout=_DEADLINE)


def _print(found: Any) -> None:
    for line in found["lines"]:
        say(line["text"])
