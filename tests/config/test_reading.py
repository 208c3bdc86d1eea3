from __future__ import annotations

import os
import socket
import threading
from pathlib import Path

import pytest

from krelay.config import files
from krelay.config.files import MOST_HANGING, bounded, regular


def test_a_regular_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    assert regular(str(path), 100) == b"0123456789"
    assert regular(str(path), 4) == b"0123"
    (tmp_path / "link").symlink_to(path)
    assert regular(str(tmp_path / "link"), 100) == b"0123456789"


def test_what_is_no_regular_file_is_not_opened(tmp_path: Path) -> None:
    pipe, sock = str(tmp_path / "pipe"), str(tmp_path / "socket")
    os.mkfifo(pipe)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(sock)
        for path in (pipe, sock, "/dev/null", "/dev/zero", "/dev/tty"):
            with pytest.raises(OSError, match="not a regular file"):
                regular(path, 10)
    with pytest.raises(IsADirectoryError):
        regular(str(tmp_path), 10)
    with pytest.raises(FileNotFoundError):
        regular(str(tmp_path / "none"), 10)
    with pytest.raises(ValueError, match="null"):
        regular("a\0b", 10)


def test_a_pipe_that_took_the_place_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, pipe = tmp_path / "file", tmp_path / "pipe"
    file.touch()
    os.mkfifo(pipe)
    monkeypatch.setattr(os, "stat", lambda path: os.lstat(file))
    with pytest.raises(OSError, match="not a regular file"):
        regular(str(pipe), 10)


def test_a_path_that_hangs_costs_one_thread() -> None:
    answers = threading.Event()
    names = [f"hangs-{n}" for n in range(MOST_HANGING)]

    def hang(path: str) -> str:
        answers.wait()
        return path

    before = threading.active_count()
    try:
        with pytest.raises(TimeoutError, match=r"no answer from its file system for 0\.01 s"):
            bounded(names[0], hang, within=0.01)
        for _ in range(3):
            with pytest.raises(TimeoutError, match="still does not answer"):
                bounded(names[0], hang, within=0.01)
        assert threading.active_count() == before + 1
        assert bounded("another", str.upper) == "ANOTHER"
        for name in names[1:]:
            with pytest.raises(TimeoutError, match="no answer"):
                bounded(name, hang, within=0.01)
        with pytest.raises(TimeoutError, match="16 other files do not answer"):
            bounded("another", str.upper)
        assert threading.active_count() == before + MOST_HANGING
    finally:
        answers.set()
        for thread in threading.enumerate():
            if thread.name.startswith("read hangs"):
                thread.join()
    assert not files._hanging
    assert bounded(names[0], hang) == names[0]


def test_no_thread_to_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(OSError, match="no thread can be started"):
        bounded("a", str.upper)
