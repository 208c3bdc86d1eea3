"""The log that a running krelay keeps: bounded, and read in pieces."""

from __future__ import annotations

import logging

import pytest

from krelay.errors import UsageError
from krelay.mux.log import about
from krelay.state.log_tail import LONGEST, LogRing


def ring(kept: int = 3) -> tuple[LogRing, logging.Logger]:
    made = LogRing(kept=kept)
    logger = logging.Logger("test")
    logger.addHandler(made)
    return made, logger


def test_the_last_lines_are_kept_with_their_numbers() -> None:
    made, logger = ring()
    for number in range(5):
        logger.info("line %d", number)
    assert made.after(0) == [(3, "line 2"), (4, "line 3"), (5, "line 4")]
    assert made.after(4) == [(5, "line 4")]
    assert made.after(0, 1) == [(5, "line 4")]
    assert made.after(5) == made.after(0, 0) == []


def test_a_line_without_an_end_is_cut() -> None:
    made, logger = ring()
    logger.info("x" * (2 * LONGEST))
    ((_, text),) = made.after(0)
    assert text == "x" * LONGEST + " …"


def test_a_record_that_cannot_be_formatted_is_not_kept(capsys: pytest.CaptureFixture[str]) -> None:
    made, logger = ring()
    logger.info("%d", "no number")
    assert made.after(0) == []
    assert "a real number is required, not str" in capsys.readouterr().err


async def test_an_answer_has_the_requested_lines() -> None:
    made, logger = ring(10)
    assert await made.answer({}) == {"last": 0, "lines": []}
    for word in ("a", "b", "c"):
        logger.info(word)
    assert await made.answer({"lines": 2}) == {
        "last": 3,
        "lines": [{"number": 2, "text": "b"}, {"number": 3, "text": "c"}],
    }
    assert await made.answer({"after": 3}) == {"last": 3, "lines": []}
    assert await made.answer({"lines": 0}) == {"last": 3, "lines": []}


async def test_an_answer_about_targets_has_only_lines_whose_records_name_them() -> None:
    made, logger = ring(10)
    about(logger, target="web", name="web[80]").info("ready")
    about(logger, target="db").info("ready")
    logger.info("web: a text is no subject")
    logger.info("2 targets are not followed", extra={"targets": ("web", "cache")})
    found = await made.answer({"targets": ["web"]})
    assert [line["text"] for line in found["lines"]] == [
        "web[80]: ready",
        "2 targets are not followed",
    ]
    assert found["last"] == 4
    assert await made.answer({"targets": ["db"], "after": 2}) == {"last": 4, "lines": []}
    assert len((await made.answer({"targets": ["web", "db"], "lines": 2}))["lines"]) == 2
    for wrong in ("web", [1]):
        with pytest.raises(UsageError, match="is a list of names"):
            await made.answer({"targets": wrong})


@pytest.mark.parametrize("value", [-1, "1", None, True, 1.5])
async def test_an_invalid_request_for_lines_is_refused(value: object) -> None:
    made, _ = ring()
    for key in ("after", "lines"):
        with pytest.raises(UsageError, match="are numbers from 0"):
            await made.answer({key: value})
