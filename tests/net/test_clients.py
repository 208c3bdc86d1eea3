"""The programs behind local connections, as the system knows them."""

from __future__ import annotations

import os
import socket
from typing import Any

import psutil
import pytest

from krelay.model import Protocol
from krelay.net.clients import owners, program
from tests import rig


def test_a_program_is_found_by_the_address_of_its_socket() -> None:
    name = f"{psutil.Process().name()} (pid {os.getpid()})"
    with socket.create_server((rig.HOST, 0)) as server:
        with socket.create_connection(server.getsockname()) as client:
            tcp = (Protocol.TCP, *client.getsockname())
            listening = (Protocol.TCP, *server.getsockname())
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as wide:
                wide.bind(("0.0.0.0", 0))
                udp = (Protocol.UDP, rig.HOST, wide.getsockname()[1])
                known = owners()
    assert [program(each, known) for each in (tcp, udp)] == [name, name]
    # The server's own end of the connection has the address that it listens at.
    assert program(listening, {}) == program((Protocol.TCP, "127.0.0.9", 1), known) == ""


def test_the_name_of_a_program_is_clean(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil.Process, "name", lambda self: f"a\x1b[31m\n{'b' * 1_000}")
    key = (Protocol.TCP, rig.HOST, 1)
    found = program(key, {key: os.getpid()})
    assert found.startswith("a bbb")
    assert found.endswith(f" (pid {os.getpid()})")
    assert len(found) < 130


def test_a_program_that_has_ended_or_is_hidden_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: Any) -> Any:
        raise psutil.AccessDenied

    key = (Protocol.TCP, rig.HOST, 1)
    monkeypatch.setattr(psutil, "Process", denied)
    assert program(key, {key: 812}) == "pid 812"
    monkeypatch.setattr(psutil, "net_connections", denied)
    assert owners() == {}
