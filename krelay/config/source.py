"""The file itself: found, read within a bound, decoded, and recognised by what is in it."""

from __future__ import annotations

import re
from pathlib import Path

from krelay.errors import ConfigError, Problem, UsageError

MAX_BYTES = 1024 * 1024
NAMES = ("krelay.yaml", "krelay.yml")
STDIN = "-"

# What YAML allows in a document (1.2, section 5.1), which is what a text file holds anyway.
_CONTROL = re.compile("[^\t\n\r\x20-\x7e\x85\xa0-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_KEY = re.compile(r"""[\s{-]*["']?[A-Za-z_][\w.-]*["']?\s*:(\s|$)|---(\s|$)""")
_TARGET = re.compile(
    r"""\s*(-[nl]|--namespace|--address|[A-Za-z0-9.]+/\S+(\s|$)|[a-z0-9.-]+\s+[0-9]*:?[0-9]+\b)"""
)


def find(path: str | None) -> str:
    """The path to read: the one given, else the file of the current directory.

    Raises:
        UsageError: there is none.
    """
    if path is not None:
        return path
    for name in NAMES:
        if Path(name).exists():
            return name
    raise UsageError(
        f"no {NAMES[0]} in this directory",
        hint="name a file with `-f FILE`, or start from a copy of krelay.yaml.example",
    )


def read(path: str) -> bytes:
    """The file's bytes, and never many more than a config may have.

    Raises:
        UsageError: it cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            return file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as exc:  # ValueError: a NUL in the path
        reason = exc.strerror if isinstance(exc, OSError) else None
        raise UsageError(
            f"cannot read {path!r}: {(reason or str(exc)).lower()}", hint="name a file with `-f`"
        ) from exc


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
