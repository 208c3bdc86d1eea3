"""When a forward that the agent cannot reach goes directly."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, cast

import pytest

from krelay.config.diff import Spec
from krelay.datapath.probe import ProbeError
from krelay.datapath.route import Route
from krelay.model import Config, Endpoint, Kind, PodPort, Port, Protocol, Resolution, Target
from krelay.state.bus import EventBus
from krelay.supervisor import active as module
from krelay.supervisor.active import ActiveConfig
from krelay.supervisor.contexts import Contexts
from krelay.supervisor.forward import Forward
from krelay.tasks import TaskGroup
from krelay.wire.errors import ErrorCode
from tests import rig


class Pool:
    """A pool that reaches everything."""

    multiplexed = True
    no_agent = ""

    def __init__(self) -> None:
        self.users: set[Any] = set()

    def reaches(self, resolution: Resolution) -> bool:
        return True

    def carriers(self, resolution: Resolution) -> tuple[object, ...]:
        return ()

    def user_changed(self, user: Any) -> None:
        """Nothing depends on it."""

    def dial_soon(self) -> None:
        """Nothing is dialled."""


class World:
    """A forward whose agent is refused, and which can be reached directly."""

    def __init__(
        self, tasks: TaskGroup, number: int = 80, protocol: Protocol = Protocol.TCP
    ) -> None:
        self.agent, self.direct = Pool(), Pool()
        ports = Port(81, 0, Protocol.TCP), Port(number, 0, protocol)
        self.target = Target("web", Kind.SERVICE, "web", ports)
        self.tasks = tasks
        self.active = ActiveConfig(Contexts(), tasks, EventBus(), lambda forward: None)
        self.active.groups[None] = cast(Any, SimpleNamespace(pool=self.agent))
        self.active.directs[None] = cast(Any, SimpleNamespace(pool=self.direct))
        self.config = self.active.config = Config((self.target,))
        self.probed: list[bool] = []
        self.refused = True
        route = Route(cast(Any, self.agent))
        pod = PodPort("shop", "web-0", "uid", number)
        route.update(Resolution(protocol, Endpoint("10.1.0.1", number), pods=(pod,)))
        self.forward = Forward(
            Spec(self.target, 1),
            route,
            tasks,
            open_timeout=1.0,
            bus=EventBus(),
            on_bound=lambda forward: None,
        )
        self.active.forwards["web", 1] = self.forward

    async def probe(self, check: Any, route: Route) -> None:
        through_agent = route.pool is cast(Any, self.agent)
        self.probed.append(through_agent)
        if through_agent and self.refused:
            raise ProbeError("refused", ErrorCode.REFUSED)

    async def settled(self) -> None:
        self.forward.health.refused = True
        self.active._refused(self.forward)
        await rig.until(lambda: not self.active._trying)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_CONFIRM", 0.0)


async def test_a_program_that_the_agent_cannot_reach_is_reached_directly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with TaskGroup() as tasks:
        world = World(tasks)
        monkeypatch.setattr(module, "probe", world.probe)
        await world.settled()
        assert world.probed == [False, True]
        assert world.active.is_direct(world.forward)


async def test_a_program_that_has_just_begun_to_listen_stays_with_the_agent(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with TaskGroup() as tasks:
        world = World(tasks)
        monkeypatch.setattr(module, "probe", world.probe)
        world.refused = False
        await world.settled()
        assert world.probed == [False, True]
        assert not world.active.is_direct(world.forward)


async def test_a_debugger_is_reached_directly_without_a_trial(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with TaskGroup() as tasks:
        world = World(tasks, 2345)
        monkeypatch.setattr(module, "probe", world.probe)
        await world.settled()
        assert world.probed == []
        assert world.active.is_direct(world.forward)


async def test_udp_never_goes_directly(monkeypatch: pytest.MonkeyPatch) -> None:
    async with TaskGroup() as tasks:
        world = World(tasks, 53, Protocol.UDP)
        monkeypatch.setattr(module, "probe", world.probe)
        await world.settled()
        assert world.probed == []
        assert not world.active.is_direct(world.forward)


async def test_another_target_is_tried_through_the_agent_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with TaskGroup() as tasks:
        world = World(tasks)
        monkeypatch.setattr(module, "probe", world.probe)
        await world.settled()
        other = Target("web", Kind.SERVICE, "other", world.target.ports)
        world.active._forward(Spec(other, 1), world.forward, Config((other,)))
        assert world.forward.direct_only == ""
        assert not world.active.is_direct(world.forward)
