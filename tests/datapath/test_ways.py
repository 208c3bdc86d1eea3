"""Which way a tunnel takes, and when it moves to the shortcut and back."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass

import pytest

from krelay.datapath import tunnel as module
from krelay.datapath import ways as ways_module
from krelay.datapath.pool import Pool
from krelay.datapath.tunnel import Tunnel
from krelay.datapath.ways import DELAYS, Ways
from krelay.errors import AccessDeniedError, TunnelError, UnreachableError
from krelay.model import SessionConfig
from krelay.tasks import TaskGroup
from tests import rig
from tests.pod_proxy import FORBIDDEN, Shortcut, refusal


@dataclass
class Both:
    """A pool to an agent that two ways lead to, and a port whose connections it echoes."""

    pool: Pool
    link: rig.AgentLink
    shortcut: Shortcut
    port: int

    @property
    def tunnel(self) -> Tunnel:
        return self.pool.tunnels[0]

    async def carried_by(self, name: str) -> None:
        """Wait until each tunnel is carried by the way of this name."""
        await rig.until(lambda: all(tunnel.carried_by == name for tunnel in self.pool.tunnels))


@asynccontextmanager
async def both(
    *,
    tunnels: int = 1,
    config: SessionConfig = SessionConfig(),  # noqa: B008
    only: bool = False,
    answer: bytes | None = None,
    silent: bool = False,
    up: bool = True,
    available: bool = True,
) -> AsyncIterator[Both]:
    async with rig.agent(pod_ip=rig.HOST, door_port=0) as server, rig.tcp_target(rig.echo) as echo:
        assert server.door is not None
        link = rig.AgentLink(server)
        async with Shortcut(server.door.address).serving() as shortcut:
            shortcut.answer, shortcut.available = answer, available
            if silent:
                shortcut.open_gate.clear()
            link.shortcut, link.shortcut_only = shortcut, only
            pool = Pool("p", [link], rig.KEY, size=tunnels, config=config)
            async with rig.running(pool, up=up), TaskGroup() as tasks:
                path = rig.Path(server, link, pool, tasks)
                listener = await path.tcp(echo)
                try:
                    yield Both(pool, link, shortcut, rig.port_of(listener))
                finally:
                    listener.cut()


def infos(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [
        record.getMessage()
        for record in caplog.records
        if record.name == "krelay.tunnel" and record.levelno >= logging.INFO
    ]


# -- moving there ------------------------------------------------------------------------------


async def test_sessions_begin_on_the_private_way_and_move_under_load(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    async with both(tunnels=2) as here:
        await rig.echoed(here.port, 4 << 20, lambda: None)
        await here.carried_by("proxy")
        await rig.echoed(here.port, 4 << 20, lambda: None)
        assert here.link.dials == here.shortcut.dials == 2
        assert [tunnel.stats.rotated for tunnel in here.pool.tunnels] == [1, 1]
        path = b"GET /prefix/api/v1/namespaces/team/pods/agent:10250/proxy/ HTTP/1.1\r\n"
        assert all(head.startswith(path) for head in here.shortcut.heads)
        assert all(b"Authorization: Bearer t" in head for head in here.shortcut.heads)
    # Two tunnels, in any order.
    assert sorted(infos(caplog)) == [
        "pt1: tunnel moved to proxy",
        "pt1: tunnel up by tcp",
        "pt2: tunnel moved to proxy",
        "pt2: tunnel up by tcp",
    ]


async def test_a_shortcut_is_taken_once_it_is_available(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ways_module, "LOOK_AGAIN", 0.01)
    async with both(available=False) as here:
        await here.carried_by("tcp")
        await rig.echoed(here.port, 1 << 20, lambda: None)
        assert here.shortcut.dials == 0
        here.shortcut.available = True
        await here.carried_by("proxy")


async def test_a_refused_shortcut_is_set_aside_and_said_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    async with both(tunnels=2, answer=FORBIDDEN) as here:
        ways = here.tunnel.ways
        await rig.until(lambda: ways.reason)
        assert ways.reason == 'cannot get pods/proxy in namespace "team"'
        assert ways.next_attempt is not None
        assert 590 < ways.next_attempt <= DELAYS[-1]
        await rig.echoed(here.port, 1 << 20, lambda: None)
        await here.carried_by("tcp")
        # Another network may have another API server before it, or another answer.
        here.shortcut.answer = None
        here.pool.network_changed(broken=False)
        await here.carried_by("proxy")
        assert ways.reason == ""
        assert ways.next_attempt is None
    said = [line for line in infos(caplog) if "not by proxy" in line]
    assert len(said) == 1
    assert "cannot get pods/proxy" in said[0]


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (refusal(404, "pods agent not found", "NotFound"), "pod team/agent is gone"),
        (
            refusal(500, "error dialing backend: EOF"),
            "pods/proxy: error dialing backend: EOF (500)",
        ),
        (b"HTTP/1.1 503 X\r\nContent-Length: 3\r\n\r\nno\n", "pods/proxy: no (503)"),
        (b"HTTP/1.1 400 X\r\nContent-Length: 0\r\n\r\n", "pods/proxy: the answer is empty (400)"),
        (b"HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: h2\r\n\r\n", "something else"),
        (b"HTTP/1.1 101 X\r\nConnection: Upgrade\r\nUpgrade: krelay\r\n\r\nSSH-2.0", "sessions"),
        (b"", "it closed the connection"),
        (b"\0\1\2", "its answer is not HTTP"),
    ],
)
async def test_any_other_answer_leaves_the_session_where_it_is(answer: bytes, reason: str) -> None:
    async with both(answer=answer) as here:
        await rig.until(lambda: here.tunnel.ways.reason)
        assert reason in here.tunnel.ways.reason
        await rig.echoed(here.port, 1 << 20, lambda: None)
        assert here.tunnel.carried_by == "tcp"
        assert here.link.dials == 1


async def test_a_swallowed_shortcut_is_given_up_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SHORTCUT_TIMEOUT", 0.05)
    async with both(silent=True) as here:
        await rig.until(lambda: here.tunnel.ways.reason)
        assert here.tunnel.ways.reason.startswith("no answer within ")
        await rig.echoed(here.port, 1 << 20, lambda: None)
        assert here.link.dials == 1


async def test_an_agent_without_a_door_stays_on_the_private_way() -> None:
    async with rig.agent() as server:
        link = rig.AgentLink(server)
        async with Shortcut((rig.HOST, rig.closed_port())).serving() as shortcut:
            link.shortcut = shortcut
            pool = Pool("p", [link], rig.KEY, size=1)
            async with rig.running(pool):
                (tunnel,) = pool.tunnels
                await rig.until(lambda: tunnel.ways.reason)
                assert tunnel.ways.reason == "nothing listens on port 10250 of the agent's pod"
                assert tunnel.carried_by == "tcp"


# -- losing it ---------------------------------------------------------------------------------


async def test_a_shortcut_that_falls_silent_is_replaced_without_losing_a_byte() -> None:
    config = SessionConfig(ping=0.2, ping_timeout=0.5)
    async with both(config=config) as here:
        await here.carried_by("proxy")
        silenced = False

        def silence() -> None:
            nonlocal silenced
            if not silenced:
                silenced = True
                here.shortcut.open_gate.clear()

        await rig.echoed(here.port, 8 << 20, silence)
        assert here.tunnel.carried_by == "tcp"
        assert here.tunnel.ways.reason == "it stopped delivering"
        assert here.link.dials >= 2
        here.shortcut.open_gate.set()


async def test_a_cut_shortcut_is_resumed_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kubelet that is down stops every port-forward; an API server was restarted."""
    monkeypatch.setattr(ways_module, "STABLE", 0.0)
    async with both() as here:
        await here.carried_by("proxy")
        here.link.blocked = True
        await rig.echoed(here.port, 4 << 20, here.shortcut.cut)
        assert here.tunnel.carried_by == "proxy"
        assert here.tunnel.ways.reason == ""
        assert here.tunnel.stats.resumed == here.shortcut.dials > 3


