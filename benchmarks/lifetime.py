"""The time that a forwarder needs to start, and the memory that its client takes."""

from __future__ import annotations

import contextlib
import json
import subprocess
import threading
import time
from collections.abc import Iterator
from typing import Any

from benchmarks import measures, place, processes
from benchmarks.contenders import Contender, Forwarder, running
from benchmarks.place import ECHO, SINK, SOURCE
from benchmarks.results import FailedError, Results

FORWARDS = 20
CONNECTIONS = 1000
MOVED = 64 << 20
STREAMS = 4
SETTLED = 3.0
"""Seconds until a forwarder that has nothing to do is at rest."""


@contextlib.contextmanager
def held(port: int, count: int, patience: float = 120.0) -> Iterator[Any]:
    """Keep so many connections open during a block; yield what opening them was like."""
    process = subprocess.Popen(
        measures.command("hold", port, count),
        cwd=place.ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    late = threading.Timer(patience, process.kill)
    late.start()
    try:
        line = process.stdout.readline()
        late.cancel()
        if not line:
            raise FailedError(f"did not open {count} connections within {patience:g} s")
        yield json.loads(line)
    finally:
        late.cancel()
        process.kill()
        process.communicate()


def start(contender: Contender, where: place.Namespace, results: Results) -> None:
    """Measure the time from the start of the process to the first byte that came back."""
    forwarder = Forwarder(contender, where)
    try:
        forwarder.start()
        forwarder.wait_first_byte()
        seconds = time.monotonic() - forwarder.started
        results.add("start to first byte", "s", contender.name, seconds)
    finally:
        forwarder.close()


def memory(contender: Contender, where: place.Namespace, results: Results) -> None:
    """Measure the client's memory: idle, after bulk transfers, with many connections."""

    def add(moment: str) -> None:
        found = processes.memory(processes.tree(forwarder.pid))
        results.add(f"client's memory, {moment}", "MB", contender.name, found["now"])
        results.add(f"client's memory, {moment}, peak", "MB", contender.name, found["peak"])

    with running(contender, where, FORWARDS) as forwarder:
        time.sleep(SETTLED)
        add(f"{FORWARDS} forwards idle")
        measures.load("down", forwarder.ports[SOURCE], MOVED, STREAMS)
        measures.load("up", forwarder.ports[SINK], MOVED, STREAMS)
        add("after bulk")
        with held(forwarder.ports[ECHO], CONNECTIONS) as opened:
            if opened["open"] < CONNECTIONS:
                raise FailedError(f"opened {opened['open']} of {CONNECTIONS} connections")
            add(f"{CONNECTIONS:,} connections")
