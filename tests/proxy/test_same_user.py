"""Whose sockets send, as this machine tells it."""

from __future__ import annotations

import socket
import sys
from pathlib import Path

import pytest

from krelay.proxy import udp_associate as module
from krelay.proxy.udp_associate import same_user

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc/net")

HEAD = (
    "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout\n"
)


def row(local: str, state: str, user: int) -> str:
    return (
        f"   0: {local} 00000000:0000 {state} 00000000:00000000 00:00000000 00000000 {user} 0 1\n"
    )


@pytest.mark.parametrize(
    ("kind", "host", "bound"),
    [
        (socket.AF_INET, "127.0.0.1", "127.0.0.1"),
        (socket.AF_INET, "127.0.0.1", "0.0.0.0"),
        (socket.AF_INET6, "::1", "::1"),
        (socket.AF_INET6, "::1", "::"),
        (socket.AF_INET6, "127.0.0.1", "::"),
    ],
)
def test_sockets_of_this_process_are_of_one_user(
    kind: socket.AddressFamily, host: str, bound: str
) -> None:
    with (
        socket.create_server(
            (host, 0), family=socket.AF_INET6 if ":" in host else socket.AF_INET
        ) as server,
        socket.create_connection(server.getsockname()[:2]) as client,
        socket.socket(kind, socket.SOCK_DGRAM) as sender,
    ):
        sender.bind((bound, 0))
        mine = (host, sender.getsockname()[1])
        assert same_user(client.getsockname()[:2], [mine, (host, 1)]) == {mine}


def test_another_user_s_sender_is_not_the_client_s(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_TABLES", tmp_path)
    client, senders = ("127.0.0.1", 0x1111), [("127.0.0.1", port) for port in (1, 2, 3, 4)]
    (tmp_path / "tcp").write_text(
        # A connection in TIME_WAIT has no owner.
        HEAD + row("0100007F:1111", "06", 0) + row("0100007F:1111", "01", 1000)
    )
    (tmp_path / "udp").write_text(
        HEAD
        + row("0100007F:0001", "07", 1000)
        + row("00000000:0002", "07", 1001)
        + row("0100007F:0003", "07", 1000)
        + row("00000000:0003", "07", 1001)
        + row("0200007F:0004", "07", 1000)
    )
    assert same_user(client, senders) == {("127.0.0.1", 1)}


def test_every_sender_may_be_the_client_without_socket_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "_TABLES", tmp_path)
    senders = [("127.0.0.1", 1)]
    assert same_user(("127.0.0.1", 2), senders) == set(senders)
