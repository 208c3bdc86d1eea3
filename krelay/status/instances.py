"""Instances: the krelays of this user that serve a control socket, found by their locks."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from krelay.errors import KrelayError
from krelay.status.socket_path import check_directory, socket_directory

_MOST = 4_096
"""Bytes of a lock that are read; a path is no longer."""
_OWNER = re.compile(r"pid (\d+), since ([-\d]+ [:\d]+)\n(.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Instance:
    """A krelay that runs `file`, an absolute path, `since` a local time; `socket` is its socket."""

    socket: Path
    file: str
    pid: int
    since: str


def instances() -> list[Instance]:
    """Return the krelays of this user that run, or have not quite ended, by file.

    Each holds a lock beside its socket. What one that was killed left behind is not locked. Those
    with another XDG_RUNTIME_DIR are not found.

    Raises:
        KrelayError: another user has access to the directory of the sockets.
    """
    directory = socket_directory()
    try:
        check_directory(directory / "any.sock")
        locks = sorted(directory.glob("*.lock"))
    except OSError:
        return []
    found = [instance for lock in locks if (instance := _instance(lock))]
    return sorted(found, key=lambda instance: instance.file)


def running(socket: Path) -> bool:
    """Return whether a krelay serves this socket, or has not quite ended: it holds the lock."""
    try:
        check_directory(socket)
        lock = _open(socket.with_suffix(".lock"))
    except (OSError, KrelayError):
        return False
    try:
        return _is_locked(lock)
    finally:
        os.close(lock)


def _instance(path: Path) -> Instance | None:
    try:
        lock = _open(path)
    except OSError:
        return None
    try:
        if not _is_locked(lock):
            return None
        owner = _OWNER.fullmatch(os.fsdecode(os.read(lock, _MOST)))
    finally:
        os.close(lock)
    if owner is None:
        return None  # it has taken the lock in this moment
    pid, since, file = owner.groups()
    return Instance(path.with_suffix(".sock"), file, int(pid), since)


def _open(lock: Path) -> int:
    return os.open(lock, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)


def _is_locked(lock: int) -> bool:
    import fcntl

    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    return False
