"""What the doctor says of this machine and of the file."""

from __future__ import annotations

import os
import resource
import socket
from contextlib import aclosing
from pathlib import Path

import pytest

from krelay.config.sources import Selection
from krelay.doctor import Finding, Status, examine, machine
from krelay.net import engine

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


async def test_an_embedded_file_needs_no_cluster(tmp_path: Path, taken: socket.socket) -> None:
    path = tmp_path / "krelay.yaml"
    port = taken.getsockname()[1]
    taken.close()
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
    assert one.status is Status.SKIPPED


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
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (256, 256))
    found = machine.descriptors()
    assert found.status is Status.WARNING
    assert found.text == "256 open files: room for 128 connections at once"


def test_no_limit_of_descriptors_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (resource.RLIM_INFINITY,) * 2)
    assert machine.descriptors().status is Status.OK


def test_an_engine_that_does_not_serve_is_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engine, "_chosen", engine.Engine(reason="aiofastnet 9 does not fit"))
    found = machine.engine()
    assert found.status is Status.WARNING
    assert found.text.endswith("asyncio: aiofastnet 9 does not fit")
    assert os.sep not in found.text
