"""`krelay up --detach`: the start in the background, and what is said of it."""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest

from krelay.cli.background import start as module
from krelay.cli.background.child import VARIABLE
from krelay.cli.background.start import start
from krelay.cli.output import set_up_logging
from krelay.config.sources import Selection
from krelay.errors import KrelayError, NotReadyError, UsageError
from krelay.status.client import ask, is_running
from krelay.status.log_file import find
from tests import rig
from tests.cli.asked import TEXT, answering
from tests.cli.emulator import terminal
from tests.cli.reports import forward, report
from tests.integration.product import ROOT, Done, command, document, environment, run

READY = report(forward("web"), forward("db"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "krelay.yaml"
    path.write_text(TEXT)
    return path


async def started(file: Path, *names: str, timeout: float = 60.0) -> int:
    selection = Selection(str(file), names)
    return await asyncio.to_thread(start, selection, ("up", "-d"), timeout=timeout)


# -- without a process -------------------------------------------------------------------------


@pytest.mark.parametrize("path", ["-", "a pipe"])
def test_what_can_be_read_only_once_is_refused(path: str) -> None:
    with pytest.raises(UsageError, match="needs a file that can be read again"):
        start(Selection(path, text=b""), (), timeout=1.0)


def test_a_system_without_sessions_is_refused(monkeypatch: pytest.MonkeyPatch, file: Path) -> None:
    monkeypatch.delattr(os, "setsid")
    with pytest.raises(UsageError, match="needs a Unix system"):
        start(Selection(str(file)), (), timeout=1.0)


async def test_a_file_that_runs_already_is_not_run_twice(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with answering(file, GET_status=lambda body: READY):
        assert await started(file, "web") == 0
        out, err = capsys.readouterr()
        assert out == "web: 127.0.0.1:8080 -> svc/web:80 (tcp)\n"
        said = f"krelay already runs for {file} (pid 4711)"
        assert err.splitlines()[0] == said
        assert err.splitlines()[1].endswith(f"`krelay down -f {file}` stops it")
        with pytest.raises(KrelayError) as caught:
            await started(file, "web", "other")
        assert caught.value.message == f"{said}, without `other`"
        with pytest.raises(UsageError, match="has no target `wep`"):
            await started(file, "wep")


async def test_forwards_are_objects_in_a_log_for_programs(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    set_up_logging(0, json=True)
    async with answering(file, GET_status=lambda body: READY):
        assert await started(file) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["target"] for line in lines] == ["web", "db"]


async def test_what_is_not_ready_in_time_is_said_beside_what_is_relayed(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    half = report(forward("web"), forward("db", "failed"))
    async with answering(file, GET_status=lambda body: half):
        with pytest.raises(NotReadyError) as caught:
            await started(file, timeout=2.0)
    assert caught.value.details() == ["db: failed: connection refused"]
    assert caught.value.exit_code == 3
    assert len(capsys.readouterr().out.splitlines()) == 2


# -- with one ----------------------------------------------------------------------------------


@asynccontextmanager
async def directory(tmp_path: Path, runtime: Path, content: str) -> AsyncIterator[Path]:
    """A directory with a krelay.yaml; what runs there is ended."""
    file = tmp_path / "krelay.yaml"
    await asyncio.to_thread(file.write_text, content)
    try:
        yield file
    finally:
        if await asyncio.to_thread(is_running, str(file)):
            await run("down", cwd=tmp_path)


async def krelay(*args: str, cwd: Path) -> Done:
    return await run(*args, cwd=cwd)


@pytest.mark.process
async def test_it_goes_on_when_its_terminal_closes(tmp_path: Path, runtime_directory: Path) -> None:
    async with rig.tcp_target(rig.echo) as target:
        content = document({"web": f"ip/127.0.0.1 :{target}", "api": f"ip/127.0.0.1 :{target}"})
        async with directory(tmp_path, runtime_directory, content) as file:
            async with terminal("up", "-d", cwd=tmp_path, columns=80) as screen:
                await screen.shows("`krelay down` stops it")
                assert await screen.process.wait() == 0
            found = await asyncio.to_thread(ask, str(file), "GET", "/v1/status", timeout=60.0)
            assert found["ready"]
            pid = found["pid"]
            assert os.getsid(pid) == pid
            opened = {name: os.readlink(f"/proc/{pid}/fd/{name}") for name in "012"}
            log = str(await asyncio.to_thread(find, str(file)))
            assert opened == {"0": os.devnull, "1": log, "2": log}

            again = await krelay("up", "-d", "web", cwd=tmp_path)
            assert (again.code, again.out[:15]) == (0, "web: 127.0.0.1:")
            assert again.err.startswith(f"krelay already runs for krelay.yaml (pid {pid})\n")
            address = await krelay("port", "web", cwd=tmp_path)
            host, _, port = address.out.rstrip().rpartition(":")
            assert host == "127.0.0.1"
            assert await rig.exchange(int(port), b"x" * 1000) == b"x" * 1000

            listed = json.loads((await krelay("ps", "-o", "json", cwd=tmp_path)).out)
            mine = [one for one in listed if one["file"] == str(file)]
            assert [(one["pid"], one["ready"], one["total"]) for one in mine] == [(pid, 2, 2)]
            logged = await krelay("logs", "web", cwd=tmp_path)
            assert f"web: {address.out.rstrip()} -> ip/127.0.0.1" in logged.out
            assert "api: " not in logged.out
            os.kill(pid, signal.SIGHUP)  # it has no terminal that could close
            assert "nothing changed" not in (await krelay("wait", cwd=tmp_path)).err

            done = await krelay("down", cwd=tmp_path)
            assert (done.code, done.out) == (0, f"krelay (pid {pid}) has ended\n")
            assert "web: ready" in await asyncio.to_thread(Path(log).read_text)


@pytest.mark.process
async def test_one_that_was_started_at_the_same_time_is_waited_for(
    file: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    looks = iter([False])  # the other takes the lock after this look
    monkeypatch.setattr(module, "is_running", lambda path: next(looks, True))
    arguments = ("up", "-d", "-f", str(file))
    async with answering(file, GET_status=lambda body: READY):
        selection = Selection(str(file))
        assert await asyncio.to_thread(start, selection, arguments, timeout=60.0) == 0
    out, err = capfd.readouterr()
    assert err.startswith(f"krelay already runs for {file} (pid ")
    assert len(out.splitlines()) == 2


@pytest.mark.process
@pytest.mark.parametrize("how", [(), ("--log-format", "json")], ids=["text", "json"])
async def test_the_error_of_a_start_is_that_of_the_command(
    how: tuple[str, ...], tmp_path: Path, runtime_directory: Path
) -> None:
    async with rig.tcp_target(rig.echo) as taken:
        content = document({"web": f"ip/127.0.0.1 {taken}:80"})
        async with directory(tmp_path, runtime_directory, content) as file:
            done = await krelay("up", "-d", *how, cwd=tmp_path)
            assert (done.code, done.out) == (1, "")
            (first, *_) = done.err.splitlines()
            message = json.loads(first)["message"] if how else first.removeprefix("error: ")
            assert message.startswith(f"cannot listen on 127.0.0.1:{taken}: ")
            assert not await asyncio.to_thread(is_running, str(file))
            await asyncio.to_thread(file.write_text, "nonsense")
            done = await krelay("up", "-d", cwd=tmp_path)
            assert done.code == 2
            assert done.err.splitlines()[-1] == "error: krelay.yaml: 1 problem"


@pytest.mark.process
async def test_an_interrupt_ends_the_start(tmp_path: Path, runtime_directory: Path) -> None:
    content = document({"web": f"ip/127.0.0.1 :{rig.closed_port()}"})
    async with directory(tmp_path, runtime_directory, content) as file:
        process = await asyncio.create_subprocess_exec(
            *command("up", "-d"),
            cwd=tmp_path,
            env=environment(PYTHONPATH=str(ROOT)),
            stderr=asyncio.subprocess.PIPE,
        )
        try:
            while not await asyncio.to_thread(is_running, str(file)):  # noqa: ASYNC110
                await asyncio.sleep(0.01)
        finally:
            process.send_signal(signal.SIGINT)
            _, err = await process.communicate()
        # It may have said before that the target refuses.
        assert process.returncode == 130
        assert err.decode().endswith("interrupted: krelay ends\n\n")
        assert not await asyncio.to_thread(is_running, str(file))


@pytest.mark.process
async def test_a_process_that_dies_is_an_error_that_names_its_log(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_PROGRAM", "raise SystemExit('last words')")
    with pytest.raises(KrelayError) as caught:
        await started(file, timeout=60.0)
    assert caught.value.message == "krelay ended at its start (exit code 1)"
    log = await asyncio.to_thread(find, str(file))
    assert log is not None
    assert caught.value.hint == f"see {log}"
    assert (await asyncio.to_thread(log.read_text)) == "last words\n"


@pytest.mark.process
async def test_the_error_that_a_process_tells_is_raised_with_its_exit_code(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = json.dumps({"error": {"message": "no agent", "hint": "ask", "exitCode": 4}}) + "\n"
    program = f"import os, json; os.write(json.loads(os.environ[{VARIABLE!r}])['pipe'], {told!r}"
    monkeypatch.setattr(module, "_PROGRAM", f"{program}.encode())")
    with pytest.raises(KrelayError) as caught:
        await started(file, timeout=60.0)
    assert caught.value.report() == ["no agent", "  hint: ask"]
    assert caught.value.exit_code == 4


@pytest.mark.process
async def test_a_slow_start_says_its_steps_and_goes_on_after_the_timeout(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lines = '{"step": "waiting for a node"}', '{"problem": "db: failed: refused"}'
    program = f"""
import json, os, time
pipe = json.loads(os.environ[{VARIABLE!r}])["pipe"]
os.write(pipe, {(lines[0] + chr(10) + lines[1][:9]).encode()!r})
os.write(pipe, {(lines[1][9:] + chr(10)).encode()!r})
time.sleep(3600)
"""
    monkeypatch.setattr(module, "_PROGRAM", program)
    pids: list[int] = []
    said: list[str] = []

    # The time is over once both have been said.
    clock = SimpleNamespace(monotonic=lambda: math.inf if len(said) == 2 else 0.0)
    monkeypatch.setattr(module, "time", clock)
    monkeypatch.setattr(module, "note", said.append)
    real = subprocess.Popen

    class Noted(real):  # type: ignore[misc, valid-type]
        def __init__(self, args: list[str], **options: object) -> None:
            assert args[0] == sys.executable
            super().__init__(args, **options)
            pids.append(self.pid)

    monkeypatch.setattr(subprocess, "Popen", Noted)
    try:
        with pytest.raises(NotReadyError, match="krelay goes on in the background") as caught:
            await started(file, timeout=3600.0)
        assert caught.value.details() == ["krelay is starting"]
        assert said == ["agent: waiting for a node", "db: failed: refused"]
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
            await asyncio.to_thread(os.waitpid, pid, 0)
