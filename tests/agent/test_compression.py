"""Compression between a real client and a real agent, of this and of earlier versions."""

from __future__ import annotations

import asyncio
import secrets

import pytest

from agent.server import Server
from krelay.mux.connection import ClientTunnelProtocol, MuxConnection
from krelay.wire.compression import Algorithm, compress
from krelay.wire.frames import FrameType, encode_frame
from krelay.wire.handshake import VERSION, AgentHandshake, Ask, ClientHandshake
from krelay.wire.header import TCP
from krelay.wire.session import Session, Side
from tests import rig
from tests.agent.peer import Client, session
from tests.agent.test_targets import ask

TEXT = b'{"name": "krelay", "port": 80}\n' * 600


def compress_now(one: Session) -> None:
    """Compress what this end sends, as on a slow tunnel."""
    compressor = one._send_queue.compressor = one._compressor
    assert compressor is not None
    compressor.active = True


async def joined(server: Server, **options: int) -> Client:
    """Open a session whose handshake has these options."""
    connection = MuxConnection(Side.CLIENT, "test")
    handshake = ClientHandshake(rig.KEY, secrets.token_bytes(32), **options)  # type: ignore[arg-type]
    tunnel = ClientTunnelProtocol(connection, handshake)
    await asyncio.get_running_loop().create_connection(lambda: tunnel, *server.address)
    return Client(connection, await tunnel.welcome, tunnel)


def kept(server: Server) -> Session:
    (one,) = server.sessions._kept.values()
    return one.mux.session


async def test_bytes_cross_compressed_in_both_directions_and_over_a_lost_tunnel() -> None:
    async with rig.agent() as server, rig.tcp_target(rig.echo) as port:
        client = await session(server)
        stream, seen = ask(client, TCP, port)
        ours, theirs = client.connection.session, kept(server)
        for number in (1, 2, 3):
            compress_now(ours)
            compress_now(theirs)
            stream.write(TEXT)
            await rig.until(lambda n=number: len(seen.data) == n * len(TEXT))
            await client.cut()
            client = await session(server, resume=client.resume, connection=client.connection)
        assert seen.data == TEXT * 3
        assert ours.compression_input == theirs.compression_input > 3 * len(TEXT)
        assert ours.compression_output < ours.compression_input / 10
        client.leave()


@pytest.mark.parametrize("highest", range(1, VERSION + 1))
async def test_a_client_of_any_version_is_served(highest: int) -> None:
    async with rig.agent() as server, rig.tcp_target(rig.echo) as port:
        client = await joined(server, highest=highest)
        assert client.connection.session.version == highest
        assert (kept(server)._compressor is not None) == (highest >= 3)
        assert (client.connection.session._compressor is not None) == (highest >= 3)
        stream, seen = ask(client, TCP, port)
        stream.write(TEXT)
        await rig.until(lambda: seen.data == TEXT)
        client.leave()


@pytest.mark.parametrize("highest", range(1, VERSION + 1))
async def test_an_agent_of_any_version_serves_this_client(
    highest: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Older(AgentHandshake):
        def __init__(self, nonce: bytes, ask: Ask) -> None:
            super().__init__(nonce, ask, highest)

    monkeypatch.setattr("agent.sessions.AgentHandshake", Older)
    async with rig.agent() as server, rig.tcp_target(rig.echo) as port:
        client = await session(server)
        assert client.connection.session.version == highest
        assert (client.connection.session._compressor is not None) == (highest >= 3)
        stream, seen = ask(client, TCP, port)
        stream.write(TEXT)
        await rig.until(lambda: seen.data == TEXT)
        client.leave()


async def test_a_client_that_wants_no_compression_gets_none() -> None:
    async with rig.agent() as server:
        client = await joined(server, compress=False)
        assert client.connection.session._compressor is None
        assert kept(server)._compressor is None
        client.leave()


@pytest.mark.parametrize(
    ("payload", "agreed"),
    [
        (b"\xff" * 30, True),
        (compress(Algorithm.DEFLATE, [bytes(100 << 20)])[:65_536], True),
        (compress(Algorithm.DEFLATE, [TEXT[:1_000]]), False),
    ],
    ids=["garbage", "bomb", "not agreed on"],
)
async def test_a_hostile_frame_ends_its_session_and_no_other(payload: bytes, agreed: bool) -> None:
    async with rig.agent() as server, rig.tcp_target(rig.echo) as port:
        bystander = await session(server)
        client = await joined(server, compress=agreed)
        ask(client, TCP, port)
        await rig.until(lambda: len(server.sessions) == 2 and not client.connection.session.queued)
        frame = encode_frame(FrameType.COMPRESSED, 1, payload)
        client.connection._flush()
        client.tunnel.transport.write(frame)
        await rig.until(lambda: len(server.sessions) == 1)
        stream, seen = ask(bystander, TCP, port)
        stream.write(TEXT)
        await rig.until(lambda: seen.data == TEXT)
        bystander.leave()
