"""The filter of all output: no text passes that a terminal, a browser or a log would obey."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krelay.text import LIMIT, indented, many_lines, one_line

EVIL = (
    "\x1b]0;owned\x07\x1b[2J\x1b[31mforged\x9b1m\r\n12:00:00 all is well\u2028\u202ex\ud800\x7f\0"
)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("web: ready", "web: ready"),
        ("zwölf → ● 日本", "zwölf → ● 日本"),
        ("  kept  as it is ", "  kept  as it is "),
        ("", ""),
        (17, "17"),
        ("\x1b[1;31mred\x1b[0m", "red"),
        ("\x9b31mred", "red"),
        ("\x1b[", ""),
        ("\x1b]0;title\x07text", "text"),
        ("\x1b]8;;http://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x9d0;title\x9ctext", "text"),
        ("\x1bP1$r0m\x1b\\text", "text"),
        ("\x1b]never ended", "never ended"),
        ("\x1bctext", "text"),
        ("\x1b(0text", "text"),
        ("text\x1b", "text"),
        ("a\r\nb\tc\vd\u2028e\u2029f\x85g", "a b c d e f g"),
        ("the end\n", "the end"),
        ("a\x00b\x08c\x7fd\x80e", "abcde"),
        ("a\u202eb\u2066c\u200fd\u061ce\u200bf\ufeffg\U000e0041h", "abcdefgh"),
        ("a\u00a0b\u3000c", "a b c"),
        ("\ud800\udcff\ue000\uffff", "\ufffd" * 4),
        ("[bold red]no markup[/]", "[bold red]no markup[/]"),
        (EVIL, "forged 12:00:00 all is well x\ufffd"),
    ],
)
def test_control_sequences_and_invisible_characters_are_removed(text: object, shown: str) -> None:
    assert one_line(text) == shown


def test_a_long_line_is_cut_and_marked() -> None:
    assert one_line("x" * LIMIT) == "x" * LIMIT
    assert one_line("x" * (LIMIT + 1)) == "x" * LIMIT + " …"
    assert one_line("\x1b[m" * 10_000, 10) == " …"


def test_many_lines_are_cleaned_and_limited() -> None:
    assert many_lines("a\n  b\r\n\n\tc\u2028d\n") == ["a", "  b", "", "    c", "d"]
    assert many_lines("") == [""]
    assert many_lines("a\n" * 5, most=3) == ["a", "a", "a", "…"]
    assert many_lines("x" * 50, most=2, limit=10) == ["x" * 10 + " …", "…"]


def test_further_lines_are_indented() -> None:
    assert indented("a\n12:00:00 forged\n") == "a\n  12:00:00 forged"


@given(st.text(st.characters(), max_size=60) | st.text("\x1b[]\x07\x9b\x9d\\;0mA\n\t", max_size=60))
def test_no_text_gives_a_character_that_a_terminal_obeys(text: str) -> None:
    shown = one_line(text)
    assert shown.isprintable()
    assert not {unicodedata.category(char) for char in shown} & {"Cc", "Cf", "Cs", "Zl", "Zp"}
    assert one_line(shown) == shown
    shown.encode()


@pytest.mark.parametrize("part", ["\x1b]", "\x9d", "\x1b[0 ", "\n", "\u2028", "\ud800"])
def test_cleaning_takes_linear_time(part: str) -> None:
    # Quadratic, this would take minutes.
    text = part * 200_000
    assert one_line(text, len(text)).isprintable()
    assert all(map(str.isprintable, many_lines(text, most=len(text), limit=len(text))))
