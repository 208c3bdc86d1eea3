"""Signals: which of them a command hears, and for how long."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from krelay.threads import use_daemons

T = TypeVar("T")


def ignored(number: signal.Signals) -> bool:
    """Whether the process was started with it ignored, as `nohup` and a shell's `&` do."""
    return signal.getsignal(number) == signal.SIG_IGN


def hear(number: signal.Signals, handler: Callable[..., object], *args: object) -> None:
    """Have the running loop call `handler` for it, unless it is ignored."""
    if not ignored(number):
        asyncio.get_running_loop().add_signal_handler(number, handler, *args)


def run_last(work: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run(work)` for work that ends the process.

    Calls that hang in threads do not hold up the end. Afterwards SIGINT and SIGTERM are ignored:
    one that arrives while Python shuts down would replace the exit code, or print a traceback.
    """
    try:
        with asyncio.Runner() as runner:
            use_daemons(runner.get_loop())
            return runner.run(work)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
