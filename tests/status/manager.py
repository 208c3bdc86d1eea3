"""The end of sd_notify(3) that a service manager has: a datagram socket, and what came."""

from __future__ import annotations

import asyncio
import socket


class Manager:
    """`address` is what NOTIFY_SOCKET says: a path, or `@` and a name."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self.sock.bind("\0" + address[1:] if address.startswith("@") else address)
        self.sock.setblocking(False)

    def read(self) -> list[str]:
        """The lines of a datagram that has come."""
        return self.sock.recv(4096).decode().split("\n")

    async def next(self) -> list[str]:
        """The lines of the next datagram, but for signs of life."""
        while True:
            data = await asyncio.get_running_loop().sock_recv(self.sock, 4096)
            if data != b"WATCHDOG=1":
                return data.decode().split("\n")

    async def alive(self) -> None:
        """Wait for a sign of life."""
        while await asyncio.get_running_loop().sock_recv(self.sock, 4096) != b"WATCHDOG=1":
            pass
