"""Sessions that move while they work, and tunnels that there is reason to doubt."""

from __future__ import annotations

import asyncio
import time

import pytest

from krelay.datapath import carrier
from krelay.datapath import tunnel as module
from krelay.datapath.pool import Pool
from krelay.errors import TunnelError, UnreachableError
from krelay.model import SessionConfig
from krelay.retry import Backoff
from tests import rig


async def test_a_session_moves_under_load_and_loses_nothing(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with rig.path() as path, rig.tcp_target(rig.echo) as target:
        port = rig.port_of(await path.tcp(target))
        (tunnel,) = path.pool.tunnels
        await rig.echoed(port, 16 << 20, lambda: path.pool.network_changed(broken=True))
        await rig.until(lambda: tunnel.up)
        assert tunnel.stats.rotated >= 5
        assert tunnel.stats.connects == 1 + tunnel.stats.rotated == 1 + tunnel.stats.resumed
        assert len(path.server.sessions) == 1
    assert "WARNING" not in caplog.text, caplog.text


async def test_an_old_connection_is_replaced_while_it_works(
    caplog: pytest.LogCaptureFixture,
) -> None:
    config = SessionConfig(max_age=0.05)
    async with rig.path(config=config) as path, rig.tcp_target(rig.echo) as target:
        port = rig.port_of(await path.tcp(target))
        (tunnel,) = path.pool.tunnels
        async with rig.connect(port) as (reader, writer):
            for _ in range(3):
                done = tunnel.stats.rotated
                await rig.until(lambda done=done: tunnel.stats.rotated > done)
                writer.write(b"on")
                assert await reader.readexactly(2) == b"on"
        await rig.until(lambda: sum(not t.is_closing() for t in path.link.transports) <= 2)
    assert "WARNING" not in caplog.text, caplog.text


async def test_a_connection_is_replaced_before_its_credentials_expire() -> None:
    async with rig.agent() as server:
        link = rig.AgentLink(server)
        (tunnel,) = Pool("p", [link], rig.KEY, size=1).tunnels
        assert 1350 <= tunnel._best_before() <= 1500
        link.expires = time.time() + 100
        assert 90 <= tunnel._best_before() <= 101
        # Whatever a plugin gives: not ever again at once.
        link.expires = 0.0
        assert tunnel._best_before() == 30


async def test_a_rotation_that_fails_leaves_the_session_where_it_is(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is tried again soon, by itself: servers cut what has grown too old."""
    monkeypatch.setattr(module, "_BETWEEN_ROTATIONS", 0.01)
    async with rig.path() as path, rig.tcp_target(rig.echo) as target:
        port = rig.port_of(await path.tcp(target))
        (tunnel,) = path.pool.tunnels
        real, failures = path.link.dial, [OSError("no way")] * 2 + [ZeroDivisionError("a bug")]

        async def fails(protocol: asyncio.Protocol) -> asyncio.Transport:
            if failures:
                raise failures.pop(0)
            return await real(protocol)

        path.link.dial = fails  # type: ignore[method-assign]
        async with rig.connect(port) as (reader, writer):
            path.pool.network_changed(broken=True)
            while not tunnel.stats.rotated:
                writer.write(b"on")
                assert await reader.readexactly(2) == b"on"
                await asyncio.sleep(0.01)
        assert tunnel.failure is None
    assert caplog.text.count("no tunnel to take over: no way") == 1
    assert "ZeroDivisionError" in caplog.text


async def test_a_silent_connection_is_dropped_soon_after_a_network_change(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(carrier, "_DOUBT", 60.0)
    config = SessionConfig(ping=3600.0, ping_timeout=3600.0)
    async with rig.path(config=config) as path, rig.tcp_target(rig.echo) as target:
        port = rig.port_of(await path.tcp(target))
        (tunnel,) = path.pool.tunnels
        async with rig.connect(port) as (reader, writer):
            writer.write(b"a")
            assert await reader.readexactly(1) == b"a"
            asked = rig.connection(tunnel).session._keepalive
            path.pool.network_changed(broken=False)
            assert asked._waiting_since is not None
            await rig.until(lambda: asked._waiting_since is None)  # it has answered
            assert tunnel.stats.connects == 1
            # A tunnel that has gone deaf, and dumb.
            monkeypatch.setattr(carrier, "_DOUBT", 0.05)
            (kept,) = path.server.sessions._kept.values()
            silent = kept.mux._transport
            assert silent is not None
            kept.mux._transport = None
            path.pool.network_changed(broken=False)
            await rig.until(lambda: tunnel.stats.resumed)
            writer.write(b"b")
            assert await reader.readexactly(1) == b"b"
            silent.abort()
    assert "no answer to a ping" in caplog.text


async def test_a_reachable_api_server_is_dialled_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    async with rig.path() as path:
        monkeypatch.setattr(Backoff, "delay", lambda _: 3600.0)
        real, tries = path.link.dial, 0

        async def shut(protocol: asyncio.Protocol) -> asyncio.Transport:
            nonlocal tries
            tries += 1
            if not path.link.opened.is_set():
                raise UnreachableError("the network is down")
            return await real(protocol)

        path.link.dial = shut  # type: ignore[method-assign]
        (tunnel,) = path.pool.tunnels
        path.link.cut()
        # The first pause after a loss is none, or would be.
        while not tries:
            path.pool.network_changed(broken=False)
            await asyncio.sleep(0.01)
        path.link.opened.set()
        await rig.until(lambda: tunnel.up)


async def test_a_tunnel_that_is_down_is_dialled_when_the_network_changes() -> None:
    async with rig.path() as path:
        (tunnel,) = path.pool.tunnels
        path.link.cut(blocked=True)
        before = path.link.dials
        for _ in range(20):
            path.pool.network_changed(broken=False)
            await asyncio.sleep(0.005)
        assert path.link.dials > before
        path.link.blocked = False
        path.pool.network_changed(broken=False)
        await rig.until(lambda: tunnel.up)
        assert isinstance(tunnel.failure, TunnelError | None)


async def test_a_dial_interrupted_by_a_sleep_starts_again(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It would hold its tunnel for as long as a dial may take, after a connection that is dead."""
    async with rig.path() as path:
        (tunnel,) = path.pool.tunnels
        real, asleep, dials = path.link.dial, asyncio.Event(), 0

        async def swallowed(protocol: asyncio.Protocol) -> asyncio.Transport:
            nonlocal dials
            dials += 1
            if dials == 1:
                asleep.set()
                await asyncio.get_running_loop().create_future()
            return await real(protocol)

        path.link.dial = swallowed  # type: ignore[method-assign]
        path.link.cut()
        await asleep.wait()
        caplog.clear()
        path.pool.network_changed(broken=True)
        path.pool.network_changed(broken=True)
        await rig.until(lambda: tunnel.up)
        assert dials == 2
        assert tunnel.stats.resumed == 1
    assert "WARNING" not in caplog.text, caplog.text
