"""Fixtures that undo what a command does to its process, since other tests follow."""

from __future__ import annotations

import io
import logging
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from krelay.cli import main
from krelay.cli.output import repeat_filter


@pytest.fixture(autouse=True)
def logging_as_it_was() -> Iterator[None]:
    root, ours = logging.getLogger(), logging.getLogger("krelay")
    before = root.handlers[:], root.level, ours.level
    hooks = threading.excepthook, sys.unraisablehook
    yield
    repeat_filter.flush()
    logging.captureWarnings(False)
    threading.excepthook, sys.unraisablehook = hooks
    root.handlers[:] = before[0]
    root.setLevel(before[1])
    ours.setLevel(before[2])


@pytest.fixture(autouse=True)
def signals_as_they_were() -> Iterator[None]:
    """Restore signals that a command ignores at its end."""
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
    before = [signal.getsignal(number) for number in numbers]
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


@pytest.fixture
def krelay(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Callable[..., int]:
    """Run `krelay ARGS` in an empty directory, and return the exit code."""
    monkeypatch.chdir(tmp_path)

    def run(*args: str, stdin: bytes = b"") -> int:
        monkeypatch.setattr(sys, "argv", ["krelay", *args])
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        return main.main()

    return run
