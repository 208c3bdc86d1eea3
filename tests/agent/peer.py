"""Peers written from the protocol's text: a v0 client, and a session client without a pool."""

from __future__ import annotations

import asyncio
import ipaddress
import secrets
import struct
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

from agent.server import Server
from krelay.mux.connection import ClientTunnelProtocol, MuxConnection
from krelay.wire.handshake import ClientHandshake, Resume, Welcome
from krelay.wire.session import Side
from tests import rig


def header(protocol: int, host: str, port: int, *, version: int = 0) -> bytes:
    """Version 1, length 2, request id 5, protocol 1, port 2, address type 1, address."""
    try:
        kind, address = 0, ipaddress.ip_address(host).packed
    except ValueError:
        kind, address = 1, host.encode()
    total = 12 + len(address)
    return (
        bytes([version])
        + struct.pack(">H", total)
        + b"abcde"
        + bytes([protocol])
        + struct.pack(">H", port)
        + bytes([kind])
        + address
    )


def framed(*datagrams: bytes) -> bytes:
    """Return datagrams, each after its length (2 bytes)."""
    return b"".join(struct.pack(">H", len(data)) + data for data in datagrams)


class LegacyPeer:
    """One v0 connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    async def status(self) -> int:
        """Return the byte that answers the Header, -1 without one."""
        return (await self.reader.read(1) or b"\xff")[0] if not self.reader.at_eof() else -1

    async def datagram(self) -> bytes:
        (size,) = struct.unpack(">H", await self.reader.readexactly(2))
        return await self.reader.readexactly(size)


@asynccontextmanager
async def legacy(server: Server, first: bytes) -> AsyncIterator[LegacyPeer]:
    """Connect to an agent and send `first`."""
    reader, writer = await asyncio.open_connection(*server.address)
    writer.write(first)
    try:
        yield LegacyPeer(reader, writer)
    finally:
        writer.transport.abort()
        with suppress(OSError):
            await writer.wait_closed()


class Client:
    """The client's end of a session, and its present tunnel."""

    def __init__(
        self, connection: MuxConnection, welcome: Welcome, tunnel: ClientTunnelProtocol
    ) -> None:
        self.connection = connection
        self.welcome = welcome
        self.tunnel = tunnel

    @property
    def resume(self) -> Resume:
        return Resume(
            self.welcome.session_id,
            self.welcome.session_key,
            self.connection.session.begin_resume,
        )

    async def cut(self) -> None:
        """Lose the tunnel."""
        self.tunnel.transport.abort()
        await rig.until(lambda: not self.connection.attached)

    def leave(self) -> None:
        """Send GOAWAY."""
        self.connection.close(8)  # type: ignore[arg-type]


async def session(
    server: Server,
    *,
    key: bytes = rig.KEY,
    private: bool = False,
    resume: Resume | None = None,
    connection: MuxConnection | None = None,
) -> Client:
    """Open a tunnel to `server`, for a new session or one to resume.

    Raises:
        WireError: the agent refused.
    """
    connection = connection or MuxConnection(Side.CLIENT, "test")
    nonce = secrets.token_bytes(32)
    tunnel = ClientTunnelProtocol(
        connection, ClientHandshake(key, nonce, resume=resume, private=private)
    )
    await asyncio.get_running_loop().create_connection(lambda: tunnel, *server.address)
    return Client(connection, await tunnel.welcome, tunnel)
