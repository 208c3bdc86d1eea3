"""The terminal that krelay is typed at: keys without Enter, and all as it was afterwards."""

from __future__ import annotations

import atexit
import os
import sys
import termios
from typing import Any

_LOCAL, _INPUT = 3, 0
"""Where the flags are in what `tcgetattr` returns."""


def live() -> bool:
    """Whether stdout is a terminal that can move its cursor, and this process is at its front."""
    if os.environ.get("TERM", "dumb") in ("dumb", "") or not sys.stdout.isatty():
        return False
    return in_front(sys.stdout.fileno())


def in_front(terminal: int) -> bool:
    """Whether what is typed there is for this process, and not for a shell or another job."""
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False


class Keys:
    """Single keys of the terminal at `descriptor`; nothing where that is none.

    `take` may be called again after `give_back`, also when a shell has changed things meanwhile.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._before: list[Any] | None = None
        self.there = os.isatty(descriptor)

    def take(self) -> bool:
        """Have each key at once and unseen; whether that could be had. Ctrl-C still interrupts."""
        if not self.there or not in_front(self._descriptor):
            return False
        try:
            before = termios.tcgetattr(self._descriptor)
            wanted = termios.tcgetattr(self._descriptor)
            wanted[_LOCAL] &= ~(termios.ICANON | termios.ECHO)
            # Ctrl-S would stop the output of a program that never stops.
            wanted[_INPUT] &= ~termios.IXON
            termios.tcsetattr(self._descriptor, termios.TCSANOW, wanted)
        except termios.error:
            return False
        if self._before is None:
            self._before = before
        atexit.register(self.give_back)
        return True

    def give_back(self) -> None:
        """As it was before `take`; from behind, a terminal must not be touched (SIGTTOU)."""
        before, self._before = self._before, None
        atexit.unregister(self.give_back)
        if before is None or not in_front(self._descriptor):
            return
        try:
            termios.tcsetattr(self._descriptor, termios.TCSANOW, before)
        except termios.error:
            return  # the terminal has gone

    def read(self) -> str | None:
        """What was typed; None where there will be no more."""
        try:
            data = os.read(self._descriptor, 64)
        except OSError:
            return None
        return data.decode(errors="replace") if data else None
