"""Signals: which of them a command hears, and for how long."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

T = TypeVar("T")


def ignored(number: signal.Signals) -> bool:
    """Whether the process was started with it ignored, as `nohup` and a shell's `&` do."""
    return signal.getsignal(number) == signal.SIG_IGN


def hear(number: signal.Signals, handler: Callable[..., object], *args: object) -> None:
    """Have the running loop call `handler` for it, unless it is ignored."""
    if not ignored(number):
        asyncio.get_running_loop().add_signal_handler(number, handler, *args)


def run_last(work: Coroutine[Any, Any, T]) -> T:
    """`asyncio.run(work)` for work that ends the process: afterwards its signals are ignored.

    A signal that arrives while Python shuts down would otherwise replace the exit code, or print a
    traceback.
    """
    try:
        return asyncio.run(work)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
