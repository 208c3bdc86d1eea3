from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krelay.config.yaml_reader import expand

ENVIRON = {"NAME": "web", "EMPTY": "", "DOLLAR": "${NAME}$$"}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", ""),
        ("plain", "plain"),
        ("${NAME}", "web"),
        ("a-${NAME}-${NAME}", "a-web-web"),
        ("${NAME:-x}", "web"),
        ("${EMPTY}", ""),
        ("${EMPTY:-x}", "x"),
        ("${NONE:-}", ""),
        ("${NONE:-a b:c-d\n}", "a b:c-d\n"),
        ("$$", "$"),
        ("$${NAME}", "${NAME}"),
        ("$$$$", "$$"),
        ("$NAME $ $1 cost$", "$NAME $ $1 cost$"),
        ("${DOLLAR}", "${NAME}$$"),
    ],
)
def test_expansion(text: str, expected: str) -> None:
    assert expand(text, ENVIRON) == (expected, [])


@pytest.mark.parametrize(
    ("text", "offset", "message"),
    [
        ("a${NONE}", 1, "the variable `NONE` is not set"),
        ("${}", 0, "`${}` is not a variable"),
        ("${1}", 0, "`${1}` is not a variable"),
        ("${A-b}", 0, "`${A-b}` is not a variable"),
        ("${ NAME }", 0, "`${ NAME }` is not a variable"),
        ("xy${NAME", 2, "`${NAME` is not closed by `}`, or holds another brace"),
        ("${A:-${NAME}}", 0, "`${A:-$` is not closed by `}`, or holds another brace"),
    ],
)
def test_flaws(text: str, offset: int, message: str) -> None:
    (error, *_) = expand(text, ENVIRON)[1]
    assert (error.offset, error.message) == (offset, message)
    assert error.hint


def test_every_flaw_is_told() -> None:
    text, errors = expand("${A} ${NAME} ${B}", ENVIRON)
    assert text == " web "
    assert [error.offset for error in errors] == [0, 13]


@given(st.text())
def test_a_text_with_doubled_dollars_is_itself(text: str) -> None:
    assert expand(text.replace("$", "$$"), {}) == (text, [])
