"""A v0 agent written from the protocol's text alone (protocol.md, section 3.1), as the Go
krelay's: one connection, one Header, one status byte, then bytes or datagrams."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from tests import rig


class V0Agent:
    """Serves; keeps every Header that it was sent, and counts what it carries."""

    def __init__(self) -> None:
        self.headers: list[bytes] = []
        self.heartbeats = 0
        self.live = 0
        self.status = 0
        """What it answers to whatever comes, if it is not 0."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            start = await reader.readexactly(3)
            rest = await reader.readexactly(int.from_bytes(start[1:], "big") - 3)
            self.headers.append(start + rest)
            protocol, kind = rest[5], rest[8]
            port = int.from_bytes(rest[6:8], "big")
            host = rest[9:].decode() if kind else str(ipaddress.ip_address(rest[9:]))
            if protocol == 2:
                self.heartbeats += 1
            elif protocol > 2:
                writer.write(b"\x06")
            elif self.status:
                writer.write(bytes([self.status]))
            elif protocol == 0:
                await self._tcp(reader, writer, host, port)
            else:
                await self._udp(reader, writer, host, port)

    async def _tcp(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, port: int
    ) -> None:
        try:
            far_reader, far = await asyncio.open_connection(host, port)
        except socket.gaierror:
            writer.write(b"\x03")
            return
        except OSError:
            writer.write(b"\x02")
            return
        writer.write(b"\x01")
        self.live += 1
        try:
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(copy(reader, far))
                tasks.create_task(copy(far_reader, writer))
        finally:
            self.live -= 1
            far.transport.abort()

    async def _udp(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, host: str, port: int
    ) -> None:
        writer.write(b"\x01")
        async with rig.udp_socket() as sock:
            sock.connect((host, port))

            async def back() -> None:
                while True:
                    data = await rig.recv(sock)
                    writer.write(len(data).to_bytes(2, "big") + data)

            async with asyncio.TaskGroup() as tasks:
                answering = tasks.create_task(back())
                with suppress(asyncio.IncompleteReadError, ConnectionError):
                    while True:
                        size = int.from_bytes(await reader.readexactly(2), "big")
                        sock.send(await reader.readexactly(size))
                answering.cancel()


async def copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """All of it, and its end."""
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.write_eof()


@asynccontextmanager
async def v0_agent() -> AsyncIterator[tuple[V0Agent, int]]:
    """An agent, and the port that it listens on."""
    agent = V0Agent()
    async with rig.tcp_target(agent.serve) as port:
        yield agent, port
