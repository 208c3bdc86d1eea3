"""The programs behind local connections, as the system knows them."""

from __future__ import annotations

import os
import socket
from typing import Any

import psutil
import pytest

from krelay.model import Protocol
from krelay.net.clients import programs
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
                assert programs([tcp, udp, listening]) == {tcp: name, udp: name}
    assert programs([(Protocol.TCP, "127.0.0.9", 1)]) == {}


def test_a_system_that_tells_nothing_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: Any) -> Any:
        raise psutil.AccessDenied

    with socket.create_server((rig.HOST, 0)) as server:
        with socket.create_connection(server.getsockname()) as client:
            key = (Protocol.TCP, *client.getsockname())
            with monkeypatch.context() as patch:
                patch.setattr(psutil, "Process", denied)
                assert programs([key]) == {key: f"pid {os.getpid()}"}
            monkeypatch.setattr(psutil, "net_connections", denied)
            assert programs([key]) == {}
