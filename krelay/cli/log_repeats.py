"""Suppression of repeated log lines.

A client that retries against a refusing target, or an image that cannot be pulled, would log the
same line forever. The first line of a kind passes at once. Its repeats are counted and reported as
`... (29 more in the last minute)`, less and less often while they go on. A kind that stays quiet
for a whole period is new again.

A change is not a repeat: INFO about a subject (`web: ready`) makes the warnings about it new again.
DEBUG always passes, and so do answers to what the user does.
"""

from __future__ import annotations

import copy
import logging
import math
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

from krelay.mux.log import FIELDS
from krelay.text import one_line

_PASSES = "_krelay_passes"

FIRST, LONGEST = 60.0, 960.0
"""Seconds of the first period in which repeats are counted, and of the longest one."""
SUBJECTS = 4_000
"""Subjects remembered at a time. One more flushes and forgets the oldest."""
VARIETY = 20
"""Kinds of one subject; further ones count as a single kind."""

_PROGRESS = frozenset(("krelay.agent", "krelay.listener"))
"""Loggers whose INFO repeats too while something fails; INFO of others reports a change."""
_ALWAYS = frozenset(("krelay.cli", "krelay.reload", "krelay.jobs"))
"""Loggers that answer the user, or whose every line names something to look after."""
# What differs between lines of one kind: numbers, and generated names (of a pod, of a request).
_VARIES = re.compile(r"(?<=-)(?=[a-z]*\d)[a-z0-9]{4,}\b|(?<=-)[bcdfghjklmnpqrstvwxz2-9]{5}\b|\d+")

_Subject = tuple[str, str]
"""A logger, and the target, tunnel or stream that the record is about."""
_Shape = tuple[int, str]
"""A level, and the text; for warnings and errors without what varies."""


@dataclass(slots=True)
class _Kind:
    """A line that was logged; `more` counts its repeats since then, until `until`."""

    record: logging.LogRecord
    period: float
    until: float
    more: int = 0


