"""The painter, as a terminal renders it, and keys in children that own a terminal."""

from __future__ import annotations

import atexit
import io
import os
import pty
import sys
import termios
from collections.abc import Callable, Iterator

import pyte
import pytest
from rich.text import Text

from krelay.cli.terminal.screen import Keys, Painter, in_foreground, supports_live_table


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
    """A painter and a screen of the same size."""

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


def test_a_block_is_repainted_and_text_stays_above(shown: Shown) -> None:
    shown.painter.paint(Text("one\ntwo\nthree"))
    assert shown.lines == ["one", "two", "three"]
    shown.painter.paint(Text("1\n2"), ["said"])
    assert shown.lines == ["said", "1", "2"]
    assert shown.screen.cursor.hidden
    shown.painter.erase(["at last"])
    assert shown.lines == ["said", "at last"]
    assert not shown.screen.cursor.hidden


def test_a_block_keeps_within_the_screen(shown: Shown) -> None:
    shown.painter.paint(Text("\n".join(f"{n} {'x' * 40}" for n in range(10))))
    found = shown.lines
    assert len(found) == 5
    assert [line[0] for line in found] == list("01234")
    assert {len(line) for line in found} == {19}
    shown.painter.paint(Text("small"))
    assert shown.lines == ["small"]


def test_a_block_is_erased_whole_after_the_screen_became_narrower(shown: Shown) -> None:
    shown.painter.paint(Text("0123456789\nabcdefghij"), ["above"])
    assert shown.lines == ["above", "0123456789", "abcdefghij"]
    # What the terminal makes of it, with four columns for each line.
    shown.resize(4, 6)
    assert shown.painter._back(4) == "\r\x1b[6A\x1b[J"


def test_leave_keeps_the_block(shown: Shown) -> None:
    shown.painter.paint(Text("one"))
    shown.painter.leave()
    shown.painter.paint(Text("two"))
    assert shown.lines == ["one", "two"]


def test_a_terminal_without_a_size_counts_as_80_by_24(shown: Shown) -> None:
    shown.resize(0, 0)
    assert shown.painter.size == (79, 23)
    nothing = Painter(Out(os.open(os.devnull, os.O_RDONLY)))
    assert nothing.size == (79, 23)
    os.close(nothing.console.file.fileno())


def cooked(descriptor: int) -> bool:
    wanted = termios.ICANON | termios.ECHO
    return bool(termios.tcgetattr(descriptor)[3] & wanted == wanted)


def at_a_terminal(child: Callable[[], None], talk: Callable[[int], None]) -> int:
    """Run `child` in a process whose standard streams are a terminal, while `talk` has the other
    end; the exit code. 99 is an exception's."""
    pid, master = pty.fork()
    if pid == 0:
        try:
            child()
        except BaseException:
            os._exit(99)
        os._exit(0)
    try:
        talk(master)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    finally:
        os.close(master)


def read_until(descriptor: int, text: bytes) -> bytes:
    found = b""
    while text not in found:
        found += os.read(descriptor, 100)
    return found


def test_keys_arrive_singly_without_echo_and_settings_are_restored() -> None:
    def child() -> None:
        keys = Keys(0)
        assert cooked(0)
        for _ in range(2):  # also where a shell took it meanwhile
            assert keys.take()
        assert not cooked(0)
        os.write(1, b"now")
        typed = keys.read()
        os.write(1, b"<" + (typed or "").encode() + b">")
        keys.give_back()
        assert cooked(0)
        keys.give_back()

    def talk(master: int) -> None:
        read_until(master, b"now")
        os.write(master, b"q")
        assert read_until(master, b">") == b"<q>"

    assert at_a_terminal(child, talk) == 0


def test_settings_are_restored_at_exit() -> None:
    def child() -> None:
        atexit._clear()  # what the tests' own process has registered
        Keys(0).take()
        os.write(1, b"now")
        os.read(0, 1)
        atexit._run_exitfuncs()

    def talk(master: int) -> None:
        read_until(master, b"now")
        assert not cooked(master)
        os.write(master, b"\r")
        while not cooked(master):
            pass

    assert at_a_terminal(child, talk) == 0


def test_a_background_process_does_not_touch_the_terminal() -> None:
    def child() -> None:
        ready, go = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.setpgid(0, 0)
            keys = Keys(0)
            ok = not in_foreground(0) and not keys.take()
            keys.give_back()
            os._exit(0 if ok and cooked(0) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert in_foreground(0)
        os.close(ready)
        os.close(go)

    assert at_a_terminal(child, lambda master: None) == 0


def test_a_pipe_has_no_keys() -> None:
    reader, writer = os.pipe()
    keys = Keys(reader)
    assert not keys.there
    assert not keys.take()
    keys.give_back()
    os.close(writer)
    assert keys.read() is None
    os.close(reader)
    assert keys.read() is None
    assert not in_foreground(reader)


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
