"""Watch files for changes, however an editor or a mount replaces them.

Events of the operating system, and a slow timer for file systems without events, only say when to
look. Looking at the files decides what has changed.
"""

from __future__ import annotations

import asyncio
import logging
import os
import stat
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Iterator, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import PurePath
from typing import TypeVar

from krelay.errors import KrelayError, UsageError
from krelay.platforms import OPEN_FILE
from krelay.threads import DaemonExecutor

logger = logging.getLogger("krelay.watch")

_T = TypeVar("_T")

_VARIABLE = "KRELAY_WATCH"
_MAX_LINKS = 40

Directories = frozenset[tuple[str, int]]
"""Directories by path and inode."""

POLL = 0.25
"""Seconds between two looks without events."""
LOOK = 1.0
"""Seconds between two looks with events."""
SETTLE = 0.05
"""Seconds without a change after which a file is complete."""
CUT_OFF_SETTLE = 0.4
"""The same for a file that is missing, empty, or ends within a line: its writer may not be done."""
PATIENCE = 2.0
"""Seconds after which a file that keeps changing is reported anyway."""
PATIENCE_OF_A_LOOK = 5.0
"""Seconds after which a file system that does not answer is skipped until it does."""
_MOST = 8
"""Threads that may wait for such file systems."""


class Mode(StrEnum):
    """How changes are noticed: by events with looks, by events or an error, by looks alone."""

    AUTO = "auto"
    INOTIFY = "inotify"
    POLL = "poll"


def mode_from_env(environ: Mapping[str, str]) -> Mode:
    """Return the mode that KRELAY_WATCH names.

    Raises:
        UsageError: it names no mode.
    """
    word = environ.get(_VARIABLE) or Mode.AUTO
    try:
        return Mode(word)
    except ValueError:
        known = ", ".join(f"`{mode}`" for mode in Mode)
        raise UsageError(f"{_VARIABLE} cannot be {word!r}", hint=f"it is one of {known}") from None


async def watch(
    files: Callable[[], Collection[str]], mode: Mode = Mode.AUTO
) -> AsyncGenerator[frozenset[str], None]:
    """Yield the changed files of those that `files()` names, each time that some have changed.

    The first item is empty, and so is the item after `files()` named new files: the caller reads
    these anyway, and so sees what happened to them before they were watched.

    Raises:
        KrelayError: the mode is INOTIFY, and events are not available.
    """
    watcher = _Watcher(mode)
    while True:
        names = tuple(dict.fromkeys(files()))
        if await watcher.add(names):
            yield frozenset()
            continue  # reading them may have named more files
        directories = await watcher.directories(names)
        if changed := await watcher.settled():
            yield changed
            continue
        async with aclosing(watcher.wakes(names, directories)) as wakes:
            async for _ in wakes:
                changed = await watcher.settled()
                if changed:
                    yield changed
                if set(files()) != set(names):
                    break
                if changed and await watcher.directories(names) != directories:
                    break


class _Watcher:
    """The last known state of the files, and the means to notice that it has changed."""

    def __init__(self, mode: Mode) -> None:
        self._mode = mode
        self._known: dict[str, _State] = {}
        self._warned: set[str] = set()
        self._threads = Offload("looking at the files", within=PATIENCE_OF_A_LOOK, most=_MOST)
        self._hanging: set[str] = set()
        self._missed: set[str] = set()

    async def add(self, names: Collection[str]) -> bool:
        """Watch these files from now on; return whether one of them is new."""
        new = [name for name in names if name not in self._known]
        found = await self._each(new, _state)
        self._known = {name: self._known.get(name) or found.get(name, _State()) for name in names}
        return bool(new)

    async def directories(self, names: Collection[str]) -> Directories:
        """Return the directories whose entries decide what the names refer to."""
        found = await self._each(names, _directories_of)
        return frozenset(place for directories in found.values() for place in directories)

    async def _look(self) -> dict[str, _State]:
        return {**self._known, **await self._each(self._known, _state)}

    async def _each(self, names: Iterable[str], call: Callable[[str], _T]) -> dict[str, _T]:
        """Return the result of `call` for each name whose file system answers."""
        found: dict[str, _T] = {}
        while left := [name for name in names if name not in found and name not in self._hanging]:
            try:
                await self._threads.run(partial(_fill, found, left, call))
            except StuckError as exc:
                found = dict(found)  # the thread may still add to the old one
                for name in [name for name in left if name not in found][:1]:
                    self._hanging.add(name)
                    exc.over.add_done_callback(partial(self._back, name))
                    self._warn(f"the file system of {name} does not answer; edits are not seen")
            except KrelayError as exc:
                self._warn(f"{exc}; edits may not be seen")
                break
        return found

    def _back(self, name: str, _: object) -> None:
        """Note that the file system of a name answers again."""
        self._hanging.discard(name)
        self._missed.add(name)

    async def settled(self) -> frozenset[str]:
        """Wait until changed files are complete, and return them."""
        clock = asyncio.get_running_loop().time
        began = rested = clock()
        for name in self._missed & self._known.keys():
            self._known[name] = _State((-1,))  # differs from any state
        self._missed.clear()
        now = await self._look()
        while changed := [
            name for name in now if now[name].signature != self._known[name].signature
        ]:
            quiet = CUT_OFF_SETTLE if any(now[name].cut_off for name in changed) else SETTLE
            if clock() - rested >= quiet or clock() - began >= PATIENCE:
                break
            await asyncio.sleep(SETTLE / 2)
            later = await self._look()
            if later != now:
                now, rested = later, clock()
        self._known = now
        for name in changed:
            if now[name].orphaned:
                self._warn(
                    f"{name} was replaced outside the mount, and will not change here again;"
                    " mount its directory instead"
                )
        return frozenset(changed)

    async def wakes(
        self, names: Iterable[str], directories: Directories
    ) -> AsyncGenerator[None, None]:
        """Yield each time that something may have changed, until a directory is gone."""
        if self._mode is not Mode.POLL:
            try:
                # A file that is mounted by itself only has its own events. A file whose file
                # system hangs would block here too.
                names = [name for name in names if name not in self._hanging]
                present = [name for name in names if self._known[name].signature]
                async with aclosing(_events([*present, *sorted(dict(directories))])) as events:
                    async for _ in events:
                        yield
            except FileNotFoundError:
                await asyncio.sleep(POLL)
                return
            except (OSError, RuntimeError) as exc:
                hint = f"raise fs.inotify.max_user_watches, or set {_VARIABLE}=poll"
                if self._mode is Mode.INOTIFY:
                    raise KrelayError(f"no file events: {exc}", hint=hint) from exc
                self._warn(f"no file events ({exc}); looking each {POLL:g} s instead; hint: {hint}")
        while True:
            await asyncio.sleep(POLL)
            yield

    def _warn(self, text: str) -> None:
        if text not in self._warned:
            self._warned.add(text)
            logger.warning("%s", text)


