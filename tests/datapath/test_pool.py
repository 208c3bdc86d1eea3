"""Which tunnel a new stream rides on, and those who wait for one."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krelay.datapath.pool import Pool
from krelay.datapath.route import Route
from krelay.errors import TunnelError
from krelay.model import Endpoint, Protocol, Resolution
from krelay.wire.errors import ErrorCode
from krelay.wire.session import LOW_ID, MAX_ID
from tests import rig


class Load:
    """What `Pool.pick` sees of a tunnel."""

    def __init__(self, up: bool, load: int) -> None:
        self.up = up
        self.load = load
        self.carrier = self


@given(st.lists(st.builds(Load, st.booleans(), st.integers(0, 5)), max_size=6))
def test_the_first_of_the_least_loaded_tunnels_is_picked(tunnels: list[Load]) -> None:
    pool = SimpleNamespace(tunnels=tunnels, _retiring=set())
    picked = Pool.pick(pool)  # type: ignore[arg-type]
    up = [tunnel for tunnel in tunnels if tunnel.up]
    if not up:
        assert picked is None
    else:
        least = min(tunnel.load for tunnel in up)
        assert picked is next(tunnel for tunnel in up if tunnel.load == least)  # type: ignore[comparison-overlap]


async def test_streams_spread_over_the_tunnels() -> None:
    async with rig.path(tunnels=3) as path, rig.tcp_target(rig.hold) as target:
        port = rig.port_of(await path.tcp(target))
        writers = [(await asyncio.open_connection(rig.HOST, port))[1] for _ in range(30)]
        await rig.until(lambda: path.streams == (30, 30))
        counts = [len(rig.connection(t).session.streams) for t in path.pool.tunnels]
        assert counts == [10, 10, 10]
        for writer in writers:
            rig.rst(writer)
        await rig.until(lambda: path.streams == (0, 0))


async def test_a_tunnel_that_is_down_is_not_picked() -> None:
    async with rig.path(tunnels=2) as path:
        first, second = path.pool.tunnels
        path.link.blocked = True
        path.link.transports[0].abort()
        await rig.until(lambda: not first.up or not second.up)
        left = first if first.up else second
        assert path.pool.pick() is left.carrier


async def test_waiters_wake_on_a_failure_and_when_a_tunnel_comes_up() -> None:
    async with rig.agent() as server:
        link = rig.AgentLink(server)
        link.blocked = True
        pool = Pool("p", [link], rig.KEY, size=2)
        assert pool.failure is None
        async with rig.running(pool, up=False), asyncio.TaskGroup() as tasks:
            route = Route(pool)
            route.update(Resolution(Protocol.TCP, Endpoint(rig.HOST, 80)))
            waiting = tasks.create_task(route.wait_ready())
            await pool.wait_change()
            assert isinstance(pool.failure, TunnelError)
            assert not waiting.done()
            link.blocked = False
            await waiting
            assert pool.pick() is not None


async def test_a_pool_that_ends_says_good_bye_to_the_agent() -> None:
    async with rig.agent() as server:
        link = rig.AgentLink(server)
        async with rig.running(Pool("p", [link], rig.KEY, size=2)) as pool:
            assert len(server.sessions) == 2
        assert pool.pick() is None
        await rig.until(lambda: len(server.sessions) == 0)


@pytest.mark.parametrize("down", [False, True], ids=["up", "down"])
async def test_a_pool_whose_last_stream_ends_is_idle(down: bool) -> None:
    async with rig.path() as path, rig.tcp_target(rig.hold) as target:
        listener = await path.tcp(target)
        async with rig.connect(rig.port_of(listener)), asyncio.TaskGroup() as tasks:
            await rig.until(lambda: path.streams == (1, 1))
            if down:
                path.link.cut(blocked=True)
                await rig.until(lambda: path.pool.pick() is None)
            idle = tasks.create_task(path.pool.wait_idle())
            await asyncio.sleep(0.01)
            assert not idle.done()
            listener.cut()
        assert path.pool.streams == 0


async def test_a_session_is_replaced_before_its_ids_run_out() -> None:
    """New streams go to the next one as soon as it is there; those that live stay, also when their
    tunnel breaks, until the last has ended."""
    async with rig.path() as path, rig.tcp_target(rig.echo) as target:
        port = rig.port_of(await path.tcp(target))
        (old,) = path.pool.tunnels
        async with rig.connect(port) as (reader, writer):
            writer.write(b"a")
            assert await reader.readexactly(1) == b"a"
            rig.connection(old).session._next_id = LOW_ID - 1
            path.link.blocked = True
            assert await rig.exchange(port, b"the first") == b"the first"
            assert await rig.exchange(port, b"another") == b"another"
            await rig.until(lambda: len(path.pool.tunnels) == 2)
            assert path.pool.pick() is old.carrier
            path.link.blocked = False
            new = path.pool.tunnels[1]
            await rig.until(lambda: path.pool.pick() is new.carrier is not None)
            for _ in range(2):
                writer.write(b"b")
                assert await reader.readexactly(1) == b"b"
                assert await rig.exchange(port, b"on") == b"on"
                path.link.cut()
                await rig.until(lambda: old.up and new.up)
        await rig.until(lambda: path.pool.tunnels == [new])
        await rig.until(lambda: len(path.server.sessions) == 1)
        assert await rig.exchange(port, b"on") == b"on"


async def test_a_session_without_ids_is_replaced() -> None:
    async with rig.path() as path, rig.tcp_target(rig.echo) as target:
        port = rig.port_of(await path.tcp(target))
        (old,) = path.pool.tunnels
        rig.connection(old).session._next_id = MAX_ID
        async with rig.connect(port) as (reader, writer):
            writer.write(b"a")
            assert await reader.readexactly(1) == b"a"
            assert [await rig.exchange(port, b"on") for _ in range(3)] == [b"on"] * 3
            writer.write(b"b")
            assert await reader.readexactly(1) == b"b"


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (ErrorCode.REFUSED, "refused: "),
        (ErrorCode.NO_SUCH_HOST, "no such host: "),
        (ErrorCode.RESOLVE_TIMEOUT, "timed out: the cluster's DNS"),
        (ErrorCode.CONNECT_TIMEOUT, "timed out: no answer at all"),
        (ErrorCode.UNREACHABLE, "unreachable: "),
        (ErrorCode.DIAL_FAILED, "dial failed (x)"),
    ],
)
async def test_each_answer_of_an_agent_has_its_own_reason(code: ErrorCode, text: str) -> None:
    async with rig.path() as path:
        explain = path.pool.explain
    assert explain(code, "x").startswith(text)
    assert explain(code, "x").endswith("(x)")
    assert "(" not in explain(code, "")


async def test_the_sessions_of_a_lost_agent_are_dropped_and_begun_anew() -> None:
    async with rig.path(tunnels=2) as path, rig.tcp_target(rig.hold) as target:
        port = rig.port_of(await path.tcp(target))
        reader, writer = await asyncio.open_connection(rig.HOST, port)
        await rig.until(lambda: path.streams == (1, 1))
        before = path.pool.sessions(path.link)
        path.pool.drop(before, "another cluster")
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()
        await rig.until(lambda: all(tunnel.up for tunnel in path.pool.tunnels))
        after = path.pool.sessions(path.link)
        assert not set(before.values()) & set(after.values())
        path.pool.drop(before, "a late answer costs nothing that is new")
        assert path.pool.sessions(path.link) == after


async def test_a_pool_without_an_agent_says_why() -> None:
    async with rig.path() as path:
        resolution = Resolution(Protocol.TCP, Endpoint(rig.HOST, 80))
        assert path.pool.reaches(resolution)
        path.pool.no_agent = "cannot create jobs.batch"
        assert path.pool.obstacle(resolution) == "no agent can be had: cannot create jobs.batch"


async def test_a_pool_whose_agent_waits_for_something_says_so_and_wakes_its_users() -> None:
    woken: list[str] = []

    class User:
        resolution = None
        wanted = False

        def wake(self) -> None:
            woken.append(path.pool.obstacle(resolution))

    async with rig.path() as path:
        resolution = Resolution(Protocol.TCP, Endpoint(rig.HOST, 80))
        user = User()
        path.pool.users.add(user)
        for delay in ("waiting for a node", "waiting for a node", ""):
            path.pool.delayed(delay)
    assert woken[:2] == ["no agent yet: waiting for a node", "no tunnel to the agent yet"]
