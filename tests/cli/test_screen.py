"""The painter, as a terminal shows it."""

from __future__ import annotations

import io
import os
import pty
from collections.abc import Iterator

import pyte
import pytest
from rich.text import Text

from krelay.cli.screen import Painter


class Out(io.StringIO):
    """What is written, and a terminal's descriptor."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return True


class Shown:
    """A painter before a screen; its size is the terminal's."""

    def __init__(self, master: int, slave: int) -> None:
        self._master = master
        self._out = Out(slave)
        self.resize(20, 6)
        self.screen = pyte.Screen(20, 6)
        self._stream = pyte.Stream(self.screen)
        self.painter = Painter(self._out)

    def resize(self, columns: int, rows: int) -> None:
        import fcntl
        import struct
        import termios

        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))

    @property
    def lines(self) -> list[str]:
        text = self._out.getvalue()
        self._out.seek(0)
        self._out.truncate()
        self._stream.feed(text.replace("\n", "\r\n"))
        found = [line.rstrip() for line in self.screen.display]
        while found and not found[-1]:
            found.pop()
        return found


@pytest.fixture
def shown() -> Iterator[Shown]:
    master, slave = pty.openpty()
    yield Shown(master, slave)
    os.close(master)
    os.close(slave)


def test_a_block_is_painted_over_and_text_stays_above(shown: Shown) -> None:
    shown.painter.paint(Text("one\ntwo\nthree"))
    assert shown.lines == ["one", "two", "three"]
    shown.painter.paint(Text("1\n2"), ["said"])
    assert shown.lines == ["said", "1", "2"]
    assert shown.screen.cursor.hidden
    shown.painter.erase(["at last"])
    assert shown.lines == ["said", "at last"]
    assert not shown.screen.cursor.hidden


def test_it_is_no_wider_and_no_higher_than_the_screen(shown: Shown) -> None:
    shown.painter.paint(Text("\n".join(f"{n} {'x' * 40}" for n in range(10))))
    found = shown.lines
    assert len(found) == 5
    assert [line[0] for line in found] == list("01234")
    assert {len(line) for line in found} == {19}
    shown.painter.paint(Text("small"))
    assert shown.lines == ["small"]


def test_a_narrower_screen_has_broken_the_lines(shown: Shown) -> None:
    shown.painter.paint(Text("0123456789\nabcdefghij"), ["above"])
    assert shown.lines == ["above", "0123456789", "abcdefghij"]
    # What the terminal makes of it, with four columns for each line.
    shown.resize(4, 6)
    assert shown.painter._back(4) == "\r\x1b[6A\x1b[J"


def test_leaving_keeps_the_block(shown: Shown) -> None:
    shown.painter.paint(Text("one"))
    shown.painter.leave()
    shown.painter.paint(Text("two"))
    assert shown.lines == ["one", "two"]


def test_what_has_no_size_is_taken_for_an_old_one(shown: Shown) -> None:
    shown.resize(0, 0)
    assert shown.painter.size == (79, 23)
    nothing = Painter(Out(os.open(os.devnull, os.O_RDONLY)))
    assert nothing.size == (79, 23)
    os.close(nothing.console.file.fileno())
