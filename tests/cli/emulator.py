"""A program in a pseudo-terminal: its screen, and keys for it."""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import select
import signal
import struct
import sys
import termios
from collections import defaultdict
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pyte
from pyte.screens import Cursor, StaticDefaultDict

from tests import rig
from tests.integration.product import ROOT, command, environment

ALTERNATE = 1049


class Screen(pyte.HistoryScreen):
    """A screen with what pyte lacks: an alternate screen, which has no scroll-back."""

    def __init__(self, columns: int, rows: int) -> None:
        super().__init__(columns, rows, history=1000)
        self._normal: tuple[Any, Cursor] | None = None

    @property
    def alternate(self) -> bool:
        """Whether the alternate screen is shown."""
        return self._normal is not None

    @property
    def scrolled(self) -> list[str]:
        """The lines in the scroll-back."""
        lines = self.history.top
        return ["".join(line[x].data for x in range(self.columns)).rstrip() for line in lines]

    def set_mode(self, *modes: int, **options: Any) -> None:
        """Switch to an empty alternate screen, or set another mode."""
        if options.get("private") and ALTERNATE in modes and self._normal is None:
            self._normal = self.buffer, self.cursor
            self.buffer = defaultdict(lambda: StaticDefaultDict(self.default_char))
            self.cursor = Cursor(0, 0)
        super().set_mode(*modes, **options)

    def reset_mode(self, *modes: int, **options: Any) -> None:
        """Switch back to the normal screen and its cursor, or reset another mode."""
        if options.get("private") and ALTERNATE in modes and self._normal is not None:
            hidden = self.cursor.hidden
            (self.buffer, self.cursor), self._normal = self._normal, None
            self.cursor.hidden = hidden
            self.ensure_vbounds()
        super().reset_mode(*modes, **options)


def fill(descriptor: int) -> None:
    """Write blanks until a terminal or a pipe takes no more."""
    os.set_blocking(descriptor, False)
    # The system moves what a terminal was given, and then there is room again.
    while select.select((), (descriptor,), (), 0.1)[1]:
        for size in (1024, 1):
            with suppress(BlockingIOError):
                while True:
                    os.write(descriptor, b" " * size)
    os.set_blocking(descriptor, True)


class Terminal:
    """`screen` is the rendered terminal, `process` the program."""

    def __init__(self, descriptor: int, slave: int, columns: int, rows: int) -> None:
        self.process: asyncio.subprocess.Process
        self.screen = Screen(columns, rows)
        self.raw = b""
        self._stream = pyte.ByteStream(self.screen)
        self._descriptor, self._slave = descriptor, slave
        self._lines: list[str] | None = None  # rendering takes long, and is asked for often
        self.resize(columns, rows)

    @property
    def lines(self) -> list[str]:
        """The lines on the screen."""
        if self._lines is None:
            self._lines = [line.rstrip() for line in self.screen.display]
        return self._lines

    @property
    def text(self) -> str:
        """The screen as one text."""
        return "\n".join(self.lines)

    @property
    def as_it_was(self) -> bool:
        """Whether line editing, echo, the cursor and the normal screen are back."""
        flags = termios.tcgetattr(self._descriptor)[3]
        wanted = termios.ICANON | termios.ECHO
        restored = not (self.screen.cursor.hidden or self.screen.alternate)
        return flags & wanted == wanted and restored and pyte.modes.DECAWM in self.screen.mode

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self._descriptor, keys.encode())

    def resize(self, columns: int, rows: int) -> None:
        """Resize the terminal; the system signals the program."""
        size = struct.pack("HHHH", rows, columns, 0, 0)
        fcntl.ioctl(self._descriptor, termios.TIOCSWINSZ, size)
        self.screen.resize(rows, columns)
        self._lines = None

    async def shows(self, text: str) -> None:
        """Wait until the screen shows a text."""
        await rig.until(lambda: text in self.text or self.process.returncode is not None)
        with suppress(TimeoutError):
            async with asyncio.timeout(10.0):  # the last output may arrive after the end
                await rig.until(lambda: text in self.text)
        assert text in self.text, self.text

    async def hides(self, text: str) -> None:
        """Wait until the screen no longer shows a text."""
        await rig.until(lambda: text not in self.text)

    async def stopped(self) -> None:
        """Wait until the program has given the terminal back, and has stopped itself."""
        stat = Path(f"/proc/{self.process.pid}/stat")
        await rig.until(lambda: stat.read_text().rpartition(")")[2].split()[0] == "T")
        await rig.until(lambda: self.as_it_was)

    def stall(self) -> None:
        """Take no more output, as a terminal behind a dead SSH connection."""
        asyncio.get_running_loop().remove_reader(self._descriptor)
        other = os.open(os.ttyname(self._slave), os.O_WRONLY | os.O_NOCTTY)
        fill(other)
        os.close(other)

    def go_on(self) -> None:
        """Take output again."""
        asyncio.get_running_loop().add_reader(self._descriptor, self.read)

    def hang_up(self) -> None:
        """Close the window."""
        asyncio.get_running_loop().remove_reader(self._descriptor)
        os.close(self._descriptor)
        os.close(self._slave)
        self._descriptor = self._slave = -1

    def read(self) -> None:
        """Read the output so far."""
        try:
            data = os.read(self._descriptor, 1 << 16)
        except OSError:  # no process has it open any more
            data = b""
        if not data:
            asyncio.get_running_loop().remove_reader(self._descriptor)
        self.raw += data
        self._stream.feed(data)
        self._lines = None


@asynccontextmanager
async def terminal(
    *args: str,
    cwd: Path,
    columns: int = 80,
    rows: int = 24,
    script: str | None = None,
    **environ: str,
) -> AsyncIterator[Terminal]:
    """Run `krelay ARGS`, or a Python `script` with them; kill it if it still runs at the end."""
    master, slave = pty.openpty()
    loop = asyncio.get_running_loop()
    shown = Terminal(master, slave, columns, rows)
    loop.add_reader(master, shown.read)

    def own() -> None:
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    try:
        shown.process = await asyncio.create_subprocess_exec(
            *(command(*args) if script is None else [sys.executable, "-c", script, *args]),
            cwd=cwd,
            env=environment(**{"PYTHONPATH": str(ROOT), "TERM": "xterm-256color", **environ}),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=own,
        )
        try:
            yield shown
        finally:
            if shown.process.returncode is None:
                shown.process.send_signal(signal.SIGCONT)  # it may have put itself to sleep
                shown.process.terminate()
                shown.process.terminate()
            try:
                async with asyncio.timeout(60.0):
                    await shown.process.wait()
            finally:
                if shown.process.returncode is None:
                    shown.process.kill()
    finally:
        if shown._descriptor >= 0:
            shown.hang_up()
