"""Keys: single keys typed at a terminal, and what they select of a long table."""

from __future__ import annotations

import atexit
import os
import re
from typing import Any

from krelay.cli.terminal.screen import in_foreground
from krelay.cli.terminal.view import Selection

_LOCAL, _INPUT = 3, 0
"""Indexes of the flags in the result of `tcgetattr`."""
_SEQUENCE = re.compile(r"\x1b(?:\[[0-?]*[ -/]*[@-~]|O[@-~])|.", re.DOTALL)
_NAMES = {
    **{
        f"\x1b{start}{end}": name
        for start in "[O"
        for end, name in zip("ABHF", ("up", "down", "home", "end"), strict=True)
    },
    "\x1b[5~": "pageup",
    "\x1b[6~": "pagedown",
    "\x1b[1~": "home",
    "\x1b[4~": "end",
    "\x1b": "esc",
    "\r": "enter",
    "\n": "enter",
    "\x7f": "backspace",
    "\b": "backspace",
}
_MOST_PATTERN = 100
_END = 1_000_000
"""A row behind the last one."""


def names_of(typed: str) -> list[str]:
    """Return the keys that a terminal sends as `typed`: characters, `up`, `pagedown`, `esc`, ...

    Keys without a meaning here are left out.
    """
    found = (_NAMES.get(part, part) for part in _SEQUENCE.findall(typed))
    return [key for key in found if key.isprintable() and "\x1b" not in key]


class Browser:
    """What the keys have selected: the rows on the screen, and the text that filters them."""

    def __init__(self) -> None:
        self.selection = Selection()
        self.page = 1
        """Rows on the screen."""

    def shown(self, first: int, page: int) -> None:
        """Note what a frame could show of the selection."""
        self.page = max(1, page)
        found = self.selection
        self.selection = Selection(first, found.pattern, found.typing)

    def press(self, key: str) -> bool:
        """Change the selection, and return whether the key means something here."""
        first, pattern = self.selection.first, self.selection.pattern
        if self.selection.typing:
            self.selection = self._typed(key, pattern)
            return True
        steps = {
            "j": first + 1,
            "down": first + 1,
            "k": first - 1,
            "up": first - 1,
            "pagedown": first + self.page,
            " ": first + self.page,
            "pageup": first - self.page,
            "g": 0,
            "home": 0,
            "G": _END,
            "end": _END,
        }
        if key in steps:
            self.selection = Selection(max(0, min(steps[key], _END)), pattern)
        elif key == "/":
            self.selection = Selection(first, pattern, typing=True)
        elif key == "esc":
            self.selection = Selection()
        else:
            return False
        return True

    @staticmethod
    def _typed(key: str, pattern: str) -> Selection:
        if key == "enter":
            return Selection(0, pattern)
        if key == "esc":
            return Selection()
        if key == "backspace":
            return Selection(0, pattern[:-1], typing=True)
        more = key if len(key) == 1 else ""
        return Selection(0, (pattern + more)[:_MOST_PATTERN], typing=True)


class Keys:
    """Single keys typed at the terminal of `descriptor`; none if that is not a terminal.

    `take` may be called again after `give_back`, even if a shell has changed the settings since.
    """

    def __init__(self, descriptor: int) -> None:
        self._descriptor = descriptor
        self._before: list[Any] | None = None
        self.there = os.isatty(descriptor)
        """Whether the terminal can still deliver keys."""

    def take(self) -> bool:
        """Switch to single keys without echo; return whether that worked.

        Ctrl-C still interrupts.
        """
        if not self.there or not in_foreground(self._descriptor):
            return False
        import termios

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
        """Restore the settings from before `take`."""
        before, self._before = self._before, None
        atexit.unregister(self.give_back)
        # A background process that touches its terminal is stopped by SIGTTOU.
        if before is None or not in_foreground(self._descriptor):
            return
        import termios

        try:
            termios.tcsetattr(self._descriptor, termios.TCSANOW, before)
        except termios.error:
            return  # the terminal has gone

    def read(self) -> str | None:
        """Return what was typed, or None at the end of input."""
        try:
            data = os.read(self._descriptor, 64)
        except OSError:
            return None
        return data.decode(errors="replace") if data else None