async def test_a_shortcut_lost_soon_is_set_aside_but_still_helps_out() -> None:
    async with both() as here:
        await here.carried_by("proxy")
        here.shortcut.cut()
        await here.carried_by("tcp")
        assert here.tunnel.ways.reason.startswith("it was lost soon after it came up")
        assert here.shortcut.dials == 1
        # The only way that is left.
        here.link.cut(blocked=True)
        await here.carried_by("proxy")
        assert here.tunnel.ways.reason == ""


async def test_the_end_of_a_shortcut_that_is_replaced_is_no_failure() -> None:
    """An agent closes the former connection as soon as the next one has its session."""
    async with both() as here:
        await here.carried_by("proxy")
        connects = here.tunnel.stats.connects
        here.tunnel._rotating = True
        here.shortcut.cut()
        await rig.until(lambda: here.tunnel.stats.connects > connects)
        assert here.tunnel.carried_by == "proxy"
        assert here.tunnel.ways.reason == ""


async def test_a_rotation_stays_on_the_shortcut() -> None:
    async with both(config=SessionConfig(max_age=0.05)) as here:
        await here.carried_by("proxy")
        done = here.tunnel.stats.rotated
        await rig.until(lambda: here.tunnel.stats.rotated > done + 2)
        assert here.tunnel.carried_by == "proxy"
        assert here.link.dials == 1


