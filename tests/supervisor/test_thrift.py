from __future__ import annotations

import asyncio

import pytest

from krelay.supervisor import thrift
from krelay.supervisor.thrift import give_back
from tests import rig


async def test_it_is_given_back_once_after_each_time_that_something_lived(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(thrift, "_LOOK_EVERY", 0.001)
    trimmed = looked = live = 0

    def trim(pad: int) -> int:
        nonlocal trimmed
        trimmed += 1
        return 1

    def streams() -> int:
        nonlocal looked
        looked += 1
        return live

    monkeypatch.setattr(thrift, "_trimmer", lambda: trim)
    async with asyncio.TaskGroup() as tasks:
        giving = tasks.create_task(give_back(streams))
        await rig.until(lambda: looked > 3)
        assert trimmed == 0  # nothing has lived yet
        for times in (1, 2):
            live, looked = 5, 0
            await rig.until(lambda: looked > 2)
            assert trimmed == times - 1
            live, looked = 0, 0
            await rig.until(lambda: looked > 3)
            assert trimmed == times
        giving.cancel()


async def test_the_allocator_of_this_system() -> None:
    trim = thrift._trimmer()
    assert trim is None or trim(0) in (0, 1)


async def test_where_it_cannot_be_asked_nobody_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(thrift, "_trimmer", lambda: None)
    await give_back(lambda: 1)
