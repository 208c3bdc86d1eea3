"""`krelay ps`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import socket
import threading
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from krelay.cli.background import ps as module
from krelay.cli.background.ps import ps
from krelay.state.states import ContextState
from krelay.status.instances import instances
from krelay.status.socket_path import socket_path
from tests.cli.asked import answering
from tests.cli.reports import forward, report


@pytest.fixture(autouse=True)
def runtime(runtime_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(runtime_directory / "ps"))
    monkeypatch.setattr(module, "_ANSWER_DEADLINE", 60.0)


async def printed(capsys: pytest.CaptureFixture[str], *, as_json: bool = False) -> tuple[Any, str]:
    assert await asyncio.to_thread(ps, as_json=as_json) == 0
    out, err = capsys.readouterr()
    return json.loads(out) if as_json else out.splitlines(), err


CONTEXTS = (ContextState("prod", "https://a", "shop"), ContextState(None, "https://b", "x"))
TWO = report(
    forward("web"),
    forward("dns", index=0, name="dns[53]"),
    forward("dns", "failed", index=1, name="dns[metrics]"),
    forward("old", "draining"),
    contexts=CONTEXTS,
)


async def test_without_one_it_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    assert await printed(capsys) == ([], "no krelay runs a file\n")
    assert await printed(capsys, as_json=True) == ([], "")


async def test_each_has_a_line_with_its_targets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    ending = {**report(forward("web")), "ending": True}
    async with answering(first, GET_status=lambda body: TWO):
        async with answering(second, GET_status=lambda body: ending):
            lines, err = await printed(capsys)
            found, _ = await printed(capsys, as_json=True)
    assert err == ""
    pid = str(os.getpid())
    assert [line.split()[0] for line in lines] == ["READY", "1/2", "1/1"]
    assert lines[1].split()[1] == pid
    assert lines[1].endswith("prod, in the cluster  ~/a.yaml")
    assert lines[2].split()[2:] == ["ending", "-", "~/b.yaml"]
    assert [one["ending"] for one in found] == [False, True]
    assert {**found[0], "started": ""} == {
        "file": str(first),
        "pid": os.getpid(),
        "started": "",
        "ready": 1,
        "total": 2,
        "contexts": ["prod", "in the cluster"],
        "ending": False,
        "error": None,
    }


async def test_one_that_does_not_answer_costs_a_bounded_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "_ANSWER_DEADLINE", 0.2)
    never = asyncio.Event()
    stuck = tmp_path / "a.yaml"

    async def hang(body: object) -> None:
        await never.wait()

    async with answering(stuck, GET_status=hang):
        lines, err = await printed(capsys)
        found, _ = await printed(capsys, as_json=True)
        never.set()
    assert [line.split()[0] for line in lines] == ["READY", "?"]
    assert err == f"krelay for {stuck} did not answer in time (pid {os.getpid()})\n"
    assert found[0]["error"].endswith(f"did not answer in time (pid {os.getpid()})")
    assert datetime.fromisoformat(found[0]["started"]) <= datetime.now(UTC)


@asynccontextmanager
async def dripping(file: Path, beginning: bytes, drop: bytes) -> AsyncIterator[None]:
    """Run `file` with a socket whose answer never ends: `beginning`, then one `drop` after another
    for as long as the client listens."""

    def drip() -> None:
        with contextlib.suppress(OSError):
            connection, _ = server.accept()
            with connection:
                connection.sendall(beginning)
                while True:
                    connection.sendall(drop)
                    time.sleep(0.01)

    async with answering(file):
        place = await asyncio.to_thread(socket_path, str(file))
        place.unlink()
        with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as last:
            server.bind(str(place))
            server.listen()
            thread = threading.Thread(target=drip)
            thread.start()
            try:
                yield
            finally:
                last.connect(str(place))  # the thread may still wait for a client
                last.close()
                thread.join()


@pytest.mark.parametrize(
    ("beginning", "drop"),
    [
        (b"", b"H"),
        (b"HTTP/1.1 200 OK\r\n", b"x"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 60000000\r\n\r\n", b" "),
    ],
    ids=["status line", "header", "body"],
)
async def test_answers_that_drip_cost_the_same_bounded_time(
    beginning: bytes,
    drop: bytes,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(module, "_ANSWER_DEADLINE", 0.3)
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    async with dripping(first, beginning, drop), dripping(second, beginning, drop):
        lines, err = await printed(capsys)
    assert [line.split()[0] for line in lines] == ["READY", "?", "?"]
    assert err.splitlines() == [
        f"krelay for {file} did not answer in time (pid {os.getpid()})" for file in (first, second)
    ]


@pytest.mark.parametrize("answer", [{}, [], {**TWO, "contexts": None}, {**TWO, "forwards": [{}]}])
async def test_one_that_answers_otherwise_hides_no_other(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], answer: Any
) -> None:
    """It may be of another version."""
    first, second = tmp_path / "a.yaml", tmp_path / "b.yaml"
    async with answering(first, GET_status=lambda body: answer):
        async with answering(second, GET_status=lambda body: TWO):
            lines, err = await printed(capsys)
    assert [line.split()[0] for line in lines] == ["READY", "?", "1/2"]
    assert err == f"krelay for {first} gave an unknown answer (pid {os.getpid()})\n"


async def test_one_that_ends_meanwhile_is_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    async with answering(tmp_path / "a.yaml"):
        found = await asyncio.to_thread(instances)
    monkeypatch.setattr(module, "instances", lambda: found)
    assert await printed(capsys) == ([], "no krelay runs a file\n")
