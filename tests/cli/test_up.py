"""`krelay up` up to the start of the supervisor; tests/integration has the rest."""

from __future__ import annotations

import asyncio
import io
import json
import os
import pty
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from krelay.cli import up as module
from krelay.cli.background.child import Report
from krelay.cli.up import run
from krelay.config.sources import Selection, Words
from krelay.errors import KrelayError, UsageError
from krelay.model import Config
from krelay.state.bus import EventBus
from krelay.state.events import AgentProgress, Ending, ForwardBound, ForwardChanged, Started
from krelay.state.states import State
from krelay.status.servers import AlreadyRunningError, serve_unix
from krelay.status.socket_path import socket_path
from krelay.supervisor.contexts import Contexts
from krelay.supervisor.supervisor import Supervisor
from tests.status.reports import forward

TEXT = b"host/a 1\nhost/b 2\n"
WORDS = Words(("svc/web", "80"))


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[Config]:
    """The configs that a supervisor was to run; none is."""
    configs: list[Config] = []

    async def note(supervisor: Supervisor, stop: object) -> None:
        configs.append(supervisor.edits.request.config)

    monkeypatch.setattr(Supervisor, "run", note)
    return configs


@pytest.fixture
def file(tmp_path: Path) -> Selection:
    path = tmp_path / "targets.txt"
    path.write_bytes(TEXT)
    return Selection(str(path), embedded=True)


def test_a_file_and_standard_input(started: list[Config], file: Selection) -> None:
    assert run(file) == 0
    assert run(Selection("-", ("host/b 2",), embedded=True, text=TEXT)) == 0
    assert [len(config.targets) for config in started] == [2, 1]


def test_what_is_wrong_is_told_before_anything_starts(
    started: list[Config], monkeypatch: pytest.MonkeyPatch, file: Selection
) -> None:
    with pytest.raises(UsageError, match="has no target `c`"):
        run(Selection(file.path, ("c",)))
    monkeypatch.setenv("KRELAY_WATCH", "never")
    with pytest.raises(UsageError, match="KRELAY_WATCH"):
        run(file)
    assert not started


def test_a_cancelled_run_is_130(monkeypatch: pytest.MonkeyPatch, file: Selection) -> None:
    async def cancelled(*_: object) -> None:
        raise asyncio.CancelledError

    monkeypatch.setattr(Supervisor, "run", cancelled)
    assert run(file) == 130


def test_a_failed_run_is_its_error(monkeypatch: pytest.MonkeyPatch, file: Selection) -> None:
    async def fail(*_: object) -> None:
        raise KrelayError("no way")

    monkeypatch.setattr(Supervisor, "run", fail)
    with pytest.raises(KrelayError, match="no way"):
        run(file)


def test_two_on_one_file_are_one_too_many(monkeypatch: pytest.MonkeyPatch, file: Selection) -> None:
    assert file.file is not None
    place = socket_path(file.file)

    async def another(*_: object) -> None:
        with pytest.raises(AlreadyRunningError):
            async with serve_unix(place, {}):
                pytest.fail("two of them")

    monkeypatch.setattr(Supervisor, "run", another)
    assert run(file) == 0


def test_it_relays_without_a_socket(
    started: list[Config], file: Selection, caplog: pytest.LogCaptureFixture
) -> None:
    assert file.file is not None
    socket_path(file.file).parent.mkdir(mode=0o700, exist_ok=True)
    socket_path(file.file).mkdir()
    assert run(file) == 0
    assert len(started) == 1
    assert "other krelay commands cannot reach this one" in caplog.text
    socket_path(file.file).rmdir()


def test_a_hangup_is_a_reload_while_there_is_a_terminal_or_never_was(
    monkeypatch: pytest.MonkeyPatch, file: Selection
) -> None:
    terminal, path = True, Path(str(file.path))
    monkeypatch.setattr(module, "_has_terminal", lambda: terminal)

    async def hang_up(supervisor: Supervisor, stop: asyncio.Event) -> None:
        nonlocal terminal
        await asyncio.to_thread(path.write_text, "host/a 1\n")
        os.kill(os.getpid(), signal.SIGHUP)
        while supervisor.edits.request.reason != "SIGHUP":  # noqa: ASYNC110
            await asyncio.sleep(0.005)
        assert not stop.is_set()
        terminal = False
        os.kill(os.getpid(), signal.SIGHUP)
        await stop.wait()

    monkeypatch.setattr(Supervisor, "run", hang_up)
    assert run(file, watch=False) == 0


