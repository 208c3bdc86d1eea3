"""The log of a krelay in the background: a private file of bounded size for each file it runs."""

from __future__ import annotations

import errno
import io
import logging
import os
import stat
import sys
from collections.abc import Iterator
from logging.handlers import RotatingFileHandler
from pathlib import Path

from krelay.errors import KrelayError
from krelay.status.socket_path import make_directory, socket_path

MOST_BYTES = 2 << 20
"""Bytes of the log; a second file, `….log.1`, keeps as many older ones."""


def create(file: str) -> Path:
    """Return the path of the log of the krelay that runs `file`; create it if it is missing.

    It is in the user's state directory. If that cannot be written to (a read-only root), it is
    beside the control socket.

    Raises:
        KrelayError: it cannot be created in either.
    """
    first, second = _places(file)
    try:
        first.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        os.close(_open(first))
    except OSError:
        make_directory(socket_path(file))
        try:
            os.close(_open(second))
        except OSError as exc:
            raise KrelayError(f"cannot write the log {second}: {exc.strerror}") from exc
        return second
    return first


def find(file: str) -> Path | None:
    """Return the path of the log that a krelay for `file` left or writes, if there is one."""
    return next((path for path in _places(file) if path.is_file()), None)


def _places(file: str) -> Iterator[Path]:
    socket = socket_path(file)
    state = os.environ.get("XDG_STATE_HOME", "")
    directory = Path(state if os.path.isabs(state) else os.path.expanduser("~/.local/state"))
    for place in (directory / "krelay", socket.parent):
        yield place / f"{socket.stem}.log"


def _open(path: str | Path) -> int:
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
    # A pipe without a reader would block.
    descriptor = os.open(path, flags | os.O_NONBLOCK, 0o600)
    try:
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise OSError(errno.EINVAL, "not a regular file")
        os.set_blocking(descriptor, True)
        os.fchmod(descriptor, 0o600)
    except OSError:
        os.close(descriptor)
        raise
    return descriptor


class LogFile(RotatingFileHandler):
    """Writes the log to a private file that grows to `most` bytes, then begins anew.

    The former file stays as `….1`. The descriptors of `stderr` always lead to the file, so that
    what bypasses the log, like the last words of a crash, is found there too.
    """

    def __init__(
        self, path: Path, *, most: int = MOST_BYTES, stderr: tuple[int, ...] = (1, 2)
    ) -> None:
        self._stderr = stderr
        super().__init__(path, maxBytes=most, backupCount=1, encoding="utf-8")

    def _open(self) -> io.TextIOWrapper:
        descriptor = _open(self.baseFilename)
        for other in self._stderr:
            os.dup2(descriptor, other)
        return open(descriptor, "a", encoding="utf-8", errors="backslashreplace")

    def handleError(self, record: logging.LogRecord) -> None:
        """Give up a record that cannot be written: the disk may be full."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)
