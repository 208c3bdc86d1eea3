"""Every way to save a file, on a real disk, noticed by events and by looking."""

from __future__ import annotations

import asyncio
import errno
import os
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from krelay.config import watch as module
from krelay.config.watch import Mode, Offload, StuckError, mode_from_env, watch
from krelay.errors import KrelayError, UsageError
from tests import rig

BY_EVENTS = "by events alone"


class Watched:
    """Watch some files; `armed` counts how often the watch set up its events."""

    def __init__(self, files: list[Path], mode: Mode) -> None:
        self.files = files
        self.armed = 0
        self._mode = mode
        self._changes = watch(lambda: [str(path) for path in self.files], mode)

    async def next(self) -> frozenset[str]:
        """Return the next item."""
        return await anext(self._changes)

    async def after(self, save: Callable[[], object], armed: int = 1) -> frozenset[str]:
        """Return the item that follows a `save` while the watch waits, with events set up."""
        async with asyncio.TaskGroup() as tasks:
            item = tasks.create_task(self.next())
            if self._mode is not Mode.POLL:
                await rig.until(lambda: self.armed >= armed)
            save()
        return item.result()

    async def close(self) -> None:
        await self._changes.aclose()


@asynccontextmanager
async def watching(
    mode: Mode, monkeypatch: pytest.MonkeyPatch, *files: Path
) -> AsyncIterator[Watched]:
    watched = Watched(list(files), mode)
    real = module._events

    async def events(places: list[str]) -> AsyncIterator[object]:
        async with aclosing(real(places)) as found:
            # The events are set up in the turn of the loop that first awaits them.
            asyncio.get_running_loop().call_soon(arm)
            async for item in found:
                yield item

    def arm() -> None:
        watched.armed += 1

    monkeypatch.setattr(module, "_events", events)
    try:
        assert await watched.next() == frozenset()
        yield watched
    finally:
        await watched.close()


