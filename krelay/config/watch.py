"""Control stage 1, again and again: tells that a file has changed, whatever way it was saved.

Events of the operating system say when to look, and a slow look says so too: for file systems
without events, and for what happens between two of them. What changed is always told by looking.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import threading
from collections.abc import AsyncGenerator, Callable, Collection, Iterable, Iterator, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from pathlib import PurePath
from typing import TypeVar

from watchfiles import awatch

from krelay.errors import KrelayError, UsageError

logger = logging.getLogger("krelay.watch")

_T = TypeVar("_T")

_VARIABLE = "KRELAY_WATCH"
_MAX_LINKS = 40

Places = frozenset[tuple[str, int]]
"""Directories by path and inode."""

POLL = 0.25
"""Seconds between two looks where there are no events."""
LOOK = 1.0
"""The same where there are."""
SETTLE = 0.05
"""Seconds for which a file must not have changed before it is whole."""
CUT_OFF_SETTLE = 0.4
"""The same for one that is gone, empty, or ends in the middle of a line: more may come."""
PATIENCE = 2.0
"""Seconds after which a file that never rests is told of all the same."""
PATIENCE_OF_A_LOOK = 5.0
"""Seconds after which a file system that does not answer is left alone until it does."""
_MOST = 8
"""Threads that may wait for such a one."""


class Mode(StrEnum):
    """What to go by: events and looks, events or an error, looks alone."""

    AUTO = "auto"
    INOTIFY = "inotify"
    POLL = "poll"


def mode_from_env(environ: Mapping[str, str]) -> Mode:
    """The mode of KRELAY_WATCH.

    Raises:
        UsageError: it is none.
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
    """The files, as `files()` names them, that have changed, each time that some have.

    The first item is empty, and so is the one after `files()` named new ones: what happened to
    them before they were watched is for whoever reads them to see.

    Raises:
        KrelayError: the mode is INOTIFY, and there are no events to be had.
    """
    watcher = _Watcher(mode)
    while True:
        names = tuple(dict.fromkeys(files()))
        if await watcher.take(names):
            yield frozenset()
            continue  # whoever read them may have found more
        places = await watcher.places(names)
        if changed := await watcher.settled():
            yield changed
            continue
        async with aclosing(watcher.wakes(names, places)) as wakes:
            async for _ in wakes:
                if changed := await watcher.settled():
                    yield changed
                    if set(files()) != set(names):
                        break
                    if await watcher.places(names) != places:
                        break


class _Watcher:
    """What is known of the files, and what may wake whoever waits for a change of that."""

    def __init__(self, mode: Mode) -> None:
        self._mode = mode
        self._known: dict[str, _State] = {}
        self._told: set[str] = set()
        self._threads = Offload("looking at the files", within=PATIENCE_OF_A_LOOK, most=_MOST)
        self._hanging: set[str] = set()
        self._missed: set[str] = set()

    async def take(self, names: Collection[str]) -> bool:
        """Watch these from now on; whether one of them is new."""
        new = [name for name in names if name not in self._known]
        found = await self._each(new, _state)
        self._known = {name: self._known.get(name) or found.get(name, _State()) for name in names}
        return bool(new)

    async def places(self, names: Collection[str]) -> Places:
        """The directories whose entries decide what the names lead to, and which ones they are."""
        found = await self._each(names, _places)
        return frozenset(place for places in found.values() for place in places)

    async def _look(self) -> dict[str, _State]:
        return {**self._known, **await self._each(self._known, _state)}

    async def _each(self, names: Iterable[str], call: Callable[[str], _T]) -> dict[str, _T]:
        """What `call` says of each name, without those whose file system does not answer."""
        found: dict[str, _T] = {}
        while left := [name for name in names if name not in found and name not in self._hanging]:
            try:
                await self._threads.run(partial(_fill, found, left, call))
            except StuckError as exc:
                found = dict(found)  # the thread may yet add to the other one
                for name in [name for name in left if name not in found][:1]:
                    self._hanging.add(name)
                    exc.over.add_done_callback(partial(self._back, name))
                    self._tell(f"the file system of {name} does not answer; edits are not seen")
            except KrelayError as exc:
                self._tell(f"{exc}; edits may not be seen")
                break
        return found

    def _back(self, name: str, _: object) -> None:
        """The file system of a name answers again."""
        self._hanging.discard(name)
        self._missed.add(name)

    async def settled(self) -> frozenset[str]:
        """The files that are not as they were known; waits until they rest."""
        clock = asyncio.get_running_loop().time
        began = rested = clock()
        for name in self._missed & self._known.keys():
            self._known[name] = _State((-1,))  # whatever it is now is a change
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
                self._tell(
                    f"{name} was replaced outside of the mount, and never changes here again;"
                    " mount its directory instead"
                )
        return frozenset(changed)

    async def wakes(self, names: Iterable[str], places: Places) -> AsyncGenerator[None, None]:
        """Something may have changed: an item each time, for ever or until a place is gone."""
        if self._mode is not Mode.POLL:
            try:
                # A file's own events are all there is of one that a mount put there alone. One
                # whose file system hangs would hang this as well.
                names = [name for name in names if name not in self._hanging]
                present = [name for name in names if self._known[name].signature]
                async with aclosing(_events([*present, *sorted(dict(places))])) as events:
                    async for _ in events:
                        yield
            except FileNotFoundError:
                await asyncio.sleep(POLL)
                return
            except (OSError, RuntimeError) as exc:
                hint = f"raise fs.inotify.max_user_watches, or set {_VARIABLE}=poll"
                if self._mode is Mode.INOTIFY:
                    raise KrelayError(f"no file events: {exc}", hint=hint) from exc
                self._tell(f"no file events ({exc}); looking each {POLL:g} s instead; hint: {hint}")
        while True:
            await asyncio.sleep(POLL)
            yield

    def _tell(self, text: str) -> None:
        if text not in self._told:
            self._told.add(text)
            logger.warning("%s", text)


