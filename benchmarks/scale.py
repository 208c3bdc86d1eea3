"""`make bench-scale`: what many targets cost: connections, descriptors, memory, time until bound.

Linux only: it reads /proc. `PREFIX` in the environment begins the namespace's name.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from benchmarks import page
from benchmarks.results import figure
from tests.e2e import conftest, kit

LISTEN = "127.0.77.1"
"""Nothing else listens there, so its listeners can be counted."""
SETTLE = 40.0
"""Seconds until every short request's connection has been closed, and probes have their pace."""
WATCHED = 30.0
DEADLINE = 120.0
SERVICES = 350
TICKS = os.sysconf("SC_CLK_TCK")

# title, targets, objects
SHAPES = [
    ("1 target", 1, ("svc/web :80",)),
    ("200 targets on 3 objects", 200, ("svc/web :80", "deploy/web :8000", "pod/solo :8000")),
    ("350 targets on 3 objects", 350, ("svc/web :80", "deploy/web :8000", "pod/solo :8000")),
    ("350 targets on 350 Services", 350, tuple(f"svc/s{number} :80" for number in range(SERVICES))),
]


@dataclass(frozen=True)
class Cost:
    """What one krelay used."""

    bound: float
    worked: float
    announced: float
    connections: int
    descriptors: int
    memory: float
    share: float


@contextlib.contextmanager
def namespace() -> Iterator[str]:
    """A namespace with the targets in it."""
    name = f"{os.environ.get('PREFIX', 'bench-scale-')}{secrets.token_hex(3)}"
    kit.kubectl("create", "namespace", name)
    try:
        services = [kit.service(f"s{number}", "web") for number in range(SERVICES)]
        solo = {
            "apiVersion": "v1",
            "kind": "Pod",
            "metadata": {"name": "solo", "labels": {"app": "solo"}},
            "spec": kit.pod_spec(),
        }
        kit.apply(
            name, kit.program(), kit.workload("Deployment", "web"), kit.service("web", "web"), solo
        )
        for first in range(0, SERVICES, 50):
            kit.apply(name, *services[first : first + 50])
        kit.kubectl("-n", name, "rollout", "status", "deploy/web", "--timeout=55s")
        kit.kubectl("-n", name, "wait", "--for=condition=Ready", "pod/solo", "--timeout=55s")
        yield name
    finally:
        kit.kubectl("delete", "namespace", name, "--wait=false")


def sockets(pid: int) -> list[tuple[str, str, str, str]]:
    """Local address, remote address, state and inode of each TCP socket over IPv4."""
    rows = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
    return [(row[1], row[2], row[3], row[9]) for row in rows]


def inodes(pid: int) -> list[str]:
    """What each descriptor is."""
    found = []
    for path in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(os.readlink(path))
    return found


def hex_address(host: str) -> str:
    """As /proc/net/tcp has it on a little-endian machine."""
    return "".join(f"{int(part):02X}" for part in reversed(host.split(".")))


def listening(pid: int) -> int:
    """How many ports of `LISTEN` are bound."""
    address = hex_address(LISTEN)
    return sum(state == "0A" and local.startswith(address) for local, _, state, _ in sockets(pid))


def connections(pid: int, server: str) -> int:
    """How many connections the process has to the API server."""
    address = f"{hex_address(urlsplit(server).hostname or '')}:{urlsplit(server).port or 443:04X}"
    own = set(inodes(pid))
    return sum(
        remote == address and f"socket:[{inode}]" in own for _, remote, _, inode in sockets(pid)
    )


def seconds(pid: int) -> float:
    """Processor time so far."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


def memory(pid: int) -> float:
    """Resident MB."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmRSS:")[2].split()[0]) * 1024 / 1e6


def measure(place: str, count: int, objects: tuple[str, ...], folder: Path, server: str) -> Cost:
    """One krelay with so many targets, from its start to its end."""
    lines = "".join(f"  t{n}: {objects[n % len(objects)]}\n" for n in range(count))
    file = folder / "krelay.yaml"
    head = f"apiVersion: krelay/v1\nnamespace: {place}\ndefaults:\n  listen: {LISTEN}\n"
    file.write_text(f"{head}targets:\n{lines}")
    began = time.monotonic()
    bound = worked = 0.0
    with kit.Krelay("up", "-f", str(file)) as krelay:
        pid = krelay.process.pid
        while len(krelay.output) < count:
            if not bound and listening(pid) >= count:
                bound, worked = time.monotonic() - began, seconds(pid)
            if krelay.process.poll() is not None or time.monotonic() > began + DEADLINE:
                raise SystemExit(f"it did not start\n{krelay.told()[-3000:]}")
            time.sleep(0.02)
        announced = time.monotonic() - began
        time.sleep(SETTLE)
        before = seconds(pid)
        time.sleep(WATCHED)
        if krelay.process.poll() is not None:
            raise SystemExit(f"it ended\n{krelay.told()[-3000:]}")
        share = (seconds(pid) - before) / WATCHED * 100
        return Cost(
            bound or announced,
            worked,
            announced,
            connections(pid, server),
            len(inodes(pid)),
            memory(pid),
            share,
        )


def main() -> None:
    """Measure, print, and write the page."""
    conftest.find_cluster()
    # As installed: otherwise each start compiles every module.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    server = kit.kubectl(
        "config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}"
    )
    rows = []
    with namespace() as place, tempfile.TemporaryDirectory() as folder:
        wanted = [arg for arg in sys.argv[1:] if not arg.startswith("-")]
        for title, count, objects in SHAPES:
            if wanted and not any(word in title for word in wanted):
                continue
            cost = measure(place, count, objects, Path(folder), server)
            cells = [
                str(cost.connections),
                str(cost.descriptors),
                f"{cost.memory:.0f} MB",
                f"{cost.share:.2f} %",
                f"{figure(cost.bound)} s",
                f"{figure(cost.worked)} s",
                f"{figure(cost.announced)} s",
            ]
            rows.append(f"| {title} | " + " | ".join(cells) + " |")
            print(rows[-1], flush=True)
    head = ["", "connections", "descriptors", "memory", "idle", "bound", "work", "announced"]
    text = "\n".join([f"| {' | '.join(head)} |", "|---" * len(head) + "|", *rows])
    print(text)
    if not wanted:
        page.write("scale", text)


if __name__ == "__main__":
    main()