@pytest.fixture(params=[*Mode, BY_EVENTS])
def mode(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Mode:
    """Each mode, and one with looks so rare that only an event can wake the watch."""
    monkeypatch.setattr(module, "POLL", 0.05)
    if request.param == BY_EVENTS:
        monkeypatch.setattr(module, "LOOK", 3600.0)
        return Mode.INOTIFY
    return Mode(request.param)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "dir" / "krelay.yaml"
    path.parent.mkdir()
    path.write_text("one\n")
    return path


# -- ways of saving ----------------------------------------------------------------------------


def write(file: Path) -> None:
    file.write_text("two\n")


def append(file: Path) -> None:
    with file.open("a") as opened:
        opened.write("two\n")


def in_place(file: Path) -> None:
    with file.open("r+") as opened:
        opened.write("two\n")


def rename(file: Path) -> None:
    new = file.with_name(".krelay.yaml.swp")
    new.write_text("two\n")
    new.rename(file)


def as_vim(file: Path) -> None:
    file.rename(file.with_name("krelay.yaml~"))
    file.write_text("two\n")
    file.with_name("krelay.yaml~").unlink()


def delete_and_create(file: Path) -> None:
    file.unlink()
    file.write_text("two\n")


def another_hard_link(file: Path) -> None:
    other = file.with_name("other")
    other.write_text("two\n")
    file.unlink()
    file.hardlink_to(other)


def by_its_other_name(file: Path) -> None:
    """Write to the same inode by a path that the directory does not see, as outside a mount."""
    with (file.parents[1] / "outside").open("w") as opened:
        opened.write("two\n")


SAVES = [
    write,
    append,
    in_place,
    rename,
    as_vim,
    delete_and_create,
    another_hard_link,
    by_its_other_name,
]


@pytest.mark.parametrize("save", SAVES)
async def test_every_way_of_saving_is_one_change(
    save: Callable[[Path], None], mode: Mode, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (file.parents[1] / "outside").hardlink_to(file)
    async with watching(mode, monkeypatch, file) as watched:
        assert await watched.after(lambda: save(file)) == {str(file)}
        assert file.read_text().endswith("two\n")
        # And once more, as it is now.
        assert await watched.after(lambda: rename_with(file, "three\n")) == {str(file)}


def rename_with(file: Path, text: str) -> None:
    new = file.with_name("new")
    new.write_text(text)
    new.rename(file)


async def test_an_update_of_a_config_map_is_one_change(
    mode: Mode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def version(name: str) -> None:
        (tmp_path / name).mkdir()
        (tmp_path / name / "krelay.yaml").write_text(f"{name}\n")
        (tmp_path / "..data_tmp").symlink_to(name)
        (tmp_path / "..data_tmp").rename(tmp_path / "..data")

    version("..one")
    file = tmp_path / "krelay.yaml"
    file.symlink_to("..data/krelay.yaml")
    async with watching(mode, monkeypatch, file) as watched:
        for number, name in enumerate(["..two", "..three"], start=1):
            assert await watched.after(partial(version, name), number) == {str(file)}
            assert file.read_text() == f"{name}\n"


async def test_a_change_behind_links_to_links_is_reported(
    mode: Mode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "b"):
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "krelay.yaml").write_text(f"{name}\n")
    (tmp_path / "now").symlink_to(tmp_path / "a")
    (tmp_path / "deep").symlink_to("now/../now/deep")
    file = tmp_path / "deep" / "krelay.yaml"

    def swap() -> None:
        (tmp_path / "next").symlink_to("b")
        (tmp_path / "next").rename(tmp_path / "now")

    async with watching(mode, monkeypatch, file) as watched:
        assert await watched.after(swap) == {str(file)}
        assert file.read_text() == "b\n"


async def test_a_file_created_later_in_a_directory_created_later_is_reported(
    mode: Mode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "later" / "krelay.yaml"

    def make() -> None:
        file.parent.mkdir()
        file.write_text("one\n")

    if mode is Mode.INOTIFY:
        # The directory appears, then its file: there may be no event between the two.
        monkeypatch.setattr(module, "LOOK", 0.2)
    async with watching(mode, monkeypatch, file) as watched:
        assert await watched.after(make) == {str(file)}


async def test_a_replaced_directory_is_watched_again(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK", 0.2)
    async with watching(Mode.AUTO, monkeypatch, file) as watched:
        file.unlink()
        file.parent.rmdir()
        assert await watched.next() == {str(file)}
        file.parent.mkdir()
        write(file)
        assert await watched.next() == {str(file)}


async def test_a_link_that_leads_to_itself_is_no_file(
    mode: Mode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "krelay.yaml"
    file.symlink_to("krelay.yaml")
    async with watching(mode, monkeypatch, file) as watched:

        def mend() -> None:
            file.unlink()
            write(file)

        assert await watched.after(mend) == {str(file)}


# -- reports -----------------------------------------------------------------------------------


async def test_a_forward_is_matched_by_the_closest_likeness(
    mode: Mode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [tmp_path / name for name in "abc"]
    for file in files[:2]:
        write(file)

    def change() -> None:
        append(files[0])
        write(files[2])

    async with watching(mode, monkeypatch, *files) as watched:
        changed = await watched.after(change)
        while changed != {str(files[0]), str(files[2])}:
            changed |= await watched.next()


async def test_added_files_yield_an_empty_item(
    mode: Mode, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    write(one)
    async with watching(mode, monkeypatch, one) as watched:
        assert await watched.after(lambda: append(one)) == {str(one)}
        watched.files.append(two)
        assert await watched.next() == frozenset()
        assert await watched.after(lambda: write(two), 2) == {str(two)}
        watched.files.remove(two)
        assert await watched.after(lambda: append(one), 2) == {str(one)}


async def test_a_change_before_the_watch_is_reported(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "LOOK", 0.1)
    for mode in Mode:
        async with watching(mode, monkeypatch, file) as watched:
            append(file)
            assert await watched.next() == {str(file)}


async def test_other_files_of_the_directory_are_ignored(
    mode: Mode, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with watching(mode, monkeypatch, file) as watched:

        def much_ado() -> None:
            for number in range(500):
                (file.parent / f"{number}").write_text("x")
            append(file)

        assert await watched.after(much_ado) == {str(file)}
        assert file.read_text() == "one\ntwo\n"


async def test_a_file_that_is_half_written_is_waited_for(
    mode: Mode, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CUT_OFF_SETTLE", 3600.0)
    monkeypatch.setattr(module, "PATIENCE", 3600.0)
    looks = 0
    real = module._state

    def look(name: str) -> Any:
        nonlocal looks
        looks += 1
        return real(name)

    async with watching(mode, monkeypatch, file) as watched:
        monkeypatch.setattr(module, "_state", look)
        async with asyncio.TaskGroup() as tasks:
            item = tasks.create_task(watched.next())
            if mode is not Mode.POLL:
                await rig.until(lambda: watched.armed)
            for step in ("", "apiVersion: kre", None):
                file.write_text(step) if step is not None else file.unlink()
                seen = looks + 3
                await rig.until(lambda seen=seen: looks >= seen)
                assert not item.done()
            write(file)
        assert item.result() == {str(file)}


async def test_a_file_that_keeps_changing_is_reported_after_a_while(
    mode: Mode, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CUT_OFF_SETTLE", 0.1)
    async with watching(mode, monkeypatch, file) as watched:
        for save in (lambda: file.write_text("one\ntw"), lambda: file.write_text(""), file.unlink):
            assert await watched.after(save) == {str(file)}
        monkeypatch.setattr(module, "CUT_OFF_SETTLE", 3600.0)
        monkeypatch.setattr(module, "PATIENCE", 0.1)
        assert await watched.after(lambda: file.write_text("x")) == {str(file)}


async def test_a_reverted_change_is_not_reported(
    mode: Mode, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CUT_OFF_SETTLE", 3600.0)
    aside = file.with_name("aside")
    looks: list[Any] = []
    real = module._state

    def look(name: str) -> Any:
        looks.append({name: real(name)})
        return looks[-1][name]

    def seen() -> Any:
        """Return what the last look at the file has found."""
        return next((found[str(file)] for found in reversed(looks) if str(file) in found), None)

    async with watching(mode, monkeypatch, file) as watched:
        monkeypatch.setattr(module, "_state", look)
        async with asyncio.TaskGroup() as tasks:
            item = tasks.create_task(watched.next())
            if mode is not Mode.POLL:
                await rig.until(lambda: watched.armed)
            file.rename(aside)
            await rig.until(lambda: seen() and seen().signature is None)
            aside.rename(file)
            await rig.until(lambda: seen().signature)
            append(file)
        assert item.result() == {str(file)}


# -- the mode, and missing resources -----------------------------------------------------------


def test_the_mode_is_the_environment_s() -> None:
    assert mode_from_env({}) == mode_from_env({"KRELAY_WATCH": ""}) == Mode.AUTO
    for mode in Mode:
        assert mode_from_env({"KRELAY_WATCH": str(mode)}) is mode
    with pytest.raises(UsageError, match="KRELAY_WATCH cannot be 'off'") as caught:
        mode_from_env({"KRELAY_WATCH": "off"})
    assert caught.value.hint == "it is one of `auto`, `inotify`, `poll`"


def no_events(error: Exception) -> Callable[[list[str]], Any]:
    async def events(places: list[str]) -> AsyncIterator[object]:
        raise error
        yield

    return events


LIMIT = OSError(errno.ENOSPC, "OS file watch limit reached")


@pytest.mark.parametrize("error", [LIMIT, RuntimeError("rust")])
async def test_without_events_the_watcher_polls(
    error: Exception,
    file: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(module, "_events", no_events(error))
    monkeypatch.setattr(module, "POLL", 0.01)
    async with aclosing(watch(lambda: [str(file)])) as changes:
        assert await anext(changes) == frozenset()
        for _ in range(2):
            async with asyncio.TaskGroup() as tasks:
                item = tasks.create_task(anext(changes))
                await rig.until(lambda: caplog.records)
                append(file)
            assert item.result() == {str(file)}
    (record,) = caplog.records
    assert "set KRELAY_WATCH=poll" in record.message


async def test_missing_events_are_an_error_in_the_inotify_mode(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_events", no_events(LIMIT))
    async with aclosing(watch(lambda: [str(file)], Mode.INOTIFY)) as changes:
        await anext(changes)
        with pytest.raises(KrelayError, match="no file events") as caught:
            await anext(changes)
    assert "max_user_watches" in str(caught.value.hint)


async def test_a_directory_removed_before_it_is_watched_is_retried(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = module._events
    fakes = [no_events(FileNotFoundError()), real]
    monkeypatch.setattr(module, "_events", lambda places: fakes.pop(0)(places))
    monkeypatch.setattr(module, "POLL", 0.01)
    monkeypatch.setattr(module, "LOOK", 0.1)
    async with aclosing(watch(lambda: [str(file)])) as changes:
        await anext(changes)
        async with asyncio.TaskGroup() as tasks:
            item = tasks.create_task(anext(changes))
            await rig.until(lambda: not fakes)
            append(file)
        assert item.result() == {str(file)}


async def test_an_orphaned_file_is_warned_about(
    file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real = os.fstat

    class Orphan:
        def __init__(self, found: os.stat_result) -> None:
            self._found = found
            self.st_nlink = 0

        def __getattr__(self, name: str) -> Any:
            return getattr(self._found, name)

    async with watching(Mode.POLL, monkeypatch, file) as watched:
        monkeypatch.setattr(os, "fstat", lambda fd: Orphan(real(fd)))
        assert await watched.next() == {str(file)}
        monkeypatch.undo()
    assert f"{file} was replaced outside the mount" in caplog.text


async def test_a_pipe_in_place_of_a_file_does_not_block(
    mode: Mode, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def pipe() -> None:
        file.unlink()
        os.mkfifo(file)

    async with watching(mode, monkeypatch, file) as watched:
        assert await watched.after(pipe) == {str(file)}


@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
async def test_a_file_system_that_hangs_hides_no_other_file(
    first: bool, file: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hung = file.with_name("hung")
    write(hung)
    real, answers = module._state, threading.Event()

    def state(name: str) -> Any:
        if name == str(hung) and not answers.is_set():
            answers.wait()
        return real(name)

    monkeypatch.setattr(module, "_state", state)
    monkeypatch.setattr(module, "PATIENCE_OF_A_LOOK", 0.1)
    names = [hung, file] if first else [file, hung]
    threads = threading.active_count()
    try:
        async with watching(Mode.POLL, monkeypatch, *names) as watched:
            for _ in range(3):
                assert await watched.after(lambda: append(file)) == {str(file)}
            assert threading.active_count() <= threads + 2  # the one that hangs, and one that looks
            assert f"the file system of {hung} does not answer" in caplog.text
            # It may have changed in the meantime.
            assert await watched.after(answers.set) == {str(hung)}
            assert await watched.after(lambda: append(hung)) == {str(hung)}
    finally:
        answers.set()


async def test_cancelling_ends_its_thread(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LOOK", 3600.0)
    async with watching(Mode.INOTIFY, monkeypatch, file) as watched:
        task = asyncio.get_running_loop().create_task(watched.next())
        await rig.until(lambda: watched.armed)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()


# -- offload ---------------------------------------------------------------------------------------


async def test_what_a_call_returns_and_raises() -> None:
    offload = Offload("it", within=30.0, most=1)
    assert await offload.run(lambda: threading.current_thread().daemon)

    def fail() -> None:
        raise UsageError("no")

    for _ in range(3):
        with pytest.raises(UsageError, match="no"):
            await offload.run(fail)


async def test_a_call_that_hangs_is_left_behind() -> None:
    answers = threading.Event()
    offload = Offload("it", within=0.05, most=2)
    try:
        with pytest.raises(StuckError, match=r"it takes more than 0\.05 s") as first:
            await offload.run(answers.wait)
        assert await offload.run(lambda: 1) == 1
        with pytest.raises(StuckError):
            await offload.run(answers.wait)
        with pytest.raises(KrelayError, match="it: 2 earlier calls are still under way"):
            await offload.run(lambda: 1)
        assert not first.value.over.done()
    finally:
        answers.set()
    await first.value.over
    assert await offload.run(lambda: 1) == 1


async def test_a_cancelled_call_counts_until_it_returns() -> None:
    answers = threading.Event()
    offload = Offload("it", within=30.0, most=1)
    task = asyncio.get_running_loop().create_task(offload.run(answers.wait))
    await asyncio.sleep(0)
    task.cancel()
    await asyncio.wait({task})
    assert task.cancelled()
    with pytest.raises(KrelayError, match="1 earlier calls"):
        await offload.run(lambda: 1)
    answers.set()
    while True:
        try:
            assert await offload.run(lambda: 1) == 1
        except KrelayError:
            await asyncio.sleep(0)
        else:
            break


def test_the_end_of_a_loop_waits_for_none() -> None:
    answers = threading.Event()

    async def leave() -> None:
        with pytest.raises(StuckError):
            await Offload("it", within=0.01, most=1).run(answers.wait)

    asyncio.run(leave())
    answers.set()
    for thread in threading.enumerate():
        if thread.name == "krelay worker":
            thread.join()


async def test_a_missing_thread_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def start(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    offload = Offload("it", within=30.0, most=1)
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", start)
        with pytest.raises(KrelayError, match="no thread can be started"):
            await offload.run(lambda: 1)
    assert await offload.run(lambda: 1) == 1
