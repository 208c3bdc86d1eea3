"""The terminal: a block of lines repainted at its bottom, and single keys from it."""

from __future__ import annotations

import atexit
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TextIO

if TYPE_CHECKING:
    from rich.console import RenderableType

_HIDE, _SHOW = "\x1b[?25l", "\x1b[?25h"
# Synchronized output: terminals that support it show everything between the two at once.
_BEGIN, _END = "\x1b[?2026h", "\x1b[?2026l"
_LOCAL, _INPUT = 3, 0
"""Indexes of the flags in the result of `tcgetattr`."""


def supports_live_table() -> bool:
    """Return whether stdout is a terminal with a movable cursor that this process may use."""
    if os.environ.get("TERM", "dumb") in ("dumb", "") or not sys.stdout.isatty():
        return False
    return in_foreground(sys.stdout.fileno())


def in_foreground(terminal: int) -> bool:
    """Return whether this process belongs to the foreground job of the terminal."""
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False


class Painter:
    """Repaints a block at the bottom of a terminal; lines written above it scroll.

    Lines keep within the width, and the block within the height. A terminal that becomes narrower
    breaks the lines already painted, which the painter takes into account when it erases them.
    Not thread-safe.
    """

    def __init__(self, out: TextIO) -> None:
        from rich.console import Console

        self.console = Console(file=out, highlight=False, markup=False, emoji=False)
        self._out = out
        self._widths: list[int] = []

    @property
    def size(self) -> tuple[int, int]:
        """Columns and rows available to a block."""
        try:
            columns, rows = os.get_terminal_size(self._out.fileno())
        except OSError:
            columns = rows = 0
        # A terminal may report no size. The last column stays free: terminals differ in whether a
        # full line moves the cursor to the next one.
        return (columns or 80) - 1, (rows or 24) - 1

    def paint(self, block: RenderableType, above: Sequence[str] = ()) -> None:
        """Replace the block, and write the lines `above` it."""
        from rich.cells import cell_len
        from rich.text import Text

        width, height = self.size
        lines = self._lines(block, width)[:height]
        text = "".join(f"{line}\n" for line in (*above, *lines))
        self._write(f"{_BEGIN}{_HIDE}{self._back(width + 1)}{text}{_END}")
        self._widths = [cell_len(Text.from_ansi(line).plain) for line in lines]

    def erase(self, above: Sequence[str] = ()) -> None:
        """Remove the block, and write the lines `above` in its place."""
        text = "".join(f"{line}\n" for line in above)
        self._write(f"{self._back(self.size[0] + 1)}{text}{_SHOW}")
        self._widths = []

    def leave(self) -> None:
        """Leave the block on the screen and restore the cursor."""
        self._write(_SHOW)
        self._widths = []

    def _back(self, columns: int) -> str:
        """Return the sequence that moves to the start of the block and erases from there."""
        rows = sum(max(1, -(-width // columns)) for width in self._widths)
        up = f"\x1b[{rows}A" if rows else ""
        return f"\r{up}\x1b[J"

    def _lines(self, block: RenderableType, width: int) -> list[str]:
        with self.console.capture() as captured:
            self.console.print(block, width=width, crop=True, no_wrap=True, overflow="ellipsis")
        return [line.rstrip() for line in captured.get().splitlines()]

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()


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
