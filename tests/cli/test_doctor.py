"""`krelay doctor`: what it prints, and its exit code."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from krelay.cli.terminal import doctor
from krelay.cli.terminal.doctor import lines
from krelay.doctor import machine
from krelay.doctor.finding import Finding, Status, failed, ok
from krelay.net import engine
from tests.cli.emulator import terminal

Krelay = Callable[..., int]
EMBEDDED = "apiVersion: krelay/v1\nagent: {{embedded: true}}\ntargets: {{a: ip/127.0.0.1 {}:80}}\n"


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("KUBECONFIG", "KUBERNETES_SERVICE_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(engine, "_chosen", engine.Engine())
    monkeypatch.setattr(machine, "_limit", lambda: 20_000)


def test_lines_fit_the_width_and_commands_stay_whole() -> None:
    command = "krelay rbac -f " + "x" * 100
    finding = failed("rights", "word " * 30, "hint " * 20, command=command)
    *found, last = lines(finding, 80)
    assert max(map(len, found)) <= 80
    assert last == f"  $ {command}"
    assert found[0].startswith("failed   rights       word word")
    assert found[1].startswith(" " * 22 + "word")
    assert [line for line in found if "hint: hint" in line] != []


def test_lines_for_a_pipe_are_not_broken() -> None:
    finding = Finding("server", Status.OK, "word " * 30)
    assert len(lines(finding, None)) == 1


def test_colour_is_that_of_the_status() -> None:
    assert lines(ok("clock", ""), 80, colour=True) == ["\x1b[32mok       \x1b[0mclock"]
    assert lines(Finding("clock", Status.SKIPPED, "x"), 80, colour=True)[0].startswith("skipped")


def test_without_a_file_the_cluster_is_examined(
    krelay: Krelay, capsys: pytest.CaptureFixture[str]
) -> None:
    assert krelay("doctor", "--quick") == 4
    out = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in out if line.startswith(("ok", "failed"))] == [
        "engine",
        "descriptors",
        "kubeconfig",
    ]
    (skipped,) = (line for line in out if line.startswith("skipped"))
    assert skipped.startswith("skipped  10 checks    need kubeconfig: expiry, http-proxy, ")
    assert out[-1] == "1 failed, 10 skipped, 2 ok"


def test_a_file_that_is_named_must_exist(
    krelay: Krelay, capsys: pytest.CaptureFixture[str]
) -> None:
    assert krelay("doctor", "--quick", "-f", "none.yaml") == 2
    assert capsys.readouterr().out.startswith("failed   file         cannot read 'none.yaml'")


def test_json_has_the_exit_code_and_the_findings(
    krelay: Krelay, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        (tmp_path / "krelay.yaml").write_text(EMBEDDED.format(port))
        assert krelay("doctor", "-o", "json") == 1
    found = json.loads(capsys.readouterr().out)
    assert found["exit_code"] == 1
    assert [one["check"] for one in found["findings"]] == [
        "file",
        "engine",
        "descriptors",
        "running",
        "ports",
    ]
    (last,) = found["findings"][-1:]
    assert last["status"] == "failed"
    assert last["details"]["owner"] == "this krelay"


def test_a_good_file_exits_with_0(krelay: Krelay, tmp_path: Path) -> None:
    (tmp_path / "krelay.yaml").write_text(EMBEDDED.format(""))
    assert krelay("doctor", "-o", "json") == 0


def test_contexts_have_a_line_and_unmade_checks_one_for_all(
    capsys: pytest.CaptureFixture[str],
) -> None:
    printer = doctor._Printer()
    unmade = Finding("user", Status.SKIPPED, "needs: server", details={"needs": "server"})
    for finding in (ok("engine", "e"), replace(unmade, context="a"), replace(unmade, context="b")):
        printer.print(finding)
    printer.print(replace(unmade, check="rights", context="b"))
    printer.print(ok("x", "y"))
    printer.end()
    assert capsys.readouterr().out.splitlines() == [
        "ok       engine       e",
        "context a:",
        "skipped  user         needs: server",
        "context b:",
        "skipped  2 checks     need server: user, rights",
        "ok       x            y",
    ]


@pytest.mark.process
async def test_a_terminal_has_colours_and_lines_that_fit(tmp_path: Path) -> None:
    path = tmp_path / ("long-" * 20)
    path.mkdir()
    (path / "krelay.yaml").write_text(EMBEDDED.format(""))
    args = ("doctor", "-f", str(path / "krelay.yaml"))
    async with terminal(*args, cwd=tmp_path, KRELAY_ENGINE="asyncio") as shown:
        await shown.shows("5 ok")
        assert "ok       running      no krelay runs this file" in shown.lines
        assert b"\x1b[32mok       \x1b[0mengine" in shown.raw


def test_a_bundle_is_written_once(
    krelay: Krelay, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "krelay.yaml").write_text(EMBEDDED.format(""))
    assert krelay("doctor", "--bundle", "b.tar.gz") == 0
    assert capsys.readouterr().err == (
        "b.tar.gz: 3 files without known secrets; look before you share it\n"
    )
    assert krelay("doctor", "--bundle", "b.tar.gz") == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err == "error: b.tar.gz exists\n  hint: choose another name for the bundle\n"
