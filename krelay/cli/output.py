"""What a person reads: data on stdout, everything else on stderr, colour only on a terminal.

All of it passes `krelay.text` here, whatever its source. With `--log-format json` each line of both
streams is an object.
"""

from __future__ import annotations

import errno
import io
import json
import logging
import os
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from typing import Any

import click

from krelay.cli.repeats import Repeats
from krelay.errors import KrelayError
from krelay.state.log_tail import LogRing
from krelay.text import indented, many_lines, one_line

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""What keeps output from being written, besides a reader that has gone."""
_NAME = "krelay.cli"
_LEVELS = {logging.WARNING: "yellow", logging.ERROR: "red", logging.CRITICAL: "red"}


class LineFormatter(logging.Formatter):
    """`12:34:56 warning: text`; the level is left out where it is only news. `colour`: None for
    as stderr has it."""

    def __init__(self, *, colour: bool | None = None) -> None:
        super().__init__()
        self._colour = colour

    def format(self, record: logging.LogRecord) -> str:
        text = _whole(record, self)
        if record.levelno != logging.INFO:
            level = record.levelname.lower() + ":"
            if record.levelno in _LEVELS and (coloured() if self._colour is None else self._colour):
                level = click.style(level, fg=_LEVELS[record.levelno])
            text = f"{level} {text}"
        return f"{self.formatTime(record, '%H:%M:%S')} {text}"


def _whole(record: logging.LogRecord, formatter: logging.Formatter) -> str:
    """The message and the traceback; lines but the first are indented."""
    text = indented(record.getMessage())
    if record.exc_info:
        trace = many_lines(formatter.formatException(record.exc_info))
        text += "".join(f"\n  {line}" for line in trace)
    return text


# Modules whose records begin with the name of a forward or a target.
_OF_TARGETS = frozenset(
    ("forward", "following", "supervisor", "resolve", "listener", "udp", "opening", "proxy")
)


class JsonFormatter(logging.Formatter):
    """An object an event, on one line: `time` (UTC), `level`, `logger`, `message`, where there are
    any `target` and `exception`."""

    for_programs = True
    """Nothing else may be written beside it."""

    def format(self, record: logging.LogRecord) -> str:
        event = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": "\n".join(many_lines(record.getMessage())),
        }
        if target := _target(record):
            event["target"] = one_line(target)
        for field in ("tunnel", "stream"):
            if said := getattr(record, field, None):
                event[field] = one_line(str(said))
        if record.exc_info:
            trace = many_lines(self.formatException(record.exc_info))
            event["exception"] = "\n".join(trace)
        return json.dumps(event, ensure_ascii=not _writes_unicode())


def _writes_unicode() -> bool:
    """Whether stderr takes every sign as it is: what it replaces would not be JSON."""
    return (getattr(sys.stderr, "encoding", None) or "").lower().startswith("utf")


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


class _Stderr(logging.StreamHandler[Any]):
    """Where the log goes. What cannot be written there costs a line, never a traceback on it."""

    def handleError(self, record: logging.LogRecord) -> None:
        exc = sys.exc_info()[1]
        if isinstance(exc, OSError):
            return  # it has gone, or is full
        told = logging.LogRecord(
            record.name,
            logging.ERROR,
            record.pathname,
            record.lineno,
            "a line of the log cannot be made: %s: %r",
            (record.msg, exc),
            None,
        )
        with suppress(Exception):
            self.stream.write(self.format(told) + self.terminator)


repeats = Repeats()
"""What all handlers of the log share, so that a line is said once."""


def set_up_logging(verbosity: int, *, json: bool = False) -> None:
    """Log to stderr: news for 0, the data path's debugging for 1, every library's for 2; only
    warnings for -1, only errors below that. `json`: for programs."""
    repeats.flush()
    handler = _Stderr(sys.stderr)
    handler.setFormatter(JsonFormatter() if json else LineFormatter())
    handler.addFilter(repeats)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if verbosity > 1 else logging.WARNING)
    level = logging.INFO - 10 * max(-2, min(verbosity, 1))
    logging.getLogger("krelay").setLevel(level)
    logging.captureWarnings(True)
    if json:
        threading.excepthook = _uncaught_in_thread
        sys.unraisablehook = _unraisable


def on_stderr(handler: logging.Handler) -> bool:
    """Whether it is the one that `set_up_logging` made."""
    return isinstance(handler, _Stderr)


@contextmanager
def keep_log() -> Iterator[LogRing]:
    """What is logged is kept too, without colour, as long as the block lasts."""
    ring = LogRing()
    ring.setFormatter(JsonFormatter() if in_json() else LineFormatter(colour=False))
    ring.addFilter(repeats)
    root = logging.getLogger()
    root.addHandler(ring)
    try:
        yield ring
    finally:
        root.removeHandler(ring)


def say(text: str) -> None:
    """A line of data, or several, at once also into a pipe."""
    lines = many_lines(text, most=sys.maxsize, limit=sys.maxsize)
    click.echo("\n".join(lines))
    sys.stdout.flush()


def say_event(text: str, target: str) -> None:
    """A line of data about a target, for programs: an object as one of the log's."""
    record = logging.makeLogRecord(
        {"name": _NAME, "levelname": "INFO", "msg": "%s", "args": (text,), "target": target}
    )
    click.echo(JsonFormatter().format(record))
    sys.stdout.flush()


def note(text: str) -> None:
    """A line for people beside the data: on stderr."""
    if in_json():
        logging.getLogger(_NAME).warning("%s", text)
    else:
        click.echo(one_line(text), err=True)


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
        logging.getLogger(_NAME).error("%s", "\n".join(error.report()))
        return
    label = click.style("error:", fg="red") if coloured() else "error:"
    for line in error.details():
        click.echo(one_line(line), err=True)
    click.echo(f"{label} {error.message}", err=True)
    if error.hint:
        click.echo(f"  hint: {error.hint}", err=True)


def complain_of_usage(error: click.ClickException) -> None:
    """An error of the command line, in click's own words."""
    if in_json():
        logging.getLogger(_NAME).error("%s", error.format_message())
        return
    shown = io.StringIO()
    error.show(file=shown)
    for line in many_lines(shown.getvalue()):
        click.echo(line, err=True)


def complain_of_bug(error: BaseException) -> None:
    """Report an unexpected error; its traceback says where it arose."""
    if in_json():
        logging.getLogger(_NAME).critical("internal error", exc_info=error)
        return
    for line in many_lines("".join(traceback.format_exception(error))):
        click.echo(line, err=True)


def _uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is not SystemExit:
        logging.getLogger(_NAME).error("a thread has failed", exc_info=args.exc_value)


def _unraisable(args: Any) -> None:
    what = args.err_msg or "an error that cannot be raised"
    logging.getLogger(_NAME).error("%s", what, exc_info=args.exc_value)
