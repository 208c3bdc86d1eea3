"""The loads and their target, over real sockets without a forwarder; who is compared, and how."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks import contenders, measures, place, target, udp
from benchmarks.contenders import Contender, Direct, Forwarder
from benchmarks.place import ECHO, HTTP, SINK, SOURCE, UDP
from benchmarks.results import FailedError


@pytest.fixture(scope="module")
def direct() -> Iterator[Direct]:
    """Return the target on this machine."""
    found = Direct()
    yield found
    found.close()


pytestmark = pytest.mark.process


@pytest.mark.parametrize(
    ("mode", "port", "arguments", "keys"),
    [
        ("down", SOURCE, (1 << 20, 2, "json"), {"seconds", "bytes", "rate"}),
        ("up", SINK, (1 << 20, 2, "sql"), {"seconds", "bytes", "rate"}),
        ("connect", ECHO, (0.01,), {"p50", "p99", "count"}),
        ("connect16", ECHO, (0.01,), {"rate"}),
        ("echo", ECHO, (0.01,), {"p50", "p99", "count"}),
        ("end", HTTP, (0.01,), {"p50", "p99", "count"}),
        ("fetch", SOURCE, (1000, 0.01), {"p50", "p99", "count"}),
    ],
)
def test_a_load_reports_what_it_measured(
    direct: Direct, mode: str, port: int, arguments: tuple[object, ...], keys: set[str]
) -> None:
    found = measures.load(mode, direct.ports[port], *arguments)
    assert set(found) == keys
    assert all(value > 0 for value in found.values())


def test_a_flow_counts_its_datagrams(direct: Direct) -> None:
    port = direct.udp[UDP]
    for found in (udp.udp_up(port, "1", "500", "0.1"), udp.udp_down(port, "1", "500", "0.1")):
        assert found["sent"] == 25
        assert 0 <= found["loss"] < 1


def test_questions_are_answered(direct: Direct) -> None:
    assert udp.questions(direct.udp[ECHO], "4", "0.1")["rate"] > 0


def test_connections_are_held_until_stdin_ends(direct: Direct) -> None:
    process = subprocess.Popen(
        measures.command("hold", direct.ports[ECHO], 20),
        cwd=place.ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert json.loads(process.stdout.readline())["open"] == 20
    assert process.poll() is None
    process.communicate()
    assert process.returncode == 0


def test_a_load_that_breaks_off_is_a_line_of_the_result(direct: Direct) -> None:
    # The echo port sends the request back and no more.
    with pytest.raises(FailedError, match="took more than"):
        measures.load("down", direct.ports[ECHO], 1000, patience=1)
    with pytest.raises(FailedError, match="refused"):
        measures.load("echo", place.free_ports(1)[0], 1)


@pytest.mark.parametrize("kind", ["json", "sql", "random"])
def test_a_source_has_text_of_each_kind(kind: str) -> None:
    data = target.content(kind)
    assert len(data) == target.TEXT
    if kind == "json":
        assert json.loads(bytes(data[: bytes(data[:5000]).index(b",\n")]))["items"]
    if kind == "sql":
        assert bytes(data[:1000]).startswith(b"INSERT INTO orders VALUES (")


def test_datagrams_are_paced_to_their_number() -> None:
    sent: list[bytes] = []
    assert target.paced(sent.append, 1e6, 100, 0.02) == len(sent) == 25
    assert {len(data) for data in sent} == {100}


# -- contenders --------------------------------------------------------------------------------


class Nowhere(place.Namespace):
    """A namespace without a cluster."""

    def pods(self) -> list[Any]:
        return []


def test_a_peer_is_a_name_and_a_command() -> None:
    assert contenders.peer("mine = fw -n {namespace} {pod} {ports}") == Contender(
        "mine", "fw -n {namespace} {pod} {ports}"
    )


@pytest.mark.parametrize("text", ["fw {ports}", "=fw {ports}", "mine=fw 1:2"])
def test_a_peer_without_a_name_or_ports_is_refused(text: str) -> None:
    with pytest.raises(SystemExit, match="--peer"):
        contenders.peer(text)


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("no-such-program {ports}", "does not start: No such file"),
        (f"{sys.executable} -c 'raise SystemExit(3)' {{ports}}", "ended with code 3"),
        (f"{sys.executable} -c 'import time; time.sleep(60)' {{ports}}", "relays nothing in time"),
    ],
)
def test_a_peer_that_does_not_serve_is_a_line_of_the_result(command: str, reason: str) -> None:
    forwarder = Forwarder(Contender("peer", command), Nowhere("ns"))
    try:
        with pytest.raises(FailedError, match=reason):  # noqa: PT012
            forwarder.start()
            forwarder.wait_ready(0.5)
    finally:
        forwarder.close()
    assert not forwarder.alive()


def test_a_command_gets_ports_namespace_and_pod(tmp_path: Path) -> None:
    out = tmp_path / "out"
    program = "import sys; open(sys.argv[1], 'w').write(' '.join(sys.argv[2:]))"
    command = f'{sys.executable} -c "{program}" {out} {{namespace}}/{{pod}} {{ports}}'
    forwarder = Forwarder(Contender("peer", command), Nowhere("ns"))
    try:
        forwarder.start()
        with pytest.raises(FailedError, match="ended with code 0"):
            forwarder.wait_ready()
    finally:
        forwarder.close()
    pairs = [f"{forwarder.ports[remote]}:{remote}" for remote in place.TCP_PORTS]
    assert out.read_text() == f"ns/target {' '.join(pairs)}"


def test_krelay_gets_a_file_with_tcp_and_udp_ports() -> None:
    text = contenders.krelay_file("ns", [(1000, 7001)], [(1000, 7001)])
    assert json.loads(text)["targets"]["t"]["ports"] == ["1000:7001", "1000:7001/udp"]
