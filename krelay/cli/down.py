"""`krelay down`: have a running krelay end, and wait until it has."""

from __future__ import annotations

import time

from krelay.cli.output import note, say
from krelay.errors import KrelayError
from krelay.status.client import ask, runs

_ANSWER_DEADLINE = 10.0
_LOOK_EVERY = 0.1
# On top of the draining: the agents are deleted.
_CLEANUP = 30.0


def run(file: str) -> int:
    """End it; 0 when it is gone.

    Raises:
        NotRunningError: none runs.
        KrelayError: it gave no answer, or is still there after its time to drain.
    """
    ending = ask(file, "POST", "/v1/stop", timeout=_ANSWER_DEADLINE)
    pid, drain = ending["pid"], float(ending["drain"])
    live = ending.get("live", 0)
    if live:
        note(f"{live} connections get {drain:g} s to finish")
    until = time.monotonic() + drain + _CLEANUP
    while runs(file):
        if time.monotonic() >= until:
            raise KrelayError(
                f"krelay (pid {pid}) still runs after {drain + _CLEANUP:g} s",
                hint=f"`kill {pid}` has it cut what is left",
            )
        time.sleep(_LOOK_EVERY)
    say(f"krelay (pid {pid}) has ended")
    return 0
