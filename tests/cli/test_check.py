"""`krelay check` for programs; for people it is in test_main."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from krelay.cli.check import run
from krelay.config.selection import Selection
from krelay.errors import ConfigError

GOOD = "apiVersion: krelay/v1\ntargets:\n  web: svc/web 8080:80\n  db: svc/db 5432\n"


def test_a_file_that_is_right(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "krelay.yaml"
    file.write_text(GOOD)
    assert run(Selection(str(file)), json=True) == 0
    assert json.loads(capsys.readouterr().out) == {
        "path": str(file),
        "ok": True,
        "problems": [],
        "targets": ["web", "db"],
    }


def test_a_file_that_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, other = tmp_path / "krelay.yaml", tmp_path / "other.txt"
    file.write_text(GOOD.replace("8080", "99999") + "include: [other.txt]\n")
    other.write_text("svc/x nope!\n")
    with pytest.raises(ConfigError):
        run(Selection(str(file)), json=False)
    assert capsys.readouterr().out == ""
    assert run(Selection(str(file)), json=True) == 2
    found = json.loads(capsys.readouterr().out)
    assert not found["ok"]
    assert [(p["path"], p["line"], p["column"]) for p in found["problems"]] == [
        (str(file), 3, 16),
        (str(other), 1, 7),
    ]
    assert all(p["message"] and p["hint"] for p in found["problems"])


@pytest.fixture
def pipe() -> Iterator[Callable[[str], str]]:
    """The path of a pipe that holds a text, as a shell's `<(…)` is one."""
    ends: list[int] = []

    def hold(text: str) -> str:
        out, into = os.pipe()
        os.write(into, text.encode())
        os.close(into)
        ends.append(out)
        return f"/dev/fd/{out}"

    yield hold
    for end in ends:
        os.close(end)


def test_a_pipe_of_the_command_line_is_read_once(
    krelay: Callable[..., int], pipe: Callable[[str], str], capsys: pytest.CaptureFixture[str]
) -> None:
    path = pipe(GOOD)
    assert krelay("check", path) == 0
    assert capsys.readouterr().out == f"{path}: ok, 2 targets\n"
    assert krelay("check", "-f", pipe("no\n")) == 2
    assert krelay("import", pipe("svc/web 80\n")) == 0
    assert "web: svc/web 80" in capsys.readouterr().out
    assert krelay("reload", "-f", pipe(GOOD)) == 2
    assert "`-f` names the file that a krelay runs" in capsys.readouterr().err


def test_more_than_a_file_may_have_is_not_read(
    krelay: Callable[..., int], capsys: pytest.CaptureFixture[str]
) -> None:
    assert krelay("check", "/dev/zero") == 2
    assert "larger than 1 MiB" in capsys.readouterr().err
    assert krelay("check", "/dev/null") == 2
    assert "the file is empty" in capsys.readouterr().err


def test_a_pipe_that_a_file_names_is_a_problem(
    krelay: Callable[..., int], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "krelay.yaml").write_text(
        GOOD + "include: [fifo]\nagent: {patches: [{file: fifo}]}"
    )
    assert krelay("check", str(tmp_path / "krelay.yaml")) == 2
    assert capsys.readouterr().err.count("fifo': not a regular file") == 2
