"""The path of the socket of the krelay that runs a file, in a directory private to the user."""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
from pathlib import Path

from krelay.errors import KrelayError
from krelay.platforms import require_posix

_LONGEST_PATH = 100
"""Bytes; `sun_path` has 104 on some systems, 108 on others."""


def socket_path(file: str) -> Path:
    """Return the path of the socket for `file`.

    Links in the path of its directory are resolved, but `file` itself may be a link that changes
    while krelay runs.
    """
    directory, name = os.path.split(os.path.abspath(file))
    identity = os.path.join(os.path.realpath(directory), name)
    digest = hashlib.sha256(os.fsencode(identity)).hexdigest()[:20]
    return socket_directory() / f"{digest}.sock"


def make_directory(path: Path) -> None:
    """Create the socket's directory, private to the user.

    Raises:
        KrelayError: it cannot be created, or another user has access to it.
    """
    directory = path.parent
    try:
        directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        check_directory(path)
    except OSError as exc:
        raise KrelayError(f"cannot create {directory}: {exc.strerror}") from exc


def check_directory(path: Path) -> None:
    """Check that the socket's directory is private to the user.

    In the directory of temporary files, another user may have created it first.

    Raises:
        KrelayError: another user has access to it.
        OSError: it does not exist.
    """
    directory = path.parent
    found = directory.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise KrelayError(
            f"{directory} is not private to this user",
            hint="remove it, or set XDG_RUNTIME_DIR to a directory of your own",
        )


def socket_directory() -> Path:
    """Return the directory of the sockets of this user and this XDG_RUNTIME_DIR.

    Raises:
        KrelayError: this system has none.
    """
    require_posix()
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    if runtime:
        directory = Path(runtime) / "krelay"
        if directory.is_absolute() and len(os.fsencode(directory)) + 30 <= _LONGEST_PATH:
            return directory
    return Path(tempfile.gettempdir()) / f"krelay-{os.getuid()}"