def _events(directories: list[str]) -> AsyncGenerator[object, None]:
    from watchfiles import awatch

    return awatch(
        *directories,
        watch_filter=None,
        debounce=200,
        step=20,
        rust_timeout=int(LOOK * 1000),
        yield_on_timeout=True,
        force_polling=False,
        recursive=False,
    )


@dataclass(frozen=True, slots=True)
class _State:
    """The state of a file. `signature` is None if it is missing.

    `cut_off` says that it ends within a line, `orphaned` that no directory has an entry for it.
    """

    signature: tuple[int, ...] | None = None
    cut_off: bool = True
    orphaned: bool = False


def _fill(found: dict[str, _T], names: list[str], call: Callable[[str], _T]) -> None:
    for name in names:
        found[name] = call(name)


def _state(name: str) -> _State:
    try:
        if not stat.S_ISREG(os.stat(name).st_mode):
            return _State()  # a pipe is not opened: its writer would take that for its reader
        with open(name, "rb", opener=lambda at, _: os.open(at, OPEN_FILE)) as file:
            found = os.fstat(file.fileno())
            if found.st_size:
                file.seek(-1, os.SEEK_END)
            cut_off = file.read(1) != b"\n"
    except (OSError, ValueError):
        return _State()
    orphaned = not found.st_nlink
    signature = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, orphaned)
    return _State(signature, cut_off, orphaned)


def _directories_of(name: str) -> Directories:
    found: set[tuple[str, int]] = set()
    for directory in _path_directories(name):
        with suppress(OSError):
            found.add((directory, os.stat(directory).st_ino))
    return frozenset(found)


def _path_directories(name: str) -> Iterator[str]:
    here = "/"
    left = list(reversed(PurePath(os.path.abspath(name)).parts[1:]))
    links = 0
    while left:
        part = left.pop()
        if part == "..":
            here = os.path.dirname(here)
            continue
        path = os.path.join(here, part)
        target = None
        with suppress(OSError):  # no link, or missing
            target = PurePath(os.readlink(path))
        if target is not None and links < _MAX_LINKS:
            links += 1
            yield here
            here = "/" if target.is_absolute() else here
            left.extend(reversed(target.parts[1:] if target.is_absolute() else target.parts))
        elif not left or not os.path.exists(path):
            yield here
            return
        else:
            here = path


class StuckError(KrelayError):
    """A call did not return in time; `over` is done once it does."""

    def __init__(self, message: str, over: asyncio.Future[None]) -> None:
        super().__init__(message)
        self.over = over


class Offload:
    """Run blocking calls of one purpose in daemon threads, which hold up nothing else.

    asyncio's own executor has few threads, which credentials and metrics need as well, and the end
    of a program that embeds krelay waits for them. `what` names the purpose in messages. Each call
    has `within` seconds; at most `most` calls run at a time, including those that took longer.
    """

    def __init__(self, what: str, *, within: float, most: int) -> None:
        self._what = what
        self._within = within
        self._most = most
        self._under_way = 0

    async def run(self, call: Callable[[], _T]) -> _T:
        """Return the result of `call`.

        Raises:
            StuckError: the call takes too long; its thread goes on.
            KrelayError: too many calls are running, or no thread can be started.
        """
        if self._under_way >= self._most:
            raise KrelayError(f"{self._what}: {self._under_way} earlier calls are still under way")
        loop = asyncio.get_running_loop()
        over: asyncio.Future[None] = loop.create_future()

        def end() -> None:
            self._under_way -= 1
            over.set_result(None)

        def ended(_: object) -> None:
            with suppress(RuntimeError):  # the loop has closed
                loop.call_soon_threadsafe(end)

        try:
            future = DaemonExecutor().submit(call)
        except RuntimeError as exc:
            raise KrelayError(f"{self._what}: no thread can be started") from exc
        self._under_way += 1
        future.add_done_callback(ended)
        await asyncio.wait((over,), timeout=self._within)
        if over.done():
            return future.result()
        raise StuckError(f"{self._what} takes more than {self._within:g} s", over)
