"""Find, read, decode and recognize the files of a configuration, in a bounded time.

A network file system may hang, and nothing ends a thread that waits for it. Each call that touches
a path therefore runs in a daemon thread, which is abandoned if it takes too long. A path that hangs
is not touched again until its thread has come back, so it costs one thread, and there are at most
MOST_HANGING of them.
"""

from __future__ import annotations

import errno
import os
import re
import shlex
import stat
import sys
import threading
import time
from collections.abc import Callable, Mapping
from concurrent.futures import Future, wait
from typing import TypeVar

from krelay.config.grammar import ParseError
from krelay.errors import ConfigError, Problem, UsageError
from krelay.platforms import OPEN_FILE

_T = TypeVar("_T")

PATIENCE = 5.0
"""Seconds for one path."""
MOST_HANGING = 16
"""Paths that may hang at the same time."""

MAX_BYTES = 1024 * 1024
MAX_FILES = 100
TIME = 15.0
"""Seconds for all files of a config together."""
NAMES = ("krelay.yaml", "krelay.yml")
TARGETS = "targets.txt"
STDIN = "-"

# The characters that YAML 1.2 (section 5.1) allows in a document.
_CONTROL = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# Possessive quantifiers (`*+`) never backtrack, so each line takes linear time.
_KEY = re.compile(r"""[\s{-]*+["']?[A-Za-z_][\w.-]*+["']?\s*+:(\s|$)|---(\s|$)""")
_TARGET = re.compile(
    r"""\s*(-[nl]|--namespace|--address|[A-Za-z0-9.]++/\S|[a-z0-9.-]++\s++(?:[0-9]*+:)?[0-9]++\b)"""
)


