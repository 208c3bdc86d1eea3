from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from krelay.config import files
from krelay.config.files import (
    MAX_BYTES,
    MAX_FILES,
    MOST_HANGING,
    Files,
    _read_bytes,
    bounded,
    clean,
    decode,
    find,
    is_targets_txt,
    read,
)
from krelay.config.grammar import ParseError
from krelay.errors import ConfigError, UsageError


def test_the_file_of_the_directory_is_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert find("other.yaml") == "other.yaml"
    with pytest.raises(UsageError) as caught:
        find(None)
    assert caught.value.hint == "`krelay init` writes one; `-f FILE` names one elsewhere"
    with pytest.raises(UsageError) as caught:
        find(None, hint="look elsewhere")
    assert caught.value.hint == "look elsewhere"
    Path("targets.txt").touch()
    with pytest.raises(UsageError) as caught:
        find(None)
    assert caught.value.hint == "there is a targets.txt: `-f targets.txt`"
    Path("krelay.yml").touch()
    assert find(None) == "krelay.yml"
    Path("krelay.yaml").touch()
    assert find(None) == "krelay.yaml"


@pytest.mark.parametrize("name", ["none.yaml", ".", "a\0b"])
def test_an_unreadable_patch_file_is_a_problem_of_its_entry(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UsageError, match="cannot read") as caught:
        read(name)
    assert caught.value.hint is None  # it was named


def test_an_unreadable_default_file_is_named_in_the_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("krelay.yaml").mkdir()
    with pytest.raises(UsageError) as caught:
        read("krelay.yaml")
    assert caught.value.hint == "name a file with `-f`"


def test_a_missing_file_is_written_by_init_unless_another_lies_there(tmp_path: Path) -> None:
    missing = str(tmp_path / "a file.yaml")
    with pytest.raises(UsageError, match="no such file") as caught:
        Files({}).main(missing, None)
    assert caught.value.hint == f"`krelay init -f '{missing}'` writes one"
    (tmp_path / "krelay.yml").touch()
    with pytest.raises(UsageError) as caught:
        Files({}).main(missing, None)
    assert caught.value.hint == f"there is a krelay.yml: `-f {tmp_path}/krelay.yml`"
    with pytest.raises(UsageError) as caught:
        Files({}).main(str(tmp_path), None)
    assert caught.value.hint is None