def _events(places: list[str]) -> AsyncGenerator[object, None]:
    return awatch(
        *places,
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
    """A file now. `signature` is None where it is gone; `orphaned`: no directory has it."""

    signature: tuple[int, ...] | None = None
    cut_off: bool = True
    orphaned: bool = False


def _fill(found: dict[str, _T], names: list[str], call: Callable[[str], _T]) -> None:
    for name in names:
        found[name] = call(name)


def _state(name: str) -> _State:
    try:
        with open(name, "rb", opener=_open_file) as file:
            found = os.fstat(file.fileno())
            if found.st_size:
                file.seek(-1, os.SEEK_END)
            cut_off = file.read(1) != b"\n"
    except (OSError, ValueError):
        return _State()
    orphaned = not found.st_nlink
    signature = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, orphaned)
    return _State(signature, cut_off, orphaned)


def _open_file(path: str, flags: int) -> int:
    """Not to wait where a pipe stands in the file's place."""
    return os.open(path, flags | os.O_NONBLOCK)


def _places(name: str) -> Places:
    found: set[tuple[str, int]] = set()
    for directory in _way(name):
        with suppress(OSError):
            found.add((directory, os.stat(directory).st_ino))
    return frozenset(found)


def _way(name: str) -> Iterator[str]:
    here = "/"
    left = list(reversed(PurePath(os.path.abspath(name)).parts[1:]))
    links = 0
    while left:
        part = left.pop()
        if part == "..":
            here = os.path.dirname(here)
            continue
        path = os.path.join(here, part)
        if (link := _link(path)) is not None and links < _MAX_LINKS:
            links += 1
            yield here
            target = PurePath(link)
            here = "/" if target.is_absolute() else here
            left.extend(reversed(target.parts[1:] if target.is_absolute() else target.parts))
        elif not left or not os.path.exists(path):
            yield here
            return
        else:
            here = path


def _link(path: str) -> str | None:
    """Where a link leads; None for what is none, or is no longer there."""
    try:
        return os.readlink(path)
    except OSError:
        return None


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
        found: asyncio.Future[_T] = loop.create_future()
        over: asyncio.Future[None] = loop.create_future()

        def end(result: _T | None, error: BaseException | None) -> None:
            self._under_way -= 1
            over.set_result(None)
            if found.cancelled():
                return
            if error is not None:
                found.set_exception(error)
            else:
                found.set_result(result)  # type: ignore[arg-type]

        def work() -> None:
            result, error = None, None
            try:
                result = call()
            except Exception as exc:
                error = exc
            with contextlib.suppress(RuntimeError):  # the loop has closed
                loop.call_soon_threadsafe(end, result, error)

        try:
            threading.Thread(target=work, name=self._what, daemon=True).start()
        except RuntimeError as exc:
            raise KrelayError(f"{self._what}: no thread can be started") from exc
        self._under_way += 1
        try:
            await asyncio.wait((found,), timeout=self._within)
            if found.done():
                return found.result()
        finally:
            found.cancel()
        raise StuckError(f"{self._what} takes more than {self._within:g} s", over)
