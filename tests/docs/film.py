"""Films: terminals recorded from a real run, as an SVG that moves by CSS.

A film shows panes below each other. Each row of a pane is a strip of its contents over time, which
one animation moves: a picture of half a minute takes some 50 kB, and needs no script.
"""

from __future__ import annotations

import asyncio
import fcntl
import os
import pty
import struct
import termios
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

import pyte

from tests import rig
from tests.cli.emulator import Screen

_CELL, _LINE, _SIZE = 8.0, 18, 13.3
"""Pixels of a column and of a row, and the size of the font."""
_PAD, _TITLE, _GAP = 14, 26, 8
_HOLD = 4.0
"""Seconds for which the last picture stays."""
_KEY = 0.05
"""Seconds between two keys that are typed."""
_COLOURS = {
    "dim": "#8b949e",
    "red": "#ff7b72",
    "green": "#56d364",
    "brown": "#e3b341",
    "yellow": "#e3b341",
    "cyan": "#56d4dd",
    "magenta": "#d2a8ff",
}
_STYLE = f"""\
text {{ font: {_SIZE}px ui-monospace, SFMono-Regular, Menlo, Consolas, "DejaVu Sans Mono",
  "Liberation Mono", monospace; fill: #d1d7e0; white-space: pre }}
.title {{ fill: #8b949e; font: 600 12px system-ui, sans-serif }}
.bold {{ font-weight: 600; fill: #f0f6fc }}
rect {{ fill: #161b22; stroke: #3d444d }}
"""

Run = tuple[int, str, str]
"""Text of one style: its column, the text, and its class."""
Row = tuple[Run, ...]


class _Screen(Screen):
    """A screen that keeps faint text apart."""

    def select_graphic_rendition(self, *attrs: int, private: bool = False) -> None:
        """Take faint text for a colour."""
        super().select_graphic_rendition(*attrs)
        if 2 in attrs:
            self.cursor.attrs = self.cursor.attrs._replace(fg="dim")


@dataclass
class Pane:
    """A terminal of a film."""

    title: str
    columns: int
    rows: int
    moments: list[tuple[float, list[Row]]] = field(default_factory=list)
    """What it shows from when on, in seconds."""

    def __post_init__(self) -> None:
        self._screen = _Screen(self.columns, self.rows)
        self._stream = pyte.ByteStream(self._screen)
        self._master = -1

    @property
    def text(self) -> str:
        """What the screen shows now."""
        return "\n".join(line.rstrip() for line in self._screen.display)

    def feed(self, data: bytes) -> None:
        """Show output of the program."""
        self._stream.feed(data)

    def note(self, moment: float) -> None:
        """Note what the screen shows, if that has changed."""
        rows = [self._row(number) for number in range(self.rows)]
        if not self.moments or self.moments[-1][1] != rows:
            self.moments.append((moment, rows))

    async def run(self, *command: str, environ: Mapping[str, str], cwd: str) -> Any:
        """Start a program in the terminal, and return its process."""
        self._master, slave = pty.openpty()
        size = struct.pack("HHHH", self.rows, self.columns, 0, 0)
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, size)

        def own() -> None:
            fcntl.ioctl(0, termios.TIOCSCTTY, 0)

        process = await asyncio.create_subprocess_exec(
            *command,
            stdin=slave,
            stdout=slave,
            stderr=slave,
            env=environ,
            cwd=cwd,
            start_new_session=True,
            preexec_fn=own,
        )
        os.close(slave)
        asyncio.get_running_loop().add_reader(self._master, self._read)
        return process

    def close(self) -> None:
        """Close the terminal."""
        if self._master >= 0:
            asyncio.get_running_loop().remove_reader(self._master)
            os.close(self._master)
            self._master = -1

    async def type(self, text: str) -> None:
        """Type a command as a person does."""
        for key in f"{text}\r":
            os.write(self._master, key.encode())
            await asyncio.sleep(_KEY)

    async def shows(self, text: str) -> None:
        """Wait until the screen shows a text."""
        await rig.until(lambda: text in self.text)

    async def hides(self, text: str) -> None:
        """Wait until the screen does not show a text."""
        await rig.until(lambda: text not in self.text)

    def _read(self) -> None:
        try:
            self.feed(os.read(self._master, 1 << 16))
        except OSError:  # the program has ended
            asyncio.get_running_loop().remove_reader(self._master)

    def _row(self, number: int) -> Row:
        runs: list[Run] = []
        line = self._screen.buffer[number]
        for column in range(self.columns):
            char = line[column]
            style = char.fg if char.fg in _COLOURS else "bold" if char.bold else ""
            data = char.data
            # A run ends at a wide gap, so that columns are aligned in every font.
            last = runs[-1] if runs else None
            if last and last[2] == style and last[0] + len(last[1]) == column:
                runs[-1] = (last[0], last[1] + data, style)
            elif data != " ":
                runs.append((column, data, style))
        return tuple(part for run in runs for part in _parts(run))


