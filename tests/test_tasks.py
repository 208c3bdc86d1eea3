"""Task groups: one plain error, and no lost cancellation, on every Python."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable

import pytest

from krelay.errors import KrelayError
from krelay.tasks import TaskGroup, guard, keep, shield_cleanup


async def fail(error: Exception, after: asyncio.Event | None = None) -> None:
    if after is not None:
        await after.wait()
    raise error


async def linger(cancelled: asyncio.Event, release: asyncio.Event) -> None:
    """Takes its time to end: says that it was cancelled, and ends when it is released."""
    try:
        await asyncio.Event().wait()
    finally:
        cancelled.set()
        await release.wait()


async def test_a_failed_child_is_raised_as_itself() -> None:
    error = KrelayError("one")
    with pytest.raises(KrelayError) as caught:  # noqa: PT012
        async with TaskGroup() as tasks:
            tasks.create_task(fail(error))
            await asyncio.Event().wait()
    assert caught.value is error
    assert caught.value.__cause__ is None


async def test_a_failed_body_is_raised_as_itself_and_cancels_the_children() -> None:
    error = ValueError("body")
    task: asyncio.Task[None] | None = None
    with pytest.raises(ValueError) as caught:  # noqa: PT012
        async with TaskGroup() as tasks:
            task = tasks.create_task(asyncio.sleep(3600))
            await asyncio.sleep(0)
            raise error
    assert caught.value is error
    assert task is not None
    assert task.cancelled()


async def test_nested_groups_raise_the_innermost_error() -> None:
    async def inner() -> None:
        async with TaskGroup() as tasks:
            tasks.create_task(fail(KrelayError("deep")))

    with pytest.raises(KrelayError, match="deep"):
        async with TaskGroup() as tasks:
            tasks.create_task(inner())


async def test_a_bug_goes_before_a_krelay_error_and_nothing_is_lost() -> None:
    go = asyncio.Event()
    with pytest.raises(ZeroDivisionError) as caught:  # noqa: PT012
        async with TaskGroup() as tasks:
            tasks.create_task(fail(KrelayError("told"), go))
            tasks.create_task(fail(ZeroDivisionError(), go))
            go.set()
    assert isinstance(caught.value.__cause__, ExceptionGroup)
    assert len(caught.value.__cause__.exceptions) == 2


async def test_a_group_without_errors_returns() -> None:
    async with TaskGroup() as tasks:
        task = tasks.create_task(asyncio.sleep(0, "done"))
    assert task.result() == "done"


@pytest.mark.parametrize("where", ["child", "body"])
async def test_a_cancellation_while_the_group_aborts_is_raised(where: str) -> None:
    cancelled, release = asyncio.Event(), asyncio.Event()
    cleaned = []

    async def owner() -> None:
        try:
            async with TaskGroup() as tasks:
                tasks.create_task(linger(cancelled, release))
                await asyncio.sleep(0)
                if where == "body":
                    raise KrelayError("why it aborts")
                tasks.create_task(fail(KrelayError("why it aborts")))
                await asyncio.Event().wait()
        finally:
            # What cleans up after a cancelled group is not cancelled once more.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            cleaned.append(True)

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(owner())
        await cancelled.wait()
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        await asyncio.sleep(0)
        assert not task.done()
        release.set()
    assert task.cancelled()
    assert cleaned == [True]


async def test_a_cancellation_and_an_error_of_the_same_turn_is_a_cancellation() -> None:
    ready = asyncio.Event()

    async def owner() -> None:
        async with TaskGroup() as tasks:
            tasks.create_task(fail(KrelayError("lost"), ready))
            await asyncio.Event().wait()

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(owner())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        ready.set()
        task.cancel()
    assert task.cancelled()


async def test_a_timeout_around_an_aborting_group_is_a_timeout() -> None:
    cancelled, release = asyncio.Event(), asyncio.Event()

    async def owner() -> None:
        async with asyncio.timeout(None) as deadline:
            async with TaskGroup() as tasks:
                tasks.create_task(linger(cancelled, release))
                await asyncio.sleep(0)
                deadline.reschedule(0)
                raise KrelayError("why it aborts")

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(expect_timeout(owner()))
        await cancelled.wait()
        while not task.cancelling():  # noqa: ASYNC110
            await asyncio.sleep(0)
        release.set()
    assert task.result() == 0


async def expect_timeout(work: Awaitable[None]) -> int:
    with pytest.raises(TimeoutError):
        await work
    task = asyncio.current_task()
    assert task is not None
    await asyncio.sleep(0)
    return task.cancelling()


async def test_a_group_inside_a_cancelled_owner_still_returns() -> None:
    """What cleans up after a cancellation may use groups itself."""

    async def owner() -> str:
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            async with TaskGroup() as tasks:
                child = tasks.create_task(asyncio.sleep(0, "cleaned"))
            return child.result()
        return "never"

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(owner())
        await asyncio.sleep(0)
        task.cancel()
    assert task.result() == "cleaned"


async def test_a_childs_error_that_the_body_raises_again_counts_once() -> None:
    error = KrelayError("one")
    with pytest.raises(KrelayError) as caught:  # noqa: PT012
        async with TaskGroup() as tasks:
            child = tasks.create_task(fail(error))
            await asyncio.wait({child})
            child.result()
    assert caught.value is error
    assert caught.value.__cause__ is None


async def test_guard_logs_a_bug_with_its_traceback(caplog: pytest.LogCaptureFixture) -> None:
    assert not await guard(lambda: fail(RecursionError("odd object")), "web: watch")
    assert "web: watch: internal error" in caplog.text
    assert "RecursionError: odd object" in caplog.text


async def test_guard_logs_an_error_of_krelay_in_one_line(caplog: pytest.LogCaptureFixture) -> None:
    assert not await guard(lambda: fail(KrelayError("no right", hint="ask for it")), "web: watch")
    assert [record.getMessage() for record in caplog.records] == [
        "web: watch: no right; hint: ask for it"
    ]
    assert not caplog.records[0].exc_info


async def test_guard_passes_a_cancellation() -> None:
    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(guard(lambda: asyncio.sleep(3600), "sleep"))
        await asyncio.sleep(0)
        task.cancel()
    assert task.cancelled()


async def test_keep_runs_what_failed_again_until_it_returns(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("krelay.tasks.FIRST_PAUSE", 0.0)
    errors = [RuntimeError("can't start new thread"), OSError("no descriptor"), None]

    async def work() -> None:
        if error := errors.pop(0):
            raise error

    await keep(work, "routes")
    assert not errors
    assert [record.getMessage() for record in caplog.records] == ["routes: internal error"] * 2


async def test_shielded_work_that_fails_raises_its_error() -> None:
    async def fail() -> None:
        raise ValueError

    with pytest.raises(ValueError):
        await shield_cleanup(fail())


@pytest.mark.parametrize("fails", [False, True])
async def test_shielded_work_ends_before_the_cancellation_is_raised(fails: bool) -> None:
    begun, go, ended = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        await go.wait()
        ended.set()
        if fails:
            raise ValueError

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(shield_cleanup(work()))
        await begun.wait()
        for _ in range(2):
            task.cancel()
            await asyncio.sleep(0)
        assert not task.done()
        go.set()
    assert task.cancelled()
    assert ended.is_set()


async def test_shielded_work_over_its_time_is_cancelled() -> None:
    begun = asyncio.Event()
    ended: list[str] = []

    async def work() -> None:
        begun.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ended.append("cancelled")

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(shield_cleanup(work(), within=0.01))
        await begun.wait()
        task.cancel()
    assert task.cancelled()
    assert ended == ["cancelled"]


async def test_shielded_work_within_its_time_is_not_cancelled() -> None:
    begun, go = asyncio.Event(), asyncio.Event()

    async def work() -> None:
        begun.set()
        await go.wait()

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(shield_cleanup(work(), within=3600.0))
        await begun.wait()
        task.cancel()
        await asyncio.sleep(0)
        go.set()
    assert task.cancelled()
