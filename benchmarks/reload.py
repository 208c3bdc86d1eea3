"""`make bench-reload`: from the save of an edit to the new listener that takes a connection."""

from __future__ import annotations

import socket
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks import page
from benchmarks.results import figure
from tests.e2e import conftest, kit

EDITS = 50
DEADLINE = 10.0


def free_port() -> int:
    """Return a free local port."""
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port: int = sock.getsockname()[1]
        return port


def write(file: Path, text: str) -> None:
    """Write the file in place."""
    file.write_text(text)


def rename(file: Path, text: str) -> None:
    """Replace the file, as most editors do."""
    new = file.with_name(".new")
    new.write_text(text)
    new.rename(file)


def until_accepted(port: int) -> float:
    """Return when a connection was accepted."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        with socket.socket() as sock:
            if not sock.connect_ex(("127.0.0.1", port)):
                return time.monotonic()
        time.sleep(0.001)
    raise SystemExit(f"port {port} does not listen after {DEADLINE:g} s")


def measure(file: Path, head: str) -> list[float]:
    """Return the milliseconds of each edit. Each adds a target, saved in one of two ways."""
    taken = []
    for number in range(EDITS):
        port = free_port()
        save = (write, rename)[number % 2]
        text = f"{head}  t{number}: svc/web {port}:80\n"
        began = time.monotonic()
        save(file, text)
        taken.append((until_accepted(port) - began) * 1000)
        print(f"edit {number + 1}: {figure(taken[-1])} ms", flush=True)
        # Wait like a person, so that krelay has applied the last edit.
        time.sleep(0.2)
    return taken


def main() -> None:
    """Measure, print, and write the page."""
    conftest.find_cluster()
    with kit.namespaces() as make, tempfile.TemporaryDirectory() as folder:
        namespace = make()
        kit.apply(
            namespace, kit.program(), kit.workload("Deployment", "web"), kit.service("web", "web")
        )
        kit.kubectl("-n", namespace, "rollout", "status", "deploy/web", "--timeout=55s")
        head = f"apiVersion: krelay/v1\nnamespace: {namespace}\ntargets:\n  stays: svc/web :80\n"
        file = Path(folder) / "krelay.yaml"
        file.write_text(head)
        with kit.Krelay("up", "-f", str(file)) as krelay:
            krelay.wait_lines(1)
            taken = measure(file, head)
    p95 = statistics.quantiles(taken, n=20)[-1]
    cells = [figure(value) for value in (statistics.median(taken), p95, max(taken))]
    text = (
        f"| edits | median | p95 | longest |\n|---|---|---|---|\n| {EDITS} | "
        + " | ".join(f"{cell} ms" for cell in cells)
        + " |"
    )
    print(text)
    page.write("reload", text)


if __name__ == "__main__":
    main()
