"""Signals: what was ignored when krelay started stays so, as `nohup` and a shell's `&` want it."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Callable


def ignored(number: signal.Signals) -> bool:
    """Whether nothing is to come of it."""
    return signal.getsignal(number) == signal.SIG_IGN


def hear(number: signal.Signals, handler: Callable[..., object], *args: object) -> None:
    """Have the running loop call `handler` for it, unless it is ignored."""
    if not ignored(number):
        asyncio.get_running_loop().add_signal_handler(number, handler, *args)
