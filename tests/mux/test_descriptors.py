"""The limit of open descriptors, as a real process finds it and leaves it."""

from __future__ import annotations

import errno
import os
import resource
import socket
import subprocess
import sys
import time

import pytest

from krelay.mux import descriptors

CODE = """
import resource
from krelay.mux.descriptors import raise_file_limit
raise_file_limit()
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(("soft", "hard", "after"), [(64, 200, 200), (200, 200, 200)])
@pytest.mark.process
def test_the_limit_is_raised_to_what_is_allowed(soft: int, hard: int, after: int) -> None:
    limited = f'ulimit -Sn {soft} && ulimit -Hn {hard} && exec "$@"'
    done = subprocess.run(
        ["sh", "-c", limited, "sh", sys.executable, "-c", CODE],
        text=True,
        capture_output=True,
        check=True,
    )
    assert done.stdout.split() == [str(after), str(hard)]


@pytest.mark.parametrize(
    ("soft", "hard", "wanted"),
    [
        (256, 1 << 20, 65_536),
        (256, resource.RLIM_INFINITY, 65_536),
        (1 << 20, 1 << 20, None),
        (resource.RLIM_INFINITY, resource.RLIM_INFINITY, None),
    ],
)
def test_a_limit_that_suffices_is_left_alone(
    soft: int, hard: int, wanted: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: asked.append(limits))
    descriptors.raise_file_limit()
    assert asked == ([] if wanted is None else [(wanted, hard)])


def test_a_refused_limit_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("not allowed")

    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 1024))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    descriptors.raise_file_limit()


@pytest.mark.parametrize("sized", [True, False])
def test_open_files_are_counted(sized: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both the size of /proc/self/fd and its entries give the count."""
    if sized and not descriptors._sized:
        pytest.skip("not on this system")
    monkeypatch.setattr(descriptors, "_sized", sized)
    before = descriptors.open_files()
    assert before is not None
    with socket.socket(), socket.socket():
        assert descriptors.open_files() == before + 2
    assert descriptors.open_files() == before


def test_without_a_free_descriptor_the_count_is_the_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: str) -> list[str]:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(descriptors, "_sized", False)
    monkeypatch.setattr(os, "listdir", fail)
    assert descriptors.open_files() == descriptors.file_limit()


def test_without_a_system_count_the_number_is_unknown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptors, "_LISTS", ("/no/such/place",))
    assert descriptors.open_files() is None


@pytest.mark.parametrize(
    ("soft", "reserved"), [(64, 16), (100, 25), (65_536, 256), (resource.RLIM_INFINITY, 256)]
)
def test_the_reserve(soft: int, reserved: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, soft))
    assert descriptors.reserve() == reserved


@pytest.mark.parametrize("sized", [True, False])
def test_files_to_spare_keeps_the_reserve(sized: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    used = 75
    monkeypatch.setattr(descriptors, "_sized", sized)
    monkeypatch.setattr(descriptors, "_COUNT_EVERY", 0.0)
    monkeypatch.setattr(descriptors, "open_files", lambda: used)
    monkeypatch.setattr(descriptors, "file_limit", lambda: 100)
    assert not descriptors.files_to_spare()
    used = 74
    assert descriptors.files_to_spare()
    monkeypatch.setattr(descriptors, "file_limit", lambda: None)
    used = 1 << 20
    assert descriptors.files_to_spare()


def test_slow_counts_are_rare(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(descriptors, "_sized", False)
    monkeypatch.setattr(descriptors, "_COUNT_EVERY", 3600.0)
    monkeypatch.setattr(descriptors, "_counted_at", time.monotonic())
    monkeypatch.setattr(descriptors, "_spared", True)
    monkeypatch.setattr(descriptors, "open_files", lambda: pytest.fail("counted"))
    assert descriptors.files_to_spare()
