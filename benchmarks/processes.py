"""What processes cost: processor time and memory, from /proc (Linux)."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

import psutil

CHAIN = ("kube-apiserver", "kubelet", "containerd", "crio")
"""Programs of the cluster that may touch the bytes."""


def tree(pid: int) -> list[psutil.Process]:
    """Return a process and its descendants; those that have just ended are left out."""
    try:
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def seconds(processes: list[psutil.Process]) -> float:
    """Return the processor time that processes have used."""
    total = 0.0
    for process in processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            total += times.user + times.system
    return total


def memory(processes: list[psutil.Process]) -> dict[str, float]:
    """Return the resident MB of processes, now and at their peak."""
    now = peak = 0.0
    for process in processes:
        with contextlib.suppress(OSError):
            status = Path(f"/proc/{process.pid}/status").read_text()
            now += int(status.partition("VmRSS:")[2].split()[0]) * 1024 / 1e6
            peak += int(status.partition("VmHWM:")[2].split()[0]) * 1024 / 1e6
    return {"now": now, "peak": peak}


def named(*names: str) -> dict[str, list[psutil.Process]]:
    """Return the processes of these programs on this machine, by name."""
    found: dict[str, list[psutil.Process]] = {}
    for process in psutil.process_iter(["cmdline"]):
        command = process.info["cmdline"] or [""]
        if (name := os.path.basename(command[0])) in names:
            found.setdefault(name, []).append(process)
    return found


def inside(marks: list[str]) -> list[psutil.Process]:
    """Return the processes of containers: their cgroup names one of the marks (ids, UIDs)."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(OSError):
            group = Path(f"/proc/{process.pid}/cgroup").read_text().replace("_", "-")
            if any(mark in group for mark in marks):
                found.append(process)
    return found


def listening_ports() -> set[int]:
    """Return the TCP ports that anything on this machine listens on."""
    ports = set()
    for name in ("tcp", "tcp6"):
        for line in Path("/proc/net", name).read_text().splitlines()[1:]:
            _, local, _, state, *_ = line.split()
            if state == "0A":
                ports.add(int(local.rpartition(":")[2], 16))
    return ports


class Meter:
    """Measures the processor time of groups of processes between two moments."""

    def __init__(self, groups: dict[str, list[psutil.Process]]) -> None:
        self._groups = groups
        self._before = {name: seconds(group) for name, group in groups.items()}

    def spent(self) -> dict[str, float]:
        """Return the seconds that each group has used since the start."""
        return {
            name: round(seconds(group) - self._before[name], 3)
            for name, group in self._groups.items()
        }
