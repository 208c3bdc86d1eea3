"""What the mux meets elsewhere, played here."""

from __future__ import annotations

import errno
import socket
import sys
from asyncio import trsock
from typing import Any

import pytest

# TIME_WAIT, CLOSE, LAST_ACK, CLOSING: both directions are shut (include/net/tcp_states.h).
_SHUT_BOTH_WAYS = (6, 7, 9, 11)


@pytest.fixture
def macos(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sockets as on macOS, which sets no option of one that is shut both ways (`sosetoptlock`)."""
    if sys.platform != "linux":
        return
    real = trsock.TransportSocket.setsockopt

    def setsockopt(self: trsock.TransportSocket, *args: Any) -> None:
        state = self.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
        if state in _SHUT_BOTH_WAYS:
            raise OSError(errno.EINVAL, "Invalid argument")
        real(self, *args)

    monkeypatch.setattr(trsock.TransportSocket, "setsockopt", setsockopt)