class Files:
    """The files that a config is read from, all opened here, and the environment."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = environ
        self._opened: list[str] = []
        self._until = time.monotonic() + TIME

    @property
    def paths(self) -> tuple[str, ...]:
        """The paths that were opened, or could not be, in order and without repeats."""
        return tuple(dict.fromkeys(self._opened))

    def main(self, path: str, text: bytes | None) -> bytes:
        """Return the bytes of the first file; `text` if they have been read already.

        Raises:
            UsageError: the file cannot be read.
        """
        if path != STDIN:
            self._opened.append(path)
        if text is not None:
            return text
        try:
            return read(path)
        except UsageError as exc:
            if not isinstance(exc.__cause__, FileNotFoundError):
                raise
            hint = (
                _other(os.path.dirname(path)) or f"`krelay init -f {shlex.quote(path)}` writes one"
            )
            raise UsageError(exc.message, hint=hint) from exc.__cause__

    def named(self, name: str, by: str) -> tuple[str, bytes]:
        """Return the path and the bytes of a file that the file at `by` names.

        Raises:
            ParseError: the file cannot be read, or the config has too many files.
        """
        if len(self._opened) >= MAX_FILES:
            # A name takes a few bytes and its file up to 1 MiB: without a limit, a small file
            # could cause hours of reading.
            raise ParseError(f"more than {MAX_FILES} files", hint="merge some of them")
        path = os.path.join(os.path.dirname(by), name)
        self._opened.append(path)
        left = self._until - time.monotonic()
        if left <= 0:
            raise ParseError(f"not read: the files before it took {TIME:g} s")
        try:
            return path, read(path, within=min(left, PATIENCE))
        except UsageError as exc:
            hint = "a path is relative to the directory of the file that contains it"
            if name.startswith("~"):
                hint += "; `~` is not expanded"
            raise ParseError(exc.message, hint=hint) from exc


def shortened(path: str) -> str:
    """Return the path with `~` for the home directory, for display."""
    home = os.path.expanduser("~")
    return f"~{path[len(home) :]}" if path.startswith(f"{home}{os.sep}") else path


def unwritable(path: str | os.PathLike[str], exc: OSError) -> UsageError:
    """Return the error of a file that cannot be written."""
    return UsageError(f"cannot write {path}: {(exc.strerror or str(exc)).lower()}")


def find(path: str | None, *, hint: str | None = None) -> str:
    """Return the path, or that of the file in the current directory if it is None.

    Raises:
        UsageError: the directory has no such file; `hint` says what to do about that, by default
            to write one.
    """
    if path is not None:
        return path
    for name in NAMES:
        if _exists(name):
            return name
    raise UsageError(
        f"no {NAMES[0]} in this directory",
        hint=hint or _other("") or "`krelay init` writes one; `-f FILE` names one elsewhere",
    )


def _exists(path: str) -> bool:
    try:
        bounded(path, os.stat)
    except FileNotFoundError:
        return False
    except (OSError, ValueError):
        pass  # reading it reports the error
    return True


def _other(directory: str) -> str:
    """Return a hint at a file that lies in a directory in the place of the one that is missing."""
    for name in (*NAMES, TARGETS):
        path = os.path.join(directory, name)
        if _exists(path):
            return f"there is a {name}: `-f {path}`"
    return ""


def is_found() -> bool:
    """Return whether the current directory has a file to read without `-f`."""
    try:
        find(None)
    except UsageError:
        return False
    return True


def read(path: str, *, within: float = PATIENCE) -> bytes:
    """Return at most MAX_BYTES + 1 bytes of a regular file. Blocks for `within` seconds at most.

    A pipe or a device is an error: reading it may never end.

    Raises:
        UsageError: the file cannot be read.
    """
    try:
        return bounded(path, lambda path: _read_bytes(path, MAX_BYTES + 1), within=within)
    except (OSError, ValueError) as exc:  # ValueError: a NUL in the path
        raise _unreadable(path, exc) from exc


def read_once(path: str | None) -> bytes | None:
    """Return the content of standard input (`-`) or a pipe, which can be read only once.

    Any other path returns None. Blocks until the writer closes it, so it is for the start of a
    command.

    Raises:
        UsageError: it cannot be read.
    """
    if path is None:
        return None
    if path == STDIN:
        if sys.stdin is None:
            raise UsageError("standard input is closed")
        return sys.stdin.buffer.read(MAX_BYTES + 1)
    try:
        mode = bounded(path, os.stat).st_mode
        if stat.S_ISREG(mode) or stat.S_ISDIR(mode):
            return None
        with open(path, "rb") as file:
            return file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as exc:
        raise _unreadable(path, exc) from exc


def _unreadable(path: str, exc: OSError | ValueError) -> UsageError:
    reason = exc.strerror if isinstance(exc, OSError) else None
    hint = "name a file with `-f`" if path in NAMES else None
    return UsageError(f"cannot read {path!r}: {(reason or str(exc)).lower()}", hint=hint)


def decode(data: bytes, path: str) -> str:
    """Decode the bytes; return text without a byte order mark and with `\\n` as line end.

    Raises:
        ConfigError: the bytes are too long, not UTF-8, or not text.
    """
    if len(data) > MAX_BYTES:
        raise ConfigError(path, [Problem(0, 0, "the file is larger than 1 MiB")])
    try:
        return clean(data.decode("utf-8"), path)
    except UnicodeDecodeError as exc:
        before = data[: exc.start].decode("utf-8")
        message = f"byte 0x{data[exc.start]:02x} is not UTF-8"
        raise ConfigError(path, [_at_end(before, message, "save the file as UTF-8")]) from exc


def clean(text: str, path: str) -> str:
    """Return the text without a byte order mark and with `\\n` as line end.

    Raises:
        ConfigError: the text is too long, or has a character that no text file has.
    """
    if len(text) > MAX_BYTES:
        raise ConfigError(path, [Problem(0, 0, "the file is larger than 1 MiB")])
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    if found := _CONTROL.search(text):
        message = f"the character U+{ord(found[0]):04X} does not belong in a text file"
        raise ConfigError(path, [_at_end(text[: found.start()], message, "remove it")])
    return text


def is_targets_txt(text: str, path: str) -> bool:
    """Return whether the text is a targets.txt rather than YAML.

    The content decides; the path does only if the content has neither targets nor keys.
    """
    keys = targets = 0
    for line in text.split("\n"):
        if line.lstrip().startswith(("#", "//")):
            continue
        keys += bool(_KEY.match(line))
        targets += bool(_TARGET.match(line))
    return targets > keys or (not keys and path.endswith(".txt"))


def _at_end(before: str, message: str, hint: str) -> Problem:
    lines = before.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n").split("\n")
    return Problem(len(lines), len(lines[-1]) + 1, message, hint)


_hanging: set[str] = set()


def bounded(path: str, call: Callable[[str], _T], *, within: float = PATIENCE) -> _T:
    """Return `call(path)`, made in a daemon thread. Blocks for `within` seconds at most.

    Raises:
        OSError: the call failed, or did not return in time.
    """
    if path in _hanging:
        raise OSError(errno.ETIMEDOUT, "its file system still does not answer")
    if len(_hanging) >= MOST_HANGING:
        raise OSError(errno.ETIMEDOUT, f"{MOST_HANGING} other files do not answer")
    future: Future[_T] = Future()

    def run() -> None:
        try:
            future.set_result(call(path))
        except Exception as exc:
            future.set_exception(exc)

    try:
        threading.Thread(target=run, name=f"read {path}", daemon=True).start()
    except RuntimeError as exc:
        raise OSError(errno.EAGAIN, "no thread can be started to read it") from exc
    if not wait((future,), timeout=within).done:
        _hanging.add(path)
        future.add_done_callback(lambda _: _hanging.discard(path))
        if not future.done():
            text = f"no answer from its file system for {within:.3g} s"
            raise OSError(errno.ETIMEDOUT, text)
    return future.result()


def _read_bytes(path: str, limit: int) -> bytes:
    _check_regular(os.stat(path))  # opening a device may have an effect
    descriptor = os.open(path, OPEN_FILE)
    try:
        _check_regular(os.fstat(descriptor))
        parts = []
        while limit > 0 and (part := os.read(descriptor, limit)):
            parts.append(part)
            limit -= len(part)
    finally:
        os.close(descriptor)
    return b"".join(parts)


def _check_regular(found: os.stat_result) -> None:
    if stat.S_ISDIR(found.st_mode):
        raise OSError(errno.EISDIR, os.strerror(errno.EISDIR))
    if not stat.S_ISREG(found.st_mode):
        raise OSError(errno.EINVAL, "not a regular file")
