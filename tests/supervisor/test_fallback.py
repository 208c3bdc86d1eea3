"""When a forward goes directly: the agent cannot reach it, or there is no agent."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any, cast

import pytest
from aiohttp import web

from krelay.config.diff import Spec
from krelay.datapath.probe import ProbeError
from krelay.datapath.route import Route
from krelay.errors import AgentError, UnreachableError
from krelay.model import (
    Config,
    Endpoint,
    Kind,
    PodPort,
    Port,
    Protocol,
    Resolution,
    Target,
    Via,
)
from krelay.state.bus import EventBus
from krelay.supervisor import active as module
from krelay.supervisor import warming
from krelay.supervisor.active import ActiveConfig
from krelay.supervisor.contexts import Contexts
from krelay.supervisor.forward import Forward
from krelay.supervisor.supervisor import Supervisor
from krelay.tasks import TaskGroup
from krelay.wire.errors import ErrorCode
from tests import rig
from tests.supervisor import test_contexts
from tests.supervisor.agents import FakeAgent, fake_agents


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


kubeconfig = test_contexts.kubeconfig


class Job(FakeAgent):
    """A fake agent in place of a Job."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        _, spec, key, _, bus = arguments
        super().__init__(spec, key, bus)


@asynccontextmanager
async def without_agent(
    monkeypatch: pytest.MonkeyPatch, kubeconfig: test_contexts.Kubeconfig
) -> AsyncIterator[Supervisor]:
    """A run of one target, from when it relays; no agent is admitted, but tried all the time."""

    async def refuse(agent: Job) -> None:
        raise AgentError("admission refuses the pod", no_agent=True)

    monkeypatch.setattr(warming, "JobAgent", Job)
    monkeypatch.setattr(Job, "start", refuse)
    monkeypatch.setattr(module, "_AGENT_AGAIN", 0.01)
    target = Target("web", Kind.POD, "dev", (Port(80, 0, Protocol.TCP),))
    async with fake_agents(monkeypatch), test_contexts.cluster("dev") as dev:
        await asyncio.to_thread(kubeconfig.write, "dev", dev={"server": dev.url})
        supervisor, stop = Supervisor(Config((target,))), asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(supervisor.run(stop))
            await supervisor.started.wait()
            yield supervisor
            stop.set()


async def test_targets_go_directly_until_there_is_an_agent(
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    kubeconfig: test_contexts.Kubeconfig,
) -> None:
    caplog.set_level("INFO", "krelay.supervisor")
    async with without_agent(monkeypatch, kubeconfig) as supervisor:
        active = supervisor.active
        (forward,) = active.forwards.values()
        assert active.is_direct(forward)
        assert active.why_direct(forward) == "admission refuses the pod"
        await rig.until(lambda: len(Job.made) > 2)
        monkeypatch.setattr(Job, "start", FakeAgent.start)
        await rig.until(lambda: not active.is_direct(forward))
        assert active.why_direct(forward) == ""
    assert caplog.text.count("no agent: admission refuses the pod; TCP ports of pods are") == 1
    assert caplog.text.count("there is an agent now") == 1


async def test_an_agent_that_starts_again_when_krelay_ends_is_removed(
    monkeypatch: pytest.MonkeyPatch, kubeconfig: test_contexts.Kubeconfig
) -> None:
    starting: list[Job] = []

    async def hang(agent: Job) -> None:
        starting.append(agent)
        await asyncio.get_running_loop().create_future()

    async with without_agent(monkeypatch, kubeconfig):
        monkeypatch.setattr(Job, "start", hang)
        await rig.until(lambda: starting)
        assert not starting[0].stopped
    assert starting[0].stopped


async def test_a_start_without_agents_needs_an_api_server_that_answers(
    kubeconfig: test_contexts.Kubeconfig,
) -> None:
    target = Target("web", Kind.POD, "dev", (Port(80, 0, Protocol.TCP),), via=Via.DIRECT)

    async def refuse(request: web.Request) -> web.StreamResponse:
        if request.path == "/version":
            return web.json_response({"kind": "Status", "code": 403}, status=403)
        return await dev.own(request)

    async with test_contexts.cluster("dev") as dev:
        dev.handler = refuse
        await asyncio.to_thread(kubeconfig.write, "dev", dev={"server": dev.url})
        supervisor, stop = Supervisor(Config((target,))), asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(supervisor.run(stop))
            await supervisor.started.wait()
            stop.set()
    nowhere = f"https://{rig.HOST}:{rig.closed_port()}"
    await asyncio.to_thread(kubeconfig.write, "dev", dev={"server": nowhere})
    with pytest.raises(UnreachableError):
        await Supervisor(Config((target,))).run(asyncio.Event())
