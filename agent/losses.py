"""Losses: how many datagrams of one session this agent has lost, by where it lost them."""

from __future__ import annotations

import socket

from krelay.mux.sockets import ReceiveDrops


class Losses:
    """`early`: waited for a target that was being found; `send`: the kernel took none at the
    target's socket; `backlog`: too much waited for the tunnel, or there was none."""

    def __init__(self) -> None:
        self.early = 0
        self.send = 0
        self.backlog = 0
        self._received = 0
        self._live: set[ReceiveDrops] = set()

    @property
    def receive(self) -> int:
        """Datagrams that the kernel dropped at the targets' sockets."""
        return self._received + sum(drops.count for drops in self._live)

    def watch(self, sock: socket.socket) -> ReceiveDrops:
        """Count what the kernel drops at `sock`, until `leave`."""
        drops = ReceiveDrops(sock)
        self._live.add(drops)
        return drops

    def leave(self, drops: ReceiveDrops) -> None:
        """Its socket is about to be closed."""
        if drops in self._live:
            self._live.discard(drops)
            self._received += drops.close()
