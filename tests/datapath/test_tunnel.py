"""Tunnels that break, agents that vanish, and what becomes of the streams."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from krelay.datapath import tunnel as module
from krelay.datapath.agent_link import AgentHealth
from krelay.datapath.pool import Pool
from krelay.errors import NotListeningError, PodGoneError, TunnelError, TunnelRefusedError
from krelay.model import SessionConfig
from krelay.retry import Backoff
from krelay.wire.frames import encode_frame
from tests import rig


@asynccontextmanager
async def reaching(
    server: object, *, key: bytes = rig.KEY, up: bool = True
) -> AsyncIterator[tuple[Pool, rig.AgentLink]]:
    """A pool of one tunnel to `server`."""
    link = rig.AgentLink(server)  # type: ignore[arg-type]
    pool = Pool("p", [link], key, size=1)
    async with rig.running(pool, up=up):
        yield pool, link


async def test_a_stream_goes_on_after_cuts_byte_by_byte() -> None:
    async with rig.path() as path, rig.tcp_target(rig.echo) as target:
        port = rig.port_of(await path.tcp(target))
        cuts = 0

        def cut() -> None:
            nonlocal cuts
            cuts += 1
            path.link.cut()

        await rig.echoed(port, 4 << 20, cut)
        assert cuts == 3
        assert path.link.dials == 1 + cuts
        assert len(path.server.sessions) == 1


async def test_a_cut_while_nothing_flows_loses_no_end() -> None:
    async with rig.path() as path, rig.tcp_target(rig.echo) as target:
        port = rig.port_of(await path.tcp(target))
        async with rig.connect(port) as (reader, writer):
            writer.write(b"a")
            assert await reader.readexactly(1) == b"a"
            path.link.cut(blocked=True)
            await rig.until(lambda: path.pool.pick() is None)
            writer.write(b"b")
            writer.write_eof()
            path.link.blocked = False
            assert await reader.read() == b"b"
        await rig.until(lambda: path.streams == (0, 0))


async def test_a_client_that_resets_during_a_cut_ends_its_stream_afterwards() -> None:
    async with rig.path() as path, rig.tcp_target(rig.hold) as target:
        port = rig.port_of(await path.tcp(target))
        async with rig.connect(port) as (_, writer):
            await rig.until(lambda: path.streams == (1, 1))
            path.link.cut(blocked=True)
            await rig.until(lambda: path.pool.pick() is None)
            rig.rst(writer)
        path.link.blocked = False
        await rig.until(lambda: path.streams == (0, 0))


async def test_another_agent_means_another_session_and_resets(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with rig.path() as path, rig.tcp_target(rig.echo) as target:
        port = rig.port_of(await path.tcp(target))
        async with rig.agent() as another, rig.connect(port) as (reader, writer):
            writer.write(b"a")
            assert await reader.readexactly(1) == b"a"
            path.link.server = another
            path.link.cut()
            with pytest.raises(ConnectionResetError):
                await reader.read()
            await rig.until(lambda: path.pool.pick() is not None)
            assert len(another.sessions) == 1
            assert await rig.exchange(port, b"on") == b"on"
            path.link.server = path.server
            path.link.cut()
            await rig.until(lambda: len(path.server.sessions) == 2)
    assert "p" in caplog.text
    assert "session lost, 1 streams are reset: the agent does not know the session" in caplog.text


async def test_a_pod_that_is_gone_ends_the_session_at_once() -> None:
    async with rig.path() as path, rig.tcp_target(rig.hold) as target:
        port = rig.port_of(await path.tcp(target))
        real = path.link.dial

        async def gone(protocol: asyncio.Protocol) -> asyncio.Transport:
            path.link.dial = real  # type: ignore[method-assign]
            raise PodGoneError("the pod is gone")

        async with rig.connect(port) as (reader, _):
            await rig.until(lambda: path.streams == (1, 1))
            path.link.dial = gone  # type: ignore[method-assign]
            path.link.cut()
            with pytest.raises(ConnectionResetError):
                await reader.read()
        await rig.until(lambda: path.pool.pick() is not None)


async def test_a_session_without_a_tunnel_for_too_long_is_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = SessionConfig(resume_timeout=0.05)
    async with rig.path(config=config) as path, rig.tcp_target(rig.hold) as target:
        port = rig.port_of(await path.tcp(target))
        async with rig.connect(port) as (reader, _):
            await rig.until(lambda: path.streams == (1, 1))
            path.link.cut(blocked=True)
            with pytest.raises(ConnectionResetError):
                await reader.read()
            path.link.blocked = False
            await rig.until(lambda: path.pool.pick() is not None)
            assert len(path.server.sessions) == 2
            # The agent was not there to be reached: another may be better.
            assert set(path.link.abandoned) == {"no tunnel for 0.05 s (tunnel.resumeTimeout)"}
    assert "1 streams are reset: no tunnel for 0.05 s (tunnel.resumeTimeout)" in caplog.text


async def test_a_wrong_key_is_refused_for_good() -> None:
    async with rig.agent() as server, reaching(server, key=bytes(32), up=False) as (pool, _):
        await pool.wait_change()
        assert isinstance(pool.failure, TunnelRefusedError)
        assert str(pool.failure) == "the agent refused the tunnel: wrong key"
        assert len(server.sessions) == 0


async def test_an_agent_that_does_not_know_the_key_is_refused() -> None:
    async def lie(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        hello = bytes([1, 1]) + bytes(32)
        writer.write(b"\1" + encode_frame(32, 0, hello) + encode_frame(34, 0, bytes(60)))
        await reader.read()

    async with rig.tcp_target(lie) as port, reaching(Fake(port), up=False) as (pool, _):
        await pool.wait_change()
        assert isinstance(pool.failure, TunnelRefusedError)
        assert "the agent does not know the key" in str(pool.failure)


async def test_an_unknown_status_in_the_handshake_is_a_refusal() -> None:
    async def plain(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(b"\2")

    async with rig.tcp_target(plain) as port, reaching(Fake(port), up=False) as (pool, _):
        await pool.wait_change()
        assert isinstance(pool.failure, TunnelRefusedError)
        assert "does not support sessions" in str(pool.failure)


class Fake:
    """What a `AgentLink` needs of an agent."""

    def __init__(self, port: int) -> None:
        self.address = (rig.HOST, port)


async def test_an_end_during_the_handshake_is_retried() -> None:
    async def slam(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)

    async with rig.tcp_target(slam) as port, reaching(Fake(port), up=False) as (pool, link):
        await pool.wait_change()
        assert pool.failure is not None
        assert not isinstance(pool.failure, TunnelRefusedError)
        await rig.until(lambda: link.dials > 2)


async def test_silence_during_the_handshake_is_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("krelay.datapath.carrier._HANDSHAKE_TIMEOUT", 0.05)
    async with rig.tcp_target(rig.hold) as port, reaching(Fake(port), up=False) as (pool, link):
        await pool.wait_change()
        assert str(pool.failure) == "no answer from the agent within 0.05 s"
        await rig.until(lambda: link.transports[0].is_closing())


async def test_an_agent_that_is_full_is_tried_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("agent.sessions.MAX_SESSIONS", 0)
    async with rig.agent() as server, reaching(server, up=False) as (pool, _):
        await pool.wait_change()
        assert type(pool.failure) is TunnelError
        assert "0 sessions are open" in str(pool.failure)
        monkeypatch.setattr("agent.sessions.MAX_SESSIONS", 1)
        await rig.until(pool.pick)


async def test_a_protocol_error_replaces_the_session(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with rig.path() as path, rig.tcp_target(rig.hold) as target:
        port = rig.port_of(await path.tcp(target))
        (kept,) = path.server.sessions._kept.values()
        async with rig.connect(port) as (reader, _):
            await rig.until(lambda: path.streams == (1, 1))
            transport = kept.mux._transport
            assert transport is not None
            transport.write(encode_frame(99, 0))
            with pytest.raises(ConnectionResetError):
                await reader.read()
        await rig.until(lambda: path.pool.pick() is not None)
        await rig.until(lambda: path.streams == (0, 0))
    assert "protocol error" in caplog.text


async def test_a_session_that_cannot_be_carried_on_is_replaced() -> None:
    async with rig.path() as path, rig.tcp_target(rig.hold) as target:
        port = rig.port_of(await path.tcp(target))
        async with rig.connect(port) as (reader, _):
            await rig.until(lambda: path.streams == (1, 1))
            connection = rig.connection(path.pool)
            connection.session._receive_counter.count += 1000
            path.link.cut()
            with pytest.raises(ConnectionResetError):
                await reader.read()
        await rig.until(lambda: path.pool.pick() is not None)
        await rig.until(lambda: path.streams == (0, 0))
        assert len(path.server.sessions) == 1


async def test_an_agent_that_has_lost_what_we_have_sent_is_a_new_session(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with rig.path() as path, rig.tcp_target(rig.hold) as target:
        port = rig.port_of(await path.tcp(target))
        async with rig.connect(port) as (reader, _):
            await rig.until(lambda: path.streams == (1, 1))
            (kept,) = path.server.sessions._kept.values()
            kept.mux.session._receive_counter.count += 1000
            path.link.cut()
            with pytest.raises(ConnectionResetError):
                await reader.read()
        await rig.until(lambda: path.pool.pick() is not None)
        await rig.until(path.pool.pick)


async def test_tunnels_that_break_at_once_are_dialled_ever_more_slowly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    delays: list[float] = []
    real = Backoff.delay

    def note(backoff: Backoff) -> float:
        delays.append(real(backoff))
        return 0.0

    monkeypatch.setattr(Backoff, "delay", note)
    monkeypatch.setattr("random.uniform", lambda low, high: high)
    async with rig.agent() as server, reaching(server) as (pool, link):
        for count in range(1, 5):
            link.cut()
            await rig.until(lambda count=count: len(delays) == count and pool.pick())
        assert delays == [0, 0.1, 0.2, 0.4]
        monkeypatch.setattr(module, "_STABLE", 0.0)
        link.cut()
        await rig.until(lambda: len(delays) == 5 and pool.pick())
        assert delays[-1] == 0


async def test_a_bug_in_a_transport_is_one_failed_attempt(caplog: pytest.LogCaptureFixture) -> None:
    async with rig.agent() as server:
        link = rig.AgentLink(server)
        real = link.dial

        async def broken(protocol: asyncio.Protocol) -> asyncio.Transport:
            if link.dials:
                return await real(protocol)
            link.dials += 1
            raise ZeroDivisionError("a bug")

        link.dial = broken  # type: ignore[method-assign]
        async with rig.running(Pool("p", [link], rig.KEY, size=1)):
            assert link.dials == 2
    assert "no tunnel: a bug" in caplog.text
    assert "ZeroDivisionError" in caplog.text


async def test_a_repeated_failure_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    async with reaching(None, up=False) as (_, link):
        await rig.until(lambda: link.dials > 2)
    assert caplog.text.count("no tunnel: the way is shut") == 1


async def test_an_agent_that_does_not_listen_yet_is_not_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The pod runs before its agent listens: each start on a slow machine would log a failure."""
    caplog.set_level(logging.INFO)
    async with rig.agent() as server:
        link = rig.AgentLink(server)
        real = link.dial
        tries = 0

        async def early(protocol: asyncio.Protocol) -> asyncio.Transport:
            nonlocal tries
            tries += 1
            if tries < 4:
                raise NotListeningError("nothing listens")
            return await real(protocol)

        link.dial = early  # type: ignore[method-assign]
        async with rig.running(Pool("p", [link], rig.KEY, size=1)) as pool:
            assert pool.pick() is not None
            assert pool.failure is None
        assert tries == 4
    logged = [record.getMessage() for record in caplog.records if record.name == "krelay.tunnel"]
    assert logged == ["pt1: tunnel up by tcp"]