def test_a_config_names_its_files(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    main, other = str(tmp_path / "main"), str(tmp_path / "other")
    for path in (main, other):
        Path(path).write_text(path)
    files = Files({})
    assert files.main(main, None) == main.encode()
    sub = str(tmp_path / "sub" / "x")
    assert files.named("../other", sub) == (f"{tmp_path}/sub/../other", other.encode())
    assert files.named("other", main) == files.named(other, "elsewhere") == (other, other.encode())
    for name, hint in (
        ("none", "directory"),
        ("a\0b", "directory"),
        ("~/a", "`~` is not expanded"),
    ):
        with pytest.raises(ParseError, match="cannot read") as caught:
            files.named(name, main)
        assert hint in str(caught.value.hint)
    opened = ["main", "sub/../other", "other", "none", "a\0b", "~/a"]
    assert files.paths == tuple(f"{tmp_path}/{name}" for name in opened)


def test_standard_input_is_no_file() -> None:
    files = Files({})
    assert files.main("-", b"x") == b"x"
    assert files.paths == ()


def test_the_number_of_files_is_limited() -> None:
    files = Files({})
    files.main("main", b"")
    for _ in range(MAX_FILES - 1):
        files.named(__file__, "main")
    with pytest.raises(ParseError, match="more than 100 files"):
        files.named("other", "main")
    assert files.paths == ("main", __file__)


def test_reading_stops_beyond_the_largest_config(tmp_path: Path) -> None:
    path = tmp_path / "big"
    path.write_bytes(b"#" * (2 * MAX_BYTES))
    data = read(str(path))
    assert len(data) == MAX_BYTES + 1
    attempts: list[Callable[[], str]] = [
        lambda: decode(data, "x"),
        lambda: clean(data.decode(), "x"),
    ]
    for attempt in attempts:
        with pytest.raises(ConfigError) as caught:
            attempt()
        assert caught.value.problems[0].message == "the file is larger than 1 MiB"
    assert decode(data[1:], "x") == "#" * MAX_BYTES


def test_marks_and_line_ends_are_plain() -> None:
    assert decode(b"\xef\xbb\xbfa\r\nb\rc\n\n", "x") == "a\nb\nc\n\n"


@pytest.mark.parametrize(
    ("data", "line", "column", "message"),
    [
        (b"a\r\nb\xc3\xa4\xff", 2, 3, "byte 0xff is not UTF-8"),
        (b"\xff\xfea\0", 1, 1, "byte 0xff is not UTF-8"),
        (b"\xef\xbb\xbf\xe4", 1, 1, "byte 0xe4 is not UTF-8"),
        (b"\xed\xa0\x80", 1, 1, "byte 0xed is not UTF-8"),
        (b"a\nb\0", 2, 2, "the character U+0000 does not belong in a text file"),
        (b"a\x1b[0m", 1, 2, "the character U+001B does not belong in a text file"),
    ],
)
def test_bytes_that_are_not_utf_8_are_a_problem_at_their_place(
    data: bytes, line: int, column: int, message: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        decode(data, "x")
    (problem,) = caught.value.problems
    assert (problem.line, problem.column, problem.message) == (line, column, message)


@pytest.mark.parametrize(
    ("text", "path", "expected"),
    [
        ("svc/a 80", "krelay.yaml", True),
        ("-n a svc/a 80\n# x: y\n", "-", True),
        ("--address ::1 a 80", "-", True),
        ("\n// a: b\n\tweb-0 8080:80\n", "-", True),
        ("ip/fe80:: 53", "-", True),
        ("deployments.apps/web", "-", True),
        ("apiVersion: krelay/v1", "targets.txt", False),
        ('"apiVersion":\n  krelay/v1', "targets.txt", False),
        ('{"apiVersion": 1}', "targets.txt", False),
        ("---\n", "targets.txt", False),
        ("- svc: 1\n- svc: 2", "targets.txt", False),
        ("targets:\n  a: svc/a 80\n  b: svc/b 80", "x.txt", False),
        ("", "x.txt", True),
        ("", "x.yaml", False),
        ("what is this?", "x.txt", True),
        ("what is this?", "x.yaml", False),
        ("svc/a 80\nwhat: is this\n", "x.yaml", False),
        ("svc/a 80\nsvc/b 80\nwhat: is this\n", "x.yaml", True),
    ],
)
def test_the_format_of_a_file_is_known_by_its_content(text: str, path: str, expected: bool) -> None:
    assert is_targets_txt(text, path) is expected


# -- a file system that hangs ----------------------------------------------------------------------


def test_a_regular_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(b"0123456789")
    assert _read_bytes(str(path), 100) == b"0123456789"
    assert _read_bytes(str(path), 4) == b"0123"
    (tmp_path / "link").symlink_to(path)
    assert _read_bytes(str(tmp_path / "link"), 100) == b"0123456789"


def test_only_regular_files_are_opened(tmp_path: Path) -> None:
    pipe, sock = str(tmp_path / "pipe"), str(tmp_path / "socket")
    os.mkfifo(pipe)
    with socket.socket(socket.AF_UNIX) as bound:
        bound.bind(sock)
        for path in (pipe, sock, "/dev/null", "/dev/zero", "/dev/tty"):
            with pytest.raises(OSError, match="not a regular file"):
                _read_bytes(path, 10)
    with pytest.raises(IsADirectoryError):
        _read_bytes(str(tmp_path), 10)
    with pytest.raises(FileNotFoundError):
        _read_bytes(str(tmp_path / "none"), 10)
    with pytest.raises(ValueError, match="null"):
        _read_bytes("a\0b", 10)


def test_a_pipe_that_replaced_a_file_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, pipe = tmp_path / "file", tmp_path / "pipe"
    file.touch()
    os.mkfifo(pipe)
    monkeypatch.setattr(os, "stat", lambda path: os.lstat(file))
    with pytest.raises(OSError, match="not a regular file"):
        _read_bytes(str(pipe), 10)


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
            if thread.name.startswith("read hangs-"):
                thread.join()
    assert not files._hanging
    assert bounded(names[0], hang) == names[0]


def test_a_missing_thread_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", start)
    with pytest.raises(OSError, match="no thread can be started"):
        bounded("a", str.upper)
