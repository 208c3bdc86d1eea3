"""What a process in the background tells the command that started it."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from krelay.cli.background import child
from krelay.cli.background.child import VARIABLE, Report
from krelay.errors import KrelayError, NotReadyError
from krelay.state.error_codec import from_json


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    reader, writer = os.pipe()
    yield reader, writer
    os.close(reader)


def told(reader: int) -> list[dict[str, object]]:
    return [json.loads(line) for line in os.read(reader, 1 << 16).splitlines()]


def test_steps_and_the_end_of_the_start_are_told(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    report = Report(writer, Path("x.log"))
    assert not os.get_inheritable(writer)
    with report.errors():
        report.step("waiting for a node")
        report.problem("db: failed: refused")
        report.ready()
        report.step("no more")
    assert told(reader) == [
        {"step": "waiting for a node"},
        {"problem": "db: failed: refused"},
        {"ready": True},
    ]
    assert os.read(reader, 1) == b""


def test_the_error_of_a_start_is_told_with_its_exit_code(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    report = Report(writer, Path("x.log"))
    with pytest.raises(NotReadyError), report.errors():
        raise NotReadyError("not yet", ["web: pending"], hint="wait")
    (line,) = told(reader)
    error = from_json(line["error"])  # type: ignore[arg-type]
    assert error.report() == ["web: pending", "not yet", "  hint: wait"]
    assert error.exit_code == 3


def test_a_command_that_has_gone_or_reads_nothing_is_no_matter(pipe: tuple[int, int]) -> None:
    reader, writer = pipe
    report = Report(writer, Path("x.log"))
    for _ in range(100):
        report.step("x" * 4000)  # the pipe is full soon
    other, gone = os.pipe()
    os.close(other)
    report = Report(gone, Path("x.log"))
    report.step("to no one")
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(gone)
    with pytest.raises(KrelayError, match="it failed"), report.errors():
        raise KrelayError("it failed")
    os.close(writer)


def test_the_process_hides_the_variable_from_its_children(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, writer = pipe
    monkeypatch.setenv(VARIABLE, json.dumps({"pipe": writer, "log": "x.log", "path": []}))
    monkeypatch.setattr(child, "_report", None)

    child.begin()
    report = child.report()
    assert report is not None
    assert report.log == Path("x.log")
    assert VARIABLE not in os.environ
    report.close()
