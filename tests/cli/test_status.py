"""`krelay status`: for people, for programs, once and again."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import sys
from pathlib import Path

import pytest

from krelay.cli.status import run
from krelay.errors import UsageError
from krelay.status.client import NotRunningError
from tests import rig
from tests.cli.asked import TEXT, answering
from tests.cli.reports import carried, forward, report
from tests.cli.terminal import terminal
from tests.integration.product import ROOT, command, environment

FOUND = report(forward("web"), forward("db", "failed"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "krelay.yaml"
    path.write_text(TEXT)
    return path


async def shown(file: Path, *names: str, output: str = "text") -> int:
    return await asyncio.to_thread(run, str(file), names, output=output, watch=False)


async def test_a_line_for_each(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with answering(file, GET_status=lambda body: FOUND):
        assert await shown(file) == 0
        assert await shown(file, "db", output="wide") == 0
    out, err = capsys.readouterr()
    assert err == ""
    title, web, db, wide, wide_db = out.splitlines()
    assert title.split()[0] == "TARGET"
    assert web.startswith("web     ● ready   127.0.0.1:8080  svc/web:80")
    assert db.endswith("connection refused")
    assert "NAMESPACE" in wide
    assert wide_db.startswith("db ")


async def test_for_programs(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with answering(file, GET_status=lambda body: FOUND):
        assert await shown(file, output="json") == 0
        assert json.loads(capsys.readouterr().out) == FOUND
        assert await shown(file, "db", output="json") == 0
        (one,) = json.loads(capsys.readouterr().out)["forwards"]
        assert one["target"] == "db"


async def test_names(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async with answering(file, GET_status=lambda body: FOUND):
        with pytest.raises(UsageError, match="has no target `wep`") as caught:
            await shown(file, "wep")
        assert caught.value.exit_code == 2
        assert await shown(file, "other") == 0  # known, but not relayed
    assert len(capsys.readouterr().out.splitlines()) == 1


async def test_without_one_that_runs(file: Path) -> None:
    with pytest.raises(NotRunningError):
        await shown(file)


async def test_watching_in_json_lines_over_an_end_until_ctrl_c(file: Path) -> None:
    answers = [report(forward(traffic=carried(n, n))) for n in range(3)]
    process = None
    try:
        async with answering(file, GET_status=lambda body: answers.pop(0)):
            process = await asyncio.create_subprocess_exec(
                *command("status", "-f", str(file), "--watch", "--output", "json"),
                env=environment(PYTHONPATH=str(ROOT)),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            assert process.stdout is not None
            lines = [json.loads(await process.stdout.readline()) for _ in range(2)]
            assert [line["forwards"][0]["traffic"]["toLocalBytes"] for line in lines] == [1, 2]
        while "error" not in (line := json.loads(await process.stdout.readline())):
            pass
        assert line["error"]["message"] == f"no krelay runs for {file}"
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 130
    finally:
        if process is not None and process.returncode is None:
            process.kill()
            await process.communicate()


async def test_watching_on_a_terminal(file: Path) -> None:
    sent = 0

    def answer(body: object) -> object:
        nonlocal sent
        sent += 1_000_000
        return report(forward(traffic=carried(sent, 0)))

    async with answering(file, GET_status=answer):
        async with terminal("status", "--watch", cwd=file.parent, columns=120) as screen:
            await screen.shows("1 of 1 ready")
            await screen.shows("kB/s")
            assert screen.text.count("TARGET") == 1
            screen.type("\x03")
            assert await screen.process.wait() == 130
            await rig.until(lambda: screen.as_it_was)
            assert "TARGET" in screen.text


async def test_on_a_terminal_with_a_line_on_the_run(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")
    async with answering(file, GET_status=lambda body: FOUND):
        assert await shown(file) == 0
    out = capsys.readouterr().out
    assert not re.search(r"\x1b\[(\d+;)*3[0-7]m", out)
    lines = re.sub(r"\x1b\[[\d;]*m", "", out).splitlines()
    assert lines[0].startswith("krelay.yaml · 1 of 2 ready · up ")
    assert lines[1] == ""
    assert lines[-1].startswith("✗ db (")
    assert all(len(line) < 100 for line in lines)
