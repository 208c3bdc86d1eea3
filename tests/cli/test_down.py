"""`krelay down`: asks, and waits until it is gone."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from krelay.cli import down
from krelay.errors import KrelayError
from krelay.status.client import NotRunningError, runs
from krelay.status.socket_path import socket_path
from tests.cli.asked import answering


async def test_it_waits_until_the_other_has_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "krelay.yaml"
    asked = asyncio.Event()

    def stop(body: object) -> dict[str, object]:
        asked.set()
        return {"pid": 4711, "drain": 5.0, "live": 2}

    async with asyncio.TaskGroup() as tasks:
        async with answering(file, POST_stop=stop):
            ending = tasks.create_task(asyncio.to_thread(down.run, str(file)))
            await asked.wait()
            assert await asyncio.to_thread(runs, str(file))
            assert not ending.done()
        assert await ending == 0
    assert not await asyncio.to_thread(runs, str(file))
    assert capsys.readouterr() == (
        "krelay (pid 4711) has ended\n",
        "2 connections get 5 s to finish\n",
    )


async def test_it_does_not_wait_for_ever(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(down, "_CLEANUP", 0.0)
    file = tmp_path / "krelay.yaml"
    async with answering(file, POST_stop=lambda body: {"pid": 4711, "drain": 0.0, "live": 0}):
        with pytest.raises(KrelayError, match=r"krelay \(pid 4711\) still runs") as caught:
            await asyncio.to_thread(down.run, str(file))
    assert caught.value.hint == "`kill 4711` has it cut what is left"


def test_there_is_none(tmp_path: Path) -> None:
    file = str(tmp_path / "krelay.yaml")
    with pytest.raises(NotRunningError) as caught:
        down.run(file)
    assert caught.value.exit_code == 1
    # The lock of one that was killed is nobody's.
    lock = socket_path(file).with_suffix(".lock")
    lock.touch()
    assert not runs(file)
    lock.unlink()
