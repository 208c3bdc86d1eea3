"""Agents are started, dialled, lost and removed: a real child process, and a faked cluster."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest

from krelay import payload
from krelay.agents import base as base_module
from krelay.agents import subprocess as module
from krelay.agents.group import AgentGroup
from krelay.agents.job import JobAgent
from krelay.agents.subprocess import SubprocessAgent
from krelay.cluster.agent_lifecycle import Agent
from krelay.datapath.pool import Pool
from krelay.errors import (
    AccessDeniedError,
    AgentError,
    ClusterError,
    CredentialsError,
    NotListeningError,
    PodGoneError,
    TunnelError,
    UnreachableError,
)
from krelay.model import (
    AGENT_DOOR_PORT,
    AGENT_PORT,
    AgentConfig,
    GroupSpec,
    SessionConfig,
    Transport,
)
from krelay.net.api_access import ApiAccess
from krelay.state.bus import EventBus
from krelay.state.events import AgentProgress, PublicEvent
from krelay.tasks import TaskGroup
from krelay.transport.portforward import open_portforward
from krelay.transport.upgrade import UnauthorizedError
from krelay.wire.handshake import key_digest
from tests import rig

ACCESS = ApiAccess("https://127.0.0.1:1", None, None, (), expires=12.0)
EMBEDDED = GroupSpec(None, None, AgentConfig(embedded=True))

# -- a child process ---------------------------------------------------------------------------


@asynccontextmanager
async def embedded(
    *, start: bool = True, bus: EventBus | None = None
) -> AsyncIterator[SubprocessAgent]:
    agent = SubprocessAgent(EMBEDDED, rig.KEY, bus or EventBus())
    try:
        if start:
            await agent.start()
        yield agent
    finally:
        await agent.stop()


def process(agent: SubprocessAgent) -> asyncio.subprocess.Process:
    assert agent._process is not None
    return agent._process


@pytest.fixture
def spawned(monkeypatch: pytest.MonkeyPatch) -> list[asyncio.subprocess.Process]:
    """Every process that was started."""
    found: list[asyncio.subprocess.Process] = []
    real = asyncio.create_subprocess_exec

    async def spawn(*args: Any, **kwargs: Any) -> asyncio.subprocess.Process:
        found.append(await real(*args, **kwargs))
        return found[-1]

    monkeypatch.setattr(asyncio, "create_subprocess_exec", spawn)
    return found


@pytest.mark.process
async def test_an_embedded_agent_starts_once_and_accepts_its_key_only() -> None:
    async with embedded() as agent:
        first = process(agent)
        await asyncio.gather(agent.start(), agent.start())
        assert process(agent) is first
        for key, up in ((rig.KEY, True), (bytes(32), False)):
            pool = Pool("p", [agent], key, size=1)
            async with rig.running(pool, up=up):
                if not up:
                    await pool.wait_change()
                    assert "wrong key" in str(pool.failure)
        assert agent.lost == ""
    assert first.returncode == 0


@pytest.mark.process
async def test_the_key_is_not_in_the_arguments_of_the_process() -> None:
    async with embedded() as agent:
        with open(f"/proc/{process(agent).pid}/cmdline", "rb") as file:  # noqa: ASYNC230
            assert rig.KEY.hex().encode() not in file.read()


@pytest.mark.process
async def test_an_embedded_agent_that_died_is_replaced() -> None:
    async with embedded() as agent:
        first = process(agent)
        os.kill(first.pid, signal.SIGKILL)
        await first.wait()
        with pytest.raises(PodGoneError, match="the embedded agent ended with -9"):
            await agent.dial(asyncio.Protocol())
        assert agent.lost
        assert process(agent) is not first
        (await agent.dial(asyncio.Protocol())).abort()
        await asyncio.sleep(0)


@pytest.mark.process
async def test_the_life_of_an_embedded_agent_is_published() -> None:
    bus = EventBus()
    with bus.subscribe() as events:
        async with embedded(bus=bus) as agent:
            first = process(agent)
            before = agent.where
            os.kill(first.pid, signal.SIGKILL)
            await first.wait()
            with pytest.raises(PodGoneError):
                await agent.dial(asyncio.Protocol())
            after = agent.where
        found: list[Any] = list(events._events)
    assert [event for event in found if isinstance(event, AgentProgress)] == [
        AgentProgress(None, f"embedded, {where}") for where in (before, after)
    ]
    assert [event.text for event in found if isinstance(event, PublicEvent)] == [
        f"agent runs: {before}",
        "agent lost: the embedded agent ended with -9",
        f"agent runs: {after}",
    ]
    assert found[2].details == {"context": None, "where": before}


@pytest.mark.process
async def test_an_abandoned_embedded_agent_is_killed() -> None:
    async with embedded() as agent:
        first = process(agent)
        assert agent.where == f"process {first.pid}, port {agent._port}"
        await agent.abandon("not reached for ages")
        await first.wait()
        with pytest.raises(PodGoneError):
            await agent.dial(asyncio.Protocol())
        assert process(agent) is not first


@pytest.mark.process
async def test_dialling_starts_an_embedded_agent() -> None:
    async with embedded(start=False) as agent:
        (await agent.dial(asyncio.Protocol())).abort()
        await asyncio.sleep(0)


@pytest.mark.process
async def test_an_embedded_agent_that_does_not_listen_refuses_the_dial() -> None:
    async with embedded() as agent:
        agent._port = rig.closed_port()
        with pytest.raises(NotListeningError):
            await agent.dial(asyncio.Protocol())


@pytest.mark.parametrize(
    "boot", ["raise SystemExit(1)", "print('no port')", "import time; time.sleep(99)"]
)
@pytest.mark.process
async def test_an_embedded_agent_that_does_not_start_is_an_error(
    boot: str, monkeypatch: pytest.MonkeyPatch, spawned: list[asyncio.subprocess.Process]
) -> None:
    monkeypatch.setattr(payload, "BOOT", boot)
    monkeypatch.setattr(module, "_PROCESS_DEADLINE", 0.5)
    async with embedded(start=False) as agent:
        with pytest.raises(AgentError, match="the embedded agent did not start"):
            await agent.start()
        assert [child.returncode is None for child in spawned] == [False]


@pytest.mark.process
async def test_a_cancelled_start_leaves_no_process_behind(
    monkeypatch: pytest.MonkeyPatch, spawned: list[asyncio.subprocess.Process]
) -> None:
    """As by a sleep of the machine."""
    async with embedded(start=False) as agent:
        with monkeypatch.context() as patch:
            patch.setattr(payload, "BOOT", "import time; time.sleep(3600)")
            async with asyncio.TaskGroup() as tasks:
                starting = tasks.create_task(agent.start())
                await rig.until(lambda: spawned)
                starting.cancel()
        assert spawned[0].returncode == -signal.SIGKILL
        assert spawned[0]._transport.is_closing()  # type: ignore[attr-defined]
        assert agent.where == ""
        transport = await agent.dial(asyncio.Protocol())
        transport.abort()


@pytest.mark.process
async def test_a_stuck_embedded_agent_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_STOP_DEADLINE", 0.05)
    async with embedded() as agent:
        stuck = process(agent)
        os.kill(stuck.pid, signal.SIGSTOP)
        await agent.stop()
        assert stuck.returncode == -signal.SIGKILL


@pytest.mark.process
async def test_output_of_an_embedded_agent_is_logged_at_debug_level(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "krelay.agent")
    async with embedded() as agent:
        await agent.start()
    assert agent._log is not None
    await agent._log
    assert any("listening on" in record.getMessage() for record in caplog.records)


async def test_output_of_an_embedded_agent_may_be_any_bytes(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.DEBUG, "krelay.agent")
    stream = asyncio.StreamReader(limit=100)
    stream.feed_data(b"\xff first\n" + b"x" * 300 + b"\nlast\n")
    stream.feed_eof()
    await module._log_lines(stream)
    lines = [record.getMessage() for record in caplog.records]
    assert (lines[0], lines[-1]) == ("agent: \ufffd first", "agent: last")


@pytest.mark.process
async def test_an_embedded_agent_can_be_stopped_before_and_after_it_ran() -> None:
    async with embedded(start=False) as agent:
        await agent.stop()
        await agent.start()
        await agent.stop()


# -- a cluster ---------------------------------------------------------------------------------


@dataclass
class Cluster:
    """What JobAgent uses of `cluster` and `transport`, and what was asked of it."""

    asked: list[tuple[Any, ...]] = field(default_factory=list)
    dial_error: Exception | None = None
    door_error: Exception | None = None
    delete_error: ClusterError | None = None
    left: list[str] = field(default_factory=list)
    watch_error: Exception | None = None
    gone: asyncio.Event = field(default_factory=asyncio.Event)
    ended: str | Exception | None = "the pod is gone"
    closed: bool = False
    slow: bool = False
    """Whether a pod that has a node does not run until a tunnel shows it."""
    start_failed: asyncio.Event = field(default_factory=asyncio.Event)
    """Fails a slow start."""
    rejected: list[ApiAccess] = field(default_factory=list)
    on_running: Callable[[], None] | None = None
    may_prove: bool = False
    forbidden: set[str] = field(default_factory=set)
    """Namespaces that may not have agents."""
    delay: str = ""
    may_end_delay: asyncio.Event = field(default_factory=asyncio.Event)

    async def access(self) -> ApiAccess:
        return ACCESS

    def reject(self, access: ApiAccess) -> None:
        self.rejected.append(access)

    async def aclose(self) -> None:
        self.closed = True

    async def create_agent(self, api: object, config: AgentConfig, **kwargs: Any) -> Agent:
        await asyncio.sleep(0)
        kwargs.pop("on_progress")("pulling the image")
        on_delay = kwargs.pop("on_delay")
        if self.delay:
            on_delay(self.delay)
            await self.may_end_delay.wait()
        on_placed = kwargs.pop("on_placed")
        self.may_prove = on_placed is not None
        self.asked.append(("create", kwargs))
        places = (kwargs["namespace"], *kwargs["fallbacks"])
        namespace = next((place for place in places if place not in self.forbidden), None)
        if namespace is None:
            raise AccessDeniedError("cannot create jobs")
        number = self.created
        self.left.append(f"job-{number}")
        agent = Agent(namespace, f"job-{number}", f"pod-{number}", f"uid-{number}")
        if self.slow:
            async with TaskGroup() as tasks:
                proof = tasks.create_task(on_placed(agent))
                failure = tasks.create_task(self.start_failed.wait())
                await asyncio.wait((proof, failure), return_when=asyncio.FIRST_COMPLETED)
                if not proof.done():
                    await self.discard(agent.namespace, agent.job)
                    raise AgentError("cannot pull the image")
                failure.cancel()
        return agent

    async def discard(self, namespace: str, job: str) -> ClusterError | None:
        self.asked.append(("delete", job))
        if self.delete_error is None:
            self.left.remove(job)
        return self.delete_error

    async def clear(self, *starts: asyncio.Future[None]) -> None:
        await asyncio.wait(starts)
        for job in list(self.left):
            await self.discard("relays", job)

    async def agent_gone(self, api: object, agent: Agent, *, on_running: Callable[[], None]) -> str:
        self.on_running = on_running
        if self.watch_error is not None:
            raise self.watch_error
        await self.gone.wait()
        self.gone.clear()
        return f"{agent.pod} was evicted"

    async def agent_ended(self, api: object, agent: Agent) -> str | None:
        if isinstance(self.ended, Exception):
            raise self.ended
        return self.ended

    async def open_portforward(self, access: object, **kwargs: Any) -> Any:
        self.asked.append(("dial", access, kwargs))
        if self.dial_error is not None:
            raise self.dial_error
        return SimpleNamespace(carrier="websocket")

    async def open_pod_proxy(self, access: object, **kwargs: Any) -> Any:
        kwargs.pop("protocol")
        self.asked.append(("door", access, kwargs))
        if self.door_error is not None:
            raise self.door_error
        return "a transport"

    @property
    def created(self) -> int:
        return sum(step[0] == "create" for step in self.asked)


@pytest.fixture
def cluster(monkeypatch: pytest.MonkeyPatch) -> Cluster:
    made = Cluster()
    for name in ("create_agent", "agent_gone", "agent_ended"):
        monkeypatch.setattr(f"krelay.cluster.agent_lifecycle.{name}", getattr(made, name))
    monkeypatch.setattr("krelay.cluster.agent_lifecycle.PostedJobs", lambda api: made)
    monkeypatch.setattr(
        "krelay.transport.portforward.open_portforward",
        lambda *args, **kwargs: made.open_portforward(*args, **kwargs),
    )
    monkeypatch.setattr("krelay.transport.pod_proxy.open_pod_proxy", made.open_pod_proxy)
    return made


def texts(events: Iterable[object]) -> list[str]:
    """What the public events among `events` say."""
    return [event.text for event in events if isinstance(event, PublicEvent)]


@asynccontextmanager
async def reaching(
    cluster: Cluster,
    bus: EventBus | None = None,
    transport: Transport = Transport.SPDY,
    fallbacks: tuple[str, ...] = (),
    **more: Any,
) -> AsyncIterator[JobAgent]:
    """An agent whose tasks end with it."""
    async with TaskGroup() as tasks:
        spec = GroupSpec(
            None,
            "relays",
            AgentConfig(),
            fallbacks,
            transport=transport,
            connect_timeout=7.0,
            session=SessionConfig(resume_timeout=60.0),
        )
        api: Any = cluster
        agent = JobAgent(api, spec, rig.KEY, tasks, bus or EventBus(), **more)
        try:
            yield agent
        finally:
            await agent.stop()
            for task in list(tasks._children):
                task.cancel()


async def test_concurrent_starts_make_one_job(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    async with reaching(cluster) as agent:
        await asyncio.gather(agent.start(), agent.dial(asyncio.Protocol()), agent.start())
        assert agent.private
        (create, dial) = cluster.asked
        assert create[1] == {
            "namespace": "relays",
            "fallbacks": [],
            "key_sha256": key_digest(rig.KEY),
            "connect_timeout": 7.0,
            "session": SessionConfig(resume_timeout=60.0),
            "run": "",
        }
        kwargs = dial[2]
        kwargs.pop("protocol")
        assert dial[1] is ACCESS
        assert agent.expires == ACCESS.expires
        assert agent.name == "websocket"
        assert kwargs == {
            "namespace": "relays",
            "pod": "pod-1",
            "port": AGENT_PORT,
            "transport": Transport.SPDY,
        }
    assert cluster.asked[-1] == ("delete", "job-1")
    assert not cluster.closed  # others share it
    assert "agent: pulling the image" in caplog.text


async def test_what_a_start_lacks_is_known_until_it_ends(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.delay = "waiting 120 s for a node: 0/1 nodes fit"
    async with reaching(cluster) as agent, asyncio.TaskGroup() as tasks:
        told: asyncio.Queue[str] = asyncio.Queue()
        agent.on_delay = told.put_nowait
        starting = tasks.create_task(agent.start())
        assert await told.get() == cluster.delay
        assert not starting.done()
        cluster.may_end_delay.set()
        assert await told.get() == ""
        await starting
    assert [record.message for record in caplog.records if record.levelname == "WARNING"] == [
        f"agent: {cluster.delay}"
    ]


async def test_a_pod_that_a_dial_finds_gone_is_removed_and_replaced(
    cluster: Cluster,
) -> None:
    async with reaching(cluster) as agent:
        await agent.start()
        cluster.dial_error = PodGoneError("the pod is gone")
        with pytest.raises(PodGoneError):
            await agent.dial(asyncio.Protocol())
        assert agent.lost == "the pod is gone"
        assert cluster.asked[-1] == ("delete", "job-1")
        cluster.dial_error = None
        await agent.dial(asyncio.Protocol())
        assert cast(Any, cluster.asked[-1])[2]["pod"] == "pod-2"


async def test_an_agent_stays_in_the_namespace_that_allowed_it(cluster: Cluster) -> None:
    cluster.forbidden = {"relays", "a"}
    async with reaching(cluster, fallbacks=("a", "b", "c")) as agent:
        await agent.start()
        assert agent.where == "b/pod-1"
        cluster.dial_error = PodGoneError("the pod is gone")
        with pytest.raises(PodGoneError):
            await agent.dial(asyncio.Protocol())
        cluster.dial_error = None
        await agent.dial(asyncio.Protocol())
    tried = [
        [step[1]["namespace"], *step[1]["fallbacks"]]
        for step in cluster.asked
        if step[0] == "create"
    ]
    assert tried == [["relays", "a", "b", "c"], ["b", "relays", "a", "c"]]


async def test_errors_of_the_cluster_are_explained_before_they_are_raised(
    cluster: Cluster,
) -> None:
    def explain(error: Exception) -> None:
        cast(Any, error).hint = "explained"

    async with reaching(cluster, explain=explain) as agent:
        cluster.forbidden = {"relays"}
        with pytest.raises(AccessDeniedError) as caught:
            await agent.start()
        assert caught.value.hint == "explained"
        cluster.forbidden = set()
        await agent.start()
        cluster.dial_error = AccessDeniedError("cannot create pods/portforward")
        with pytest.raises(AccessDeniedError) as caught:
            await agent.dial(asyncio.Protocol())
        assert (caught.value.hint, caught.value.agent_namespace) == ("explained", "relays")


async def test_a_pod_that_only_its_node_does_not_know_is_kept(cluster: Cluster) -> None:
    async with reaching(cluster) as agent:
        await agent.start()
        cluster.dial_error = PodGoneError("pod does not exist")
        for ended in (None, UnreachableError("no answer")):
            cluster.ended = ended
            with pytest.raises(TunnelError, match="the API server still has it") as caught:
                await agent.dial(asyncio.Protocol())
            assert not isinstance(caught.value, PodGoneError)
            assert cluster.created == 1
        assert agent.lost == ""
        # Who may not ask takes the node's word.
        cluster.ended = AccessDeniedError("no getting pods")
        with pytest.raises(PodGoneError):
            await agent.dial(asyncio.Protocol())
        assert agent.lost == "pod does not exist"


async def test_a_failed_dial_keeps_a_pod_that_runs(cluster: Cluster) -> None:
    async with reaching(cluster) as agent:
        cluster.dial_error = NotListeningError("not yet")
        for _ in range(2):
            with pytest.raises(NotListeningError):
                await agent.dial(asyncio.Protocol())
        assert cluster.created == 1


async def test_an_agent_is_dialled_before_its_pod_runs(cluster: Cluster) -> None:
    cluster.slow = True
    bus = EventBus()
    with bus.subscribe() as events:
        async with reaching(cluster, bus, Transport.AUTO) as agent:
            await agent.start()
            assert agent.starting is not None
            assert agent.where == ""
            # Its node does not know it yet.
            cluster.dial_error = PodGoneError("pod does not exist")
            with pytest.raises(PodGoneError):
                await agent.dial(asyncio.Protocol())
            assert agent.lost == ""
            cluster.dial_error = None
            await agent.dial(asyncio.Protocol())
            starting = agent.starting
            agent.reached()
            agent.reached()
            await starting
            await rig.until(lambda: "agent runs: relays/pod-1" in texts(events._events))
            assert agent.starting is None
            assert agent.where == "relays/pod-1"
            assert cluster.created == 1
            # The API server learns the pod's address from the pod's status.
            assert agent.shortcut is not None
            await rig.until(lambda: cluster.on_running is not None)
            assert not agent.shortcut.available
            assert cluster.on_running is not None
            cluster.on_running()
            assert agent.shortcut.available
    assert not cluster.left


async def test_an_agent_for_the_shortcut_alone_is_dialled_once_its_pod_runs(
    cluster: Cluster,
) -> None:
    async with reaching(cluster, transport=Transport.PROXY) as agent:
        await agent.start()
        assert agent.starting is None
        assert agent.shortcut is not None
        assert agent.shortcut.available
    assert not cluster.may_prove


async def test_a_start_that_fails_after_a_dial_is_the_next_dial_s_error(cluster: Cluster) -> None:
    cluster.slow = True
    async with reaching(cluster) as agent:
        await agent.start()
        starting = agent.starting
        assert starting is not None
        cluster.start_failed.set()
        with pytest.raises(AgentError, match="cannot pull the image"):
            await starting
        with pytest.raises(AgentError, match="cannot pull the image"):
            await agent.dial(asyncio.Protocol())
        assert cluster.created == 1
        cluster.slow = False
        await agent.dial(asyncio.Protocol())
        assert cluster.created == 2


async def test_a_start_that_fails_without_a_node_raises_at_once(cluster: Cluster) -> None:
    async def refuse(*args: object, **kwargs: object) -> Agent:
        raise AgentError("no node takes the agent's pod")

    async with reaching(cluster) as agent:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("krelay.cluster.agent_lifecycle.create_agent", refuse)
            for _ in range(2):
                with pytest.raises(AgentError, match="no node"):
                    await agent.start()
        await agent.start()


@pytest.mark.parametrize("placed", [True, False])
async def test_an_agent_that_is_removed_while_it_starts_leaves_no_job(
    placed: bool, cluster: Cluster
) -> None:
    cluster.slow = True
    async with reaching(cluster) as agent, TaskGroup() as tasks:
        start = tasks.create_task(agent.start())
        if placed:
            await start
        else:
            await asyncio.sleep(0)
            start.cancel()
            await asyncio.wait((start,))
        await agent.stop()
        assert agent.starting is None
        assert not cluster.left


async def test_a_group_raises_why_an_agent_cannot_run(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    """Before the pod runs, refused dials are neither logged nor an error."""
    cluster.slow = True
    cluster.dial_error = NotListeningError("nothing listens yet")
    async with reaching(cluster) as agent, TaskGroup() as tasks:
        group = AgentGroup(agent._spec, [agent], rig.KEY, EventBus())

        async def fail() -> None:
            await rig.until(lambda: [step[0] for step in cluster.asked].count("dial") > 1)
            cluster.start_failed.set()

        tasks.create_task(fail())
        with pytest.raises(AgentError, match="cannot pull the image"):
            await group.start(tasks)
        await group.stop()
    assert [record for record in caplog.records if record.levelno >= logging.WARNING] == []


async def test_a_group_ends_its_start_on_a_refusal_that_stays(cluster: Cluster) -> None:
    cluster.slow = True
    cluster.dial_error = AccessDeniedError("cannot create pods/portforward")
    async with reaching(cluster) as agent, TaskGroup() as tasks:
        group = AgentGroup(agent._spec, [agent], rig.KEY, EventBus())
        with pytest.raises(AccessDeniedError):
            await group.start(tasks)
        await group.stop()


async def test_refused_credentials_are_renewed_at_most_once_a_minute(
    cluster: Cluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with reaching(cluster) as agent:
        cluster.dial_error = CredentialsError("the certificate is not trusted")
        with pytest.raises(CredentialsError):
            await agent.dial(asyncio.Protocol())
        assert not cluster.rejected  # others would not help
        cluster.dial_error = UnauthorizedError("who?")
        for _ in range(3):
            with pytest.raises(UnauthorizedError):
                await agent.dial(asyncio.Protocol())
        assert cluster.rejected == [ACCESS]
        monkeypatch.setattr(base_module, "RENEW_EVERY", 0.0)
        with pytest.raises(UnauthorizedError):
            await agent.dial(asyncio.Protocol())
        assert cluster.rejected == [ACCESS, ACCESS]
        assert cluster.created == 1


@pytest.mark.parametrize("transport", [Transport.AUTO, Transport.PROXY])
async def test_the_shortcut_leads_to_the_door_of_the_present_agent(
    cluster: Cluster, transport: Transport
) -> None:
    async with reaching(cluster, transport=transport) as agent:
        assert agent.shortcut is None
        await agent.start()
        way = agent.shortcut
        assert way is not None
        assert (way.name, way.private) == ("proxy", False)
        assert agent.shortcut_only is (transport is Transport.PROXY)
        opened: Any = await way.dial(asyncio.Protocol())
        assert opened == "a transport"
        assert way.expires == ACCESS.expires
        asked = {"namespace": "relays", "pod": "pod-1", "port": AGENT_DOOR_PORT}
        assert cluster.asked[-1] == ("door", ACCESS, asked)
        # What a shortcut says is no proof that the agent is gone.
        cluster.door_error = TunnelError("pod relays/pod-1 is gone")
        with pytest.raises(TunnelError):
            await way.dial(asyncio.Protocol())
        assert agent.lost == ""
        await agent.abandon("enough")
        assert agent.shortcut is None
        with pytest.raises(PodGoneError):
            await way.dial(asyncio.Protocol())
        await agent.start()
        assert agent.shortcut is not None
        assert agent.shortcut is not way


@pytest.mark.parametrize("transport", [Transport.SPDY, Transport.WEBSOCKET])
async def test_a_pinned_port_forward_has_no_shortcut(
    cluster: Cluster, transport: Transport
) -> None:
    async with reaching(cluster, transport=transport) as agent:
        await agent.start()
        assert agent.shortcut is None
        assert not agent.shortcut_only


@pytest.mark.parametrize(
    ("transport", "renewed"), [(Transport.AUTO, []), (Transport.PROXY, [ACCESS])]
)
async def test_a_401_at_the_door_renews_credentials_only_if_nothing_else_can(
    cluster: Cluster, transport: Transport, renewed: list[ApiAccess]
) -> None:
    async with reaching(cluster, transport=transport) as agent:
        await agent.start()
        assert agent.shortcut is not None
        cluster.door_error = UnauthorizedError("who?")
        for _ in range(2):
            with pytest.raises(UnauthorizedError):
                await agent.shortcut.dial(asyncio.Protocol())
        assert cluster.rejected == renewed


async def test_a_dial_after_a_401_uses_renewed_credentials(cluster: Cluster) -> None:
    """By a real connection to a server that takes the second token only."""
    seen: list[bytes] = []

    async def server(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        seen.append(head.partition(b"Bearer ")[2].partition(b"\r")[0])
        answer = b"101 Switching Protocols\r\nUpgrade: SPDY/3.1" if seen[-1] == b"1" else b"401 No"
        writer.write(b"HTTP/1.1 " + answer + b"\r\n\r\n")
        if seen[-1] == b"1":
            await reader.read()

    async with rig.tcp_target(server) as port, reaching(cluster) as agent:

        async def access() -> ApiAccess:
            token = ("Authorization", f"Bearer {len(cluster.rejected)}")
            return ApiAccess(f"http://127.0.0.1:{port}", None, None, (token,))

        cluster.access = access  # type: ignore[method-assign]
        cluster.open_portforward = open_portforward  # type: ignore[method-assign, assignment]
        await agent.start()
        with pytest.raises(UnauthorizedError, match="rejects the credentials"):
            await agent.dial(asyncio.Protocol())
        (await agent.dial(asyncio.Protocol())).abort()
        assert seen == [b"0", b"1"]


async def test_a_pod_that_the_watch_finds_gone_is_removed_and_replaced(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    async with reaching(cluster) as agent:
        await agent.start()
        cluster.gone.set()
        await rig.until(lambda: agent.lost)
        assert agent.lost == "pod-1 was evicted"
        await rig.until(lambda: cluster.asked[-1] == ("delete", "job-1"))
        await agent.dial(asyncio.Protocol())
        assert cluster.asked[-1][2]["pod"] == "pod-2"
    assert "agent: pod-1 was evicted" in caplog.text


async def test_the_life_of_a_pod_is_published(cluster: Cluster) -> None:
    bus = EventBus()
    with bus.subscribe() as events:
        async with reaching(cluster, bus) as agent:
            await agent.start()
            await agent.abandon("not reached for ages")
        found: list[Any] = list(events._events)
    steps = [event.step for event in found if isinstance(event, AgentProgress)]
    assert steps == ["pulling the image", "pod relays/pod-1 runs"]
    assert [event.text for event in found if isinstance(event, PublicEvent)] == [
        "agent runs: relays/pod-1",
        "agent lost: not reached for ages",
    ]


async def test_an_abandoned_pod_is_removed_and_replaced(cluster: Cluster) -> None:
    async with reaching(cluster) as agent:
        await agent.abandon("none runs")
        await agent.start()
        assert agent.where == "relays/pod-1"
        await agent.abandon("not reached for ages")
        assert agent.lost == "not reached for ages"
        assert agent.where == ""
        assert cluster.asked[-1] == ("delete", "job-1")


async def test_a_forbidden_watch_of_the_pod_is_no_error(cluster: Cluster) -> None:
    cluster.watch_error = AccessDeniedError("no watching")
    async with reaching(cluster) as agent:
        await agent.start()
        await asyncio.sleep(0)
        await agent.dial(asyncio.Protocol())
        assert agent.lost == ""


async def test_a_lost_agent_whose_job_cannot_be_deleted_now_is_deleted_at_the_end(
    cluster: Cluster, caplog: pytest.LogCaptureFixture
) -> None:
    cluster.delete_error = AccessDeniedError("no deleting")
    async with reaching(cluster) as agent:
        await agent.start()
        await agent.abandon("no answer")
        assert "its Job will be deleted later: no deleting" in caplog.text
        cluster.delete_error = None
    assert not cluster.left


async def test_a_stopped_provider_starts_no_agent(cluster: Cluster) -> None:
    async with reaching(cluster) as agent:
        await agent.stop()
        with pytest.raises(AgentError):
            await agent.dial(asyncio.Protocol())
    assert cluster.created == 0


# -- another kubeconfig ----------------------------------------------------------------------------


@pytest.mark.parametrize("gone", [False, True])
async def test_a_server_that_moves_is_asked_for_the_agent(gone: bool) -> None:
    async with rig.agent() as server, TaskGroup() as tasks:
        link = rig.AgentLink(server)
        asked = asyncio.Event()

        async def answer() -> str:
            asked.set()
            return "the pod is gone" if gone else ""

        started = SimpleNamespace(
            start=link_start, stop=link_start, lost="", access_changed=lambda: None, gone=answer
        )
        agent = cast(Any, SimpleNamespace())
        for part in (link, started):
            for name in dir(part):
                if not name.startswith("_"):
                    setattr(agent, name, getattr(part, name))
        group = AgentGroup(EMBEDDED, [agent], rig.KEY, EventBus())
        await group.start(tasks)
        (tunnel,) = set(group.pool.tunnels[:1])
        session, dials = tunnel.carrier, len(link.transports)
        group.access_changed(moved=False)
        group.access_changed(moved=True)
        await asked.wait()
        await rig.until(lambda: len(link.transports) > dials and tunnel.up)
        await rig.until(lambda: (tunnel.carrier is not session) is gone)
        await group.stop()


async def link_start() -> None:
    """The agent of a link runs already."""
