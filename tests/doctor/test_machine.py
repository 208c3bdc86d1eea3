"""What the doctor says of this machine and of the file."""

from __future__ import annotations

import asyncio
import os
import resource
import socket
from collections.abc import AsyncIterator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from krelay import __version__
from krelay.config.sources import Selection
from krelay.doctor import Finding, Status, examine, machine
from krelay.errors import KrelayError
from krelay.model import Config, Kind, Port, Protocol, StatusConfig, Target
from krelay.net import engine
from krelay.state.bus import EventBus
from krelay.state.snapshot import Snapshot
from krelay.status.servers import serve_unix
from krelay.status.socket_path import socket_path
from tests import rig

LIMIT = machine._limit
EMBEDDED = "apiVersion: krelay/v1\nagent: {{embedded: true}}\ntargets:\n  a: ip/127.0.0.1 {}\n"


async def report(path: Path) -> dict[str, list[Finding]]:
    found: dict[str, list[Finding]] = {}
    async with aclosing(examine(Selection(str(path)), quick=True)) as findings:
        async for one in findings:
            found.setdefault(one.check, []).append(one)
    return found


@pytest.fixture
def taken() -> socket.socket:
    return socket.create_server(("127.0.0.1", 0))


async def test_an_embedded_file_needs_no_cluster(tmp_path: Path) -> None:
    path = tmp_path / "krelay.yaml"
    port = rig.closed_port()
    path.write_text(EMBEDDED.format(f"{port}:80"))
    found = await report(path)
    assert list(found) == ["file", "engine", "descriptors", "running", "ports"]
    assert {one.status for findings in found.values() for one in findings} == {Status.OK}
    assert found["file"][0].text == f"{path}: 1 target"
    assert found["ports"][0].text == f"free: 127.0.0.1:{port}"


async def test_a_taken_port_is_named_with_its_owner(tmp_path: Path, taken: socket.socket) -> None:
    path = tmp_path / "krelay.yaml"
    with taken:
        port = taken.getsockname()[1]
        path.write_text(EMBEDDED.format(f"{port}:80"))
        (one,) = (await report(path))["ports"]
    assert (one.status, one.exit_code) == (Status.FAILED, 1)
    assert (
        one.text == f"a: cannot listen on 127.0.0.1:{port}: Address already in use by this krelay"
    )
    assert one.hint is not None
    assert "another local port" in one.hint


async def test_ports_that_the_file_leaves_open_are_not_tried(tmp_path: Path) -> None:
    path = tmp_path / "krelay.yaml"
    path.write_text(EMBEDDED.format(":80"))
    (one,) = (await report(path))["ports"]
    assert one.text == "the system chooses them at the start"


async def test_each_problem_of_a_file_is_a_finding(tmp_path: Path) -> None:
    path = tmp_path / "krelay.yaml"
    path.write_text("apiVersion: krelay/v1\ntargetz: {}\ntargets:\n  a: nonsense\n")
    found = (await report(path))["file"]
    assert [one.exit_code for one in found] == [2, 2]
    assert all(one.text.startswith(f"{path}:") for one in found)


async def test_a_missing_file_is_named(tmp_path: Path) -> None:
    (one,) = (await report(tmp_path / "none.yaml"))["file"]
    assert (one.status, one.exit_code) == (Status.FAILED, 2)
    assert "none.yaml" in one.text


def test_a_low_limit_of_descriptors_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_limit", LIMIT)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (256, 256))
    found = machine.descriptors()
    assert found.status is Status.WARNING
    assert found.text == "256 open files: room for 128 connections at once"


def test_no_limit_of_descriptors_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "_limit", LIMIT)
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY,) * 2)
    assert machine.descriptors().status is Status.OK


def test_an_engine_that_does_not_serve_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_chosen", engine.Engine(reason="aiofastnet 9 does not fit"))
    found = machine.engine()
    assert found.status is Status.WARNING
    assert found.text.endswith("asyncio: aiofastnet 9 does not fit")
    assert os.sep not in found.text


# -- the krelay that runs the file -----------------------------------------------------------------


@pytest.fixture
async def runs(tmp_path: Path) -> AsyncIterator[tuple[str, dict[str, Any]]]:
    """A socket of a krelay that runs a file, and the state that it reports."""
    file = str(tmp_path / "krelay.yaml")
    state: dict[str, Any] = {"pid": os.getpid(), "version": __version__, "forwards": []}

    async def status(body: Mapping[str, Any]) -> dict[str, Any]:
        if "error" in state:
            raise KrelayError(state["error"])
        return state

    async def snapshot() -> Snapshot:
        raise AssertionError

    path = await asyncio.to_thread(socket_path, file)
    handlers = {("GET", "/v1/status"): status}
    async with serve_unix(path, handlers, snapshot=snapshot, bus=EventBus()):
        yield file, state


@pytest.mark.parametrize(
    ("change", "status", "text"),
    [
        ({"forwards": [{"state": "ready"}]}, "ok", ": 1 of 1 ready"),
        ({"forwards": [{"state": "failed"}]}, "warning", ": 0 of 1 ready"),
        ({"version": "0.0.1"}, "warning", f"; installed is {__version__}"),
        ({"error": "no"}, "warning", ": no"),
    ],
)
async def test_a_krelay_that_runs_the_file(
    runs: tuple[str, dict[str, Any]], change: dict[str, Any], status: str, text: str
) -> None:
    file, state = runs
    state |= change
    found = await asyncio.to_thread(machine.running, file)
    assert found.status.value == status
    assert found.text.endswith(text)


async def test_ports_of_the_krelay_that_runs_the_file_are_its_own(
    runs: tuple[str, dict[str, Any]], taken: socket.socket, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, state = runs
    port = taken.getsockname()[1]
    targets = (Target("a", Kind.IP, "127.0.0.1", (Port(80, port),)),)
    config = Config(targets, status=StatusConfig(listen=("127.0.0.1", 0)))
    owner = f"another krelay (pid {state['pid']})"
    monkeypatch.setattr(machine, "port_owner", lambda *args: owner)
    with taken:
        (found,) = await asyncio.to_thread(machine.ports, config, file)
        assert found.text == "taken by the krelay that runs this file"
        state["error"] = "no"
        (found,) = await asyncio.to_thread(machine.ports, config, file)
        assert found.text.endswith(f"Address already in use by {owner}")


async def test_udp_ports_and_that_of_the_status_page_are_tried() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.bind(("127.0.0.1", 0))
        port = sock.getsockname()[1]
        targets = (Target("a", Kind.IP, "127.0.0.1", (Port(80, port, Protocol.UDP),)),)
        with socket.create_server(("127.0.0.1", 0)) as server:
            listen = server.getsockname()
            config = Config(targets, status=StatusConfig(listen=listen))
            found = await asyncio.to_thread(machine.ports, config, None)
    assert [one.text.partition(":")[0] for one in found] == ["a", "status.listen"]
