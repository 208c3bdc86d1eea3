from __future__ import annotations

import pytest

from krelay.config.grammar import ParseError, quote
from krelay.errors import Problem


def test_a_flaw_moves_with_the_text_that_holds_it() -> None:
    error = ParseError("bad", hint="do better", offset=2).moved(3)
    assert error.at(7, 10) == Problem(7, 15, "bad", "do better")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("web", "`web`"),
        (8080, "`8080`"),
        ("", '`""`'),
        ("a`b", "'a`b'"),
        ("a\nb\x1b[31m\ud800", "`a\\nb\\x1b[31m\\ud800`"),
        ("x" * 100, "`" + "x" * 60 + "…`"),
    ],
)
def test_a_quoted_value_is_one_short_printable_line(value: object, expected: str) -> None:
    assert quote(value) == expected
