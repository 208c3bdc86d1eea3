"""The krelays of a user, found by their locks."""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import pytest

from krelay.errors import KrelayError
from krelay.status.instances import instances
from krelay.status.servers import serve_unix
from krelay.status.socket_path import socket_path


@pytest.fixture(autouse=True)
def runtime(runtime_directory: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A runtime directory of this test alone."""
    directory = runtime_directory / "i"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(directory))
    return directory / "krelay"


async def paths(*files: Path) -> list[Path]:
    return [await asyncio.to_thread(socket_path, str(file)) for file in files]


async def test_each_that_runs_is_found_with_its_file(tmp_path: Path) -> None:
    assert await asyncio.to_thread(instances) == []
    odd = tmp_path / "a\nb.yaml"
    files = [tmp_path / "b.yaml", odd]
    first, second = await paths(*files)
    async with serve_unix(first, {}, file=str(files[0])), serve_unix(second, {}, file=str(odd)):
        found = await asyncio.to_thread(instances)
        assert [(one.file, one.pid, one.socket) for one in found] == [
            (str(odd), os.getpid(), second),
            (str(files[0]), os.getpid(), first),
        ]
        assert found[0].since.startswith("20")
    assert await asyncio.to_thread(instances) == []


async def test_what_a_killed_one_left_is_ignored(runtime: Path, tmp_path: Path) -> None:
    file = tmp_path / "krelay.yaml"
    (path,) = await paths(file)
    async with serve_unix(path, {}, file=str(file)):
        lock = path.with_suffix(".lock").read_bytes()
        (runtime / "dead.lock").write_bytes(lock)
        (runtime / "dead.sock").touch()
        (runtime / "link.lock").symlink_to(path.with_suffix(".lock"))
        (runtime / "gone.lock").symlink_to("nowhere")
        assert [one.socket for one in await asyncio.to_thread(instances)] == [path]
    for name in ("dead.lock", "dead.sock", "link.lock", "gone.lock"):
        (runtime / name).unlink()


async def test_one_that_has_just_taken_its_lock_is_left_out(tmp_path: Path) -> None:
    (path,) = await paths(tmp_path / "krelay.yaml")
    async with serve_unix(path, {}, file="krelay.yaml"):
        os.truncate(path.with_suffix(".lock"), 0)
        assert await asyncio.to_thread(instances) == []


async def test_a_directory_open_to_others_is_an_error(runtime: Path) -> None:
    runtime.mkdir(parents=True, exist_ok=True)
    runtime.chmod(0o755)
    with pytest.raises(KrelayError, match="is not private to this user"):
        await asyncio.to_thread(instances)
    runtime.chmod(0o700)
