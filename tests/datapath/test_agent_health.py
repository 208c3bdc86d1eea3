"""Agents that are given up, and those that are not, though a tunnel to them does not come up."""

from __future__ import annotations

import asyncio

import pytest

from krelay.datapath import agent_link as module
from krelay.datapath.agent_link import AgentHealth, SessionGoneError
from krelay.errors import (
    NotListeningError,
    PodGoneError,
    TunnelError,
    TunnelRefusedError,
    UnreachableError,
)
from krelay.model import SessionConfig
from krelay.retry import Backoff
from tests import rig


def made(grace: float = 0.0) -> tuple[AgentHealth, rig.AgentLink]:
    link = rig.AgentLink(None)
    return AgentHealth(link, grace), link


SHUT = NotListeningError("not yet")


async def test_an_agent_out_of_reach_for_the_grace_is_abandoned_once() -> None:
    health, link = made()
    await health.abandon_if_lost(SHUT)
    assert not link.abandoned  # no tunnel has tried
    health.attempt_failed(SHUT)
    await health.abandon_if_lost(SHUT)
    await health.abandon_if_lost(SHUT)  # another tunnel's: by now there may be another agent
    assert link.abandoned == ["no tunnel for 0 s (tunnel.resumeTimeout)"]
    health.attempt_failed(SHUT)
    await health.abandon_if_lost(SHUT)
    assert len(link.abandoned) == 2


async def test_an_agent_that_another_tunnel_reaches_is_kept() -> None:
    health, link = made()
    health.connected("one")
    health.connected("two")
    health.disconnected("one")
    health.attempt_failed(SHUT)
    await health.abandon_if_lost(SHUT)
    assert not link.abandoned
    health.disconnected("two")
    health.disconnected("one")
    await health.abandon_if_lost(SHUT)
    assert link.abandoned


async def test_an_agent_that_was_reached_meanwhile_is_kept() -> None:
    health, link = made()
    health.attempt_failed(SHUT)
    health.connected("one")
    health.disconnected("two")
    await health.abandon_if_lost(SHUT)
    assert not link.abandoned


async def test_an_agent_is_kept_within_the_grace() -> None:
    health, link = made(3600.0)
    health.attempt_failed(SHUT)
    await health.abandon_if_lost(SHUT)
    assert not link.abandoned


@pytest.mark.parametrize(
    "failure", [UnreachableError("no network"), TunnelRefusedError("wrong key"), OSError(), None]
)
async def test_an_agent_is_kept_if_the_failure_has_another_cause(failure: Exception | None) -> None:
    health, link = made()
    health.attempt_failed(failure or SHUT)
    await health.abandon_if_lost(failure)
    await health.abandon_if_lost(SHUT)  # another grace begins, with the next failure
    assert not link.abandoned


@pytest.mark.parametrize("failure", [PodGoneError("evicted"), SessionGoneError("who?")])
async def test_the_grace_starts_again_for_the_next_agent_or_an_answer(
    failure: Exception,
) -> None:
    health, link = made()
    health.attempt_failed(SHUT)
    health.attempt_failed(failure)
    await health.abandon_if_lost(SHUT)
    assert not link.abandoned


# -- the same, of real tunnels -----------------------------------------------------------------


async def test_a_tunnel_that_stays_down_leaves_the_agent_of_its_sibling() -> None:
    config = SessionConfig(resume_timeout=0.01)
    async with rig.path(tunnels=2, config=config) as path, rig.tcp_target(rig.echo) as target:
        port = rig.port_of(await path.tcp(target))
        async with rig.connect(port) as (reader, writer):
            writer.write(b"a")
            assert await reader.readexactly(1) == b"a"
            one, two = path.pool.tunnels
            idle = two if one.streams else one
            path.link.blocked = True
            transport, dials = rig.connection(idle)._transport, path.link.dials
            assert transport is not None
            transport.abort()
            # Long after the grace: its session is over, and more than one try has failed since.
            await rig.until(lambda: idle.carrier is None)
            over = path.link.dials
            await rig.until(lambda: path.link.dials >= max(over, dials) + 3)
            assert not path.link.abandoned
            writer.write(b"b")
            assert await reader.readexactly(1) == b"b"


async def test_a_short_cut_after_a_long_one_abandons_no_agent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The grace ends while a dial is under way that succeeds."""
    grace = 0.05
    monkeypatch.setattr(Backoff, "delay", lambda _: 0.001)
    async with rig.path(config=SessionConfig(resume_timeout=grace)) as path:
        (tunnel,) = path.pool.tunnels
        real, tries = path.link.dial, 0

        async def slow(protocol: asyncio.Protocol) -> asyncio.Transport:
            nonlocal tries
            tries += 1
            path.link.abandoned.clear()  # those before were right
            if tries == 1:
                raise SHUT
            await asyncio.sleep(2 * grace)
            return await real(protocol)

        path.link.cut(blocked=True)
        await rig.until(lambda: tunnel.carrier is None and path.link.abandoned)
        path.link.blocked = False
        path.link.dial = slow  # type: ignore[method-assign]
        await rig.until(lambda: tunnel.up)
        path.link.dial = real  # type: ignore[method-assign]
        before = tunnel.stats.connects
        path.link.cut()
        await rig.until(lambda: tunnel.stats.connects > before)
        assert not path.link.abandoned


async def test_a_tunnel_cut_in_the_turn_in_which_it_came_up_has_a_grace() -> None:
    async with rig.path(config=SessionConfig(resume_timeout=0.05)) as path:
        (tunnel,) = path.pool.tunnels
        real = path.link.dial

        async def cut_at_once(protocol: asyncio.Protocol) -> asyncio.Transport:
            transport = await real(protocol)
            await rig.until(lambda: protocol.welcome.done())  # type: ignore[attr-defined]
            path.link.cut(blocked=True)
            await asyncio.sleep(0)
            path.link.dial = real  # type: ignore[method-assign]
            return transport

        path.link.dial = cut_at_once  # type: ignore[method-assign]
        path.link.cut()
        await rig.until(lambda: tunnel.stats.connects == 2)
        await rig.until(lambda: tunnel.carrier is None)


async def test_one_tunnel_dials_an_agent_that_starts_and_the_others_wait() -> None:
    health, link = made()
    start: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    link.starting = start
    await health.wait_turn("first")
    async with asyncio.TaskGroup() as tasks:
        other = tasks.create_task(health.wait_turn("second"))
        for _ in range(3):
            await health.wait_turn("first")
        assert not other.done()
        start.set_result(None)
    link.starting = None
    await health.wait_turn("second")


async def test_a_start_ends_the_pause_of_the_tunnel_that_dials(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "SHORTEST_PAUSE", 3600.0)
    monkeypatch.setattr(module, "LONGEST_PAUSE", 3600.0)
    health, link = made()
    start: asyncio.Future[None] = asyncio.get_running_loop().create_future()
    link.starting = start
    await health.wait_turn("first")
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(health.wait_turn("first"))
        await asyncio.sleep(0)
        start.set_exception(TunnelError("it cannot run"))
    # Another start has another tunnel that dials.
    link.starting = asyncio.get_running_loop().create_future()
    await health.wait_turn("second")
