"""Live: a table of the present state at a terminal, of `krelay up` and `krelay status --watch`.

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
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from krelay.cli.output import is_stderr_handler, repeat_filter, silence_terminal
from krelay.cli.output_queue import wait_until_written
from krelay.cli.signals import on_signal
from krelay.cli.terminal.figures import RateMeter, Rates
from krelay.cli.terminal.keys import Browser, Keys, names_of
from krelay.cli.terminal.screen import Painter, in_foreground
from krelay.cli.terminal.view import Frame, ViewModel, frame, summary
from krelay.state.bus import EventBus
from krelay.state.events import AgentProgress

if TYPE_CHECKING:
    from rich.text import Text

logger = logging.getLogger("krelay.cli")

_EVERY = 0.5
_LEAST = 0.1
"""Seconds between two frames, at least."""
_BACKLOG = 2_000
"""Log lines that may wait; the oldest are lost."""
_LEAVE_DEADLINE = 3.0
_KEYS = (("?", "help"), ("/", "filter"))
_FAILED = "the live table failed; `--plain` runs without it"


@dataclass(frozen=True, slots=True)
class Action:
    """What a key does, in a word and in a sentence."""

    run: Callable[[], None]
    meaning: str
    help: str


class Live:
    """The live table. `run` shows it."""

    def __init__(
        self,
        snapshot: Callable[[], Awaitable[dict[str, Any]]],
        actions: Mapping[str, Action],
        bus: EventBus | None = None,
        *,
        wide: bool = False,
    ) -> None:
        """Show snapshots in their JSON form, and the progress of agents that `bus` brings.

        Without a bus, the snapshots are another process's: the log is not shown, and the last
        snapshot stays on the screen at the end. `actions` maps keys to what they do.
        """
        self._snapshot = snapshot
        if bus is not None:
            bus.on(AgentProgress, self._progressed)
        self._bus = bus
        self._wide = wide
        self._actions = actions
        self._terminal = sys.stdout.fileno()
        # Not stdout itself, whose lock the end of the interpreter takes: a thread may hold it in
        # a write that does not return.
        encoding = sys.stdout.encoding
        out = open(self._terminal, "w", encoding=encoding, errors="replace", closefd=False)  # noqa: SIM115
        self._painter = Painter(out)
        self._keys = Keys(sys.stdin.fileno() if sys.stdin and not sys.stdin.closed else -1)
        self._browser = Browser()
        self._log = _Log()
        self._rates = RateMeter()
        self._latest: tuple[dict[str, Any], Rates] | None = None
        self._frame = Frame(())
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
                while self._thread.is_alive():
                    try:
                        snapshot = await self._snapshot()
                        found = "error" not in snapshot
                        rates = self._rates.update(snapshot, loop.time()) if found else {}
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
        leaving = threading.Thread(target=self._leave, args=(self._last(),), daemon=True)
        leaving.start()
        leaving.join(_LEAVE_DEADLINE)
        if leaving.is_alive():
            self._painter.abandon()
            if self._ended:
                silence_terminal()
        self._keys.give_back()

    def _hear(self) -> None:
        if not in_foreground(self._terminal):
            return self._vanish()
        typed = self._keys.read()
        if typed is None:
            asyncio.get_running_loop().remove_reader(sys.stdin.fileno())
            self._hears, self._keys.there = False, False
        self._browser.shown(self._frame.first, self._frame.page)
        for key in names_of(typed or ""):
            if self._browser.press(key):
                continue
            if key == "?":
                self._help = not self._help
            elif key.lower() in self._actions:
                self._actions[key.lower()].run()
        self._log.changed.set()
        return None

    def _last(self) -> list[Text]:
        """Return what stays on the screen."""
        if not self._ended or self._bus is not None or not self._latest:
            return []
        now, (width, _) = datetime.now(UTC), self._painter.size
        return summary(self._latest[0], now, width, wide=self._wide)

    def _progressed(self, event: AgentProgress) -> None:
        self._progress = (event.step, time.monotonic())
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

    # -- in threads ------------------------------------------------------------------------------

    def _leave(self, last: list[Text]) -> None:
        try:
            with self._writing:
                self._painter.leave(last, self._log.take())
        except OSError:
            logger.debug("the terminal has gone")

    def _paint(self) -> None:
        for stream in (sys.stdout, sys.stderr):
            wait_until_written(stream)  # else it would come onto the table's screen
        while not self._ended:
            self._log.changed.wait(_LEAST if self._waiting() else None)
            self._log.changed.clear()
            try:
                with self._writing:
                    self._paint_once()
            except OSError:
                return  # the terminal has gone; SIGHUP handles that
            except Exception:
                with self._writing:
                    self._painter.leave((), self._log.take())
                self._log.give_up()
                logger.exception(_FAILED)
                return
            time.sleep(_LEAST)

    def _paint_once(self) -> None:
        if self._ended or not self._shown:
            return
        if self._latest is None:
            self._painter.paint((), self._above())
            return
        snapshot, rates = self._latest
        actions = self._actions.items() if self._hears else ()
        model = ViewModel(
            snapshot,
            rates,
            datetime.now(UTC),
            self._waiting(),
            keys=[*((key, action.meaning) for key, action in actions), *_KEYS],
            help=" ".join(action.help for _, action in actions) if self._help else "",
            selection=self._browser.selection,
            wide=self._wide,
        )
        self._frame = frame(model, *self._painter.room)
        self._painter.paint(self._frame.lines, self._above())

    def _above(self) -> list[str]:
        """Return the new lines of the log: what may fail comes before, or they are lost."""
        return self._log.take() if self._bus is not None else []

    def _waiting(self) -> tuple[str, float] | None:
        """Return what is awaited, and for how many seconds; None while all agents are reached."""
        if self._bus is None:
            return None
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

    paints = True
    """Tells others who write to stderr that their lines would be painted over."""

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
