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
        self.status = ""

    def read(self) -> list[str]:
        """The lines of a datagram that has come."""
        return self.sock.recv(4096).decode().split("\n")

    async def next(self) -> list[str]:
        """The lines of the next datagram that says more than a status or a sign of life."""
        while True:
            lines = await self._receive()
            if not lines[0].startswith(("STATUS=", "WATCHDOG=")):
                return lines

    async def shows(self, text: str) -> None:
        """Wait until the status is this one, if it is not."""
        while self.status != text:
            await self._receive()

    async def alive(self) -> None:
        """Wait for a sign of life."""
        while await self._receive() != ["WATCHDOG=1"]:
            pass

    async def _receive(self) -> list[str]:
        data = await asyncio.get_running_loop().sock_recv(self.sock, 4096)
        lines = data.decode().split("\n")
        for line in lines:
            if line.startswith("STATUS="):
                self.status = line.removeprefix("STATUS=")
        return lines