class RepeatFilter(logging.Filter):
    """The filter shared by all handlers of a log, so that it judges each record once."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._kinds: dict[_Subject, dict[_Shape, _Kind]] = {}
        self._next = math.inf
        """When the earliest period ends."""
        self._reports: list[logging.LogRecord] = []
        """Counts to be written once the lock is released."""
        self._timer: threading.Timer | None = None
        self._due = math.inf
        # Records come from any thread; a finalizer may log while the lock is held.
        self._mutex = threading.RLock()

    def filter(self, record: logging.LogRecord) -> bool:
        """Return whether the record is to be written."""
        passes = getattr(record, _PASSES, None)
        if passes is None:
            with self._mutex:
                passes = self._judge(record)
            setattr(record, _PASSES, passes)
            self._write()
        return bool(passes)

    def flush(self) -> None:
        """Report the warnings and errors counted so far, and forget everything."""
        with self._mutex:
            for subject in list(self._kinds):
                self._forget(subject, logging.WARNING)
            self._next = math.inf
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None
        self._write()

    def _judge(self, record: logging.LogRecord) -> bool:
        if record.levelno < logging.INFO or record.name in _ALWAYS:
            return True
        try:
            text = one_line(record.getMessage(), 400)
        except Exception:
            return True  # the handler will report it
        now = self._clock()
        if now >= self._next:
            self._report(now)
        subject = _subject(record, text)
        if record.levelno == logging.INFO and record.name not in _PROGRESS:
            self._renew(subject)
            return True
        kinds = self._kinds.get(subject)
        if kinds is None:
            while len(self._kinds) >= SUBJECTS:
                self._forget(next(iter(self._kinds)))
            kinds = self._kinds[subject] = {}
        shape = _shape(record, text)
        if shape not in kinds and len(kinds) >= VARIETY:
            shape = record.levelno, ""
        if (known := kinds.get(shape)) is not None:
            known.more += 1
            known.record = record
            self._start_timer()
            return False
        kinds[shape] = _Kind(record, FIRST, now + FIRST)
        self._next = min(self._next, now + FIRST)
        return True

    def _renew(self, subject: _Subject) -> None:
        """Forget what was logged about the subject, or by this logger if it names none."""
        name, about = subject
        for found in [subject] if about else [known for known in self._kinds if known[0] == name]:
            if found in self._kinds:
                self._forget(found)

    def _forget(self, subject: _Subject, least: int = logging.INFO) -> None:
        """Forget a subject, and report its counts of level `least` or above."""
        now = self._clock()
        kinds = self._kinds.pop(subject).values()
        self._reports += [_count(k, now) for k in kinds if k.more and k.record.levelno >= least]

    def _report(self, now: float) -> None:
        """Report the kinds whose period ends, and forget those without a repeat."""
        self._next = math.inf
        for subject, kinds in list(self._kinds.items()):
            for shape, kind in list(kinds.items()):
                if kind.until <= now:
                    if not kind.more:
                        del kinds[shape]
                        continue
                    self._reports.append(_count(kind, now))
                    kind.more, kind.period = 0, min(2 * kind.period, LONGEST)
                    kind.until = now + kind.period
                self._next = min(self._next, kind.until)
            if not kinds:
                del self._kinds[subject]

    def _start_timer(self) -> None:
        """Report the count in time even if nothing more is logged."""
        if self._timer is not None and self._due <= self._next:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._due = self._next
        timer = threading.Timer(max(0.0, self._due - self._clock()), self._on_timer)
        timer.daemon = True
        try:
            timer.start()
        except RuntimeError:
            self._timer = None  # no thread is available: the next record triggers the report
        else:
            self._timer = timer

    def _on_timer(self) -> None:
        with self._mutex:
            self._timer = None
            if (now := self._clock()) >= self._next:
                self._report(now)
            if any(kind.more for kinds in self._kinds.values() for kind in kinds.values()):
                self._start_timer()
        self._write()

    def _write(self) -> None:
        """Write the reports; without the lock, since handlers have locks too."""
        while self._reports:
            try:
                record = self._reports.pop(0)
            except IndexError:
                return  # another thread took it
            logging.getLogger(record.name).handle(record)


def _subject(record: logging.LogRecord, text: str) -> _Subject:
    """Return what the record is about: by its fields, or else by the text before a colon.

    `about` names the subject in the first argument. A stream is not a subject if its target or
    tunnel is known: each one would be new.
    """
    target, tunnel, stream = (getattr(record, field, None) for field in FIELDS)
    if not (target or tunnel or stream):
        head, colon, _ = text.partition(": ")
        return record.name, head if colon else ""
    name = record.args[0] if isinstance(record.args, tuple) and record.args else ""
    place = target or tunnel or stream
    return record.name, f"{place}" if name == stream else f"{place}/{name}"


def _shape(record: logging.LogRecord, text: str) -> _Shape:
    if record.levelno == logging.INFO:
        return record.levelno, text  # another process or pod is news
    bug = record.exc_info[0] if record.exc_info else None
    return record.levelno, _VARIES.sub("#", text) + (bug.__name__ if bug else "")


def _count(kind: _Kind, now: float) -> logging.LogRecord:
    """Return the last repeat, with the count."""
    last = kind.record
    found = copy.copy(last)
    found.created = time.time()
    found.exc_info = found.exc_text = found.stack_info = None
    seconds = kind.period - max(0.0, kind.until - now)
    found.msg = f"{last.msg} ({kind.more} more in the last {_in_words(seconds)})"
    setattr(found, _PASSES, True)
    return found


def _in_words(seconds: float) -> str:
    if seconds < 55:
        count = max(1, round(seconds))
        return "second" if count == 1 else f"{count} seconds"
    count = round(seconds / 60)
    return "minute" if count <= 1 else f"{count} minutes"
