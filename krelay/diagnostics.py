"""Diagnostics: where each asyncio task and each thread of this process stands."""

from __future__ import annotations

import asyncio
import logging
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from types import FrameType

from krelay.text import one_line

logger = logging.getLogger("krelay.cli")

LINES = 200  # tasks, and threads, that are listed
FRAMES = 6  # frames of each, the innermost ones
_WIDTH = 500  # characters of a line


def dump_on_signal(loop: asyncio.AbstractEventLoop, number: signal.Signals | None = None) -> None:
    """Log `dump(loop)` as a warning at each signal, unless the process was started to ignore it.

    The signal is SIGUSR1 unless given. The loop itself writes: one that hangs does not.
    """
    number = number or signal.SIGUSR1
    if signal.getsignal(number) != signal.SIG_IGN:
        loop.add_signal_handler(number, lambda: logger.warning("%s", dump(loop)))


def dump(loop: asyncio.AbstractEventLoop) -> str:
    """Return a line for each task of `loop` and for each thread but the calling one.

    A line has the name, and the frames with the innermost last. The text is at most
    `2 * LINES + 3` lines long.
    """
    tasks = sorted(asyncio.all_tasks(loop), key=lambda task: task.get_name())
    frames = sys._current_frames()
    threads = [thread for thread in threading.enumerate() if thread.ident != threading.get_ident()]
    lines = [
        f"{len(tasks)} tasks and {len(threads)} other threads",
        *(_line(f"task {task.get_name()}", _awaited(task.get_coro())) for task in tasks[:LINES]),
        *(
            _line(f"thread {thread.name}", _stack(frames[thread.ident]))
            for thread in threads[:LINES]
            if thread.ident in frames
        ),
    ]
    left = {"tasks": len(tasks) - LINES, "threads": len(threads) - LINES}
    lines += [f"{count} more {kind}" for kind, count in left.items() if count > 0]
    return "\n".join(lines)


def _line(name: str, frames: Iterator[FrameType]) -> str:
    places = [
        f"{frame.f_globals.get('__name__')}:{frame.f_lineno} {frame.f_code.co_qualname}"
        for frame in list(frames)[-FRAMES:]
    ]
    return one_line(f"{name}: {' > '.join(places) or 'no frame'}", _WIDTH)


def _awaited(coroutine: object) -> Iterator[FrameType]:
    """Yield the frames of a coroutine and of what it awaits, the outermost first."""
    while coroutine is not None:
        for frame, awaited in (("cr_frame", "cr_await"), ("gi_frame", "gi_yieldfrom")):
            if found := getattr(coroutine, frame, None):
                yield found
                coroutine = getattr(coroutine, awaited)
                break
        else:
            return


def _stack(frame: FrameType) -> Iterator[FrameType]:
    """Yield the frames of a thread, the outermost first."""
    yield from reversed([found for found, _ in traceback.walk_stack(frame)])
