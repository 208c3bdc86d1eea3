"""`make bench-quick`: krelay and kubectl port-forward, the same loads in turn, into one table."""

from __future__ import annotations

import contextlib
import statistics
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from benchmarks import page
from benchmarks.page import figure
from tests.e2e import conftest, kit

ROUNDS = 3
HERE = Path(__file__).parent
ECHO, SOURCE, SINK = 7001, 7002, 7003

# name, unit, mode, port, amount, the mode of what runs beside it, whether less is better
LOADS = [
    ("one stream down", "MB/s", "down", SOURCE, 384, None, False),
    ("one stream up", "MB/s", "up", SINK, 384, None, False),
    ("new connections, 1 client", "1/s", "connections", ECHO, 400, None, False),
    ("new connections, 16 clients", "1/s", "connections16", ECHO, 1600, None, False),
    ("echo of 64 bytes", "ms", "echo", ECHO, 200, None, True),
    ("echo beside a download", "ms", "echo", ECHO, 150, "down", True),
    ("echo beside an upload", "ms", "echo", ECHO, 150, "up", True),
]


def command(mode: str, port: int, amount: int) -> list[str]:
    """A load in its own process, so that no two share an interpreter."""
    return [sys.executable, str(HERE / "load.py"), mode, str(port), str(amount)]


def measure(ports: dict[int, int], mode: str, port: int, amount: int, beside: str | None) -> float:
    """One figure; `ports` maps the target's ports to local ones."""
    bulk = None
    if beside:
        other = SOURCE if beside == "down" else SINK
        bulk = subprocess.Popen(command(beside, ports[other], 1 << 20), stdout=subprocess.DEVNULL)
    try:
        told = subprocess.run(
            command(mode, ports[port], amount), capture_output=True, text=True, timeout=300
        )
        if told.returncode:
            raise SystemExit(f"{mode}: {told.stderr}")
        return float(told.stdout)
    finally:
        if bulk is not None:
            bulk.kill()
            bulk.wait()


@contextlib.contextmanager
def pod() -> Iterator[str]:
    """A namespace with the target in it."""
    with kit.namespaces() as make:
        namespace = make()
        source = {"target.py": (HERE / "target.py").read_text()}
        spec = kit.pod_spec()
        spec["containers"][0]["command"] = ["python3", "-u", "/program/target.py"]
        spec["containers"][0]["readinessProbe"] = {"tcpSocket": {"port": ECHO}, "periodSeconds": 1}
        kit.apply(
            namespace,
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": "program"},
                "data": source,
            },
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "target"}, "spec": spec},
        )
        kit.kubectl("-n", namespace, "wait", "--for=condition=Ready", "pod/target", "--timeout=55s")
        yield namespace


@contextlib.contextmanager
def krelay(namespace: str) -> Iterator[dict[int, int]]:
    """Our local ports."""
    numbers = " ".join(f":{port}" for port in (ECHO, SOURCE, SINK))
    text = f"apiVersion: krelay/v1\nnamespace: {namespace}\ntargets: {{t: pod/target {numbers}}}\n"
    with tempfile.TemporaryDirectory() as folder, kit.up(text, Path(folder), 3) as process:
        yield {
            port: process.address("t", index=i)[1] for i, port in enumerate((ECHO, SOURCE, SINK))
        }


@contextlib.contextmanager
def kubectl(namespace: str) -> Iterator[dict[int, int]]:
    """kubectl's."""
    ports = {}
    numbers = [f":{port}" for port in (ECHO, SOURCE, SINK)]
    process = subprocess.Popen(
        ["kubectl", "-n", namespace, "port-forward", "pod/target", *numbers],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdout is not None
    try:
        while len(ports) < len(numbers):
            words = process.stdout.readline().split()
            if words[2].startswith("127.0.0.1:"):
                ports[int(words[4])] = int(words[2].rpartition(":")[2])
        # kubectl prints a line for each connection, and stops if they are not read.
        drain = subprocess.Popen(["cat"], stdin=process.stdout, stdout=subprocess.DEVNULL)
        yield ports
        drain.kill()
        drain.wait()
    finally:
        process.kill()
        process.wait()


def table(results: dict[tuple[str, str], list[float]]) -> str:
    """The figures in Markdown: medians, and their ratio."""
    lines = ["| | krelay | kubectl port-forward | krelay / kubectl |", "|---|---|---|---|"]
    for name, unit, *_ in LOADS:
        ours = statistics.median(results[name, "krelay"])
        theirs = statistics.median(results[name, "kubectl"])
        cells = f"{figure(ours)} {unit} | {figure(theirs)} {unit} | {ours / theirs:.2f}"
        lines.append(f"| {name} | {cells} |")
    return "\n".join(lines)


def main() -> None:
    """Measure, print, and write the page."""
    conftest.find_cluster()
    results: dict[tuple[str, str], list[float]] = defaultdict(list)
    with pod() as namespace, krelay(namespace) as ours, kubectl(namespace) as theirs:
        for number in range(ROUNDS):
            for name, unit, mode, port, amount, beside, _ in LOADS:
                for who, ports in (("krelay", ours), ("kubectl", theirs)):
                    value = measure(ports, mode, port, amount, beside)
                    results[name, who].append(value)
                    print(f"round {number + 1}: {name}: {who} {figure(value)} {unit}", flush=True)
    text = table(results)
    print(text)
    page.write("figures", text)


if __name__ == "__main__":
    main()
