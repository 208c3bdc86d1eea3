"""Work that is not left half done."""

from __future__ import annotations

import asyncio

import pytest

from krelay.finish import finish


async def test_its_failure_is_the_caller_s() -> None:
    async def fail() -> None:
        raise ValueError

    with pytest.raises(ValueError):
        await finish(fail())


@pytest.mark.parametrize("fails", [False, True])
async def test_a_cancellation_comes_after(fails: bool) -> None:
    begun, go, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        await go.wait()
        ended.set()
        if fails:
            raise ValueError

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(finish(work()))
        await begun.wait()
        for _ in range(2):
            task.cancel()
            await asyncio.sleep(0)
        assert not task.done()
        go.set()
    assert task.cancelled()
    assert ended.is_set()
