"""What a person reads: data on stdout, everything else on stderr, colour only on a terminal."""

from __future__ import annotations

import logging
import os
import sys

import click

from krelay.errors import KrelayError

_LEVELS = {logging.WARNING: "yellow", logging.ERROR: "red", logging.CRITICAL: "red"}


class _Formatter(logging.Formatter):
    """`12:34:56 warning: text`; the level is left out where it is only news."""

    def format(self, record: logging.LogRecord) -> str:
        text = record.getMessage()
        if record.exc_info:
            text += "\n" + self.formatException(record.exc_info)
        if record.levelno != logging.INFO:
            level = record.levelname.lower() + ":"
            if record.levelno in _LEVELS and coloured():
                level = click.style(level, fg=_LEVELS[record.levelno])
            text = f"{level} {text}"
        return f"{self.formatTime(record, '%H:%M:%S')} {text}"


def coloured() -> bool:
    """Whether stderr is a terminal whose user wants colour (https://no-color.org)."""
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR")


def set_up_logging(verbosity: int) -> None:
    """Log to stderr: news for 0, the data path's debugging for 1, every library's for 2; only
    warnings for -1, only errors below that."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Formatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if verbosity > 1 else logging.WARNING)
    level = logging.INFO - 10 * max(-2, min(verbosity, 1))
    logging.getLogger("krelay").setLevel(level)


def say(line: str) -> None:
    """One line of data, at once also into a pipe."""
    click.echo(line)
    sys.stdout.flush()


def hush() -> None:
    """Whoever read our output has gone: what follows goes nowhere, also at the flush at exit."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, sys.stdout.fileno())
    os.close(null)


def complain(error: KrelayError) -> None:
    """An error with its hint; a file's with all of its problems, `path:line:column: message`."""
    label = click.style("error:", fg="red") if coloured() else "error:"
    for line in error.details():
        click.echo(line, err=True)
    click.echo(f"{label} {error.message}", err=True)
    if error.hint:
        click.echo(f"  hint: {error.hint}", err=True)
