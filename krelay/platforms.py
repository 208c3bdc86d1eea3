"""The systems that krelay runs on: relaying needs the sockets and signals of POSIX."""

from __future__ import annotations

import os
import signal
import sys

from krelay.errors import KrelayError

OPEN_FILE = (
    os.O_RDONLY
    | getattr(os, "O_NONBLOCK", 0)
    | getattr(os, "O_NOCTTY", 0)
    | getattr(os, "O_CLOEXEC", 0)
    | getattr(os, "O_BINARY", 0)
)
"""Flags to read a file with `os.open`: a pipe or terminal there has no effect on this process."""


def signals(*names: str) -> tuple[signal.Signals, ...]:
    """Return the signals of these names that the system has."""
    return tuple(getattr(signal, name) for name in names if hasattr(signal, name))


def require_posix() -> None:
    """Check that krelay can relay here, or can ask one that does.

    Raises:
        KrelayError: this is Windows.
    """
    if sys.platform == "win32":
        raise KrelayError(
            "krelay cannot relay on Windows itself",
            hint="run it in WSL: programs on Windows reach its TCP ports at localhost",
        )
