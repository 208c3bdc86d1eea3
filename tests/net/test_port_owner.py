"""The owner of a local port, tested with separate processes."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from krelay.model import Protocol
from krelay.net.bind import port_owner

SCRIPT = """
import socket, sys
sock = socket.socket(socket.AF_INET, getattr(socket, sys.argv[1]))
sock.bind((sys.argv[2], 0))
if sys.argv[1] == "SOCK_STREAM":
    sock.listen()
print(sock.getsockname()[1], flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("protocol", Protocol)
@pytest.mark.parametrize(
    ("held", "wanted"),
    [
        ("127.0.0.1", "127.0.0.1"),
        ("127.0.0.1", "localhost"),
        ("127.0.0.1", "0.0.0.0"),
        ("0.0.0.0", "127.0.0.1"),
    ],
)
@pytest.mark.process
def test_another_program_is_named_with_its_pid(protocol: Protocol, held: str, wanted: str) -> None:
    kind = "SOCK_DGRAM" if protocol is Protocol.UDP else "SOCK_STREAM"
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT, kind, held],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        port = int(process.stdout.readline())
        name = psutil.Process(process.pid).name()
        assert port_owner(protocol, wanted, port) == f"{name} (pid {process.pid})"
        assert port_owner(protocol, "127.0.0.9", port) == (
            None if held == "127.0.0.1" else f"{name} (pid {process.pid})"
        )
        assert process.stdin is not None
        process.stdin.close()


def test_this_program_is_named_only_for_ports_it_listens_on() -> None:
    with socket.create_server(("127.0.0.1", 0)) as sock:
        port = sock.getsockname()[1]
        assert port_owner(Protocol.TCP, "127.0.0.1", port) == "this krelay"
        # The local end of a connection occupies no port.
        with socket.create_connection(sock.getsockname()) as client:
            assert port_owner(Protocol.TCP, "127.0.0.1", client.getsockname()[1]) is None
    assert port_owner(Protocol.TCP, "127.0.0.1", port) is None


def test_an_owner_that_the_system_hides_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def hide(kind: str) -> Any:
        raise psutil.AccessDenied

    monkeypatch.setattr(psutil, "net_connections", hide)
    assert port_owner(Protocol.TCP, "127.0.0.1", 80) is None


@pytest.mark.parametrize(("pid", "owner"), [(None, None), (os.getppid(), "pid %d")])
def test_a_program_that_has_ended_is_named_by_its_pid(
    pid: int | None, owner: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = SimpleNamespace(
        pid=pid, status=psutil.CONN_LISTEN, laddr=SimpleNamespace(ip="127.0.0.1", port=80)
    )

    def gone(pid: int) -> Any:
        raise psutil.NoSuchProcess(pid)

    monkeypatch.setattr(psutil, "net_connections", lambda kind: [found])
    monkeypatch.setattr(psutil, "Process", gone)
    assert port_owner(Protocol.TCP, "127.0.0.1", 80) == (owner and owner % pid)
