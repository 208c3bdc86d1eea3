"""`krelay wait`: until all is ready, for so long, for whom."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from krelay.cli.readiness import targets, unready
from krelay.cli.wait import run
from krelay.errors import ConfigError, KrelayError, NotReadyError, UsageError
from krelay.state.snapshot import told
from tests import rig
from tests.cli.asked import TEXT, answering
from tests.cli.reports import forward, report

READY = report(forward("web"), forward("db"))
HALF = report(forward("web"), forward("db", "failed"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "krelay.yaml"
    path.write_text(TEXT)
    return path


async def waited(file: Path, *names: str, timeout: float = 0.0) -> int:
    return await asyncio.to_thread(run, str(file), names, timeout=timeout)


# -- readiness ---------------------------------------------------------------------------------


def test_what_is_not_ready_and_why() -> None:
    assert unready(READY) == []
    assert unready(HALF) == ["db: failed: connection refused"]
    assert unready(HALF, ["web"]) == []
    assert unready(HALF, ["other", "db"]) == [
        "db: failed: connection refused",
        "other: not relayed (yet)",
    ]
    assert unready(report()) == ["krelay is starting"]
    assert told("web", "draining", "") == "web: draining"
    assert targets(HALF) == {"web", "db"}


def test_what_only_finishes_is_waited_for_only_at_the_end_and_by_name() -> None:
    former = report(forward("web"), forward("db", "draining", reason=""))
    assert unready(former) == []
    assert unready(former, ["db"]) == ["db: draining"]
    assert unready(report(forward("db", "draining", reason=""))) == ["db: draining"]


# -- the command -------------------------------------------------------------------------------


async def test_ready_at_once(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with answering(file, GET_status=lambda body: HALF):
        assert await waited(file, "web") == 0
    async with answering(file, GET_status=lambda body: READY):
        assert await waited(file) == 0
    assert capsys.readouterr() == ("1 forward is ready\n2 forwards are ready\n", "")


async def test_late(file: Path) -> None:
    async with answering(file, GET_status=lambda body: HALF):
        with pytest.raises(match=r"^not ready after 0.2 s$") as caught:
            await waited(file, "db", "other", timeout=0.2)
    assert caught.value.exit_code == 3
    assert caught.value.details() == ["db: failed: connection refused", "other: not relayed (yet)"]


async def test_ready_in_the_end(file: Path) -> None:
    answers = [report(), HALF, READY]
    async with answering(file, GET_status=lambda body: answers.pop(0)):
        assert await waited(file, timeout=9.0) == 0
    assert not answers


async def test_a_krelay_that_comes_later(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(NotReadyError) as caught:
        await waited(file)
    assert caught.value.details() == [f"no krelay runs for {file}"]
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(waited(file, "web", timeout=9.0))
        err = ""

        def said() -> bool:
            nonlocal err
            err += capsys.readouterr().err
            return "; waiting" in err

        await rig.until(said)
        assert err == f"no krelay runs for {file}; waiting\n"
        async with answering(file, GET_status=lambda body: READY):
            assert await waiting == 0


async def test_one_that_is_ill_may_recover(file: Path) -> None:
    answers: list[Any] = [KrelayError("not now"), READY]

    def answer(body: Mapping[str, Any]) -> Any:
        found = answers.pop(0)
        if isinstance(found, KrelayError):
            raise found
        return found

    async with answering(file, GET_status=answer):
        assert await waited(file, timeout=9.0) == 0


async def test_a_name_that_nobody_has_is_told_at_once(file: Path) -> None:
    with pytest.raises(UsageError, match="has no target `wep`"):
        await waited(file, "wep", timeout=60.0)
    async with answering(file, GET_status=lambda body: READY):
        with pytest.raises(UsageError, match="has no target `wep`"):
            await waited(file, "web", "wep", timeout=60.0)


async def test_the_file_is_read_only_where_it_has_to_be(file: Path) -> None:
    await asyncio.to_thread(file.write_text, "nonsense")
    async with answering(file, GET_status=lambda body: READY):
        assert await waited(file, "web", "db") == 0
        with pytest.raises(ConfigError):
            await waited(file, "other", timeout=60.0)
