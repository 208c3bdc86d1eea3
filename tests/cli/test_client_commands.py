"""The commands that ask a running krelay: `status`, `wait`, `logs` and `down`."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import re
import signal
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from krelay.cli import client_commands
from krelay.cli.client_commands import down, logs, port, restart, status, unready, wait
from krelay.errors import ConfigError, KrelayError, NotReadyError, UsageError
from krelay.mux.log import about
from krelay.state.bus import EventBus
from krelay.state.log_tail import LogRing
from krelay.status import log_file
from krelay.status.client import Changes, NotRunningError, is_running
from krelay.status.socket_path import socket_path
from tests import rig
from tests.cli.asked import TEXT, answering
from tests.cli.emulator import terminal
from tests.cli.reports import carried, forward, report
from tests.integration.product import ROOT, command, environment
from tests.state.said import said

FOUND = report(forward("web"), forward("db", "failed"))


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "krelay.yaml"
    path.write_text(TEXT)
    return path


async def shown(file: Path, *names: str, output: str = "text") -> int:
    return await asyncio.to_thread(status, str(file), names, output=output, watch=False)


async def test_status_prints_a_line_for_each_forward(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with answering(file, GET_status=lambda body: FOUND):
        assert await shown(file) == 0
        assert await shown(file, "db", output="wide") == 0
    out, err = capsys.readouterr()
    assert err == ""
    title, db, web, wide, wide_db, _, tunnels, *_, engine = out.splitlines()
    assert title.split()[0] == "TARGET"
    assert web.startswith("web     ● ready   127.0.0.1:8080  svc/web:80")
    assert db.endswith("connection refused")
    assert "NAMESPACE" in wide
    assert wide_db.startswith("db ")
    assert tunnels.split() == ["TUNNEL", "CARRIER", "STREAMS", "RTT", "REASON"]
    assert engine == "connections to the cluster: asyncio"


async def test_status_in_a_pipe_says_that_the_file_is_not_what_runs(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = {"inStep": False, "since": None, "error": {"message": "krelay.yaml: 1 problem"}}
    drift = {**FOUND, "file": {**FOUND["file"], **told}}
    async with answering(file, GET_status=lambda body: drift):
        assert await shown(file) == 0
    out, err = capsys.readouterr()
    assert out.startswith("TARGET")
    assert err == "! out of sync with the file: krelay.yaml: 1 problem\n"


async def test_status_in_json_is_the_snapshot(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with answering(file, GET_status=lambda body: FOUND):
        assert await shown(file, output="json") == 0
        assert json.loads(capsys.readouterr().out) == FOUND
        assert await shown(file, "db", output="json") == 0
        (one,) = json.loads(capsys.readouterr().out)["forwards"]
        assert one["target"] == "db"


async def test_status_refuses_an_unknown_name_and_accepts_one_not_relayed(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with answering(file, GET_status=lambda body: FOUND):
        with pytest.raises(UsageError, match="has no target `wep`") as caught:
            await shown(file, "wep")
        assert caught.value.exit_code == 2
        assert await shown(file, "other") == 0  # known, but not relayed
    assert len(capsys.readouterr().out.splitlines()) == 1


async def test_status_fails_if_no_krelay_runs(file: Path) -> None:
    with pytest.raises(NotRunningError):
        await shown(file)


@pytest.mark.process
async def test_status_watch_prints_json_lines_over_the_end_of_krelay_until_ctrl_c(
    file: Path,
) -> None:
    numbers = itertools.count()

    def answer(body: object) -> object:
        number = next(numbers)
        return report(forward(traffic=carried(number, number)))

    process = None
    try:
        async with answering(file, GET_status=answer):
            process = await asyncio.create_subprocess_exec(
                *command("status", "-f", str(file), "--watch", "--output", "json"),
                env=environment(PYTHONPATH=str(ROOT)),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
            )
            assert process.stdout is not None
            lines = [json.loads(await process.stdout.readline()) for _ in range(2)]
            assert [line["forwards"][0]["traffic"]["toLocalBytes"] for line in lines] == [1, 2]
        while "error" not in (line := json.loads(await process.stdout.readline())):
            pass
        assert line["error"]["message"] == f"krelay is not running for {file}"
        process.send_signal(signal.SIGINT)
        assert await process.wait() == 130
    finally:
        if process is not None and process.returncode is None:
            process.kill()
            await process.communicate()


@pytest.mark.process
@pytest.mark.parametrize(
    ("key", "code"), [("q", 0), ("\x03", 130), (signal.SIGTERM, -signal.SIGTERM)]
)
async def test_status_watch_repaints_the_table_and_leaves_it(
    key: str | signal.Signals, code: int, file: Path
) -> None:
    sent = 0

    def answer(body: object) -> object:
        nonlocal sent
        sent += 1_000_000
        return report(forward(traffic=carried(sent, 0)))

    async with answering(file, GET_status=answer):
        async with terminal("status", "--watch", cwd=file.parent, columns=120) as screen:
            await screen.shows("1 of 1 ready")
            await screen.shows("MB/s")
            await screen.shows("q quit   ? help   / filter")
            assert screen.text.count("TARGET") == 1
            assert not screen.as_it_was
            if isinstance(key, str):
                screen.type(key)
            else:
                screen.process.send_signal(key)
            assert await screen.process.wait() == code
            await rig.until(lambda: screen.as_it_was)
            await rig.until(lambda: screen.text.count("TARGET") == 1)
            assert "q quit" not in screen.text


@pytest.mark.process
async def test_status_watch_at_a_terminal_outlives_krelay(file: Path) -> None:
    async with answering(file, GET_status=lambda body: FOUND):
        waiting = terminal("status", "--watch", "-o", "wide", cwd=file.parent, columns=120)
        screen = await waiting.__aenter__()
        await screen.shows("1 of 2 ready")
        await screen.shows("connections to the cluster: asyncio")
    try:
        await screen.shows(f"krelay is not running for {file.name}")
        screen.type("\x1a")
        await screen.stopped()
        screen.process.send_signal(signal.SIGCONT)
        async with answering(file, GET_status=lambda body: FOUND):
            await screen.shows("1 of 2 ready")
        screen.type("q")
        assert await screen.process.wait() == 0
    finally:
        await waiting.__aexit__(None, None, None)


@pytest.mark.process
async def test_status_watch_in_a_pipe_prints_tables(file: Path) -> None:
    async with answering(file, GET_status=lambda body: FOUND):
        process = await asyncio.create_subprocess_exec(
            *command("status", "-f", str(file), "--watch"),
            env=environment(PYTHONPATH=str(ROOT)),
            stdout=asyncio.subprocess.PIPE,
        )
        try:
            assert process.stdout is not None
            titles = 0
            while titles < 2:
                titles += (await process.stdout.readline()).startswith(b"TARGET")
        finally:
            process.kill()
            await process.communicate()


async def test_status_on_a_terminal_begins_with_the_headline(
    file: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("COLUMNS", "100")
    monkeypatch.setenv("NO_COLOR", "1")
    async with answering(file, GET_status=lambda body: FOUND):
        assert await shown(file) == 0
    out = capsys.readouterr().out
    assert not re.search(r"\x1b\[(\d+;)*3[0-7]m", out)
    lines = re.sub(r"\x1b\[[\d;]*m", "", out).splitlines()
    assert lines[0].startswith("krelay.yaml · 1 of 2 ready · up ")
    assert lines[1] == ""
    assert lines[-1].startswith("✗ db (")
    assert all(len(line) < 100 for line in lines)


READY = report(forward("web"), forward("db"))
HALF = report(forward("web"), forward("db", "failed"))


async def waited(file: Path, *names: str, timeout: float = 0.0) -> int:
    return await asyncio.to_thread(wait, str(file), names, timeout=timeout)


# -- readiness ---------------------------------------------------------------------------------


def test_unready_names_each_forward_and_its_reason() -> None:
    assert unready(READY) == []
    assert unready(HALF) == ["db: failed: connection refused"]
    assert unready(HALF, ["web"]) == []
    assert unready(HALF, ["other", "db"]) == [
        "db: failed: connection refused",
        "other: not relayed (yet)",
    ]
    assert unready(report()) == ["krelay is starting"]


def test_a_draining_forward_counts_only_if_named_or_alone() -> None:
    former = report(forward("web"), forward("db", "draining", reason=""))
    assert unready(former) == []
    assert unready(former, ["db"]) == ["db: draining"]
    assert unready(report(forward("db", "draining", reason=""))) == ["db: draining"]


# -- the command -------------------------------------------------------------------------------


async def test_wait_returns_at_once_if_all_is_ready(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with answering(file, GET_status=lambda body: HALF):
        assert await waited(file, "web") == 0
    async with answering(file, GET_status=lambda body: READY):
        assert await waited(file) == 0
    assert capsys.readouterr() == ("1 forward is ready\n2 forwards are ready\n", "")


async def test_wait_exits_with_3_and_reasons_on_a_timeout(file: Path) -> None:
    async with answering(file, GET_status=lambda body: HALF):
        with pytest.raises(NotReadyError, match=r"^not ready after 0.2 s$") as caught:
            await waited(file, "db", "other", timeout=0.2)
    assert caught.value.exit_code == 3
    assert caught.value.details() == ["db: failed: connection refused", "other: not relayed (yet)"]


async def test_wait_waits_for_a_krelay_that_starts_later(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(NotReadyError) as caught:
        await waited(file)
    assert caught.value.details() == [f"krelay is not running for {file}"]
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(waited(file, "web", timeout=9.0))
        err = ""

        def said() -> bool:
            nonlocal err
            err += capsys.readouterr().err
            return "; waiting" in err

        await rig.until(said)
        assert err == f"krelay is not running for {file}; waiting\n"
        async with answering(file, GET_status=lambda body: READY):
            assert await waiting == 0


async def test_wait_returns_at_the_event_that_makes_a_forward_ready(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_commands, "_LOOK_EVERY", 60.0)
    bus, looks, state = EventBus(), 0, HALF

    def look(body: Mapping[str, Any]) -> Any:
        nonlocal looks
        looks += 1
        return state

    async with asyncio.TaskGroup() as tasks:
        async with answering(file, bus, GET_status=look):
            waiting = tasks.create_task(waited(file, timeout=60.0))
            await rig.until(lambda: looks)
            await asyncio.sleep(0.2)
            assert looks <= 3, "it asked again without an event"
            state = READY
            bus.publish(said("state", "db: ready"))
            assert await waiting == 0


async def test_wait_outlives_a_restart_of_krelay(file: Path) -> None:
    seen: list[str] = []

    def answer(name: str, found: Any) -> Any:
        seen.append(name)
        return found

    async with asyncio.TaskGroup() as tasks:
        async with answering(file, EventBus(), GET_status=lambda body: answer("a", HALF)):
            waiting = tasks.create_task(waited(file, timeout=60.0))
            await rig.until(lambda: "a" in seen)
        async with answering(file, EventBus(), GET_status=lambda body: answer("b", READY)):
            assert await waiting == 0
    assert seen[-1] == "b"


async def test_wait_looks_again_where_no_events_can_be_had(file: Path) -> None:
    """A krelay limits its subscribers; here it has no event stream at all."""
    answers = [report(), HALF, READY]
    async with answering(file, GET_status=lambda body: answers.pop(0)):
        assert await asyncio.to_thread(Changes.subscribe, str(file)) is None
        assert await waited(file, timeout=9.0) == 0
    assert not answers


async def test_wait_goes_on_after_a_failed_answer(file: Path) -> None:
    answers: list[Any] = [KrelayError("not now"), READY]

    def answer(body: Mapping[str, Any]) -> Any:
        found = answers.pop(0)
        if isinstance(found, KrelayError):
            raise found
        return found

    async with answering(file, GET_status=answer):
        assert await waited(file, timeout=9.0) == 0


async def test_wait_refuses_an_unknown_name_at_once(file: Path) -> None:
    with pytest.raises(UsageError, match="has no target `wep`"):
        await waited(file, "wep", timeout=60.0)
    async with answering(file, GET_status=lambda body: READY):
        with pytest.raises(UsageError, match="has no target `wep`"):
            await waited(file, "web", "wep", timeout=60.0)


async def test_wait_reads_the_file_only_for_names_that_are_not_relayed(file: Path) -> None:
    await asyncio.to_thread(file.write_text, "nonsense")
    async with answering(file, GET_status=lambda body: READY):
        assert await waited(file, "web", "db") == 0
        with pytest.raises(ConfigError):
            await waited(file, "other", timeout=60.0)


def ring(*lines: str) -> tuple[LogRing, logging.Logger]:
    made, logger = LogRing(), logging.Logger("test")
    logger.addHandler(made)
    for line in lines:
        logger.info(line)
    return made, logger


async def test_logs_prints_the_last_lines(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, (made, _) = tmp_path / "krelay.yaml", ring("a", "b", "c")
    with pytest.raises(NotRunningError):
        await asyncio.to_thread(logs, str(file), 2, follow=False)
    async with answering(file, GET_logs=made.answer):
        assert await asyncio.to_thread(logs, str(file), 2, follow=False) == 0
    assert capsys.readouterr().out == "b\nc\n"


async def test_logs_of_targets_prints_only_lines_about_them(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made, logger = ring("a")
    about(logger, target="web").info("ready")
    answers: dict[str, Any] = {"GET_logs": made.answer, "GET_status": lambda body: FOUND}
    async with answering(file, **answers):
        assert await asyncio.to_thread(logs, str(file), 9, names=["web"], follow=False) == 0
        assert capsys.readouterr().out == "web: ready\n"
        with pytest.raises(UsageError, match="has no target `wep`"):
            await asyncio.to_thread(logs, str(file), 9, names=["wep"], follow=False)


async def test_logs_names_the_file_that_a_krelay_in_the_background_left(file: Path) -> None:
    log = await asyncio.to_thread(log_file.create, str(file))
    with pytest.raises(NotRunningError) as caught:
        await asyncio.to_thread(logs, str(file), 1, follow=False)
    assert caught.value.hint == f"what the last one logged: {log}"


DNS = report(
    forward("web", listen=("0.0.0.0:8080", "[::]:8080")),
    forward("dns", index=0, name="dns[53]", to="svc/dns:53", listen=("127.0.0.1:5353",)),
    forward(
        "dns",
        index=1,
        name="dns[53/udp]",
        to="svc/dns:53",
        protocol="udp",
        listen=("[::1]:5354",),
    ),
    forward("dns", index=2, name="dns[metrics]", to="svc/dns:metrics", listen=()),
    forward("old", "draining"),
)


@pytest.mark.parametrize(
    ("name", "wanted", "printed"),
    [
        ("web", None, "127.0.0.1:8080"),
        ("web", "80", "127.0.0.1:8080"),
        ("web", "80/tcp", "127.0.0.1:8080"),
        ("dns", "53/tcp", "127.0.0.1:5353"),
        ("dns", "53/udp", "[::1]:5354"),
    ],
)
async def test_port_prints_the_address_to_connect_to(
    name: str, wanted: str | None, printed: str, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with answering(file, GET_status=lambda body: DNS):
        assert await asyncio.to_thread(port, str(file), name, wanted, as_json=False) == 0
        assert capsys.readouterr() == (printed + "\n", "")
        assert await asyncio.to_thread(port, str(file), name, wanted, as_json=True) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["address"] == printed
    assert found["port"] == int(printed.rpartition(":")[2])


@pytest.mark.parametrize(
    ("name", "wanted", "message", "code"),
    [
        ("dns", None, r"^dns has several ports$", 2),
        ("dns", "53", r"^dns has several ports$", 2),
        ("web", "81", r"^web has no port `81`$", 2),
        ("dns", "metrics", r"^dns\[metrics\] has no local address: its port accepted", 1),
        ("other", None, r"^other is not relayed \(yet\)$", 1),
        ("old", None, r"^old is not relayed \(yet\)$", 1),
        ("wep", None, "has no target `wep`", 2),
    ],
)
async def test_port_says_why_there_is_no_address(
    name: str, wanted: str | None, message: str, code: int, file: Path
) -> None:
    async with answering(file, GET_status=lambda body: DNS):
        with pytest.raises(KrelayError, match=message) as caught:
            await asyncio.to_thread(port, str(file), name, wanted, as_json=False)
    assert caught.value.exit_code == code


async def test_logs_follow_prints_new_lines_over_a_restart_until_the_end(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, (made, logger) = tmp_path / "krelay.yaml", ring("a", "b", "c")
    rings = [made]
    out = err = ""

    def printed(text: str) -> bool:
        nonlocal out, err
        more = capsys.readouterr()
        out, err = out + more.out, err + more.err
        return out == text

    async with asyncio.TaskGroup() as tasks:
        async with answering(file, GET_logs=lambda body: rings[-1].answer(body)):
            following = tasks.create_task(asyncio.to_thread(logs, str(file), 1, follow=True))
            await rig.until(lambda: printed("c\n"))
            logger.info("d")
            logger.info("e")
            await rig.until(lambda: printed("c\nd\ne\n"))
            rings.append(ring("anew")[0])
            await rig.until(lambda: printed("c\nd\ne\nanew\n"))
        assert await following == 0
    assert printed("c\nd\ne\nanew\n")
    assert err == "krelay has ended\n"


async def test_restart_says_what_it_has_done(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[Mapping[str, Any]] = []

    def answer(body: Mapping[str, Any]) -> Any:
        asked.append(body)
        names = body["targets"] or ["web", "db"]
        return {"targets": names, "connections": len(names), "agents": 3 - len(names)}

    answers = {"POST_restart": answer, "GET_status": lambda body: FOUND}
    async with answering(file, **answers):
        for names in (["web"], ["web", "db"], []):
            assert await asyncio.to_thread(restart, str(file), names, as_json=False) == 0
        assert await asyncio.to_thread(restart, str(file), ["db"], as_json=True) == 0
        with pytest.raises(UsageError, match="has no target `wep`"):
            await asyncio.to_thread(restart, str(file), ["wep"], as_json=False)
    *lines, last = capsys.readouterr().out.splitlines()
    assert lines == [
        "restarted web and the agents of 2 contexts; 1 connection reset",
        "restarted web, db and the agent; 2 connections reset",
        "restarted 2 targets and the agent; 2 connections reset",
    ]
    assert json.loads(last) == {"targets": ["db"], "connections": 1, "agents": 2}
    assert [body["targets"] for body in asked] == [["web"], ["web", "db"], [], ["db"]]


async def test_down_waits_until_krelay_has_ended(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "krelay.yaml"
    asked = asyncio.Event()

    def stop(body: object) -> dict[str, object]:
        asked.set()
        return {"pid": 4711, "drain": 5.0, "live": 2}

    async with asyncio.TaskGroup() as tasks:
        async with answering(file, POST_stop=stop):
            ending = tasks.create_task(asyncio.to_thread(down, str(file)))
            await asked.wait()
            assert await asyncio.to_thread(is_running, str(file))
            assert not ending.done()
        assert await ending == 0
    assert not await asyncio.to_thread(is_running, str(file))
    assert capsys.readouterr() == (
        "krelay (pid 4711) has ended\n",
        "2 connections get 5 s to finish\n",
    )


async def test_down_fails_if_krelay_outlives_its_drain(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(client_commands, "_CLEANUP", 0.0)
    file = tmp_path / "krelay.yaml"
    async with answering(file, POST_stop=lambda body: {"pid": 4711, "drain": 0.0, "live": 0}):
        with pytest.raises(KrelayError, match=r"krelay \(pid 4711\) still runs") as caught:
            await asyncio.to_thread(down, str(file))
    assert caught.value.hint == "`kill 4711` makes it drop the remaining connections"


def test_down_fails_if_no_krelay_runs(tmp_path: Path) -> None:
    file = str(tmp_path / "krelay.yaml")
    with pytest.raises(NotRunningError) as caught:
        down(file)
    assert caught.value.exit_code == 1
    # A killed krelay leaves its lock file, which locks nothing.
    lock = socket_path(file).with_suffix(".lock")
    lock.touch()
    assert not is_running(file)
    lock.unlink()
