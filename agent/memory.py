"""Memory: how much of it the agent may use, as its container or its environment says."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path, PurePosixPath

ENV = "KRELAY_MEMORY"
"""A limit in bytes, where no control group has one."""
DEFAULT = 256 << 20
"""The limit of an agent's Job, unless the file says otherwise; it holds where none is known."""
MOST = 1 << 30
"""An agent acts as if no limit was larger: it may share a large one with other programs."""
BASE = 48 << 20
"""Python itself, the agent's code, threads that look up names, connections that have not proven
themselves, and what the allocator keeps in pieces."""
LEAST = 8 << 20
"""A budget is never smaller, or nothing could be relayed."""


def budget(limit: int) -> int:
    """The bytes that peers may use under `limit`: four fifths of it hold them and the base."""
    return max(LEAST, limit * 4 // 5 - BASE)


def limit(environ: Mapping[str, str], root: Path = Path("/")) -> int:
    """The limit in bytes: the smallest of the environment and the control groups.

    Raises:
        ValueError: the environment has no number.
    """
    found = _of_groups(root)
    if told := environ.get(ENV):
        found.append(int(told))
    return min([*found, MOST]) if found else DEFAULT


def _of_groups(root: Path) -> list[int]:
    """The limits of this process's group and of those around it, in cgroup v2 and v1."""
    mounted = root / "sys/fs/cgroup"
    groups = [
        (mounted, PurePosixPath("/"), "memory.max"),
        (mounted / "memory", PurePosixPath("/"), "memory.limit_in_bytes"),
    ]
    for line in _text(root / "proc/self/cgroup").splitlines():
        controllers, _, path = line.partition(":")[2].partition(":")
        if not controllers:
            groups.append((mounted, PurePosixPath(path), "memory.max"))
        elif "memory" in controllers.split(","):
            groups.append((mounted / "memory", PurePosixPath(path), "memory.limit_in_bytes"))
    found = []
    for base, own, name in groups:
        for group in (own, *own.parents):
            text = _text(base / str(group).lstrip("/") / name).strip()
            # Without a limit v2 says "max", v1 a number beyond any memory.
            if text.isdigit() and 0 < int(text) < 1 << 60:
                found.append(int(text))
    return found


def _text(path: Path) -> str:
    try:
        return path.read_text(errors="replace")
    except OSError:
        return ""
