"""The door: an upgrade, then a session by HMAC; strangers cost little and cannot get in."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from agent.door import Door
from agent.server import Server
from krelay.mux.connection import ClientTunnelProtocol, MuxConnection
from krelay.wire.handshake import OPENING, ClientHandshake, Resume
from krelay.wire.session import Side
from tests import rig
from tests.agent import peer
from tests.agent.test_targets import ask

REQUEST = (
    b"GET / HTTP/1.1\r\nHost: 10.244.0.7:10250\r\nUser-Agent: Go-http-client/1.1\r\n"
    b"Connection: Upgrade\r\nUpgrade: krelay\r\nX-Forwarded-For: 10.99.0.1\r\n\r\n"
)
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: krelay\r\n\r\n"


@asynccontextmanager
async def agent(**settings: Any) -> AsyncIterator[tuple[Server, Door]]:
    """An agent with a door on loopback."""
    async with rig.agent(**{"pod_ip": rig.HOST, "door_port": 0, **settings}) as server:
        assert server.door is not None
        yield server, server.door


@asynccontextmanager
async def knock(
    door: Door, first: bytes
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """Connect to the door and send `first`."""
    reader, writer = await asyncio.open_connection(*door.address)
    writer.write(first)
    try:
        yield reader, writer
    finally:
        writer.transport.abort()
        with suppress(OSError):
            await writer.wait_closed()


class Upgraded(ClientTunnelProtocol):
    """The client's end of a tunnel through the door."""

    def __init__(self, target: MuxConnection, handshake: ClientHandshake) -> None:
        super().__init__(target, handshake)
        self._head = b""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(REQUEST)
        super().connection_made(transport)

    def data_received(self, data: bytes) -> None:
        missing = len(SWITCHED) - len(self._head)
        self._head += data[:missing]
        if self._head != SWITCHED[: len(self._head)]:
            self.welcome.set_exception(ConnectionError(self._head.decode()))
            self.transport.abort()
        elif data := data[missing:]:
            super().data_received(data)


async def enter(
    door: Door,
    *,
    key: bytes = rig.KEY,
    resume: Resume | None = None,
    connection: MuxConnection | None = None,
) -> peer.Client:
    """Open a tunnel through the door, for a new session or one to resume."""
    connection = connection or MuxConnection(Side.CLIENT, "test")
    handshake = ClientHandshake(key, secrets.token_bytes(32), resume=resume)
    tunnel = Upgraded(connection, handshake)
    await asyncio.get_running_loop().create_connection(lambda: tunnel, *door.address)
    return peer.Client(connection, await tunnel.welcome, tunnel)


async def test_a_session_opens_through_the_door() -> None:
    async with agent() as (server, door), rig.tcp_target(rig.echo) as target:
        client = await enter(door)
        stream, seen = ask(client, 0, target)
        await rig.until(lambda: seen.told)
        stream.write(b"hello")
        await rig.until(lambda: seen.data == b"hello")
        assert len(server.sessions) == 1
        client.leave()


async def test_bytes_that_follow_the_request_are_the_first_of_the_tunnel() -> None:
    async with agent() as (_, door):
        async with knock(door, REQUEST + OPENING) as (reader, _writer):
            assert await reader.readexactly(len(SWITCHED)) == SWITCHED
            assert await reader.readexactly(1) == b"\x01"
