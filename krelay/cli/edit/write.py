"""Replace a file at once: a reader finds the old content or the new one, never a part."""

from __future__ import annotations

import errno
import os
import tempfile
from contextlib import suppress

from krelay.config import files
from krelay.errors import UsageError


def create(path: str, content: bytes) -> None:
    """Write a new file.

    Raises:
        UsageError: it exists, or cannot be written.
    """
    try:
        with open(path, "xb") as file:
            file.write(content)
    except OSError as exc:
        raise files.unwritable(path, exc) from exc


def replace(path: str, before: bytes, after: bytes) -> None:
    """Replace the content `before` of a file by `after`. Its mode, its owner and links to it stay.

    Raises:
        UsageError: another program has changed the file meanwhile, or it cannot be written.
    """
    real = os.path.realpath(path)
    try:
        temporary = _written_beside(real, after)
    except OSError as exc:
        raise files.unwritable(path, exc) from exc
    try:
        if files.read(real) != before:
            raise UsageError(f"{path} has changed meanwhile", hint="try again")
        try:
            os.replace(temporary, real)
        except OSError as exc:
            if exc.errno != errno.EBUSY:
                raise
            # A container has mounted the file by itself, so it cannot get another inode.
            with open(real, "r+b") as file:
                file.write(after)
                file.truncate()
    except OSError as exc:
        raise files.unwritable(path, exc) from exc
    finally:
        with suppress(FileNotFoundError):
            os.unlink(temporary)


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
