"""Refused strangers do not fill the log."""

from __future__ import annotations

import logging

import pytest

from agent import refusals as module
from agent.refusals import Refusals
from tests import rig
from tests.agent.peer import plain


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if "refused" in r.getMessage()]


async def test_the_first_is_said_at_once_and_the_others_are_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "krelay.agent")
    async with rig.agent() as server:
        for _ in range(20):
            async with plain(server, b"\xff" * 64) as peer:
                try:
                    await peer.reader.read()
                except ConnectionResetError:
                    """Closed with bytes unread."""
        assert len(said(caplog)) == 1
    lines = said(caplog)
    assert len(lines) == 2
    assert lines[1].startswith("refused 19 more; the last one: ")


async def test_a_count_is_said_at_intervals_until_there_is_none(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "EVERY", 0.01)
    caplog.set_level(logging.INFO, "krelay.agent")
    refusals = Refusals()
    for why in ("one", "two", "three"):
        refusals.add(why)
    assert said(caplog) == ["refused: one"]
    await rig.until(lambda: refusals._timer is None)
    assert said(caplog) == ["refused: one", "refused 2 more; the last one: three"]
    refusals.add("four")
    assert said(caplog)[2:] == ["refused: four"]
    refusals.close()
    assert len(said(caplog)) == 3
