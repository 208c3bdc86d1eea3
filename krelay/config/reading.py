"""Reading: what a path has, in a bounded time, whatever its file system does.

A network file system may hang, and nothing ends a thread that waits for one. So each call that
touches a path runs in a daemon thread, which is left behind when it takes too long. A path that
hangs is not touched again until that thread has come back: it costs one thread, and there are
MOST_HANGING at most.
"""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections.abc import Callable
from typing import Generic, TypeVar

_T = TypeVar("_T")

PATIENCE = 5.0
"""Seconds that one path gets."""
MOST_HANGING = 16
"""Paths that may hang at one time."""

_lock = threading.Lock()
_hanging: set[str] = set()


def bounded(path: str, call: Callable[[str], _T], *, within: float = PATIENCE) -> _T:
    """Return `call(path)`, of which a thread takes care. Blocks for `within` seconds at most.

    Raises:
        OSError: the call's own, or there is no answer in time.
    """
    with _lock:
        if path in _hanging:
            raise OSError(errno.ETIMEDOUT, "its file system still does not answer")
        if len(_hanging) >= MOST_HANGING:
            raise OSError(errno.ETIMEDOUT, f"{MOST_HANGING} other files do not answer")
    job = _Job(path, call)
    try:
        threading.Thread(target=job.run, name=f"read {path}", daemon=True).start()
    except RuntimeError as exc:
        raise OSError(errno.EAGAIN, "no thread can be started to read it") from exc
    if not job.over.wait(within):
        with _lock:
            if not job.over.is_set():
                _hanging.add(path)
                text = f"no answer from its file system for {within:.3g} s"
                raise OSError(errno.ETIMEDOUT, text)
    if job.error is not None:
        raise job.error
    return job.results[0]


class _Job(Generic[_T]):
    """A call, and what came of it."""

    def __init__(self, path: str, call: Callable[[str], _T]) -> None:
        self._path = path
        self._call = call
        self.over = threading.Event()
        self.results: list[_T] = []
        self.error: Exception | None = None

    def run(self) -> None:
        try:
            self.results.append(self._call(self._path))
        except Exception as exc:
            self.error = exc
        with _lock:
            self.over.set()
            _hanging.discard(self._path)


def regular(path: str, limit: int, *, within: float = PATIENCE) -> bytes:
    """Return the first `limit` bytes of a regular file.

    A pipe or a device in its place is an error: neither need ever have an end.

    Raises:
        OSError: it cannot be read, or not in time.
        ValueError: no file can have the path.
    """
    return bounded(path, lambda path: _bytes(path, limit), within=within)


def _bytes(path: str, limit: int) -> bytes:
    _check(os.stat(path))  # before it is opened, which a device may take for more than that
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    try:
        _check(os.fstat(descriptor))
        parts = []
        while limit > 0 and (part := os.read(descriptor, limit)):
            parts.append(part)
            limit -= len(part)
    finally:
        os.close(descriptor)
    return b"".join(parts)


def _check(found: os.stat_result) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
