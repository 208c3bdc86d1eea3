"""The screen of a terminal, painted in place until the terminal is given back.

It is the alternate screen, as that of `less` and `top`. A terminal that changes its size breaks or
shifts the lines of its normal screen, and leaves copies in the scroll-back that no program can
remove.
"""

from __future__ import annotations

import atexit
import os
import sys
from collections import deque
from collections.abc import Sequence
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from rich.text import Text

# The alternate screen, no wrapping of long lines, no cursor.
_ENTER, _LEAVE = "\x1b[?1049h\x1b[?7l\x1b[?25l", "\x1b[?1049l\x1b[?7h\x1b[?25h"
_CLEAR = "\x1b[H\x1b[J"
# Synchronized output: terminals that support it show everything between the two at once.
_BEGIN, _END = "\x1b[?2026h", "\x1b[?2026l"
_KEPT = 2_000
"""Lines of the log that are kept for the normal screen."""
_LOG_SHARE = 5
"""A fifth of the screen is for the log, at least."""


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
    """Paints the screen: the latest lines of a log, and a block of lines below them.

    `leave` writes the log to the normal screen, where it scrolls. Not thread-safe.
    """

    def __init__(self, out: TextIO) -> None:
        from rich.console import Console

        self._out = out
        self._console = Console(file=out, highlight=False, markup=False, emoji=False)
        self._entered = False
        self._tail: deque[str] = deque(maxlen=_KEPT)
        self._unsaid: deque[str] = deque(maxlen=_KEPT)

    @property
    def size(self) -> tuple[int, int]:
        """Columns and rows for lines."""
        try:
            columns, rows = os.get_terminal_size(self._out.fileno())
        except OSError:
            columns = rows = 0
        # A terminal may report no size. The last column stays free: terminals differ in where the
        # cursor is after a full line.
        return max(1, (columns or 80) - 1), rows or 24

    @property
    def room(self) -> tuple[int, int]:
        """Columns and rows for a block; the log keeps the others."""
        width, height = self.size
        return width, height - min(len(self._tail), height // _LOG_SHARE)

    def paint(self, block: Sequence[Text], above: Sequence[str] = ()) -> None:
        """Show the block, and the log, which continues with the lines `above`."""
        self._tail.extend(above)
        self._unsaid.extend(above)
        width, height = self.size
        lines = [self._coloured(line, width) for line in block[:height]]
        lines = [*self._latest(width, height - len(lines)), *lines]
        # Each line is addressed, and erased behind its end: nothing depends on what was there.
        text = "".join(f"\x1b[{n};1H{line}\x1b[K" for n, line in enumerate(lines, 1))
        enter = "" if self._entered else _ENTER
        if not self._entered:
            self._entered = True
            atexit.register(self.leave)
        self._write(f"{_BEGIN}{enter}\x1b[H{text}\x1b[J{_END}")

    def leave(self, last: Sequence[Text] = (), above: Sequence[str] = ()) -> None:
        """Give the terminal back, and write the log and the lines `last` to the normal screen."""
        self._tail.extend(above)
        said = "".join(f"{line}\n" for line in (*self._unsaid, *above))
        if last:
            said += "".join(f"{self._coloured(line, self.size[0])}\n" for line in last)
        self._unsaid.clear()
        # Terminals without an alternate screen have the block on the normal one.
        restore = f"{_CLEAR}{_LEAVE}" if self._entered else ""
        self.abandon()
        self._write(f"{restore}{said}")

    def abandon(self) -> None:
        """Do not restore a terminal that takes no output."""
        self._entered = False
        atexit.unregister(self.leave)

    def _latest(self, width: int, room: int) -> list[str]:
        """Return the last lines of the log that fit into `room` rows."""
        from rich.text import Text

        from krelay.cli.terminal.table import wrapped

        found: deque[str] = deque()
        for line in reversed(self._tail):
            rows = [self._coloured(row, width) for row in wrapped(Text.from_ansi(line), width, 2)]
            found.extendleft(reversed(rows))
            if len(found) >= room:
                break
        return list(found)[max(0, len(found) - room) :]

    def _coloured(self, line: Text, width: int) -> str:
        with self._console.capture() as captured:
            self._console.print(line, width=width, crop=True, no_wrap=True, overflow="ellipsis")
        return captured.get().rstrip("\n")

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()
