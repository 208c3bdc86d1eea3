"""A connection begins with a Header; any other beginning closes it. Refusals are logged."""

from __future__ import annotations

import asyncio
import logging

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from agent import pending
from agent import server as module
from agent.pending import RefusalLog
from krelay.wire.errors import ErrorCode
from krelay.wire.frames import FrameDecoder, encode_frame
from krelay.wire.handshake import OPENING, ClientHandshake
from tests import rig
from tests.agent.peer import header, legacy, session

GARBAGE = [
    b"GET / HTTP/1.1\r\nHost: agent\r\n\r\n",
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"\xff" * 64,
    bytes(64),
    b"\0\xff\xff" + bytes(70_000),
    b"\0\0\x0d" + b"abcde" + b"\0\0\x50\1\xff",
    b"\0\0\x0d" + b"abcde" + b"\0\0\x50\1\n",
    b"\0\0\x0e" + b"abcde" + b"\0\0\x50\0ab",
]


@pytest.mark.parametrize("first", GARBAGE, ids=lambda first: repr(first[:12]))
async def test_garbage_is_closed_without_an_answer(first: bytes) -> None:
    async with rig.agent(key=None) as server:
        async with legacy(server, first) as peer:
            try:
                assert await peer.reader.read() == b""
            except ConnectionResetError:
                """Closed with bytes unread."""
        await rig.until(lambda: not server._connections)


@pytest.mark.parametrize("first", [b"", b"\0", b"\0\0\x0d", OPENING[:-1], OPENING])
async def test_a_silent_connection_is_closed(first: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DEADLINE", 0.05)
    async with rig.agent() as server:
        async with legacy(server, first) as peer:
            said = await peer.reader.read()
            assert said.startswith(b"\1") == (first == OPENING)
        await rig.until(lambda: not server._connections)


async def test_a_session_has_no_deadline() -> None:
    async with rig.agent() as server:
        client = await session(server)
        (connection,) = server._connections
        assert connection._deadline is None
        client.leave()


async def test_a_legacy_connection_has_no_deadline() -> None:
    async with rig.agent(key=None) as server, rig.tcp_target(rig.echo) as target:
        async with legacy(server, b"") as peer:
            await rig.until(lambda: server._connections)
            (connection,) = server._connections
            deadline = connection._deadline
            assert deadline is not None
            peer.writer.write(header(0, rig.HOST, target))
            assert await peer.status() == 1
            assert deadline.cancelled()


@pytest.mark.parametrize("protocol", [0, 1, 3])
async def test_legacy_mode_is_refused_by_an_agent_with_a_key(protocol: int) -> None:
    async with rig.agent() as server, rig.tcp_target(rig.echo) as target:
        async with legacy(server, header(protocol, rig.HOST, target)) as peer:
            assert await peer.reader.read() == b"\2"


async def test_a_heartbeat_needs_no_key() -> None:
    async with rig.agent() as server:
        async with legacy(server, header(2, rig.HOST, 0)) as peer:
            assert await peer.reader.read() == b""


async def test_a_wrong_auth_gets_a_reason() -> None:
    async with rig.agent() as server:
        async with legacy(server, OPENING + encode_frame(33, 0, b"\1\x09" + bytes(200))) as peer:
            said = await peer.reader.read()
    assert said[0] == 1
    hello, no = FrameDecoder().feed(said[1:])
    assert (hello[0], no[0]) == (32, 20)
    assert no[2][0] == ErrorCode.PROTOCOL


async def test_bytes_after_auth_belong_to_the_session() -> None:
    """A client that knows its welcome will come may send frames right behind its claim."""
    async with rig.agent() as server:
        client = await session(server)
        await client.cut()
        handshake = ClientHandshake(rig.KEY, bytes(32), resume=client.resume)
        reader, writer = await asyncio.open_connection(*server.address)
        writer.write(handshake.data_to_send())
        assert handshake.receive_data(await reader.readexactly(1 + 8 + 35)) is None
        writer.write(handshake.data_to_send() + encode_frame(18, 0, bytes(8)))
        welcome = None
        while welcome is None:
            welcome = handshake.receive_data(await reader.readexactly(1))
        assert await reader.readexactly(16) == encode_frame(19, 0, bytes(8))
        writer.close()
        await writer.wait_closed()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.lists(st.binary(min_size=1, max_size=40), min_size=1, max_size=6), st.booleans())
def test_any_bytes_leave_the_agent_serving(pieces: list[bytes], opening: bool) -> None:
    async def run() -> None:
        async with rig.agent(port=0) as server:
            async with legacy(server, OPENING if opening else b"") as peer:
                for piece in pieces:
                    peer.writer.write(piece)
                    await asyncio.sleep(0)
            client = await session(server)
            client.leave()

    asyncio.run(run())


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if "refused" in r.getMessage()]


async def test_the_first_refusal_is_logged_at_once_and_others_are_counted(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, "krelay.agent")
    async with rig.agent() as server:
        for _ in range(20):
            async with legacy(server, b"\xff" * 64) as peer:
                try:
                    await peer.reader.read()
                except ConnectionResetError:
                    """Closed with bytes unread."""
        assert len(said(caplog)) == 1
    lines = said(caplog)
    assert len(lines) == 2
    assert lines[1].startswith("refused 19 more; the last one: ")


async def test_refusals_are_counted_at_intervals_until_they_stop(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pending, "REFUSALS_EVERY", 0.01)
    caplog.set_level(logging.INFO, "krelay.agent")
    refusals = RefusalLog()
    for why in ("one", "two", "three"):
        refusals.add(why)
    assert said(caplog) == ["refused: one"]
    await rig.until(lambda: refusals._timer is None)
    assert said(caplog) == ["refused: one", "refused 2 more; the last one: three"]
    refusals.add("four")
    assert said(caplog)[2:] == ["refused: four"]
    refusals.close()
    assert len(said(caplog)) == 3
