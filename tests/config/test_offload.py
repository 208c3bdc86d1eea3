from __future__ import annotations

import asyncio
import threading

import pytest

from krelay.config.watch import Offload, StuckError
from krelay.errors import KrelayError, UsageError


async def test_what_a_call_returns_and_raises() -> None:
    offload = Offload("it", within=30.0, most=1)
    assert await offload.run(lambda: threading.current_thread().daemon)

    def fail() -> None:
        raise UsageError("no")

    for _ in range(3):
        with pytest.raises(UsageError, match="no"):
            await offload.run(fail)


async def test_a_call_that_hangs_is_left_behind() -> None:
    answers = threading.Event()
    offload = Offload("it", within=0.05, most=2)
    try:
        with pytest.raises(StuckError, match=r"it takes more than 0\.05 s") as first:
            await offload.run(answers.wait)
        assert await offload.run(lambda: 1) == 1
        with pytest.raises(StuckError):
            await offload.run(answers.wait)
        with pytest.raises(KrelayError, match="it: 2 earlier calls are still under way"):
            await offload.run(lambda: 1)
        assert not first.value.over.done()
    finally:
        answers.set()
    await first.value.over
    assert await offload.run(lambda: 1) == 1


async def test_one_that_is_cancelled_counts_until_it_is_back() -> None:
    answers = threading.Event()
    offload = Offload("it", within=30.0, most=1)
    task = asyncio.get_running_loop().create_task(offload.run(answers.wait))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    with pytest.raises(KrelayError, match="1 earlier calls"):
        await offload.run(lambda: 1)
    answers.set()
    while True:
        try:
            assert await offload.run(lambda: 1) == 1
        except KrelayError:
            await asyncio.sleep(0)
        else:
            break


def test_the_end_of_a_loop_waits_for_none() -> None:
    answers = threading.Event()

    async def leave() -> None:
        with pytest.raises(StuckError):
            await Offload("it", within=0.01, most=1).run(answers.wait)

    asyncio.run(leave())
    answers.set()
    for thread in threading.enumerate():
        if thread.name == "it":
            thread.join()


async def test_no_thread_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    offload = Offload("it", within=30.0, most=1)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        with pytest.raises(KrelayError, match="no thread can be started"):
            await offload.run(lambda: 1)
    assert await offload.run(lambda: 1) == 1
