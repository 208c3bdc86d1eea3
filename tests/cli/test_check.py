"""`krelay check` for programs; for people it is in test_main."""

from __future__ import annotations

import json
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
