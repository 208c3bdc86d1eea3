"""Replace a file at once: a reader finds the old content or the new one, never a part."""

from __future__ import annotations

import errno
import os
import secrets
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from krelay.config import files
from krelay.errors import UsageError

_LOCK_DEADLINE, _LOCK_POLL = 2.0, 0.02


class ChangedError(UsageError):
    """Another program has written the file since it was read."""

    def __init__(self, path: str) -> None:
        super().__init__(f"{path} has changed meanwhile", hint="try again")


def create(path: str, content: bytes) -> None:
    """Write a new file.

    Raises:
        ChangedError: it exists.
        UsageError: it cannot be written.
    """
    temporary = os.path.join(os.path.dirname(path), f".krelay-{secrets.token_hex(4)}")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
        with _alone(path):
            _link(temporary, path, content)
    except FileExistsError as exc:
        raise ChangedError(path) from exc
    except OSError as exc:
        raise files.unwritable(path, exc) from exc
    finally:
        with suppress(OSError):
            os.unlink(temporary)


def _link(temporary: str, path: str, content: bytes) -> None:
    try:
        os.link(temporary, path)
    except FileExistsError:
        raise
    except OSError:  # a file system without links
        with open(path, "xb") as file:
            file.write(content)


def replace(path: str, before: bytes, after: bytes) -> None:
    """Replace the content `before` of a file by `after`. Its mode, its owner and links to it stay.

    Raises:
        ChangedError: another program has changed the file meanwhile.
        UsageError: it cannot be written.
    """
    real = os.path.realpath(path)
    try:
        temporary = _written_beside(real, after)
    except OSError as exc:
        raise files.unwritable(path, exc) from exc
    try:
        with _alone(real):
            if files.read(real) != before:
                raise ChangedError(path)
            _replace(real, temporary, after)
    except OSError as exc:
        raise files.unwritable(path, exc) from exc
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)


def _replace(path: str, temporary: str, content: bytes) -> None:
    try:
        os.replace(temporary, path)
    except OSError as exc:
        if exc.errno != errno.EBUSY:
            raise
        # A container has mounted the file by itself, so it cannot get another inode.
        with open(path, "r+b") as file:
            file.write(content)
            file.truncate()


@contextmanager
def _alone(path: str) -> Iterator[None]:
    """Let no other krelay command write into the folder of `path` while the block lasts.

    A folder that cannot be locked, or that another program keeps locked, is written to without.
    """
    try:
        folder = os.open(os.path.dirname(path) or ".", os.O_RDONLY)
    except OSError:  # on Windows, and where a folder may not be read
        yield
        return
    try:
        until = time.monotonic() + _LOCK_DEADLINE
        while not _lock(folder) and time.monotonic() < until:
            time.sleep(_LOCK_POLL)
        yield
    finally:
        os.close(folder)


def _lock(folder: int) -> bool:
    """Return whether there is nothing to wait for: it is locked, or cannot be."""
    import fcntl  # where a folder can be opened, as it cannot on Windows

    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:
        pass  # a network file system may have no locks
    return True


def _written_beside(path: str, content: bytes) -> str:
    """Return the path of a new file beside `path`, with its mode, its owner and this content."""
    state = os.stat(path)
    descriptor, temporary = tempfile.mkstemp(prefix=".krelay-", dir=os.path.dirname(path))
    try:
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            if hasattr(os, "fchown"):
                own = os.fstat(descriptor)
                if (own.st_uid, own.st_gid) != (state.st_uid, state.st_gid):
                    os.fchown(descriptor, state.st_uid, state.st_gid)
            os.chmod(temporary, state.st_mode & 0o7777)
            os.fsync(descriptor)
    except BaseException:
        os.unlink(temporary)
        raise
    return temporary
