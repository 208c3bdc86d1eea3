"""The dump of tasks and threads, as text and by a real signal."""

from __future__ import annotations

import asyncio
import re
import signal
import threading
from pathlib import Path

import pytest

from krelay import diagnostics
from krelay.diagnostics import dump, dump_on_signal
from tests import rig
from tests.integration.product import up


async def outer(event: asyncio.Event) -> None:
    await inner(event)


async def inner(event: asyncio.Event) -> None:
    await event.wait()


async def test_a_dump_names_tasks_and_threads_and_where_they_stand() -> None:
    event, release = asyncio.Event(), threading.Event()
    thread = threading.Thread(target=release.wait, name="a \x1b[31mthread", daemon=True)
    thread.start()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(outer(event), name="the waiting")
        tasks.create_task(outer(event), name="not begun")
        await asyncio.sleep(0)
        text = dump(asyncio.get_running_loop())
        event.set()
        release.set()
        thread.join()
    lines = text.splitlines()
    (task,) = (line for line in lines if line.startswith("task the waiting: "))
    found = task.removeprefix("task the waiting: ").split(" > ")
    places = [place.partition(" ")[2] for place in found]
    assert places == ["outer", "inner", "Event.wait"]
    assert f"{__name__}:" in task
    (stack,) = (line for line in lines if line.startswith("thread a thread: "))
    assert "threading:" in stack
    assert re.fullmatch(r"\d+ tasks and \d+ other threads", lines[0])


async def test_a_dump_of_many_deep_tasks_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnostics, "LINES", 3)
    event = asyncio.Event()

    async def deep(left: int) -> None:
        await (deep(left - 1) if left else event.wait())

    async with asyncio.TaskGroup() as tasks:
        for number in range(9):
            tasks.create_task(deep(50), name=f"{'x' * 9_000}{number}")
        await asyncio.sleep(0)
        lines = dump(asyncio.get_running_loop()).splitlines()
        event.set()
    assert "7 more tasks" in lines
    assert len(lines) <= 2 * 3 + 3
    assert max(map(len, lines)) < 600


async def test_a_signal_that_the_process_ignores_stays_ignored() -> None:
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        dump_on_signal(asyncio.get_running_loop())
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR1, before)


@pytest.mark.process
async def test_sigusr1_makes_krelay_up_log_a_dump_and_go_on(tmp_path: Path) -> None:
    async with rig.tcp_target(rig.echo) as port:
        async with up(tmp_path / "krelay.yaml", {"web": f"ip/127.0.0.1 :{port}"}) as krelay:
            for _ in range(2):
                before = krelay.err.count("other threads")
                krelay.process.send_signal(signal.SIGUSR1)
                await rig.until(lambda before=before: krelay.err.count("other threads") > before)
            assert " task the watch of the file: krelay.tasks:" in krelay.err
            assert await rig.exchange(krelay.ports["web"], b"x") == b"x"
