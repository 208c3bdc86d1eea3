"""What users read: data on stdout, everything else on stderr, colour only on a terminal.

Every line passes `krelay.text` here, whatever its source. With `--log-format json`, each line of
both streams is an object.
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
from typing import Any, TextIO, TypeGuard

import click

from krelay.cli.log_repeats import RepeatFilter
from krelay.errors import KrelayError
from krelay.mux.log import FIELDS
from krelay.mux.trace import show_wire_trace
from krelay.state.log_tail import LogRing
from krelay.text import indented, many_lines, one_line

UNWRITABLE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)
"""Errors of a write to stdout that are the system's fault; EPIPE is the reader's."""
_NAME = "krelay.cli"
_LEVELS = {logging.WARNING: "yellow", logging.ERROR: "red", logging.CRITICAL: "red"}


# -- the log ---------------------------------------------------------------------------------------


class LineFormatter(logging.Formatter):
    """Formats a record as `12:34:56 warning: text`, without the level for INFO.

    `colour` says whether to colour the level; by default, if stderr shows colour. `dated` adds the
    day to the time.
    """

    def __init__(self, *, colour: bool | None = None, dated: bool = False) -> None:
        super().__init__()
        self._colour = colour
        self._time = "%Y-%m-%d %H:%M:%S" if dated else "%H:%M:%S"

    def format(self, record: logging.LogRecord) -> str:
        text = indented(record.getMessage())
        if record.exc_info:
            trace = many_lines(self.formatException(record.exc_info))
            text += "".join(f"\n  {line}" for line in trace)
        if record.levelno != logging.INFO:
            level = record.levelname.lower() + ":"
            coloured = shows_colour() if self._colour is None else self._colour
            if record.levelno in _LEVELS and coloured:
                level = click.style(level, fg=_LEVELS[record.levelno])
            text = f"{level} {text}"
        return f"{self.formatTime(record, self._time)} {text}"


class JsonFormatter(logging.Formatter):
    """Formats a record as an object on one line.

    Its keys are `time` (UTC), `level`, `logger` and `message`, and where they apply `target`,
    `tunnel`, `stream` and `exception`.
    """

    for_programs = True
    """Tells others who write to stderr that every line of it must be an object."""

    def format(self, record: logging.LogRecord) -> str:
        event = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": "\n".join(many_lines(record.getMessage())),
        }
        for field in FIELDS:
            if value := getattr(record, field, None):
                event[field] = one_line(value)
        if record.exc_info:
            trace = many_lines(self.formatException(record.exc_info))
            event["exception"] = "\n".join(trace)
        # A stream that replaces characters it cannot encode would break the JSON.
        unicode = (getattr(sys.stderr, "encoding", None) or "").lower().startswith("utf")
        return json.dumps(event, ensure_ascii=not unicode)


class _StderrHandler(logging.StreamHandler[Any]):
    """Writes the log to stderr; a record that it cannot write costs a line, never a traceback."""

    def handleError(self, record: logging.LogRecord) -> None:
        exc = sys.exc_info()[1]
        if isinstance(exc, OSError):
            return  # stderr has gone, or is full
        replacement = logging.LogRecord(
            record.name,
            logging.ERROR,
            record.pathname,
            record.lineno,
            "cannot format a log record: %s: %r",
            (record.msg, exc),
            None,
        )
        with suppress(Exception):
            self.stream.write(self.format(replacement) + self.terminator)


repeat_filter = RepeatFilter()
"""Shared by all handlers of the log, so that each record is judged once."""


def set_up_logging(
    verbosity: int, *, json: bool = False, to: logging.Handler | None = None
) -> None:
    """Log to stderr, or `to` a handler of a file; as objects for programs with `json`.

    `verbosity` is 0 for krelay's INFO, 1 for krelay's DEBUG, 2 for every library's DEBUG, -1 for
    warnings only, and less for errors only.
    """
    repeat_filter.flush()
    handler = to or _StderrHandler(sys.stderr)
    text = LineFormatter(colour=False, dated=True) if to else LineFormatter()
    handler.setFormatter(JsonFormatter() if json else text)
    handler.addFilter(repeat_filter)
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.DEBUG if verbosity > 1 else logging.WARNING)
    level = logging.INFO - 10 * max(-2, min(verbosity, 1))
    logging.getLogger("krelay").setLevel(level)
    show_wire_trace()
    logging.captureWarnings(True)
    if json:
        threading.excepthook = _log_thread_exception
        sys.unraisablehook = _log_unraisable


def is_stderr_handler(handler: logging.Handler) -> TypeGuard[logging.StreamHandler[Any]]:
    """Return whether `set_up_logging` made this handler."""
    return isinstance(handler, _StderrHandler)


@contextmanager
def keep_log() -> Iterator[LogRing]:
    """Keep the latest lines of the log, without colour, for as long as the block lasts."""
    ring = LogRing()
    ring.setFormatter(JsonFormatter() if in_json() else LineFormatter(colour=False))
    ring.addFilter(repeat_filter)
    root = logging.getLogger()
    root.addHandler(ring)
    try:
        yield ring
    finally:
        root.removeHandler(ring)


def in_json() -> bool:
    """Return whether the log is in JSON."""
    return any(isinstance(h.formatter, JsonFormatter) for h in logging.getLogger().handlers)


def shows_colour() -> bool:
    """Return whether stderr is a terminal whose user wants colour (https://no-color.org)."""
    return sys.stderr.isatty() and not os.environ.get("NO_COLOR")


def _log_thread_exception(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is not SystemExit:
        logging.getLogger(_NAME).error("uncaught exception in a thread", exc_info=args.exc_value)


def _log_unraisable(args: Any) -> None:
    message = args.err_msg or "exception ignored"
    logging.getLogger(_NAME).error("%s", message, exc_info=args.exc_value)


# -- data and errors -------------------------------------------------------------------------------


def open_output() -> None:
    """Prepare stdout and stderr: open those that were closed at the start (`>&-`), and replace
    characters that stdout cannot encode."""
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - open until the process ends
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")


def silence_stdout() -> None:
    """Discard all further output, also that of the flush at exit: the reader has gone."""
    silence(sys.stdout)


def silence_terminal() -> None:
    """Discard what would go to the terminal: it takes no output, and a write would not return."""
    for stream in (sys.stdout, sys.stderr):
        if stream.isatty():
            silence(stream)


def silence(stream: TextIO) -> None:
    """Discard all further output to a stream."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream.fileno())
    os.close(null)


def echo(text: str) -> None:
    """Print lines of data, and flush them."""
    lines = many_lines(text, most=sys.maxsize, limit=sys.maxsize)
    click.echo("\n".join(lines))
    sys.stdout.flush()


def echo_event(text: str, target: str) -> None:
    """Print a line of data about a target as an object, like one of the log's."""
    record = logging.makeLogRecord(
        {"name": _NAME, "levelname": "INFO", "msg": "%s", "args": (text,), "target": target}
    )
    click.echo(JsonFormatter().format(record))
    sys.stdout.flush()


def note(text: str) -> None:
    """Print a line for people on stderr, beside the data."""
    if in_json():
        logging.getLogger(_NAME).warning("%s", text)
    else:
        click.echo(one_line(text), err=True)


def print_error(error: KrelayError) -> None:
    """Print an error, its details and its hint."""
    if in_json():
        logging.getLogger(_NAME).error("%s", "\n".join(error.report()))
        return
    label = click.style("error:", fg="red") if shows_colour() else "error:"
    for line in error.details():
        click.echo(one_line(line), err=True)
    click.echo(f"{label} {error.message}", err=True)
    if error.hint:
        click.echo(f"  hint: {error.hint}", err=True)


def print_usage_error(error: click.ClickException) -> None:
    """Print an error of the command line as click words it."""
    if in_json():
        logging.getLogger(_NAME).error("%s", error.format_message())
        return
    shown = io.StringIO()
    error.show(file=shown)
    for line in many_lines(shown.getvalue()):
        click.echo(line, err=True)


def print_bug(error: BaseException) -> None:
    """Print an unexpected error with its traceback."""
    if in_json():
        logging.getLogger(_NAME).critical("internal error", exc_info=error)
        return
    for line in many_lines("".join(traceback.format_exception(error))):
        click.echo(line, err=True)
