"""Output queue: a thread writes what goes to a terminal or a pipe, so that relaying never waits.

A terminal after Ctrl-S, one behind a dead SSH connection, and a pipe whose reader has stopped take
no output, and a write to them does not return.
"""

from __future__ import annotations

import io
import logging
import os
import select
import stat
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from queue import Empty, SimpleQueue
from typing import Any, TextIO

from krelay.cli.output import is_stderr_handler, silence

logger = logging.getLogger("krelay.cli")

MOST_LINES = 5_000
"""Lines that may wait; further ones are lost."""
_AT_ONCE = 1 << 16
"""Bytes of one write, about."""
_DEADLINE = 3.0
"""Seconds that what still waits may take at the end."""


@contextmanager
def queued_output(deadline: float = _DEADLINE) -> Iterator[None]:
    """Write stdout and stderr in threads while the block lasts, where a write may not return.

    Streams of one terminal or pipe share a thread, which keeps their lines in order. What cannot
    be written within `deadline` seconds after the block is dropped, and so is all later output.
    """
    before = sys.stdout, sys.stderr
    writers: dict[tuple[int, int], _Writer] = {}
    sys.stdout, sys.stderr = (_queued(stream, writers) for stream in before)
    _log_to(sys.stderr)
    try:
        yield
    finally:
        until = time.monotonic() + deadline
        unwritten = [identity for identity, writer in writers.items() if not writer.drain(until)]
        for stream in before:
            if _identity(stream) in unwritten:
                silence(stream)
        sys.stdout, sys.stderr = before
        _log_to(sys.stderr)
        for writer in writers.values():
            writer.end()


def wait_until_written(stream: TextIO) -> None:
    """Return once the thread has written what `stream` has queued. Blocks."""
    if isinstance(place := getattr(stream, "buffer", None), _Queued):
        place.drain()


def _log_to(stream: TextIO) -> None:
    for handler in logging.getLogger().handlers:
        if is_stderr_handler(handler):
            handler.setStream(stream)


def _queued(stream: TextIO, writers: dict[tuple[int, int], _Writer]) -> TextIO:
    """Return a stream to the same place that waits for nothing, or `stream` if it never waits."""
    identity = _identity(stream)
    if identity is None:
        return stream
    if identity not in writers:
        try:
            writers[identity] = _Writer(stream.fileno())
        except RuntimeError:
            return stream  # no thread can be started
    place = _Queued(stream.fileno(), writers[identity])
    return io.TextIOWrapper(place, stream.encoding, stream.errors, line_buffering=True)


def _identity(stream: TextIO) -> tuple[int, int] | None:
    """Return what tells a terminal, a pipe or a socket from others; None for a regular file."""
    try:
        found = os.fstat(stream.fileno())
    except (OSError, ValueError):
        return None  # closed, or no file
    waits = stat.S_ISFIFO(found.st_mode) or stat.S_ISSOCK(found.st_mode) or stream.isatty()
    return (found.st_dev, found.st_ino) if waits else None


class _Queued(io.FileIO):
    """The descriptor of a stream, written by a writer."""

    def __init__(self, descriptor: int, writer: _Writer) -> None:
        super().__init__(descriptor, "w", closefd=False)
        self._writer = writer

    def write(self, data: Any) -> int:
        """Queue the data; never wait."""
        lines = bytes(data)
        self._writer.put(lines)
        return len(lines)

    def drain(self) -> None:
        """Wait until all is written."""
        self._writer.drain()


class _Writer:
    """Writes to a descriptor in a thread, in order."""

    def __init__(self, descriptor: int) -> None:
        """Raises RuntimeError if no thread can be started."""
        self._descriptor = descriptor
        # A finalizer may log at any time, also within `put`: SimpleQueue allows that.
        self._queue: SimpleQueue[bytes | threading.Event | None] = SimpleQueue()
        self._lost = 0
        self._gone = False
        threading.Thread(target=self._run, name="output", daemon=True).start()

    def put(self, lines: bytes) -> None:
        """Queue lines, or count them as lost."""
        if self._gone:
            return
        # Those that follow lost ones are lost too, up to the line that says so.
        if self._lost or self._queue.qsize() >= MOST_LINES:
            self._lost += lines.count(b"\n")
        else:
            self._queue.put(lines)

    def drain(self, until: float | None = None) -> bool:
        """Return whether all is written by then."""
        written = threading.Event()
        self._queue.put(written)
        left = None if until is None else max(0.0, until - time.monotonic())
        return written.wait(left) and not self._gone

    def end(self) -> None:
        """End the thread, once it has written what is queued."""
        self._queue.put(None)

    # -- in the thread -----------------------------------------------------------------------------

    def _run(self) -> None:
        found: bytes | threading.Event | None = b""
        while found is not None:
            found = self._write_some()
            if self._lost and self._queue.empty():
                lost, self._lost = self._lost, 0
                logger.warning("%d lines are lost: the terminal or pipe took no output", lost)
            if isinstance(found, threading.Event) and self._queue.empty():
                found.set()
            elif isinstance(found, threading.Event):
                self._queue.put(found)  # behind the line about lost ones

    def _write_some(self) -> bytes | threading.Event | None:
        """Write what is queued, or a part of it; return the last item."""
        found = self._queue.get()
        batch = b""
        while isinstance(found, bytes):
            batch += found
            if len(batch) >= _AT_ONCE:
                break
            try:
                found = self._queue.get_nowait()
            except Empty:
                break
        try:
            _write(self._descriptor, batch)
        except OSError:
            self._gone, self._lost = True, 0
        return found


def _write(descriptor: int, data: bytes) -> None:
    left = memoryview(data)
    while left:
        try:
            left = left[os.write(descriptor, left) :]
        except BlockingIOError:  # another process has made it non-blocking
            select.select((), (descriptor,), ())
