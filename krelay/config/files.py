"""The file itself: found, read within a bound, decoded, and recognised by what is in it."""

from __future__ import annotations

import os
import re
import stat
import sys
import time
from collections.abc import Mapping

from krelay.config.parse_error import Flaw
from krelay.config.reading import PATIENCE, bounded, regular
from krelay.errors import ConfigError, Problem, UsageError

MAX_BYTES = 1024 * 1024
MAX_FILES = 100
TIME = 15.0
"""Seconds after which no more files of a config are read."""
NAMES = ("krelay.yaml", "krelay.yml")
STDIN = "-"

# What YAML allows in a document (1.2, section 5.1), which is what a text file holds anyway.
_CONTROL = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
# No quantifier gives back what it has taken (`*+`), so that each line takes linear time.
_KEY = re.compile(r"""[\s{-]*+["']?[A-Za-z_][\w.-]*+["']?\s*+:(\s|$)|---(\s|$)""")
_TARGET = re.compile(
    r"""\s*(-[nl]|--namespace|--address|[A-Za-z0-9.]++/\S|[a-z0-9.-]++\s++(?:[0-9]*+:)?[0-9]++\b)"""
)


class Files:
    """What a config is read from: files, opened through here alone, and the environment."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self.environ = environ
        self._opened: list[str] = []
        self._until = time.monotonic() + TIME

    @property
    def paths(self) -> tuple[str, ...]:
        """Each file that was opened, or should have been, in that order and once."""
        return tuple(dict.fromkeys(self._opened))

    def main(self, path: str, text: bytes | None) -> bytes:
        """The bytes of the file that names all others; `text` where they are known already.

        Raises:
            UsageError: it cannot be read.
        """
        if path != STDIN:
            self._opened.append(path)
        return read(path) if text is None else text

    def named(self, name: str, by: str) -> tuple[str, bytes]:
        """The path and the bytes of a file that the file at `by` names.

        Raises:
            Flaw: it cannot be read, or is one too many.
        """
        if len(self._opened) >= MAX_FILES:
            # each may be large, and a name costs a few bytes: without an end, a small file
            # could ask for hours of reading
            raise Flaw(f"more than {MAX_FILES} files", hint="put some of them together")
        path = os.path.join(os.path.dirname(by), name)
        self._opened.append(path)
        left = self._until - time.monotonic()
        if left <= 0:
            raise Flaw(f"not read: the files before it took {TIME:g} s")
        try:
            return path, read(path, within=min(left, PATIENCE))
        except UsageError as exc:
            hint = "a path starts in the directory of the file that it is written in"
            if name.startswith("~"):
                hint += "; `~` is itself"
            raise Flaw(exc.message, hint=hint) from exc


def find(path: str | None) -> str:
    """The path to read: the one given, else the file of the current directory.

    Raises:
        UsageError: there is none.
    """
    if path is not None:
        return path
    for name in NAMES:
        try:
            bounded(name, os.stat)
        except FileNotFoundError:
            continue
        except OSError:
            pass  # that is said of it when it is read
        return name
    raise UsageError(
        f"no {NAMES[0]} in this directory",
        hint="name a file with `-f FILE`, or start from a copy of krelay.yaml.example",
    )


def read(path: str, *, within: float = PATIENCE) -> bytes:
    """The bytes of a regular file, and never many more than a config may have. Blocks for `within`
    seconds at most.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        return regular(path, MAX_BYTES + 1, within=within)
    except (OSError, ValueError) as exc:  # ValueError: a NUL in the path
        raise _unreadable(path, exc) from exc


def given(path: str | None) -> bytes | None:
    """What a command line names, where it can be read only once: standard input (`-`) or a pipe.

    None for anything else. Blocks until its writer ends it, so it is for the start of a command.

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
    """The text of the bytes, without a byte order mark and with plain line ends.

    Raises:
        ConfigError: too long, not UTF-8, or not text.
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
    """The text without a byte order mark and with plain line ends.

    Raises:
        ConfigError: too long, or holds a character that no text file has.
    """
    if len(text) > MAX_BYTES:
        raise ConfigError(path, [Problem(0, 0, "the file is larger than 1 MiB")])
    text = text.removeprefix("\ufeff").replace("\r\n", "\n").replace("\r", "\n")
    if found := _CONTROL.search(text):
        message = f"the character U+{ord(found[0]):04X} does not belong into a text file"
        raise ConfigError(path, [_at_end(text[: found.start()], message, "remove it")])
    return text


def is_targets_txt(text: str, path: str) -> bool:
    """Whether the text is lines of targets rather than YAML; the name decides if all else fails."""
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
