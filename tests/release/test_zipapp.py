"""The zipapp: what it unpacks, where, and on which Python; with a krelay of a few lines."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from release import boot, zipapp

pytestmark = pytest.mark.process

HERE = f"{sys.version_info.major}.{sys.version_info.minor}"
COMMON = {
    "krelay/__init__.py": b"",
    "krelay/cli/__init__.py": b"",
    "krelay/cli/entry.py": b"import sys, native\n"
    b"def krelay(): print('krelay', native.PYTHON, __file__, *sys.argv[1:])\n"
    b"def kubectl_relay(): print('kubectl relay')\n",
    "krelay/cli/kubectl.py": b"def complete(): print('completion')\n",
}


def tree(python: str) -> zipapp.Tree:
    return {**COMMON, "native.py": f"PYTHON = {python!r}\n".encode()}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A zipapp for this Python and for one that this machine lacks."""
    return write(tmp_path / "krelay.pyz", HERE, "3.99")


def write(file: Path, *pythons: str, platform: str | None = None) -> Path:
    trees = {python: tree(python) for python in pythons}
    file.write_bytes(zipapp.pack(trees, platform or boot.this_platform()))
    file.chmod(0o755)
    return file


def start(*command: str | Path, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        env={"PATH": "/usr/bin:/bin", "XDG_CACHE_HOME": "/nonexistent/cache", **environ},
        capture_output=True,
        text=True,
        check=False,
    )


def run(file: Path, **environ: str) -> list[str]:
    """Return the words that the zipapp prints."""
    done = start(sys.executable, file, "a", "b", **environ)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout.split()


def test_it_unpacks_what_this_python_needs_once(file: Path, tmp_path: Path) -> None:
    first = run(file, XDG_CACHE_HOME=str(tmp_path))
    (folder,) = (tmp_path / "krelay" / "pyz").iterdir()
    assert first == ["krelay", HERE, str(folder / "krelay/cli/entry.py"), "a", "b"]
    (folder / "native.py").write_text("PYTHON = 'unpacked once'\n")
    assert run(file, XDG_CACHE_HOME=str(tmp_path))[1] == "unpacked"
    assert {path.name for path in (tmp_path / "krelay" / "pyz").iterdir()} == {folder.name}


def test_another_build_has_another_folder(file: Path, tmp_path: Path) -> None:
    run(file, XDG_CACHE_HOME=str(tmp_path))
    run(write(file, HERE), XDG_CACHE_HOME=str(tmp_path))
    assert len([*(tmp_path / "krelay" / "pyz").iterdir()]) == 2


@pytest.mark.parametrize("bad", ["nothing can be written", "others can write"])
def test_without_a_cache_for_this_user_alone_a_temporary_folder_serves(
    bad: str, file: Path, tmp_path: Path
) -> None:
    temporary, cache = tmp_path / "temporary", tmp_path / "cache"
    temporary.mkdir()
    if bad == "nothing can be written":
        cache.write_text("a file\n")
    else:
        (cache / "krelay" / "pyz").mkdir(parents=True)
        (cache / "krelay" / "pyz").chmod(0o777)
    found = run(file, XDG_CACHE_HOME=str(cache), TMPDIR=str(temporary))
    assert found[1] == HERE
    assert found[2].startswith(str(temporary))
    assert [*temporary.iterdir()] == []


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("kubectl-relay", "kubectl relay\n"),
        ("kubectl-krelay", "kubectl relay\n"),
        ("kubectl_complete-relay", "completion\n"),
    ],
)
def test_a_link_decides_which_program_runs(
    name: str, said: str, file: Path, tmp_path: Path
) -> None:
    link = tmp_path / name
    link.symlink_to(file)
    assert start(sys.executable, link, XDG_CACHE_HOME=str(tmp_path)).stdout == said


def test_it_is_a_program_itself(file: Path, tmp_path: Path) -> None:
    (tmp_path / "python3").symlink_to(sys.executable)
    done = start(file, PATH=f"{tmp_path}:/usr/bin:/bin", XDG_CACHE_HOME=str(tmp_path))
    assert done.stdout.startswith(f"krelay {HERE} "), done.stderr


def test_a_python_that_it_has_no_packages_for_starts_one_that_it_has(tmp_path: Path) -> None:
    file = write(tmp_path / "krelay.pyz", "3.99")
    # The first in $PATH fails, as pyenv's do for what is not chosen; the second is that Python.
    for folder, script in (
        ("first", "echo not chosen >&2; exit 127"),
        ("second", '[ "$1" = -c ] || echo started "$@"'),
    ):
        (tmp_path / folder).mkdir()
        program = tmp_path / folder / "python3.99"
        program.write_text(f"#!/bin/sh\n{script}\n")
        program.chmod(0o755)
    path = f"{tmp_path}/first:{tmp_path}/second:/bin"
    done = start(sys.executable, file, "up", PATH=path)
    assert (done.stdout, done.stderr) == (f"started {file} up\n", "")


def test_without_such_a_python_it_says_which_ones_it_needs(tmp_path: Path) -> None:
    file = write(tmp_path / "krelay.pyz", "3.98", "3.99")
    done = start(sys.executable, file)
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        f"error: this krelay needs CPython 3.98 to 3.99; {sys.executable} is {HERE}",
        f"  hint: start it as `python3.99 {file}`, or `pip install krelay`",
    ]


def test_a_file_for_another_platform_says_so(tmp_path: Path) -> None:
    file = write(tmp_path / "krelay.pyz", HERE, platform="darwin-arm64")
    done = start(sys.executable, file, XDG_CACHE_HOME=str(tmp_path))
    assert done.returncode == 1
    assert f"is for darwin-arm64, and this is {boot.this_platform()}" in done.stderr
    assert "Traceback" not in done.stderr


def test_the_same_files_make_the_same_zipapp(file: Path, tmp_path: Path) -> None:
    assert write(tmp_path / "again.pyz", HERE, "3.99").read_bytes() == file.read_bytes()


def test_what_an_installer_leaves_behind_stays_out(tmp_path: Path) -> None:
    for name in ("a/__init__.py", "a/__pycache__/x.pyc", "a.dist-info/RECORD", "a.dist-info/WHEEL"):
        (tmp_path / name).parent.mkdir(exist_ok=True, parents=True)
        (tmp_path / name).touch()
    assert set(zipapp.read(tmp_path)) == {"a/__init__.py", "a.dist-info/WHEEL"}


def test_this_platform_is_one_that_can_be_built() -> None:
    assert os.name != "posix" or boot.this_platform() in zipapp.PLATFORMS
