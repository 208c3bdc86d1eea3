"""The painter, as a terminal renders it."""

from __future__ import annotations

import fcntl
import io
import os
import pty
import struct
import sys
import termios
from collections.abc import Iterator

import pyte
import pytest
from rich.text import Text

from krelay.cli.terminal.screen import Painter, supports_live_table
from tests.cli.emulator import Screen
from tests.cli.terminal.owned import at_a_terminal


class Out(io.StringIO):
    """An output with the descriptor of a terminal."""

    def __init__(self, descriptor: int) -> None:
        super().__init__()
        self._descriptor = descriptor

    def fileno(self) -> int:
        return self._descriptor

    def isatty(self) -> bool:
        return True


class Shown:
    """A painter and a screen of the same size, on which a shell has written a line."""

    def __init__(self, master: int, slave: int) -> None:
        self._master = master
        self._out = Out(slave)
        self.screen = Screen(20, 6)
        self._stream = pyte.Stream(self.screen)
        self._stream.feed("$ krelay up\r\n")
        self.painter = Painter(self._out)
        self.resize(20, 6)

    def resize(self, columns: int, rows: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", rows, columns, 0, 0))
        self.screen.resize(rows, columns)

    def paint(self, *block: str, above: tuple[str, ...] = ()) -> list[str]:
        self.painter.paint([Text(line) for line in block], above)
        return self.lines

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
    found = Shown(master, slave)
    yield found
    found.painter.abandon()
    os.close(master)
    os.close(slave)


def test_a_block_is_repainted_below_the_log(shown: Shown) -> None:
    assert shown.paint("one", "two", "three") == ["one", "two", "three"]
    assert shown.paint("1", "2", above=("said",)) == ["said", "1", "2"]
    assert shown.screen.cursor.hidden
    assert shown.screen.alternate


def test_leave_writes_the_log_to_the_normal_screen_and_restores_the_cursor(shown: Shown) -> None:
    shown.paint("one", "two", above=("said",))
    shown.painter.leave(above=["at last"])
    assert shown.lines == ["$ krelay up", "said", "at last"]
    assert not shown.screen.cursor.hidden
    assert not shown.screen.alternate
    shown.painter.leave()
    assert shown.lines == ["$ krelay up", "said", "at last"]


def test_the_log_comes_back_with_the_block_and_is_written_once(shown: Shown) -> None:
    shown.paint("one", above=("said",))
    shown.painter.leave()
    assert shown.paint("one", above=("more",)) == ["said", "more", "one"]
    shown.painter.leave([Text("the last")])
    assert shown.lines == ["$ krelay up", "said", "more", "the last"]


def test_the_log_shows_its_latest_lines_and_breaks_long_ones(shown: Shown) -> None:
    above = ("first", "second \x1b[31mred\x1b[0m word that is long")
    assert shown.paint("1", "2", "3", above=above) == [
        "first",
        "second red word",
        "  that is long",
        "1",
        "2",
        "3",
    ]
    assert shown.paint("1", "2", "3", "4", "5")[:2] == ["  that is long", "1"]
    assert shown.painter.room == (19, 5)


def test_a_block_keeps_within_the_screen(shown: Shown) -> None:
    found = shown.paint(*(f"{n} {'x' * 40}" for n in range(10)))
    assert len(found) == 6
    assert [line[0] for line in found] == list("012345")
    assert {len(line) for line in found} == {19}
    assert shown.paint("small") == ["small"]


@pytest.mark.parametrize("sizes", [[(9, 6), (5, 3), (40, 20)], [(60, 4), (12, 12), (3, 2)]])
def test_a_resize_leaves_no_copies(shown: Shown, sizes: list[tuple[int, int]]) -> None:
    block = [f"row {n}" for n in range(12)]
    shown.paint(*block, above=("said",))
    for columns, rows in sizes:
        shown.resize(columns, rows)
        found = shown.paint(*block)
        wanted = [line if len(line) < columns else f"{line[: columns - 2]}…" for line in block]
        assert found[-min(rows, 12) :] == wanted[:rows]
        assert len(found) <= min(rows, 13)
    shown.painter.leave()
    everything = [*shown.lines, *shown.screen.scrolled]
    assert not any(line.startswith("ro") for line in everything)


def test_a_terminal_without_an_alternate_screen_is_cleared(shown: Shown) -> None:
    shown.painter.paint([Text("one")])
    shown.painter.leave()
    text = shown._out.getvalue()
    assert text.index("\x1b[H\x1b[J\x1b[?1049l") > text.index("one")


def test_a_terminal_without_a_size_counts_as_80_by_24(shown: Shown) -> None:
    fcntl.ioctl(shown._master, termios.TIOCSWINSZ, struct.pack("HHHH", 0, 0, 0, 0))
    assert shown.painter.size == (79, 24)
    with open(os.devnull) as file:
        assert Painter(Out(file.fileno())).size == (79, 24)


def test_the_screen_is_restored_at_exit() -> None:
    def child() -> None:
        sys.stdout = os.fdopen(1, "w")
        Painter(sys.stdout).paint([Text("one")])
        sys.exit(0)

    found = b""

    def talk(master: int) -> None:
        nonlocal found
        while b"\x1b[?25h" not in found:
            found += os.read(master, 100)

    assert at_a_terminal(child, talk) == 0
    assert found.rindex(b"\x1b[?1049l") > found.rindex(b"\x1b[?1049h")


@pytest.mark.parametrize(("term", "live"), [("xterm", True), ("dumb", False), ("", False)])
def test_a_live_table_needs_a_capable_terminal(term: str, live: bool) -> None:
    def child() -> None:
        os.environ["TERM"] = term
        sys.stdout = os.fdopen(1, "w")
        assert supports_live_table() is live

    assert at_a_terminal(child, lambda master: None) == 0


def test_a_pipe_has_no_live_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert not supports_live_table()
