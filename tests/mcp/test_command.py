"""Commands of the tool `run`: output, exit code, bounds, and their ends."""

from __future__ import annotations

import asyncio
import os
import shlex
import signal
import subprocess
import threading
from pathlib import Path
from typing import Any

import pytest

from krelay.errors import KrelayError, UsageError
from krelay.mcp import command
from krelay.mcp.command import MOST_COMMANDS, MOST_OUTPUT, Commands, Ended, Job
from tests import rig
from tests.integration.product import alive


def job(script: str, *, timeout: float = 60.0, relaying: bool = False) -> Job:
    return Job(["sh", "-c", script], "/", os.environ, timeout, relaying)


async def run(script: str, *, timeout: float = 60.0, relaying: bool = False) -> Ended:
    return await Commands().run(job(script, timeout=timeout, relaying=relaying))


async def pids(path: Path, count: int) -> list[int]:
    """Wait for the process ids that a script writes, a line each."""

    def written() -> list[str]:
        return path.read_text().split() if path.exists() else []

    await rig.until(lambda: len(written()) == count)
    return [int(pid) for pid in written()]


async def test_the_result_has_code_and_both_streams() -> None:
    ended = await run("pwd; echo wrong >&2; exit 7")
    assert (ended.exit_code, ended.output, ended.left_out) == (7, "/\nwrong", 0)


async def test_a_command_has_no_input() -> None:
    assert (await run("cat")).output == ""


async def test_a_signal_is_a_code_above_128() -> None:
    assert (await run("kill -9 $$")).exit_code == 128 + signal.SIGKILL


async def test_terminal_sequences_are_removed() -> None:
    assert (await run(r"printf '\033[31mred\033[0m \001\377'")).output == "red \ufffd"


async def test_a_long_output_lacks_its_middle() -> None:
    ended = await run("echo first; i=0; while [ $i -lt 9000 ]; do echo $i 67890; i=$((i+1)); done")
    lines = ended.output.splitlines()
    assert (lines[0], lines[-1]) == ("first", "8999 67890")
    assert f"… {ended.left_out} bytes left out …" in lines
    assert len(ended.output) < MOST_OUTPUT + 100


@pytest.mark.parametrize("argv", [["/nowhere/x"], ["/"], ["a\0b"]])
async def test_what_cannot_run_is_an_error(argv: list[str]) -> None:
    with pytest.raises(UsageError, match="cannot run"):
        await Commands().run(Job(argv, "/", os.environ, 60.0))


async def test_a_child_that_holds_the_output_holds_up_nothing(tmp_path: Path) -> None:
    path = tmp_path / "pid"
    ended = await run(f"sleep 1000 & echo $! > {shlex.quote(str(path))}; echo done")
    assert (ended.exit_code, ended.output) == (0, "done")
    (child,) = await pids(path, 1)
    await rig.until(lambda: not alive(child))


@pytest.mark.parametrize("relaying", [False, True])
async def test_the_timeout_ends_a_command(relaying: bool) -> None:
    ended = await run("exec sleep 1000", timeout=0.2, relaying=relaying)
    assert (ended.exit_code, ended.output) == (None, "")


@pytest.mark.parametrize("relaying", [False, True])
async def test_a_command_that_ignores_sigterm_is_killed(
    relaying: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("_TIMED_OUT", "_TIMED_OUT_RELAYING"):
        steps = [(number, 0.2) for number, _ in getattr(command, name)]
        monkeypatch.setattr(command, name, steps)
    ended = await run("trap '' TERM; sleep 1000; sleep 1000", timeout=0.2, relaying=relaying)
    assert ended.exit_code is None


async def test_a_cancellation_ends_a_command_and_its_children(tmp_path: Path) -> None:
    path = tmp_path / "pids"
    script = "trap '' TERM; sh -c 'trap \"\" TERM; echo $$; sleep 1000' & echo $$; wait"
    async with asyncio.TaskGroup() as tasks:
        text = f"{{ {script}; }} > {shlex.quote(str(path))}"
        call = tasks.create_task(Commands().run(job(text)))
        found = await pids(path, 2)
        call.cancel()
    assert call.cancelled()
    await rig.until(lambda: not any(map(alive, found)))


@pytest.mark.parametrize("relaying", [False, True])
async def test_a_cancellation_ends_a_command_that_is_being_started(
    relaying: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    real, may_start = subprocess.Popen, threading.Event()
    started: list[subprocess.Popen[bytes]] = []

    def start(*args: Any, **options: Any) -> subprocess.Popen[bytes]:
        may_start.wait()
        started.append(real(*args, **options))
        return started[0]

    monkeypatch.setattr(subprocess, "Popen", start)
    async with asyncio.TaskGroup() as tasks:
        call = tasks.create_task(Commands().run(job("exec sleep 1000", relaying=relaying)))
        await asyncio.sleep(0)
        call.cancel()
    assert call.cancelled()
    may_start.set()
    await rig.until(lambda: started and started[0].returncode is not None)
    assert started[0].returncode == -(signal.SIGTERM if relaying else signal.SIGKILL)


async def test_an_abandoned_krelay_run_is_not_killed_while_it_cleans_up(tmp_path: Path) -> None:
    path = tmp_path / "said"
    target = shlex.quote(str(path))
    script = f"trap 'echo got >> {target}' TERM; echo $$ > {target}; while :; do sleep 0.05; done"
    async with asyncio.TaskGroup() as tasks:
        call = tasks.create_task(Commands().run(job(script, relaying=True)))
        (pid,) = await pids(path, 1)
        call.cancel()
    try:
        await rig.until(lambda: "got" in path.read_text())
        assert alive(pid)
    finally:
        os.kill(pid, signal.SIGKILL)


async def test_there_are_only_so_many_at_a_time() -> None:
    commands = Commands()
    async with asyncio.TaskGroup() as tasks:
        calls = [tasks.create_task(commands.run(job("sleep 1000"))) for _ in range(MOST_COMMANDS)]
        await asyncio.sleep(0)
        with pytest.raises(KrelayError, match="4 commands run already"):
            await commands.run(job("true"))
        for call in calls:
            call.cancel()


async def test_a_lack_of_threads_is_an_error_of_the_call(monkeypatch: pytest.MonkeyPatch) -> None:
    async def none(call: object) -> None:
        raise KrelayError("no thread can be started")

    monkeypatch.setattr(command, "in_thread", none)
    with pytest.raises(KrelayError, match="no thread"):
        await Commands().run(job("sleep 1000"))
