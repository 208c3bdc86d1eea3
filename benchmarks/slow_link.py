"""The comparison over a slow link between client and API server (benchmarks/wan.py)."""

from __future__ import annotations

import contextlib
import json
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks import measures, place
from benchmarks.place import ECHO, SINK, SOURCE
from benchmarks.results import Results

MBIT = 50
RTT = 40
"""In ms."""
ROUND_TRIPS = (0, 10, 40, 100, 200)
TEXT = 100 << 20
FILL = 3.0
"""Seconds in which a transfer fills the way, and in which what it leaves behind runs out."""
ECHOES = 4.0
CONNECTIONS = 2.0
SHORT = 0.6
SAMPLE = 16 << 20
PATIENCE = 240.0

# name, load, port, kind
TEXTS = (
    ("JSON down", "down", SOURCE, "json"),
    ("SQL up", "up", SINK, "sql"),
    ("random bytes down", "down", SOURCE, "random"),
    ("random bytes up", "up", SINK, "random"),
)


@dataclass(frozen=True)
class SlowLink:
    """The link's environment: a kubeconfig that leads through it."""

    environ: Mapping[str, str]


@contextlib.contextmanager
def slow_link(mbit: float, rtt: float) -> Iterator[SlowLink]:
    """Put a link with this rate in Mbit/s and this round trip in ms before the API server."""
    told = place.kubectl("config", "view", "--raw", "--minify", "--flatten", "-o", "json")
    config = json.loads(told)
    cluster = config["clusters"][0]["cluster"]
    url = urlsplit(cluster["server"])
    assert url.hostname is not None
    where = (url.hostname, url.port or 443, socket.AF_INET, socket.SOCK_STREAM)
    host, number = socket.getaddrinfo(*where)[0][4][:2]
    with tempfile.TemporaryDirectory(prefix="bench-") as folder:
        command = [
            sys.executable,
            "-m",
            "benchmarks.wan",
            str(host),
            str(number),
            str(mbit),
            str(rtt),
        ]
        process = subprocess.Popen(
            command, cwd=place.ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        try:
            assert process.stdout is not None
            port = process.stdout.readline().strip()
            cluster["server"] = f"{url.scheme}://127.0.0.1:{port}"
            cluster.setdefault("tls-server-name", url.hostname)
            file = Path(folder) / "kubeconfig"
            file.touch(0o600)
            file.write_text(json.dumps(config))
            yield SlowLink({"KUBECONFIG": str(file)})
        finally:
            process.kill()
            process.communicate()


def interactive(to: measures.Relayed, results: Results) -> None:
    """Measure a new connection, and an echo beside a transfer each way, in round trips."""
    found = measures.load("connect", to.ports[ECHO], CONNECTIONS)
    results.add("WAN: new connection + 1 byte", "RTT", to.name, found["p50"] / RTT)
    for mode, port in (("down", SOURCE), ("up", SINK)):
        with measures.beside(mode, to.ports[port], FILL):
            found = measures.load("echo", to.ports[ECHO], ECHOES)
        name = "a download" if mode == "down" else "an upload"
        results.add(f"WAN: echo beside {name}", "RTT", to.name, found["p50"] / RTT)
        time.sleep(FILL)


def texts(to: measures.Relayed, results: Results, size: int) -> None:
    """Measure how long transfers of text and of random bytes take."""
    for name, mode, port, kind in TEXTS:
        found = measures.load(mode, to.ports[port], size, 1, kind, patience=PATIENCE)
        results.add(f"WAN: {size >> 20} MiB of {name}", "s", to.name, found["seconds"])


def round_trips(to: measures.Relayed, results: Results, rtt: float) -> None:
    """Measure a new connection and a download at a round trip."""
    found = measures.load("connect", to.ports[ECHO], SHORT)
    results.grow("RTT: new connection + 1 byte, ms", to.name, rtt, found["p50"])
    found = measures.load("down", to.ports[SOURCE], SAMPLE)
    results.grow("RTT: one stream down, MB/s", to.name, rtt, found["rate"])
