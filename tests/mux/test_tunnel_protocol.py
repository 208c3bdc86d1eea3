"""The handshake on real sockets: in, or a reason why not."""

from __future__ import annotations

import asyncio
import secrets

import pytest

from krelay.mux.connection import ClientTunnelProtocol, MuxConnection
from krelay.wire.errors import ErrorCode, HandshakeError, WireError
from krelay.wire.handshake import NONCE_SIZE, ClientHandshake, Welcome
from krelay.wire.session import Side
from tests import rig
from tests.mux.pair import TARGET, Ear


async def knock(port: int, key: bytes = rig.KEY) -> tuple[ClientTunnelProtocol, MuxConnection]:
    """A client's tunnel whose handshake has begun."""
    loop = asyncio.get_running_loop()
    connection = MuxConnection(Side.CLIENT, "c")
    tunnel = ClientTunnelProtocol(connection, ClientHandshake(key, secrets.token_bytes(NONCE_SIZE)))
    await loop.create_connection(lambda: tunnel, "127.0.0.1", port)
    return tunnel, connection


async def test_an_accepted_client_opens_streams() -> None:
    async with rig.agent() as server, rig.tcp_target(rig.echo) as port:
        tunnel, connection = await knock(server.address[1])
        welcome = await tunnel.welcome
        assert isinstance(welcome, Welcome)
        assert connection.attached
        ear = Ear()
        header = type(TARGET)(TARGET.protocol, "127.0.0.1", port)
        stream = ear.stream = connection.open(header, ear)
        stream.write(b"hello")
        await ear.until_size(5)
        connection.close(ErrorCode.GOING_AWAY)


async def test_a_wrong_key_is_a_handshake_error() -> None:
    async with rig.agent() as server:
        tunnel, connection = await knock(server.address[1], b"wrong" * 6)
        with pytest.raises(HandshakeError) as caught:
            await tunnel.welcome
        assert caught.value.code is ErrorCode.DENIED
        assert not connection.attached


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"\x06", HandshakeError),
        (b"\x01" + b"\xff" * 40, WireError),
        (b"", ConnectionResetError),
        (b"\x01", ConnectionResetError),
    ],
)
async def test_a_peer_that_is_no_agent_is_an_error(answer: bytes, error: type[Exception]) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(answer)
        await writer.drain()

    async with rig.tcp_target(serve) as port:
        tunnel, connection = await knock(port)
        with pytest.raises(error):
            await tunnel.welcome
        assert not connection.attached
        tunnel.data_received(b"too late")
