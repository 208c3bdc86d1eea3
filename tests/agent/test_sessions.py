"""Who may have a session, which one, and for how long."""

from __future__ import annotations

import asyncio
import dataclasses
from contextlib import suppress

import pytest

from agent.memory import FIRST_STREAMS
from agent.server import Server
from krelay.wire.errors import ErrorCode, HandshakeError
from krelay.wire.handshake import key_digest
from tests import rig
from tests.agent.peer import Client, session
from tests.agent.test_targets import Seen, ask


async def refused(server: Server, **kwargs: object) -> HandshakeError:
    with pytest.raises(HandshakeError) as caught:
        await session(server, **kwargs)  # type: ignore[arg-type]
    return caught.value


async def test_the_right_key_opens_a_session_and_goaway_ends_it() -> None:
    async with rig.agent() as server:
        client = await session(server)
        assert len(server.sessions) == 1
        client.leave()
        await rig.until(lambda: len(server.sessions) == 0)


async def test_an_agent_without_a_key_accepts_any_client() -> None:
    async with rig.agent(key=None) as server:
        client = await session(server, key=b"")
        other = await session(server, key=b"")
        assert len(server.sessions) == 2
        client.leave()
        other.leave()


@pytest.mark.parametrize("key", [bytes(32), b"", rig.KEY[:-1]])
async def test_a_wrong_key_is_denied(key: bytes) -> None:
    async with rig.agent() as server:
        error = await refused(server, key=key)
        assert (error.code, str(error)) == (ErrorCode.DENIED, "wrong key")
        assert len(server.sessions) == 0


# -- keys that the agent learns ----------------------------------------------------------------


async def test_an_agent_that_knows_a_digest_learns_the_key_from_the_first_client() -> None:
    async with rig.agent(key=None, key_sha256=key_digest(rig.KEY)) as server:
        for wrong in (bytes(32), b""):
            error = await refused(server, key=wrong, private=True)
            assert (error.code, str(error)) == (ErrorCode.DENIED, "wrong key")
        clients = [await session(server, private=True)]
        # It has learnt the key, so that no later client has to show it.
        clients.append(await session(server))
        assert (await refused(server, key=bytes(32))).code == ErrorCode.DENIED
        for client in clients:
            client.leave()


async def test_a_key_is_not_shown_on_an_unencrypted_connection() -> None:
    async with rig.agent(key=None, key_sha256=key_digest(rig.KEY)) as server:
        assert "without TLS" in str(await refused(server))
        assert len(server.sessions) == 0


# -- carrying on -------------------------------------------------------------------------------


async def test_a_session_resumes_with_its_streams() -> None:
    async with rig.agent() as server, rig.tcp_target(rig.echo) as port:
        client = await session(server)
        stream, seen = ask(client, 0, port)
        stream.write(b"before ")
        await rig.until(lambda: seen.data == b"before ")
        await client.cut()
        stream.write(b"during ")
        again = await session(server, resume=client.resume, connection=client.connection)
        stream.write(b"after")
        await rig.until(lambda: seen.data == b"before during after")
        assert len(server.sessions) == 1
        assert again.welcome.session_id == client.welcome.session_id
        again.leave()


async def test_a_session_moves_while_its_tunnel_still_works() -> None:
    async with rig.agent() as server, rig.tcp_target(rig.echo) as port:
        client = await session(server)
        stream, seen = ask(client, 0, port)
        stream.write(b"one ")
        await rig.until(lambda: seen.data == b"one ")
        moved = await session(server, resume=client.resume, connection=client.connection)
        stream.write(b"two")
        await rig.until(lambda: seen.data == b"one two")
        await rig.until(lambda: client.tunnel.transport.is_closing())
        assert len(server.sessions) == 1
        moved.leave()


async def test_an_unknown_session_and_a_wrong_key_get_the_same_answer() -> None:
    async with rig.agent() as server:
        client = await session(server)
        answers = [
            await refused(server, resume=dataclasses.replace(client.resume, session_id=bytes(16))),
            await refused(server, resume=dataclasses.replace(client.resume, session_key=bytes(32))),
        ]
        assert {(error.code, str(error)) for error in answers} == {
            (ErrorCode.UNKNOWN_SESSION, "no such session")
        }
        assert client.connection.attached
        client.leave()


async def test_the_run_s_key_does_not_resume_a_session() -> None:
    async with rig.agent() as server:
        client = await session(server)
        error = await refused(
            server, resume=dataclasses.replace(client.resume, session_key=rig.KEY)
        )
        assert error.code == ErrorCode.UNKNOWN_SESSION
        client.leave()


async def test_a_session_that_cannot_resume_ends() -> None:
    async with rig.agent() as server, rig.tcp_target(rig.hold) as port:
        client = await session(server)
        _, seen = ask(client, 0, port)
        await rig.until(lambda: seen.told)
        impossible = dataclasses.replace(client.resume, received=lambda: 1_000_000)
        assert (await refused(server, resume=impossible)).code == ErrorCode.UNKNOWN_SESSION
        assert len(server.sessions) == 0
        assert (await refused(server, resume=client.resume)).code == ErrorCode.UNKNOWN_SESSION
        await rig.until(lambda: not client.connection.attached)
        client.leave()


