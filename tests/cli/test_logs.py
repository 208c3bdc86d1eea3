"""`krelay logs`: what there is, and what comes."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import pytest

from krelay.cli.logs import run
from krelay.state.log_tail import LogRing
from krelay.status.client import NotRunningError
from tests import rig
from tests.cli.asked import answering


def ring(*lines: str) -> tuple[LogRing, logging.Logger]:
    made, logger = LogRing(), logging.Logger("test")
    logger.addHandler(made)
    for line in lines:
        logger.info(line)
    return made, logger


async def test_the_last_lines(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, (made, _) = tmp_path / "krelay.yaml", ring("a", "b", "c")
    with pytest.raises(NotRunningError):
        await asyncio.to_thread(run, str(file), 2, follow=False)
    async with answering(file, GET_logs=made.answer):
        assert await asyncio.to_thread(run, str(file), 2, follow=False) == 0
    assert capsys.readouterr().out == "b\nc\n"


async def test_following_until_the_end_and_over_a_restart(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, (made, logger) = tmp_path / "krelay.yaml", ring("a", "b", "c")
    rings = [made]
    out = err = ""

    def printed(text: str) -> bool:
        nonlocal out, err
        more = capsys.readouterr()
        out, err = out + more.out, err + more.err
        return out == text

    async with asyncio.TaskGroup() as tasks:
        async with answering(file, GET_logs=lambda body: rings[-1].answer(body)):
            following = tasks.create_task(asyncio.to_thread(run, str(file), 1, follow=True))
            await rig.until(lambda: printed("c\n"))
            logger.info("d")
            logger.info("e")
            await rig.until(lambda: printed("c\nd\ne\n"))
            rings.append(ring("anew")[0])
            await rig.until(lambda: printed("c\nd\ne\nanew\n"))
        assert await following == 0
    assert printed("c\nd\ne\nanew\n")
    assert err == "krelay has ended\n"
