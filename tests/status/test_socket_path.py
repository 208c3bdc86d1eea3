"""The path of a file's socket."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from krelay.errors import KrelayError
from krelay.status.socket_path import make_directory, socket_path


@pytest.fixture(autouse=True)
def runtime(runtime_directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A runtime directory that does not exist yet, with a path short enough."""
    directory = runtime_directory / "r"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(directory))
    yield directory
    shutil.rmtree(directory) if directory.is_dir() else directory.unlink(missing_ok=True)


def test_each_file_has_one_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sub").mkdir()
    (tmp_path / "link").symlink_to("sub")
    monkeypatch.chdir(tmp_path)
    same = ["krelay.yaml", "./krelay.yaml", "sub/../krelay.yaml", str(tmp_path / "krelay.yaml")]
    assert len({socket_path(file) for file in same}) == 1
    assert socket_path("sub/krelay.yaml") == socket_path("link/krelay.yaml")
    others = {socket_path(file) for file in ("krelay.yaml", "other.yaml", "sub/krelay.yaml")}
    assert len(others) == 3


def test_the_path_stays_if_the_file_is_a_link_that_changes(tmp_path: Path) -> None:
    file = tmp_path / "krelay.yaml"
    before = socket_path(str(file))
    for version in ("one", "two"):
        (tmp_path / version).touch()
        file.unlink(missing_ok=True)
        file.symlink_to(version)
        assert socket_path(str(file)) == before


def test_the_path_is_in_the_runtime_directory_if_that_is_usable(
    runtime: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert socket_path("a").parent == runtime / "krelay"
    own = f"krelay-{os.getuid()}"
    for useless in ("", "relative", "/" + "x" * 90):
        monkeypatch.setenv("XDG_RUNTIME_DIR", useless)
        assert socket_path("a").parent.name == own
    monkeypatch.delenv("XDG_RUNTIME_DIR")
    assert socket_path("a").parent.name == own
    assert len(os.fsencode(socket_path("a"))) < 100


def test_the_directory_is_created_private(runtime: Path) -> None:
    path = socket_path("a")
    for _ in range(2):
        make_directory(path)
    assert (runtime / "krelay").stat().st_mode & 0o777 == 0o700


def test_a_directory_open_to_others_is_refused(runtime: Path) -> None:
    (runtime / "krelay").mkdir(parents=True)
    (runtime / "krelay").chmod(0o755)
    with pytest.raises(KrelayError, match="is not private to this user"):
        make_directory(socket_path("a"))


def test_a_directory_of_another_user_is_refused(
    runtime: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    make_directory(socket_path("a"))
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(KrelayError, match="is not private to this user"):
        make_directory(socket_path("a"))


def test_a_link_to_a_directory_is_refused(runtime: Path, tmp_path: Path) -> None:
    runtime.mkdir()
    (tmp_path / "mine").mkdir(mode=0o700)
    (runtime / "krelay").symlink_to(tmp_path / "mine")
    with pytest.raises(KrelayError, match="is not private to this user"):
        make_directory(socket_path("a"))


def test_a_directory_that_cannot_be_created_is_an_error(runtime: Path) -> None:
    runtime.touch()
    with pytest.raises(KrelayError, match="cannot create"):
        make_directory(socket_path("a"))