async def test_an_agent_that_says_good_bye_gets_no_more_streams() -> None:
    async with rig.agent() as server:
        link = rig.AgentLink(server)
        async with rig.running(Pool("p", [link], rig.KEY, size=1)) as pool:
            link.blocked = True
            server.stop("test")
            await rig.until(lambda: pool.pick() is None)
            assert "down" in repr(pool.tunnels[0])


async def test_a_bug_in_a_tunnel_costs_a_pause(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(module, "_AFTER_BUG", 0.01)
    async with rig.path() as path, rig.tcp_target(rig.echo) as target:
        listener = await path.tcp(target)
        failures, give_up = [ZeroDivisionError("a bug")] * 3, AgentHealth.disconnected

        def fail(self: AgentHealth, tunnel: object) -> None:
            if failures:
                raise failures.pop()
            give_up(self, tunnel)

        monkeypatch.setattr(AgentHealth, "disconnected", fail)
        monkeypatch.setattr(AgentHealth, "attempt_failed", fail)
        path.link.cut()
        assert await rig.exchange(rig.port_of(listener), b"on") == b"on"
        path.link.cut(blocked=True)
        await rig.until(lambda: not failures)
        path.link.blocked = False
        assert await rig.exchange(rig.port_of(listener), b"on") == b"on"
    assert "pt1: internal error" in caplog.messages


async def test_a_dial_without_a_thread_is_a_failed_attempt(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with rig.path() as path:
        dial, failing = path.link.dial, True

        async def fail(protocol: asyncio.Protocol) -> asyncio.Transport:
            if failing:
                raise RuntimeError("can't start new thread")
            return await dial(protocol)

        monkeypatch.setattr(path.link, "dial", fail)
        path.link.cut()
        await rig.until(lambda: "pt1: no tunnel: can't start new thread" in caplog.messages)
        failing = False
        await rig.until(path.pool.pick)
    assert "Traceback" not in caplog.text
