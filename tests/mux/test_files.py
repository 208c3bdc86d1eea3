"""The limit of open files, as a real process finds it and leaves it."""

from __future__ import annotations

import resource
import subprocess
import sys

import pytest

from krelay.mux import files

CODE = """
import resource
from krelay.mux.files import raise_file_limit
raise_file_limit()
print(*resource.getrlimit(resource.RLIMIT_NOFILE))
"""


@pytest.mark.parametrize(("soft", "hard", "after"), [(64, 200, 200), (200, 200, 200)])
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
def test_no_more_is_asked_for_than_is_wanted(
    soft: int, hard: int, wanted: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[object] = []
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: asked.append(limits))
    files.raise_file_limit()
    assert asked == ([] if wanted is None else [(wanted, hard)])


def test_what_is_refused_is_done_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise ValueError("not allowed")

    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 1024))
    monkeypatch.setattr(resource, "setrlimit", refuse)
    files.raise_file_limit()
