from __future__ import annotations

import asyncio

import pytest

from krelay.supervisor import malloc_trim
from krelay.supervisor.malloc_trim import give_back
from tests import rig


async def test_memory_is_returned_once_after_the_last_stream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(malloc_trim, "_LOOK_EVERY", 0.001)
    seen: list[int] = []
    trimmed: list[int] = []
    lives = iter([0, 0, 5, 7, 0, 0, 0, 1, 0, 0])

    def trim(pad: int) -> int:
        trimmed.append(len(seen))
        return 1

    def streams() -> int:
        seen.append(next(lives, 0))
        return seen[-1]

    monkeypatch.setattr(malloc_trim, "_trimmer", lambda: trim)
    async with asyncio.TaskGroup() as tasks:
        giving = tasks.create_task(give_back(streams))
        await rig.until(lambda: len(seen) > 12)
        giving.cancel()
    assert trimmed == [5, 9]  # at the first look that found nothing, each time


async def test_memory_is_returned_now_and_then_while_a_stream_lives(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(malloc_trim, "_LOOK_EVERY", 0.001)
    monkeypatch.setattr(malloc_trim, "_LOOKS", 3)
    looks = 0
    trimmed: list[int] = []

    def trim(pad: int) -> int:
        trimmed.append(looks)
        return 1

    def streams() -> int:
        nonlocal looks
        looks += 1
        return 1

    monkeypatch.setattr(malloc_trim, "_trimmer", lambda: trim)
    async with asyncio.TaskGroup() as tasks:
        giving = tasks.create_task(give_back(streams))
        await rig.until(lambda: looks > 10)
        giving.cancel()
    assert trimmed[:3] == [3, 6, 9]


async def test_the_allocator_of_this_system_has_the_function() -> None:
    trim = malloc_trim._trimmer()
    assert trim is None or trim(0) in (0, 1)


async def test_without_the_function_it_returns_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(malloc_trim, "_trimmer", lambda: None)
    await give_back(lambda: 1)
