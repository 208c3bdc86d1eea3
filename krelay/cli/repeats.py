"""Repeats: a log that says each thing once, and then how often it came again.

A client that retries against a refusing target, or an image that cannot be pulled, would write the
same line for ever. The first line of a kind passes at once. What repeats it is counted, and told as
`... (29 more in the last minute)`; while it goes on, less and less often. A kind that was quiet for
a whole period is new again.

What changes is no repeat: news about a subject (`web: ready`) make a warning about it, which was
told before, new again. Debugging passes as it is, and so does what answers the user's own acts.
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

from krelay.text import one_line

_PASSES = "_krelay_passes"

FIRST, LONGEST = 60.0, 960.0
"""Seconds of the first period in which repeats are counted, and of the longest one."""
SUBJECTS = 4_000
"""Subjects that are known at a time. One more flushes and forgets the oldest."""
VARIETY = 20
"""Kinds of one subject; what varies more than that is one kind."""

_NEWS_THAT_REPEAT = frozenset(("krelay.agent", "krelay.listener"))
"""Loggers whose news repeat under trouble too; news of the others are changes."""
_ALWAYS = frozenset(("krelay.cli", "krelay.reload", "krelay.jobs"))
"""Loggers that answer what the user does, or whose every line names something to look after."""
# What differs between two of a kind: numbers, and generated names (a pod's, a request's).
_VARIES = re.compile(r"(?<=-)(?=[a-z]*\d)[a-z0-9]{4,}\b|(?<=-)[bcdfghjklmnpqrstvwxz2-9]{5}\b|\d+")

_Subject = tuple[str, str]
"""A logger, and what its record is about: what its text begins with (`web: ...`)."""
_Shape = tuple[int, str]
"""A level, and the text; of trouble without what varies."""


@dataclass(slots=True)
class _Kind:
    """One thing that was said: `more` counts its repeats since then, until `until`."""

    record: logging.LogRecord
    period: float
    until: float
    more: int = 0


class Repeats(logging.Filter):
    """The filter that all handlers of a log share: each record is judged once."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock = clock
        self._kinds: dict[_Subject, dict[_Shape, _Kind]] = {}
        self._next = math.inf
        """When the first of the kinds is to be looked at."""
        self._told: list[logging.LogRecord] = []
        """What is to be written once nothing is held."""
        self._timer: threading.Timer | None = None
        self._due = math.inf
        # Records come from any thread; a finalizer may log in the middle of this.
        self._mutex = threading.RLock()

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is to be written."""
        passes = getattr(record, _PASSES, None)
        if passes is None:
            with self._mutex:
                passes = self._judge(record)
            setattr(record, _PASSES, passes)
            self._write()
        return bool(passes)

    def flush(self) -> None:
        """Tell of the trouble that has been counted, and forget all: at the end."""
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
            return True  # its handler will complain
        now = self._clock()
        if now >= self._next:
            self._tell(now)
        head, colon, _ = text.partition(": ")
        subject = record.name, head if colon else ""
        if record.levelno == logging.INFO and record.name not in _NEWS_THAT_REPEAT:
            self._rearm(subject)
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
            self._wake()
            return False
        kinds[shape] = _Kind(record, FIRST, now + FIRST)
        self._next = min(self._next, now + FIRST)
        return True

    def _rearm(self, subject: _Subject) -> None:
        """What was told of the subject (without one: by this logger) is not so any more."""
        name, about = subject
        for found in [subject] if about else [known for known in self._kinds if known[0] == name]:
            if found in self._kinds:
                self._forget(found)

    def _forget(self, subject: _Subject, least: int = logging.INFO) -> None:
        """Forget what is known of `subject`; tell what was counted of level `least` or above."""
        now = self._clock()
        kinds = self._kinds.pop(subject).values()
        self._told += [_again(k, now) for k in kinds if k.more and k.record.levelno >= least]

    def _tell(self, now: float) -> None:
        """Tell of the kinds that are due; one without a repeat is forgotten."""
        self._next = math.inf
        for subject, kinds in list(self._kinds.items()):
            for shape, kind in list(kinds.items()):
                if kind.until <= now:
                    if not kind.more:
                        del kinds[shape]
                        continue
                    self._told.append(_again(kind, now))
                    kind.more, kind.period = 0, min(2 * kind.period, LONGEST)
                    kind.until = now + kind.period
                self._next = min(self._next, kind.until)
            if not kinds:
                del self._kinds[subject]

    def _wake(self) -> None:
        """Have the count told even if nothing more is logged."""
        if self._timer is not None and self._due <= self._next:
            return
        if self._timer is not None:
            self._timer.cancel()
        self._due = self._next
        timer = threading.Timer(max(0.0, self._due - self._clock()), self._woken)
        timer.daemon = True
        try:
            timer.start()
        except RuntimeError:
            self._timer = None  # no thread to be had: the next record tells it
        else:
            self._timer = timer

    def _woken(self) -> None:
        with self._mutex:
            self._timer = None
            if (now := self._clock()) >= self._next:
                self._tell(now)
            if any(kind.more for kinds in self._kinds.values() for kind in kinds.values()):
                self._wake()
        self._write()

    def _write(self) -> None:
        """Write what is to be told; not under the lock, since a handler has one too."""
        while self._told:
            try:
                record = self._told.pop(0)
            except IndexError:
                return  # another thread has it
            logging.getLogger(record.name).handle(record)


def _shape(record: logging.LogRecord, text: str) -> _Shape:
    if record.levelno == logging.INFO:
        return record.levelno, text  # another process or pod is news
    bug = record.exc_info[0] if record.exc_info else None
    return record.levelno, _VARIES.sub("#", text) + (bug.__name__ if bug else "")


def _again(kind: _Kind, now: float) -> logging.LogRecord:
    """The last repeat once more, with the count."""
    last = kind.record
    told = copy.copy(last)
    told.created = time.time()
    told.exc_info = told.exc_text = told.stack_info = None
    seconds = kind.period - max(0.0, kind.until - now)
    told.msg = f"{last.msg} ({kind.more} more in the last {_spoken(seconds)})"
    setattr(told, _PASSES, True)
    return told


def _spoken(seconds: float) -> str:
    if seconds < 55:
        count = max(1, round(seconds))
        return "second" if count == 1 else f"{count} seconds"
    count = round(seconds / 60)
    return "minute" if count <= 1 else f"{count} minutes"
