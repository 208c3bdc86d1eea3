"""Keys without Enter, and the terminal as it was afterwards; in children that own a terminal."""

from __future__ import annotations

import atexit
import os
import pty
import sys
import termios
from collections.abc import Callable

import pytest

from krelay.cli import terminal
from krelay.cli.terminal import Keys, in_front


def cooked(descriptor: int) -> bool:
    wanted = termios.ICANON | termios.ECHO
    return termios.tcgetattr(descriptor)[3] & wanted == wanted


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


def test_keys_come_at_once_and_unseen_and_all_is_as_before() -> None:
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


def test_an_exit_without_a_word_gives_it_back_too() -> None:
    def child() -> None:
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


def test_from_behind_nothing_is_touched() -> None:
    def child() -> None:
        ready, go = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.setpgid(0, 0)
            keys = Keys(0)
            ok = not in_front(0) and not keys.take()
            keys.give_back()
            os._exit(0 if ok and cooked(0) else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
        assert in_front(0)
        os.close(ready)
        os.close(go)

    assert at_a_terminal(child, lambda master: None) == 0


def test_what_is_no_terminal_has_no_keys() -> None:
    reader, writer = os.pipe()
    keys = Keys(reader)
    assert not keys.there
    assert not keys.take()
    keys.give_back()
    os.close(writer)
    assert keys.read() is None
    os.close(reader)
    assert keys.read() is None
    assert not in_front(reader)


@pytest.mark.parametrize(("term", "live"), [("xterm", True), ("dumb", False), ("", False)])
def test_where_a_table_can_be(term: str, live: bool) -> None:
    def child() -> None:
        os.environ["TERM"] = term
        sys.stdout = os.fdopen(1, "w")
        assert terminal.live() is live

    assert at_a_terminal(child, lambda master: None) == 0


def test_a_pipe_has_no_table(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    assert not terminal.live()
