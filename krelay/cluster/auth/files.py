"""Files: read a kubeconfig, and the keys, certificates and tokens that it names. All block."""

from __future__ import annotations

import base64
import binascii
import errno
import os
import select
import stat
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from krelay.errors import CredentialsError
from krelay.platforms import OPEN_FILE

MAX_FILE = 8 << 20
MAX_KUBECONFIG = 32 << 20  # bytes; 3,000 contexts with certificates are 16 MB
PIPE_DEADLINE = 10.0  # seconds until a pipe has been read to its end


def read_pem(entry: Mapping[str, Any], key: str) -> bytes | None:
    """Return `entry[key + "-data"]` (base64), else the file at `entry[key]`, else None.

    Raises:
        CredentialsError: the data is not base64, or the file cannot be read.
    """
    if data := entry.get(f"{key}-data"):
        try:
            return decode_base64(data)
        except ValueError as exc:
            raise CredentialsError(f"kubeconfig: {key}-data is not base64") from exc
    if path := entry.get(key):
        try:
            return read_file(path)
        except OSError as exc:
            raise CredentialsError(f"{key}: cannot read {path}: {exc.strerror}") from exc
    return None


def decode_base64(text: str) -> bytes:
    """Decode as Go does, which allows line ends, but no spaces. Raises ValueError."""
    try:
        return base64.b64decode(text.replace("\n", "").replace("\r", ""), validate=True)
    except binascii.Error as exc:
        raise ValueError("not base64") from exc


def read_file(path: str | Path) -> bytes:
    """Read a regular file of at most MAX_FILE bytes.

    Raises:
        OSError: the file cannot be read, is larger, or is not regular (a FIFO would block).
    """
    with _open(path) as file:
        if not _is_regular(file.fileno()):
            raise OSError(errno.EINVAL, "not a regular file")
        data = file.read(MAX_FILE + 1)
    _check_size(data, MAX_FILE)
    return data


def read_once(path: str, contents: dict[tuple[object, ...], bytes]) -> bytes:
    """Read a file or a pipe of at most MAX_KUBECONFIG bytes.

    A pipe (a FIFO, a process substitution) gives its content only once, so it is kept in `contents`
    for the next call, which does not open it: a new writer would take that for its reader.

    Raises:
        OSError: the file cannot be read, is larger, or a pipe does not end in time.
    """
    present = os.stat(path)
    known = contents.get((path, present.st_dev, present.st_ino))
    if known is not None and stat.S_ISFIFO(present.st_mode):
        return known
    with _open(path) as file:
        number = file.fileno()
        if _is_regular(number):
            data = file.read(MAX_KUBECONFIG + 1)
            _check_size(data, MAX_KUBECONFIG)
            return data
        found = os.fstat(number)
        key = path, found.st_dev, found.st_ino
        if key not in contents:
            if not stat.S_ISFIFO(found.st_mode):
                kind = "Is a directory" if stat.S_ISDIR(found.st_mode) else "not a regular file"
                raise OSError(errno.EINVAL, kind)
            contents[key] = _read_pipe(number)
        return contents[key]


def _open(path: str | Path) -> BinaryIO:
    if "\0" in str(path):
        raise OSError(errno.EINVAL, "the path contains a NUL")
    # Non-blocking: opening a FIFO would wait for a writer.
    number = os.open(path, OPEN_FILE)
    try:
        return os.fdopen(number, "rb")
    except BaseException:
        os.close(number)
        raise


def _is_regular(number: int) -> bool:
    """Whether a file is regular, or the null device: KUBECONFIG=/dev/null means no kubeconfig."""
    found = os.fstat(number)
    null = stat.S_ISCHR(found.st_mode) and os.path.samestat(found, os.stat(os.devnull))
    return null or stat.S_ISREG(found.st_mode)


def _check_size(data: bytes | bytearray, limit: int) -> None:
    if len(data) > limit:
        raise OSError(errno.EFBIG, f"larger than {limit >> 20} MiB")


def _read_pipe(number: int) -> bytes:
    data = bytearray()
    until = time.monotonic() + PIPE_DEADLINE
    poll = select.poll()
    poll.register(number, select.POLLIN)
    while True:
        # A FIFO that no program has opened yet is not ready: `read` would take that for its end.
        if not poll.poll(max(0.0, until - time.monotonic()) * 1000):
            raise OSError(errno.ETIMEDOUT, f"nothing came in {PIPE_DEADLINE:.0f} s")
        try:
            chunk = os.read(number, 1 << 20)
        except BlockingIOError:
            continue
        if not chunk:
            return bytes(data)
        data += chunk
        _check_size(data, MAX_KUBECONFIG)
