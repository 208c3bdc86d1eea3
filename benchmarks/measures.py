"""The loads of the comparison. Each runs for one contender at a time, and takes a second or two."""

from __future__ import annotations

import contextlib
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, Protocol

import psutil

from benchmarks import place, processes
from benchmarks.place import ECHO, HTTP, SINK, SOURCE
from benchmarks.results import FailedError, Results

PATIENCE = 90.0
"""Seconds for any load."""
WARM_UP = 24 << 20
LEAST, MOST = 16 << 20, 1 << 30
STREAMS = 8
FILL = 0.4
"""Seconds in which a bulk transfer fills the way, before an echo beside it is measured."""
GIB = 1 << 30


class Relayed(Protocol):
    """A forwarder that runs, or the control."""

    name: str
    ports: dict[int, int]
    udp: dict[int, int]

    def alive(self) -> bool:
        """Tell whether the process runs."""

    def groups(self) -> dict[str, list[psutil.Process]]:
        """Return the contender's own processes."""


def command(mode: str, port: int, *arguments: object) -> list[str]:
    """Return the command that runs a load in a separate process."""
    return [sys.executable, "-m", "benchmarks.load", mode, str(port), *map(str, arguments)]


def load(mode: str, port: int, *arguments: object, patience: float = PATIENCE) -> Any:
    """Run a load, and return what it measured."""
    try:
        done = subprocess.run(
            command(mode, port, *arguments),
            cwd=place.ROOT,
            capture_output=True,
            text=True,
            timeout=patience,
        )
    except subprocess.TimeoutExpired:
        raise FailedError(f"took more than {patience:g} s") from None
    if done.returncode:
        raise FailedError((done.stderr.strip().splitlines() or ["failed"])[-1])
    return json.loads(done.stdout)


@contextlib.contextmanager
def beside(mode: str, port: int, fill: float = FILL) -> Iterator[None]:
    """Run an endless bulk transfer beside a block."""
    process = subprocess.Popen(
        command(mode, port, 1 << 40),
        cwd=place.ROOT,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        time.sleep(fill)
        yield
        if process.poll() is not None:
            raise FailedError("the transfer beside it broke off")
    finally:
        process.kill()
        process.wait()


class Loads:
    """The loads, and what they need to know of the cluster and of earlier loads."""

    def __init__(self, results: Results, where: place.Namespace, short: float, bulk: float) -> None:
        """Let small things take `short` seconds, and a bulk transfer about `bulk`."""
        self._results = results
        self._short = short
        self._seconds = bulk
        self._local = where.is_local()
        self._sizes: dict[tuple[str, str], int] = {}

    def all(self) -> dict[str, Callable[[Relayed], None]]:
        """Return the loads by name."""
        return {
            "one stream down": lambda to: self._bulk(to, "down", SOURCE),
            "one stream up": lambda to: self._bulk(to, "up", SINK),
            "8 streams down": lambda to: self._streams(to, "down", SOURCE),
            "8 streams up": lambda to: self._streams(to, "up", SINK),
            "new connection + 1 byte": self._connect,
            "new connections, 16 clients": self._connect16,
            "echo of 64 bytes": self._echo,
            "echo beside a download": lambda to: self._echo_beside(to, "down", SOURCE),
            "echo beside an upload": lambda to: self._echo_beside(to, "up", SINK),
            "end of the target to EOF": self._end,
            "HTTP keep-alive, 64 clients": self._http,
        }

    def _size(self, to: Relayed, mode: str, port: int) -> int:
        """Return how much takes so long: all contenders are measured for about the same time."""
        key = (to.name, mode)
        if key not in self._sizes:
            rate = load(mode, to.ports[port], WARM_UP)["rate"] * 1e6
            self._sizes[key] = min(MOST, max(LEAST, int(rate * self._seconds) >> 20 << 20))
        return self._sizes[key]

    def _bulk(self, to: Relayed, mode: str, port: int) -> None:
        size = self._size(to, mode, port)
        groups = to.groups() if self._local else {}
        if groups:
            groups |= processes.named(*processes.CHAIN)
        meter = processes.Meter(groups)
        rate = load(mode, to.ports[port], size)["rate"]
        self._results.add(f"one stream {mode}", "MB/s", to.name, rate)
        if not groups:
            return
        spent = meter.spent()
        for name, seconds in spent.items():
            figure = f"CPU {mode}: {name}"
            self._results.add(figure, "s/GiB", to.name, seconds / size * GIB)
        total = sum(spent.values()) / size * GIB
        self._results.add(f"CPU {mode}: whole chain", "s/GiB", to.name, total)

    def _streams(self, to: Relayed, mode: str, port: int) -> None:
        size = self._size(to, mode, port) // STREAMS
        rate = load(mode, to.ports[port], size, STREAMS)["rate"]
        self._results.add(f"{STREAMS} streams {mode}", "MB/s", to.name, rate)

    def _connect(self, to: Relayed) -> None:
        found = load("connect", to.ports[ECHO], self._short)
        self._results.add("new connection + 1 byte", "ms", to.name, found["p50"])

    def _connect16(self, to: Relayed) -> None:
        found = load("connect16", to.ports[ECHO], self._short)
        self._results.add("new connections, 16 clients", "1/s", to.name, found["rate"])

    def _echo(self, to: Relayed) -> None:
        found = load("echo", to.ports[ECHO], self._short)
        self._results.add("echo of 64 bytes", "ms", to.name, found["p50"])
        self._results.add("echo of 64 bytes, p99", "ms", to.name, found["p99"])

    def _echo_beside(self, to: Relayed, mode: str, port: int) -> None:
        with beside(mode, to.ports[port]):
            found = load("echo", to.ports[ECHO], self._short)
        name = "echo beside a download" if mode == "down" else "echo beside an upload"
        self._results.add(name, "ms", to.name, found["p50"])

    def _end(self, to: Relayed) -> None:
        found = load("end", to.ports[HTTP], self._short)
        self._results.add("end of the target to EOF", "ms", to.name, found["p50"])

    def _http(self, to: Relayed) -> None:
        if shutil.which("wrk") is None:
            raise FailedError("wrk is not installed")
        url = f"http://127.0.0.1:{to.ports[HTTP]}/"
        options = ("-t", "1", "-c", "64", "-d", "1s", "--timeout", "20s")
        try:
            done = subprocess.run(
                ["wrk", *options, url], capture_output=True, text=True, timeout=PATIENCE
            )
        except subprocess.TimeoutExpired:
            raise FailedError(f"took more than {PATIENCE:g} s") from None
        found = re.search(r"Requests/sec:\s+([\d.]+)", done.stdout)
        if found is None or re.search(r"Socket errors: .*[1-9]", done.stdout):
            raise FailedError("requests failed")
        self._results.add("HTTP keep-alive, 64 clients", "1/s", to.name, float(found[1]))
