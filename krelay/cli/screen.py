"""Painter: a block of lines at the bottom of a terminal, painted over and over; text goes above.

Lines keep within the width, and the block within the height. What a terminal makes of a block
when it becomes narrower (it breaks the lines) is taken into account.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import TextIO

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.text import Text

_HIDE, _SHOW = "\x1b[?25l", "\x1b[?25h"
# Terminals that know it show all between the two at once; others show it anyway.
_BEGIN, _END = "\x1b[?2026h", "\x1b[?2026l"


class Painter:
    """Whoever paints erases at the end. Not for several threads at a time."""

    def __init__(self, out: TextIO) -> None:
        self.console = Console(file=out, highlight=False, markup=False, emoji=False)
        self._out = out
        self._widths: list[int] = []

    @property
    def size(self) -> tuple[int, int]:
        """Columns and rows that a block may have now."""
        try:
            columns, rows = os.get_terminal_size(self._out.fileno())
        except OSError:
            columns = rows = 0
        # Some have no size: then what most begin with. The last column is left: a full line and
        # a line and a blank one are not always told apart.
        return (columns or 80) - 1, (rows or 24) - 1

    def paint(self, block: RenderableType, above: Sequence[str] = ()) -> None:
        """This block in the former one's place; before it, lines that stay."""
        width, height = self.size
        lines = self._lines(block, width)[:height]
        text = "".join(f"{line}\n" for line in (*above, *lines))
        self._write(f"{_BEGIN}{_HIDE}{self._back(width + 1)}{text}{_END}")
        self._widths = [cell_len(Text.from_ansi(line).plain) for line in lines]

    def erase(self, above: Sequence[str] = ()) -> None:
        """The block is gone, and the cursor is where it began; lines that stay are written."""
        text = "".join(f"{line}\n" for line in above)
        self._write(f"{self._back(self.size[0] + 1)}{text}{_SHOW}")
        self._widths = []

    def leave(self) -> None:
        """The block stays, as what was written last."""
        self._write(_SHOW)
        self._widths = []

    def _back(self, columns: int) -> str:
        """To where the block began, with nothing from there on."""
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