def _parts(run: Run) -> list[Run]:
    """Return the parts of a run between gaps of two columns and more."""
    found: list[Run] = []
    start, text, style = run
    column = start
    for part in text.split("  "):
        stripped = part.strip()
        if stripped:
            found.append((column + len(part) - len(part.lstrip()), stripped, style))
        column += len(part) + 2
    return found


async def record(panes: Sequence[Pane], until: asyncio.Event, every: float = 0.1) -> float:
    """Note what the panes show until the event, and return the seconds that it took."""
    start = time.monotonic()
    while not until.is_set():
        for pane in panes:
            pane.note(time.monotonic() - start)
        await asyncio.sleep(every)
    return time.monotonic() - start


def draw(panes: Sequence[Pane], seconds: float, title: str, speed: float = 1.0) -> str:
    """Return a film of so many seconds as an SVG that shows it at this speed."""
    total = seconds + _HOLD * speed
    width = round(max(pane.columns for pane in panes) * _CELL) + 2 * _PAD
    colours = "".join(f".{name} {{ fill: {value} }}\n" for name, value in _COLOURS.items())
    styles, body, top = [_STYLE, colours], [], 1
    for number, pane in enumerate(panes):
        height = _TITLE + pane.rows * _LINE + _PAD // 2
        body.append(f'<rect x="1" y="{top}" width="{width - 2}" height="{height}" rx="7"/>')
        body.append(f'<text class="title" x="{_PAD}" y="{top + 18}">{escape(pane.title)}</text>')
        for row in range(pane.rows):
            name = f"p{number}r{row}"
            y = top + _TITLE + row * _LINE
            strip, frames, last = _strip(pane, row, total)
            if not strip:
                continue
            body.append(
                f'<svg x="{_PAD}" y="{y}" width="{width - _PAD}" height="{_LINE}">'
                f'<g class="{name}">{strip}</g></svg>'
            )
            if frames:
                # Readers who want no motion see the end.
                styles.append(
                    f".{name} {{ transform: translateY({last}px); "
                    f"animation: {name} {total / speed:.1f}s step-end infinite }}\n"
                    f"@keyframes {name} {{ {frames} }}\n"
                )
        top += height + _GAP
    styles.append("@media (prefers-reduced-motion: reduce) { g { animation: none !important } }\n")
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {top}" width="{width}" '
        f'role="img"><title>{escape(title)}</title>\n'
        f"<style>\n{''.join(styles)}</style>\n" + "\n".join(body) + "\n</svg>\n"
    )


def _strip(pane: Pane, row: int, total: float) -> tuple[str, str, int]:
    """Return the contents of a row below each other, the key frames that move them, and where the
    last one is."""
    places: dict[Row, int] = {}
    frames: list[str] = []
    last = -1
    for moment, rows in pane.moments:
        place = places.setdefault(rows[row], len(places))
        if place != last:
            percent = f"{100 * moment / total:.2f}".rstrip("0").rstrip(".")
            frames.append(f"{percent or 0}%{{transform:translateY({-place * _LINE}px)}}")
            last = place
    strip = "".join(
        f'<text x="{round(column * _CELL, 1):g}" y="{place * _LINE + 13}"'
        + (f' class="{style}"' if style else "")
        + f">{escape(text, quote=False)}</text>"
        for content, place in places.items()
        for column, text, style in content
    )
    return strip, "".join(frames) if len(places) > 1 else "", -last * _LINE