@pytest.mark.parametrize("carried", [True, False])
async def test_a_delayed_auth_leaves_the_session_alone(carried: bool) -> None:
    async with rig.agent(grace=3600.0) as server, rig.tcp_target(rig.echo) as port:
        client = await session(server)
        stream, seen = ask(client, 0, port)
        stream.write(b"before ")
        await rig.until(lambda: seen.data == b"before ")
        (kept,) = server.sessions._kept.values()
        await rig.until(lambda: kept.mux.session.acknowledged)
        if not carried:
            await client.cut()
            await rig.until(lambda: kept.grace)
        late = dataclasses.replace(client.resume, received=lambda: 0)
        assert (await refused(server, resume=late)).code == ErrorCode.UNKNOWN_SESSION
        assert (kept.mux.attached, kept.grace is None) == (carried, carried)
        if not carried:
            await session(server, resume=client.resume, connection=client.connection)
        stream.write(b"after")
        await rig.until(lambda: seen.data == b"before after")
        client.leave()


# -- grace and limits --------------------------------------------------------------------------


async def test_without_a_tunnel_a_session_ends_after_its_grace() -> None:
    gone = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            await reader.read()
        except ConnectionResetError:
            gone.set()

    async with rig.agent(grace=0.05) as server, rig.tcp_target(serve) as port:
        client = await session(server)
        _, seen = ask(client, 0, port)
        await rig.until(lambda: seen.told)
        await client.cut()
        await rig.until(lambda: len(server.sessions) == 0)
        await gone.wait()
        assert (await refused(server, resume=client.resume)).code == ErrorCode.UNKNOWN_SESSION


async def test_a_tunnel_that_comes_back_ends_the_grace() -> None:
    async with rig.agent(grace=3600.0) as server:
        client = await session(server)
        (kept,) = server.sessions._kept.values()
        assert kept.grace is None
        await client.cut()
        await rig.until(lambda: kept.grace)
        grace = kept.grace
        assert grace is not None
        again = await session(server, resume=client.resume, connection=client.connection)
        assert kept.grace is None
        assert grace.cancelled()
        again.leave()


async def test_a_session_in_its_grace_ends_with_the_agent() -> None:
    async with rig.agent(grace=3600.0) as server:
        client = await session(server)
        await client.cut()
        (kept,) = server.sessions._kept.values()
        await rig.until(lambda: kept.grace)
    assert kept.grace is not None
    assert kept.grace.cancelled()
    assert kept.mux.closed


async def test_sessions_are_limited(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.sessions.MAX_SESSIONS", 2)
    async with rig.agent() as server:
        clients = [await session(server) for _ in range(2)]
        error = await refused(server)
        assert (error.code, str(error)) == (ErrorCode.LIMIT, "2 sessions are open")
        clients.pop().leave()
        await rig.until(lambda: len(server.sessions) == 1)
        clients.append(await session(server))
        for client in clients:
            client.leave()


async def test_every_accepted_session_has_its_first_streams() -> None:
    async with rig.agent(memory=1) as server, rig.tcp_target(rig.echo) as port:
        clients: list[Client] = []
        with suppress(HandshakeError):
            while True:
                clients.append(await session(server))
        assert 4 < len(clients) < 10
        for client in clients:
            for _ in range(FIRST_STREAMS):
                await echoed(client, port)
            _, seen = ask(client, 0, port)
            await rig.until(lambda seen=seen: seen.told)
            assert seen.told == [ErrorCode.LIMIT]
        for client in clients:
            client.leave()
        await rig.until(lambda: server.budget.left == server.budget.size)


async def test_one_client_s_streams_leave_room_for_the_next_session() -> None:
    async with rig.agent(memory=1) as server, rig.tcp_target(rig.echo) as port:
        greedy = [await session(server) for _ in range(3)]
        for client in greedy:
            told = [ask(client, 0, port)[1] for _ in range(500)]
            await rig.until(lambda told=told: all(seen.told for seen in told))
            assert any(ErrorCode.LIMIT in seen.told for seen in told)
        modest = await session(server)
        for _ in range(FIRST_STREAMS):
            await echoed(modest, port)
        for client in [*greedy, modest]:
            client.leave()


async def test_garbage_in_a_session_ends_only_that_session() -> None:
    async with rig.agent() as server, rig.tcp_target(rig.echo) as port:
        bad, good = await session(server), await session(server)
        bad.tunnel.transport.write(b"\xff" * 100)
        await rig.until(lambda: len(server.sessions) == 1)
        seen = await echoed(good, port)
        assert seen.data == b"x"
        good.leave()


async def echoed(client: Client, port: int) -> Seen:
    """One byte there and back."""
    stream, seen = ask(client, 0, port)
    stream.write(b"x")
    await rig.until(lambda: seen.data)
    return seen
