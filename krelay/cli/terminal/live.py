"""Live: `krelay up` on a terminal: the log scrolls above a table of the present state.

A thread paints, so that a terminal that takes no output (a stopped one, a slow line) cannot hold up
the event loop. The loop takes the snapshots and reads the keys.
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
from krelay.cli.signals import on_signal
from krelay.cli.terminal.screen import Keys, Painter, in_foreground
from krelay.cli.terminal.view import Rate, RateMeter, ViewModel, frame
from krelay.state.bus import EventBus
from krelay.state.events import AgentProgress

logger = logging.getLogger("krelay.cli")

_EVERY = 0.5
_LEAST = 0.1
"""Seconds between two frames, at least."""
_BACKLOG = 2_000
"""Log lines that may wait; the oldest are lost."""
_LEAVE_DEADLINE = 1.0
_FAILED = "the live table failed; `--plain` runs without it"


class Live:
    """The live table. `run` shows it."""

    def __init__(
        self,
        snapshot: Callable[[], Awaitable[dict[str, Any]]],
        keys: Mapping[str, Callable[[], None]],
        bus: EventBus,
    ) -> None:
        """Show snapshots in their JSON form, and the progress of agents that `bus` brings.

        `keys` maps each key to its action.
        """
        self._snapshot = snapshot
        bus.on(AgentProgress, self._progressed)
        self._actions = {**keys, "?": self._toggle_help}
        self._terminal = sys.stdout.fileno()
        self._painter = Painter(sys.stdout)
        self._keys = Keys(sys.stdin.fileno() if sys.stdin and not sys.stdin.closed else -1)
        self._log = _Log()
        self._rates = RateMeter()
        self._latest: tuple[dict[str, Any], Mapping[tuple[str, int], Rate]] | None = None
        # What is awaited, and since when: while a tunnel is missing, and while an agent starts.
        self._waits: tuple[str, float] | None = ("starting", time.monotonic())
        self._progress: tuple[str, float] | None = None
        self._help = False
        self._hears = False
        self._shown = False
        self._ended = False
        # Held while a thread writes to the terminal.
        self._writing = threading.Lock()
        self._thread = threading.Thread(target=self._paint, name="live", daemon=True)

    async def run(self) -> None:
        """Show it until cancelled, then restore the terminal."""
        loop = asyncio.get_running_loop()
        handlers = {
            signal.SIGTSTP: self._sleep,
            signal.SIGCONT: self._appear,
            signal.SIGQUIT: self._quit,
            signal.SIGWINCH: self._log.changed.set,
        }
        for number, handler in handlers.items():
            on_signal(number, handler)
        with self._log.instead_of_stderr():
            self._appear()
            self._thread.start()
            try:
                while True:
                    try:
                        snapshot = await self._snapshot()
                        rates = self._rates.update(snapshot, loop.time())
                    except Exception:
                        # A failure of the display must not end the relaying.
                        logger.exception(_FAILED)
                        return
                    self._latest = snapshot, rates
                    if self._shown != in_foreground(self._terminal):
                        self._appear() if not self._shown else self._vanish()
                    self._log.changed.set()
                    await asyncio.sleep(_EVERY)
            finally:
                for number in handlers:
                    loop.remove_signal_handler(number)
                self._ended = True
                self._vanish()
                self._log.changed.set()

    # -- on the loop -----------------------------------------------------------------------------

    def _appear(self) -> None:
        """Show the table if this process is in the terminal's foreground."""
        if not in_foreground(self._terminal):
            return
        if self._keys.take() and not self._hears:
            asyncio.get_running_loop().add_reader(sys.stdin.fileno(), self._hear)
            self._hears = True
        self._shown = True
        self._log.changed.set()

    def _vanish(self) -> None:
        """Erase the table and give the terminal back."""
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

    def _progressed(self, event: AgentProgress) -> None:
        self._progress = (event.step, time.monotonic())
        self._log.changed.set()

    def _toggle_help(self) -> None:
        self._help = not self._help
        self._log.changed.set()

    def _sleep(self) -> None:
        """Ctrl-Z: restore the terminal while stopped."""
        self._vanish()
        os.kill(os.getpid(), signal.SIGSTOP)
        self._appear()

    def _quit(self) -> None:
        """Ctrl-\\: end by that signal, but restore the terminal first."""
        self._vanish()
        signal.signal(signal.SIGQUIT, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGQUIT)

    # -- in the thread ---------------------------------------------------------------------------

    def _paint(self) -> None:
        while not self._ended:
            self._log.changed.wait(_LEAST if self._waiting() else None)
            self._log.changed.clear()
            try:
                with self._writing:
                    self._paint_once()
            except OSError:
                return  # the terminal has gone; SIGHUP handles that
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
        snapshot, rates = self._latest
        moment = ViewModel(
            snapshot, rates, datetime.now(UTC), self._waiting(), keys=self._hears, help=self._help
        )
        self._painter.paint(frame(moment, *self._painter.size), self._log.take())

    def _waiting(self) -> tuple[str, float] | None:
        """Return what is awaited, and for how many seconds; None while all agents are reached."""
        agents = self._latest[0]["agents"] if self._latest else ()
        reached = [any(tunnel["up"] for tunnel in agent["tunnels"]) for agent in agents]
        if (reached and all(reached)) or (self._latest and self._latest[0]["ending"]):
            self._progress = self._waits = None
            return None
        if self._waits is None:
            self._waits = ("no tunnel, trying again", time.monotonic())
        text, since = self._progress or self._waits
        return f"agent: {text}", time.monotonic() - since


class _Log(logging.Handler):
    """Queues log lines for above the table, in place of those on standard error of a terminal."""

    def __init__(self) -> None:
        super().__init__()
        self.changed = threading.Event()
        self._lines: deque[str] = deque(maxlen=_BACKLOG)
        self._root = logging.getLogger()
        self._before: list[logging.Handler] = []

    @contextmanager
    def instead_of_stderr(self) -> Iterator[None]:
        """Replace the handlers of standard error while the block lasts."""
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
        """Restore the handlers, and write the queued lines."""
        if self in self._root.handlers:
            self._root.handlers[:] = self._before
            if lines := self.take():
                sys.stderr.write("".join(f"{line}\n" for line in lines))

    def emit(self, record: logging.LogRecord) -> None:
        """Queue the record; never wait for the terminal."""
        if repeat_filter.filter(record):
            self._lines.extend(self.format(record).splitlines())
        self.changed.set()

    def take(self) -> list[str]:
        """Return the queued lines, and empty the queue."""
        found = []
        while self._lines:
            found.append(self._lines.popleft())
        return found