async def test_a_rotation_of_a_shortcut_that_fails_goes_the_other_way() -> None:
    async with both() as here:
        await here.carried_by("proxy")
        here.shortcut.answer = FORBIDDEN
        here.pool.network_changed(broken=True)
        await here.carried_by("tcp")
        assert "pods/proxy" in here.tunnel.ways.reason


# -- nothing else allowed ----------------------------------------------------------------------


async def test_with_nothing_else_allowed_a_session_moves_before_its_use(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO")
    async with both(only=True) as here:
        assert here.tunnel.carried_by == "proxy"
        assert here.link.dials == 1
        here.link.blocked = True
        here.shortcut.cut()
        await rig.until(lambda: here.shortcut.dials == 2)
        await here.carried_by("proxy")
        await rig.echoed(here.port, 1 << 20, lambda: None)
    assert [line for line in infos(caplog) if "lost" not in line] == [
        "pt1: tunnel up by proxy",
        "pt1: tunnel resumed by proxy",
    ]


async def test_with_nothing_else_allowed_its_failure_is_the_tunnels() -> None:
    async with both(only=True, answer=FORBIDDEN, up=False) as here:
        await rig.until(lambda: here.tunnel.failure)
        assert isinstance(here.tunnel.failure, AccessDeniedError)
        assert here.tunnel.failure.fails_start
        assert not here.tunnel.up
        assert here.tunnel.carried_by is None
        # The session waits on the other way, and moves when it can.
        here.shortcut.answer = None
        await rig.until(lambda: here.tunnel.up)
        assert here.link.dials == 1
        assert here.tunnel.carried_by == "proxy"


# -- the policy --------------------------------------------------------------------------------


class Clock:
    """The loop's time, as the policy reads it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(asyncio.get_running_loop(), "time", lambda: self.now)


def ways() -> tuple[Ways, rig.AgentLink, Shortcut]:
    link = rig.AgentLink(None)
    link.shortcut = shortcut = Shortcut(("", 0))
    made = Ways(link)
    made.connected(link)
    return made, link, shortcut


async def test_attempts_grow_rarer_until_one_works(monkeypatch: pytest.MonkeyPatch) -> None:
    made, link, shortcut = ways()
    with monkeypatch.context() as patch:
        clock = Clock(patch)
        for delay in (*DELAYS, DELAYS[-1]):
            assert made.move_in(link) == 0
            made.failed(TunnelError("no"))
            made.failed(TunnelError("no"))  # of the other tunnel, in the same moment
            assert made.move_in(link) == made.next_attempt == delay
            clock.now += delay
        made.connected(shortcut)
        made.lost(shortcut, 3600.0, TimeoutError())
        assert made.move_in(link) == DELAYS[0]
        clock.now += DELAYS[0]
        made.connected(shortcut)
        made.lost(shortcut, 1.0, OSError())
        assert made.move_in(link) == DELAYS[1]


async def test_an_unreachable_api_server_says_nothing_of_the_shortcut() -> None:
    made, link, shortcut = ways()
    made.connected(shortcut)
    assert made.order(shortcut) == (shortcut, link)
    made.failed(UnreachableError("down"))
    assert made.order(shortcut) == (shortcut, link)
    made.failed(TunnelError("no"))
    assert made.order(shortcut) == (link, shortcut)


async def test_the_shortcut_of_another_agent_is_another_one() -> None:
    made, link, shortcut = ways()
    made.failed(AccessDeniedError("no"))
    assert made.order(link) == (link,)
    link.shortcut = another = Shortcut(("", 1))
    assert made.order(link) == (link,)  # it does not know the key yet
    assert made.move_in(link) == float("inf")
    made.connected(link)
    assert made.reason == ""
    assert made.order(link) == (link, another)
    assert made.move_in(another) == float("inf")
    link.shortcut = None
    assert made.order(link) == (link,)


async def test_renewed_credentials_make_the_shortcut_due() -> None:
    made, link, _ = ways()
    made.failed(AccessDeniedError("no"))
    made.connected(link)
    assert made.move_in(link) > 500
    link.expires = 5.0
    made.connected(link)
    assert made.move_in(link) == 0
