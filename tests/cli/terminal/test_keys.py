"""Keys in children that own a terminal, and what they select."""

from __future__ import annotations

import os
import sys
import termios

import pytest

from krelay.cli.terminal.keys import Browser, Keys, names_of
from krelay.cli.terminal.screen import in_foreground
from krelay.cli.terminal.view import Selection
from tests.cli.terminal.owned import at_a_terminal


def cooked(descriptor: int) -> bool:
    wanted = termios.ICANON | termios.ECHO
    return bool(termios.tcgetattr(descriptor)[3] & wanted == wanted)


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
        Keys(0).take()
        os.write(1, b"now")
        os.read(0, 1)
        sys.exit(0)

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


@pytest.mark.parametrize(
    ("typed", "names"),
    [
        ("jG/", ["j", "G", "/"]),
        ("\x1b[A\x1b[B\x1bOA\x1bOB", ["up", "down", "up", "down"]),
        ("\x1b[5~\x1b[6~\x1b[H\x1b[4~", ["pageup", "pagedown", "home", "end"]),
        ("\x1bq", ["esc", "q"]),
        ("\r\n\x7f\b", ["enter", "enter", "backspace", "backspace"]),
        ("\x1b[1;5C\x1b[200~\x00\x15é", ["é"]),
    ],
)
def test_what_a_terminal_sends_for_keys(typed: str, names: list[str]) -> None:
    assert names_of(typed) == names


def test_keys_scroll_from_what_is_shown() -> None:
    browser = Browser()
    browser.shown(3, 10)
    for key, first in {"j": 4, "down": 5, "k": 4, "up": 3, "pagedown": 13, " ": 23}.items():
        assert browser.press(key)
        assert browser.selection.first == first
    assert browser.press("G")
    browser.shown(50, 0)  # a frame has no more rows
    assert browser.press("pageup")
    assert browser.selection.first == 49
    assert browser.press("g")
    assert browser.press("k")
    assert browser.selection == Selection()
    assert not browser.press("q")
    assert not browser.press("enter")


def test_a_filter_is_typed_kept_changed_and_dropped() -> None:
    browser = Browser()
    for key in ("/", "w", "q", "backspace", "up", "e"):
        assert browser.press(key)
    assert browser.selection == Selection(0, "we", typing=True)
    browser.press("enter")
    assert browser.selection == Selection(0, "we")
    browser.press("j")
    assert browser.selection == Selection(1, "we")
    for key in ("/", "b", "enter"):
        browser.press(key)
    assert browser.selection == Selection(0, "web")
    for key in ("/", *"x" * 200):
        browser.press(key)
    assert len(browser.selection.pattern) == 100
    browser.press("esc")
    assert browser.selection == Selection()
    browser.press("/")
    browser.press("a")
    browser.press("enter")
    browser.press("esc")
    assert browser.selection == Selection()
