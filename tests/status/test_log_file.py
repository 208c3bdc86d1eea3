"""The log of a krelay in the background."""

from __future__ import annotations

import logging
import os
from pathlib import Path

import pytest

from krelay.errors import KrelayError
from krelay.status.log_file import LogFile, create, find
from krelay.status.socket_path import socket_path


@pytest.fixture(autouse=True)
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path / "state" / "krelay"


def test_each_file_has_a_private_log_in_the_state_directory(state: Path) -> None:
    assert find("a.yaml") is None
    path = create("a.yaml")
    assert path.parent == state
    assert (state.stat().st_mode & 0o777, path.stat().st_mode & 0o777) == (0o700, 0o600)
    path.write_text("kept\n")
    path.chmod(0o644)
    assert create("a.yaml") == find("a.yaml") == path
    assert (path.read_text(), path.stat().st_mode & 0o777) == ("kept\n", 0o600)
    assert create("b.yaml") != path


def test_without_a_variable_it_is_below_the_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", "relative")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert create("a.yaml").parent == tmp_path / ".local/state/krelay"


def test_it_is_beside_the_socket_if_the_state_directory_cannot_be_used(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    path = create("a.yaml")
    assert path == find("a.yaml") == socket_path("a.yaml").with_suffix(".log")
    path.unlink()
    path.mkdir()
    with pytest.raises(KrelayError, match=f"cannot write the log {path}: Is a directory"):
        create("a.yaml")
    path.rmdir()


def test_a_link_in_its_place_is_not_followed(state: Path, tmp_path: Path) -> None:
    path = create("a.yaml")
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere")
    assert create("a.yaml").parent != state
    assert not (tmp_path / "elsewhere").exists()
    socket_path("a.yaml").with_suffix(".log").unlink()


def test_a_pipe_in_its_place_is_not_waited_for(state: Path) -> None:
    path = create("a.yaml")
    path.unlink()
    os.mkfifo(path)
    assert create("a.yaml").parent != state
    with open(os.open(path, os.O_RDWR), "rb"):  # it has a reader
        assert create("a.yaml").parent != state


def test_it_begins_anew_at_its_bound_and_keeps_one_former(state: Path) -> None:
    path = create("a.yaml")
    reader, writer = os.pipe()
    handler = LogFile(path, most=1000, stderr=(writer,))
    logger = logging.Logger("test")
    logger.addHandler(handler)
    for number in range(100):
        logger.info("line %d \udcff %s", number, "x" * 40)
    os.write(writer, b"last words\n")
    handler.close()
    os.close(writer)
    os.close(reader)
    assert path.read_text().endswith("\nlast words\n")
    files = sorted(state.iterdir())
    assert files == [path, path.with_name(f"{path.name}.1")]
    for file in files:
        assert file.stat().st_size < 1100
        assert file.stat().st_mode & 0o777 == 0o600
    assert "line 99 \\udcff" in path.read_text()


def test_a_full_disk_costs_lines_and_no_more(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = LogFile(create("a.yaml"), stderr=())
    logger = logging.Logger("test")
    logger.addHandler(handler)

    def full(record: logging.LogRecord) -> bool:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(handler, "shouldRollover", full)
    logger.info("lost")
    assert capsys.readouterr().err == ""
    monkeypatch.undo()
    logger.info("%d", "no number")
    assert "a real number is required" in capsys.readouterr().err
    handler.close()
