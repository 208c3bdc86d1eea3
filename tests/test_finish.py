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


async def test_after_a_cancellation_it_may_have_an_end() -> None:
    begun = asyncio.Event()
    ended: list[str] = []

    async def work() -> None:
        begun.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.append("cancelled")

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(finish(work(), within=0.01))
        await begun.wait()
        task.cancel()
    assert task.cancelled()
    assert ended == ["cancelled"]


async def test_the_end_is_no_concern_of_what_is_done_in_time() -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        await go.wait()

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(finish(work(), within=3600.0))
        await begun.wait()
        task.cancel()
        await asyncio.sleep(0)
        go.set()
    assert task.cancelled()
