"""The kernel's own count of what it dropped at a socket."""

from __future__ import annotations

import socket
import sys

import pytest

from krelay.mux.sockets import ReceiveDrops
from tests import rig


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
def test_each_datagram_that_did_not_fit_is_counted() -> None:
    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        sock.setblocking(False)
        sock.bind((rig.HOST, 0))
        drops = ReceiveDrops(sock)
        assert drops.count == 0
        for _ in range(100):
            sender.sendto(bytes(500), sock.getsockname())
        came = 0
        while True:
            try:
                sock.recv(500)
            except BlockingIOError:
                break
            came += 1
        assert 0 < came < 100
        assert drops.count == 100 - came
        assert drops.close() == 100 - came
    assert drops.count == 100 - came


def test_a_socket_that_tells_nothing_has_lost_nothing() -> None:
    sock = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    drops = ReceiveDrops(sock)
    sock.close()
    assert drops.count == 0
