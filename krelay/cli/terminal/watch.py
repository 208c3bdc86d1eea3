"""Watch: `krelay status --watch` at a terminal."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from typing import Any

from krelay.cli.signals import on_signal, run_to_exit
from krelay.cli.terminal.live import Action, Live
from krelay.errors import KrelayError
from krelay.state.error_codec import to_json
from krelay.tasks import TaskGroup
from krelay.threads import in_thread


def watch(snapshot: Callable[[], dict[str, Any]], *, wide: bool) -> None:
    """Show what `snapshot` returns, or the KrelayError that it raises, until `q` or a signal."""
    run_to_exit(_watch(snapshot, wide=wide))


async def _watch(snapshot: Callable[[], dict[str, Any]], *, wide: bool) -> None:
    async def latest() -> dict[str, Any]:
        try:
            return await in_thread(snapshot)
        except KrelayError as exc:
            return {"error": to_json(exc)}

    number: signal.Signals | None = None

    def end(by: signal.Signals | None = None) -> None:
        nonlocal number
        number = by
        shown.cancel()

    actions = {"q": Action(end, "quit", "q quits.")}
    async with TaskGroup() as tasks:
        shown = tasks.create_task(Live(latest, actions, wide=wide).run())
        for each in (signal.SIGTERM, signal.SIGHUP):
            on_signal(each, end, each)
    if number is not None:  # now that the terminal is restored
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)
