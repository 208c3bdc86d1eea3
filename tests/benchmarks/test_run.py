"""The order of contenders, and the end of a run."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from benchmarks import place
from benchmarks.run import turned

PROGRAM = """
import contextlib, signal, sys, time
from benchmarks.run import end
for number in (signal.SIGINT, signal.SIGTERM):
    signal.signal(number, end)
try:
    print("runs", flush=True)
    time.sleep(60)
finally:
    print("cleans up", flush=True)
    sys.stdin.readline()
    print("is clean", flush=True)
"""


def test_each_round_begins_with_another() -> None:
    assert [turned(["a", "b", "c"], number)[0] for number in range(4)] == ["a", "b", "c", "a"]
    assert turned(["a", "b", "c"], 1) == ["b", "c", "a"]
    assert turned([], 2) == []


@pytest.mark.process
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_second_signal_does_not_interrupt_the_cleanup(number: signal.Signals) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM],
        cwd=place.ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "runs\n"
    process.send_signal(number)
    assert process.stdout.readline() == "cleans up\n"
    process.send_signal(signal.SIGTERM)
    process.send_signal(signal.SIGINT)
    told, _ = process.communicate("\n", timeout=60)
    assert told == "is clean\n"
    assert process.returncode == 128 + number
