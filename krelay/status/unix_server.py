"""The status service on the socket of a running krelay, for whoever may open it."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

from krelay.errors import KrelayError
from krelay.net.bind import BACKLOG
from krelay.state.bus import EventBus
from krelay.state.snapshot import Snapshot
from krelay.status.socket_path import make_directory
from krelay.threads import in_thread, in_thread_or_here

logger = logging.getLogger("krelay.status")

Handler = Callable[[Mapping[str, Any]], Awaitable[Any]]
"""Gets the JSON object of a request, answers with JSON; a KrelayError is told to who asked."""


class AlreadyRunningError(KrelayError):
    """Another krelay runs this file."""


@asynccontextmanager
async def serve(
    path: Path,
    handlers: Mapping[tuple[str, str], Handler],
    *,
    snapshot: Callable[[], Awaitable[Snapshot]] | None = None,
    bus: EventBus | None = None,
) -> AsyncIterator[None]:
    """Answer at `path`, by method and resource, until the block is left; also by what can be made
    of a snapshot and a bus.

    Raises:
        AlreadyRunningError: somebody else does.
        KrelayError: the socket cannot be made.
    """
    from krelay.status.app import application
    from krelay.status.connections import TRUSTED, Connections, places

    sock, lock = await in_thread(lambda: _claim(path))
    app = application(handlers, snapshot=snapshot, bus=bus)
    connections = Connections(app, trusted=places(TRUSTED))
    try:
        await connections.serve([sock])
        yield
    finally:
        await connections.close()
        sock.close()
        await in_thread_or_here(lambda: _release(path, lock))


def _claim(path: Path) -> tuple[socket.socket, int]:
    """A socket that only its owner may connect to, and the lock that keeps others off."""
    make_directory(path)
    lock = _lock(path.with_suffix(".lock"))
    try:
        # What is there has nobody behind it.
        path.unlink(missing_ok=True)
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            sock.bind(str(path))
            path.chmod(0o600)
            sock.listen(BACKLOG)
        except OSError:
            sock.close()
            raise
    except OSError as exc:
        os.close(lock)
        raise KrelayError(f"cannot listen on {path}: {exc.strerror}") from exc
    return sock, lock


def _lock(path: Path) -> int:
    """The lock on `path`, as a descriptor; its text says who has it."""
    import fcntl

    while True:
        try:
            lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as exc:
            raise KrelayError(f"cannot open {path}: {exc.strerror}") from exc
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = path.exists() and os.path.samestat(path.stat(), os.fstat(lock))
        except OSError:
            who = os.read(lock, 200).decode(errors="replace")
            os.close(lock)
            raise AlreadyRunningError(
                f"krelay runs for this file already{who and f' ({who})'}"
            ) from None
        if mine:
            break
        os.close(lock)  # its former owner removed it just now
    os.ftruncate(lock, 0)
    os.write(lock, f"pid {os.getpid()}, since {datetime.now():%Y-%m-%d %H:%M:%S}".encode())
    return lock


def _release(path: Path, lock: int) -> None:
    path.unlink(missing_ok=True)
    path.with_suffix(".lock").unlink(missing_ok=True)
    os.close(lock)
