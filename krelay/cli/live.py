"""Live: `krelay up` on a terminal; the log scrolls above a table of what is true now.

A thread paints: a terminal that takes nothing (a stopped one, a slow line) must not hold up the
loop. The loop makes the reports, and hears the keys.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from krelay.cli.output import is_stderr_handler, repeat_filter
from krelay.cli.screen import Keys, Painter, in_foreground
from krelay.cli.signals import on_signal
from krelay.cli.view import Rate, RateMeter, ViewModel, frame

logger = logging.getLogger("krelay.cli")

_EVERY = 0.5
_LEAST = 0.1
"""Seconds between two paintings, at least."""
_BACKLOG = 2_000
"""Lines that may wait to be painted; the oldest are lost."""
_LEAVE_DEADLINE = 1.0
_FAILED = "the live table failed; `--plain` does without"


class Live:
    """`keys` has what is to be done at each; `report` makes a report, in its JSON form."""

    def __init__(
        self,
        report: Callable[[], Awaitable[dict[str, Any]]],
        keys: Mapping[str, Callable[[], None]],
    ) -> None:
        self._report = report
        self._actions = {**keys, "?": self._toggle_help}
        self._terminal = sys.stdout.fileno()
        self._painter = Painter(sys.stdout)
        self._keys = Keys(sys.stdin.fileno() if sys.stdin and not sys.stdin.closed else -1)
        self._log = _Log()
        self._rates = RateMeter()
        self._latest: tuple[dict[str, Any], Mapping[tuple[str, int], Rate]] | None = None
        self._waits: tuple[str, float] | None = ("starting", time.monotonic())
        self._help = False
        self._hears = False
        self._shown = False
        self._ended = False
        # Held while somebody writes to the terminal.
        self._writing = threading.Lock()
        self._thread = threading.Thread(target=self._paint, name="live", daemon=True)

    async def run(self) -> None:
        """Show it until cancelled; then all is as it was before."""
        loop = asyncio.get_running_loop()
        handlers = {
            signal.SIGTSTP: self._sleep,
            signal.SIGCONT: self._appear,
            signal.SIGQUIT: self._quit,
            signal.SIGWINCH: self._log.news.set,
        }
        for number, handler in handlers.items():
            on_signal(number, handler)
        with self._log.instead_of_stderr():
            self._appear()
            self._thread.start()
            try:
                while True:
                    try:
                        report = await self._report()
                        rates = self._rates.update(report, loop.time())
                    except Exception:
                        # What is only shown must not end what is relayed.
                        logger.exception(_FAILED)
                        return
                    self._latest = report, rates
                    if self._shown != in_foreground(self._terminal):
                        self._appear() if not self._shown else self._vanish()
                    self._log.news.set()
                    await asyncio.sleep(_EVERY)
            finally:
                for number in handlers:
                    loop.remove_signal_handler(number)
                self._end()

    # -- on the loop -----------------------------------------------------------------------------

    def _appear(self) -> None:
        """From the front of the terminal on, also again."""
        if not in_foreground(self._terminal):
            return
        if self._keys.take() and not self._hears:
            asyncio.get_running_loop().add_reader(sys.stdin.fileno(), self._hear)
            self._hears = True
        self._shown = True
        self._log.news.set()

    def _vanish(self) -> None:
        """Another has the terminal, or is to have it."""
        if self._hears:
            asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
            self._hears = False
        self._shown = False
        if self._writing.acquire(timeout=_LEAVE_DEADLINE):
            try:
                self._painter.erase(self._log.take())
            except OSError:
                logger.debug("the terminal has gone")
            finally:
                self._writing.release()
        self._keys.give_back()

    def _end(self) -> None:
        self._ended = True
        self._vanish()
        self._log.news.set()

    def _hear(self) -> None:
        if not in_foreground(self._terminal):
            return self._vanish()
        typed = self._keys.read()
        if typed is None:
            asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
            self._hears, self._keys.there = False, False
        for key in dict.fromkeys((typed or "").lower()):
            if key in self._actions:
                self._actions[key]()
        return None

    def _toggle_help(self) -> None:
        self._help = not self._help
        self._log.news.set()

    def _sleep(self) -> None:
        """Ctrl-Z."""
        self._vanish()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._appear()

    def _quit(self) -> None:
        """Ctrl-\\: the end by that signal, but with a terminal that can be used."""
        self._vanish()
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGQUIT)

    # -- in the thread ---------------------------------------------------------------------------

    def _paint(self) -> None:
        while not self._ended:
            self._log.news.wait(_LEAST if self._waiting() else None)
            self._log.news.clear()
            try:
                with self._writing:
                    self._paint_once()
            except OSError:
                return  # the terminal has gone; SIGHUP has been told of it
            except Exception:
                self._log.give_up()
                logger.exception(_FAILED)
                return
            time.sleep(_LEAST)

    def _paint_once(self) -> None:
        if self._ended or not self._shown:
            return
        if self._latest is None:
            self._painter.paint("", self._log.take())
            return
        report, rates = self._latest
        moment = ViewModel(
            report, rates, datetime.now(UTC), self._waiting(), keys=self._hears, help=self._help
        )
        self._painter.paint(frame(moment, *self._painter.size), self._log.take())

    def _waiting(self) -> tuple[str, float] | None:
        """What is waited for, and since how many seconds; None while every agent is reached."""
        agents = self._latest[0]["agents"] if self._latest else ()
        reached = [any(tunnel["up"] for tunnel in agent["tunnels"]) for agent in agents]
        if (reached and all(reached)) or (self._latest and self._latest[0]["ending"]):
            self._log.progress = self._waits = None
            return None
        if self._waits is None:
            self._waits = ("no tunnel, trying again", time.monotonic())
        text, since = self._log.progress or self._waits
        return f"agent: {text}", time.monotonic() - since


class _Log(logging.Handler):
    """Lines for above the table, in the place of those on standard error if that is a terminal."""

    def __init__(self) -> None:
        super().__init__()
        self.news = threading.Event()
        self.progress: tuple[str, float] | None = None
        self._lines: deque[str] = deque(maxlen=_BACKLOG)
        self._root = logging.getLogger()
        self._before: list[logging.Handler] = []

    @contextmanager
    def instead_of_stderr(self) -> Iterator[None]:
        """As long as the block lasts."""
        self._before = self._root.handlers[:]
        ours = [h for h in self._before if is_stderr_handler(h)]
        if sys.stderr.isatty() and ours:
            self.setFormatter(ours[0].formatter)
            self._root.handlers[:] = [h for h in self._before if h not in ours]
        else:
            self.setFormatter(None)
            self._lines = deque(maxlen=0)
        self._root.addHandler(self)
        try:
            yield
        finally:
            self.give_up()

    def give_up(self) -> None:
        """What is logged goes where it went before."""
        if self in self._root.handlers:
            self._root.handlers[:] = self._before
            if lines := self.take():
                sys.stderr.write("".join(f"{line}\n" for line in lines))

    def emit(self, record: logging.LogRecord) -> None:
        """Never waits for the terminal."""
        if record.name == "krelay.agent" and record.levelno == logging.INFO:
            self.progress = (record.getMessage().removeprefix("agent: "), time.monotonic())
        if repeat_filter.filter(record):
            self._lines.extend(self.format(record).splitlines())
        self.news.set()

    def take(self) -> list[str]:
        """The lines that wait."""
        found = []
        while self._lines:
            found.append(self._lines.popleft())
        return found