@pytest.fixture
def ignored() -> Iterator[None]:
    """SIGINT and SIGHUP are ignored, as a shell's `&` and `nohup` leave them."""
    numbers = signal.SIGINT, signal.SIGHUP
    former = [signal.signal(number, signal.SIG_IGN) for number in numbers]
    yield
    for number, handler in zip(numbers, former, strict=True):
        signal.signal(number, handler)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_kubectl_relay_ends_on_an_interrupt_that_a_script_s_shell_ignores(
    number: signal.Signals, ignored: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def interrupted(supervisor: Supervisor, stop: asyncio.Event) -> None:
        os.kill(os.getpid(), number)
        await stop.wait()

    monkeypatch.setattr(Supervisor, "run", interrupted)
    assert run(WORDS, as_kubectl=True) == 0


def test_a_hangup_ends_what_has_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    async def hang_up(supervisor: Supervisor, stop: asyncio.Event) -> None:
        # A closed terminal and its shell both send one.
        os.kill(os.getpid(), signal.SIGHUP)
        os.kill(os.getpid(), signal.SIGHUP)
        await stop.wait()

    monkeypatch.setattr(Supervisor, "run", hang_up)
    assert run(WORDS) == 0


def test_a_hangup_that_nohup_ignores_ends_nothing(
    ignored: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def hang_up(supervisor: Supervisor, stop: asyncio.Event) -> None:
        os.kill(os.getpid(), signal.SIGHUP)
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert not stop.is_set()
        os.kill(os.getpid(), signal.SIGTERM)
        await stop.wait()

    monkeypatch.setattr(Supervisor, "run", hang_up)
    assert run(WORDS) == 0


def test_the_terminal_is_seen_and_seen_to_go() -> None:
    """In a child: a controlling terminal is a session's own."""
    pid, master = pty.fork()
    if pid == 0:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        here = module._has_terminal()
        os.write(1, b"here" if here else b"none")
        while module._has_terminal():
            signal.sigtimedwait([], 0.01)
        os._exit(7)
    assert os.read(master, 4) == b"here"
    os.close(master)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


@pytest.mark.parametrize(
    ("terminal", "level", "said"),
    [(True, "WARNING", True), (True, "INFO", False), (False, "WARNING", False)],
)
def test_kubectl_relay_says_at_a_terminal_what_it_waits_for(
    terminal: bool,
    level: str,
    said: bool,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    async def end(supervisor: Supervisor, stop: object) -> None:
        supervisor.bus.publish(Ending())
        supervisor.bus.publish(Ending(2, 30.0))

    caplog.set_level(level, "krelay")
    monkeypatch.setattr(Supervisor, "run", end)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    assert run(WORDS, as_kubectl=True) == 0
    line = "draining 2 connections for up to 30 s; press Ctrl-C again to end at once\n"
    assert capsys.readouterr().err == line * said


async def test_a_slow_start_says_each_step_once_it_has_taken_a_while(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(module, "_SLOW_START", 0.05)
    bus = EventBus()
    async with asyncio.TaskGroup() as tasks:
        saying = tasks.create_task(module._say_slow_start(bus))
        await asyncio.sleep(0)
        for step in ("waiting for a node", "pulling the image"):
            bus.publish(AgentProgress(None, step))
        said = ""
        while "pulling" not in said:
            await asyncio.sleep(0.005)
            said += capsys.readouterr().err
        assert said == "agent: pulling the image\n"
        bus.publish(AgentProgress(None, "starting"))
        bus.publish(Started())
        await saying
    assert capsys.readouterr().err == "agent: starting\n"


async def test_a_quick_start_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    bus = EventBus()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(module._say_slow_start(bus))
        await asyncio.sleep(0)
        bus.publish(AgentProgress(None, "waiting for a node"))
        bus.publish(Started())
    assert capsys.readouterr().err == ""


async def test_faults_of_this_machine_are_warnings_once_the_start_is_over(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("krelay.doctor.machine._limit", lambda: 64)
    bus, config = EventBus(), Config(())
    looking = asyncio.create_task(module._warn_of_this_machine(config, Contexts(), bus))
    await asyncio.sleep(0)
    assert caplog.messages == []
    bus.publish(Started())
    await looking
    (line,) = caplog.messages
    assert line.startswith("64 open files: room for 0 connections at once; hint: ")


@pytest.fixture
def reporting() -> Iterator[tuple[Report, int]]:
    """The report of a process in the background, and where it is read."""
    reader, writer = os.pipe()
    report = Report(writer, Path("x.log"))
    yield report, reader
    report.close()
    os.close(reader)


def test_in_the_background_it_reports_what_fails_once_the_start_is_over(
    monkeypatch: pytest.MonkeyPatch,
    file: Selection,
    reporting: tuple[Report, int],
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    report, reader = reporting
    caplog.set_level("INFO", "krelay")
    states = ("web", State.FAILED, "refused"), ("db", State.READY, "")
    forwards = [forward(name, state, reason=reason) for name, state, reason in states]

    async def start(supervisor: Supervisor, stop: object) -> None:
        def change(name: str, state: State) -> None:
            changed = ForwardChanged(name, name, 0, State.PENDING, state, "refused")
            supervisor.bus.publish(changed)

        change("early", State.FAILED)
        monkeypatch.setattr(supervisor, "_forward_states", lambda: tuple(forwards))
        supervisor.started.set()
        supervisor.bus.publish(Started())
        supervisor.bus.publish(ForwardBound(forwards[1]))
        change("late", State.FAILED)
        change("late", State.DEGRADED)
        del forwards[0]
        change("web", State.READY)
        while report._pipe is not None:  # noqa: ASYNC110
            await asyncio.sleep(0.005)

    monkeypatch.setattr(Supervisor, "run", start)
    assert run(file, report=report) == 0
    told = [json.loads(line) for line in os.read(reader, 9999).splitlines()]
    assert told == [
        {"problem": "web: failed: refused"},
        {"problem": "late: failed: refused"},
        {"ready": True},
    ]
    assert capsys.readouterr().out == ""
    bound = next(record for record in caplog.records if " -> " in record.message)
    assert getattr(bound, "target", None) == "db"


def test_in_the_background_it_needs_a_socket(
    started: list[Config], file: Selection, reporting: tuple[Report, int]
) -> None:
    assert file.file is not None
    place = socket_path(file.file)
    place.parent.mkdir(mode=0o700, exist_ok=True)
    place.mkdir()
    with pytest.raises(KrelayError, match="cannot listen on"):
        run(file, report=reporting[0])
    assert started == []
    place.rmdir()


def test_output_that_is_no_longer_read_is_dropped(monkeypatch: pytest.MonkeyPatch) -> None:
    hushed: list[bool] = []

    class Closed(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    monkeypatch.setattr(sys, "stdout", Closed())
    monkeypatch.setattr(module, "silence_stdout", lambda: hushed.append(True))
    module.announce_bound(ForwardBound(forward("web")))
    assert hushed == [True]
