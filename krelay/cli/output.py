"""What a person reads: data on stdout, everything else on stderr, colour only on a terminal."""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime

import click

from krelay.errors import KrelayError
from krelay.status.logs import LogRing

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""What keeps output from being written, besides a reader that has gone."""
_LEVELS = {logging.WARNING: "yellow", logging.ERROR: "red", logging.CRITICAL: "red"}


class LineFormatter(logging.Formatter):
    """`12:34:56 warning: text`; the level is left out where it is only news. `colour`: None for
    as stderr has it."""

    def __init__(self, *, colour: bool | None = None) -> None:
        super().__init__()
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        if record.levelno != logging.INFO:
            level = record.levelname.lower() + ":"
            if record.levelno in _LEVELS and (coloured() if self._colour is None else self._colour):
                level = click.style(level, fg=_LEVELS[record.levelno])
            text = f"{level} {text}"
        return f"{self.formatTime(record, '%H:%M:%S')} {text}"


# Modules whose records begin with the name of a forward or a target.
_OF_TARGETS = frozenset(
    ("forward", "following", "supervisor", "resolve", "listener", "udp", "opening", "proxy")
)


class JsonFormatter(logging.Formatter):
    """An object an event, on one line: `time` (UTC), `level`, `logger`, `message`, where there are
    any `target` and `exception`."""

    def format(self, record: logging.LogRecord) -> str:
        event = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if target := _target(record):
            event["target"] = target
        if record.exc_info:
            event["exception"] = self.formatException(record.exc_info)
        return json.dumps(event, ensure_ascii=False)


def _target(record: logging.LogRecord) -> str | None:
    """What the record is about: said by `extra`, or at the beginning of its text."""
    if said := getattr(record, "target", None):
        return str(said)
    args = record.args if isinstance(record.args, tuple) else ()
    ours = record.name.startswith("krelay.") and record.module in _OF_TARGETS
    if ours and args and str(record.msg).startswith("%s: "):
        return str(args[0]).partition("[")[0]
    return None


def in_json() -> bool:
    """Whether the log is for programs."""
    return any(isinstance(h.formatter, JsonFormatter) for h in logging.getLogger().handlers)


def coloured() -> bool:
    """Whether stderr is a terminal whose user wants colour (https://no-color.org)."""
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR")


def set_up_logging(verbosity: int, *, json: bool = False) -> None:
    """Log to stderr: news for 0, the data path's debugging for 1, every library's for 2; only
    warnings for -1, only errors below that. `json`: for programs."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonFormatter() if json else LineFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if verbosity > 1 else logging.WARNING)
    level = logging.INFO - 10 * max(-2, min(verbosity, 1))
    logging.getLogger("krelay").setLevel(level)


@contextmanager
def keep_log() -> Iterator[LogRing]:
    """What is logged is kept too, without colour, as long as the block lasts."""
    ring = LogRing()
    ring.setFormatter(JsonFormatter() if in_json() else LineFormatter(colour=False))
    root = logging.getLogger()
    root.addHandler(ring)
    try:
        yield ring
    finally:
        root.removeHandler(ring)


def say(line: str) -> None:
    """One line of data, at once also into a pipe."""
    click.echo(line)
    sys.stdout.flush()


def open_output() -> None:
    """Have somewhere to write to, also where this program was started without it (`>&-`), and a
    sign for those that its encoding does not have."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - as long as this program
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def hush() -> None:
    """Whoever read our output has gone: what follows goes nowhere, also at the flush at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def complain(error: KrelayError) -> None:
    """An error with its hint; a file's with all of its problems, `path:line:column: message`."""
    if in_json():
        logging.getLogger("krelay.cli").error("%s", "\n".join(error.report()))
        return
    label = click.style("error:", fg="red") if coloured() else "error:"
    for line in error.details():
        click.echo(line, err=True)
    click.echo(f"{label} {error.message}", err=True)
    if error.hint:
        click.echo(f"  hint: {error.hint}", err=True)
