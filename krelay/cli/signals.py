"""Signals of a command's process."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from krelay.diagnostics import dump_on_signal
from krelay.threads import use_daemons

T = TypeVar("T")


def is_ignored(number: signal.Signals) -> bool:
    """Return whether the process started with the signal ignored, as under `nohup` or a shell's
    `&`."""
    return signal.getsignal(number) == signal.SIG_IGN


def on_signal(
    number: signal.Signals,
    handler: Callable[..., object],
    *args: object,
    even_ignored: bool = False,
) -> None:
    """Make the running loop call `handler` on the signal, unless it was ignored at the start."""
    if even_ignored or not is_ignored(number):
        asyncio.get_running_loop().add_signal_handler(number, handler, *args)


def run_to_exit(work: Coroutine[Any, Any, T]) -> T:
    """Run the coroutine that makes up the rest of the process, and return its result.

    Unlike `asyncio.run`, calls that hang in threads do not delay the end. SIGUSR1 logs a dump of
    tasks. Afterwards SIGINT, SIGTERM and SIGUSR1 are ignored: during Python's shutdown they would
    replace the exit code, or print a traceback.
    """
    try:
        with asyncio.Runner() as runner:
            use_daemons(runner.get_loop())
            dump_on_signal(runner.get_loop())
            return runner.run(work)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(number, signal.SIG_IGN)
