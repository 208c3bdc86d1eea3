"""A run from its start to its end, also when a step fails."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable

import pytest

from krelay.agents import group as group_module
from krelay.datapath.tcp import TcpListener
from krelay.errors import (
    AgentError,
    CredentialsError,
    KrelayError,
    ListenError,
    NotFoundError,
    NotReadyError,
    NotRunningError,
    TunnelRefusedError,
    UnreachableError,
)
from krelay.model import (
    AgentConfig,
    Config,
    Endpoint,
    Kind,
    Port,
    Protocol,
    Resolution,
    Target,
    TunnelConfig,
)
from krelay.state.events import ForwardBound
from krelay.state.states import ForwardState, State
from krelay.supervisor import forward as forward_module
from krelay.supervisor import warming as module
from krelay.supervisor.supervisor import Supervisor
from krelay.supervisor.transitions.edits import ApplyRequest
from tests import rig
from tests.supervisor.agents import FakeAgent, fake_agents

EMBEDDED = AgentConfig(embedded=True)
Publish = Callable[[tuple[Resolution, ...]], None]


def target(name: str, *ports: Port, kind: Kind = Kind.IP, line: int = 1) -> Target:
    return Target(name, kind, rig.HOST if kind is Kind.IP else name, ports, line=line)


def config(*targets: Target, **tunnel: float) -> Config:
    return Config(targets, agent=EMBEDDED, tunnel=TunnelConfig(sessions=1, **tunnel))  # type: ignore[arg-type]


class Run:
    """A supervisor's run, what it announced, and the way to stop it."""

    def __init__(self, supervised: Config) -> None:
        self.lines: list[str] = []
        self.stop = asyncio.Event()
        self.supervisor = Supervisor(supervised)
        self.supervisor.bus.on(
            ForwardBound, lambda event: self.lines.extend(event.forward.routes())
        )

    async def run(self) -> None:
        await self.supervisor.run(self.stop)

    def port(self, name: str) -> int:
        line = next(line for line in self.lines if line.startswith(f"{name}: "))
        return int(line.split(" -> ")[0].rpartition(":")[2])


async def fails(supervised: Config) -> KrelayError:
    """The error that a run ends with."""
    running = Run(supervised)
    with pytest.raises(KrelayError) as caught:
        await running.run()
    return caught.value


# -- running -----------------------------------------------------------------------------------


async def test_a_supervisor_relays_until_it_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    async with fake_agents(monkeypatch), rig.tcp_target(rig.echo) as tcp, rig.udp_echo() as udp:
        running = Run(
            config(
                target("web", Port(tcp, 0)),
                target("both", Port(tcp, 0), Port(udp, 0, Protocol.UDP)),
            )
        )
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(running.run())
            await rig.until(lambda: len(running.lines) == 3)
            assert running.lines[0] == (
                f"web: 127.0.0.1:{running.port('web')} -> ip/127.0.0.1:{tcp} (tcp)"
            )
            assert await rig.exchange(running.port("web"), b"x") == b"x"
            assert await rig.exchange(running.port("both"), b"x") == b"x"
            running.stop.set()
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection(rig.HOST, running.port("web"))


async def test_an_embedded_agent_serves_all_contexts(monkeypatch: pytest.MonkeyPatch) -> None:
    async with fake_agents(monkeypatch) as made, rig.tcp_target(rig.echo) as tcp:
        one, two = (
            Target(name, Kind.IP, rig.HOST, (Port(tcp, 0),), context=context)
            for name, context in (("one", None), ("two", "other"))
        )
        running = Run(config(one, two))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(running.run())
            await rig.until(lambda: len(running.lines) == 2)
            assert len(made) == 1
            for name in ("one", "two"):
                assert await rig.exchange(running.port(name), b"x") == b"x"
            running.stop.set()


async def test_live_connections_may_finish_within_the_drain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with fake_agents(monkeypatch), rig.tcp_target(rig.echo) as tcp:
        running = Run(config(target("web", Port(tcp, 0)), drain=3600.0))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(running.run())
            await rig.until(lambda: running.lines)
            async with rig.connect(running.port("web")) as (reader, writer):
                writer.write(b"a")
                assert await reader.readexactly(1) == b"a"
                running.stop.set()
                await rig.until(lambda: not listening(running))
                writer.write(b"b")
                writer.write_eof()
                assert await reader.read() == b"b"


async def test_a_request_during_the_end_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """`krelay reload` would wait until the last connection has ended, and be cut off then."""
    async with fake_agents(monkeypatch), rig.tcp_target(rig.hold) as tcp:
        first = config(target("web", Port(tcp, 0)), drain=3600.0)
        running = Run(first)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(running.run())
            await rig.until(lambda: running.lines)
            async with rig.connect(running.port("web")) as (_, writer):
                writer.write(b"a")
                await rig.until(running.supervisor.active.streams)
                before = running.supervisor.apply(config(target("other", Port(tcp, 0))), "edit")
                running.stop.set()
                await before.done.wait()
                after = running.supervisor.apply(first, "edit")
                await after.done.wait()
                assert [str(want.failure) for want in (before, after)] == ["krelay is stopping"] * 2
                rig.rst(writer)


def listening(running: Run) -> bool:
    return bool(running.supervisor.active.forwards)


async def test_live_connections_are_cut_after_the_drain(monkeypatch: pytest.MonkeyPatch) -> None:
    async with fake_agents(monkeypatch), rig.tcp_target(rig.hold) as tcp:
        running = Run(config(target("web", Port(tcp, 0)), drain=0.01))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(running.run())
            await rig.until(lambda: running.lines)
            async with rig.connect(running.port("web")) as (reader, writer):
                writer.write(b"a")
                await writer.drain()
                running.stop.set()
                with pytest.raises(ConnectionResetError):
                    await reader.read()


async def test_cancelling_skips_the_draining(monkeypatch: pytest.MonkeyPatch) -> None:
    async with fake_agents(monkeypatch), rig.tcp_target(rig.hold) as tcp:
        running = Run(config(target("web", Port(tcp, 0)), drain=3600.0))
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(running.run())
            await rig.until(lambda: running.lines)
            async with rig.connect(running.port("web")) as (reader, writer):
                writer.write(b"a")
                await writer.drain()
                running.stop.set()
                await rig.until(lambda: not listening(running))
                task.cancel()
                with pytest.raises(ConnectionResetError):
                    await reader.read()
        assert task.cancelled()


async def test_connections_during_a_cancellation_break_nothing(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with fake_agents(monkeypatch), rig.tcp_target(rig.hold) as tcp:
        running = Run(config(target("web", Port(tcp, 0)), drain=3600.0))
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(running.run())
            await rig.until(lambda: running.lines)
            loop, port = asyncio.get_running_loop(), running.port("web")

            async def knock() -> None:
                with contextlib.suppress(ConnectionError):
                    async with rig.connect(port) as (reader, _):
                        await reader.read()

            clients = [tasks.create_task(knock()) for _ in range(50)]
            loop.call_soon(task.cancel)
            await asyncio.wait(clients)
        assert task.cancelled()
    assert not [record for record in caplog.records if record.name == "asyncio"]


# -- starting ----------------------------------------------------------------------------------


async def test_a_start_can_be_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    starting = asyncio.Event()

    async def forever(agent: FakeAgent) -> None:
        starting.set()
        await asyncio.get_running_loop().create_future()

    async with fake_agents(monkeypatch):
        monkeypatch.setattr(FakeAgent, "start", forever)
        running = Run(config(target("web", Port(80, 0))))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(running.run())
            await starting.wait()
            running.stop.set()
        assert running.lines == []


async def test_a_cancellation_during_the_end_is_not_swallowed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """A task group that ends already swallows it, and the exit code would say that all was well."""
    starting, ending, go = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def slow(agent: FakeAgent) -> None:
        starting.set()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            ending.set()
            await go.wait()

    async with fake_agents(monkeypatch):
        monkeypatch.setattr(FakeAgent, "start", slow)
        running = Run(config(target("web", Port(80, 0))))
        async with asyncio.TaskGroup() as tasks:
            task = tasks.create_task(running.run())
            await starting.wait()
            running.stop.set()
            await ending.wait()
            for _ in range(20):  # turns of the loop: from here on it waits for that agent alone
                await asyncio.sleep(0)
            task.cancel()
            await asyncio.sleep(0)
            go.set()
        assert task.cancelled()


async def test_an_agent_that_cannot_start_fails_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(agent: FakeAgent) -> None:
        raise AgentError("no image", hint="build one")

    async with fake_agents(monkeypatch):
        monkeypatch.setattr(FakeAgent, "start", fail)
        error = await fails(config(target("web", Port(80, 0))))
        assert (str(error), error.hint, error.exit_code) == ("no image", "build one", 4)


@pytest.mark.parametrize("kind", [TunnelRefusedError, UnreachableError, CredentialsError])
async def test_a_permanent_failure_of_the_tunnel_fails_the_start_at_once(
    kind: type[KrelayError], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(agent: FakeAgent, protocol: asyncio.Protocol) -> asyncio.Transport:
        raise kind("no way")

    async with fake_agents(monkeypatch):
        monkeypatch.setattr(FakeAgent, "dial", fail)
        error = await fails(config(target("web", Port(80, 0))))
        assert type(error) is kind


async def test_a_tunnel_that_is_not_up_in_time_fails_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def fail(agent: FakeAgent, protocol: asyncio.Protocol) -> asyncio.Transport:
        raise ConnectionRefusedError("not yet")

    monkeypatch.setattr(group_module, "_TUNNEL_DEADLINE", 0.05)
    async with fake_agents(monkeypatch):
        monkeypatch.setattr(FakeAgent, "dial", fail)
        error = await fails(config(target("web", Port(80, 0))))
        assert type(error) is NotReadyError
        assert str(error) == "no tunnel to the agent within 0.05 s: not yet"


async def test_a_tunnel_that_comes_up_after_retries_is_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    real, tries = FakeAgent.dial, 0

    async def later(agent: FakeAgent, protocol: asyncio.Protocol) -> asyncio.Transport:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise ConnectionRefusedError("not yet")
        return await real(agent, protocol)

    async with fake_agents(monkeypatch):
        monkeypatch.setattr(FakeAgent, "dial", later)
        running = Run(config(target("web", Port(80, 0))))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(running.run())
            await rig.until(lambda: running.lines)
            running.stop.set()


async def test_an_agent_that_is_lost_during_the_start_fails_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def lose(agent: FakeAgent, protocol: asyncio.Protocol) -> asyncio.Transport:
        agent.lost = "the pod was evicted"
        raise ConnectionResetError

    async with fake_agents(monkeypatch):
        monkeypatch.setattr(FakeAgent, "dial", lose)
        error = await fails(config(target("web", Port(80, 0))))
        assert (type(error), str(error)) == (AgentError, "the pod was evicted")


async def test_one_port_in_use_does_not_fail_the_start(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with fake_agents(monkeypatch), rig.tcp_target(rig.echo) as tcp:
        running = Run(config(target("taken", Port(80, tcp)), target("web", Port(tcp, 0))))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(running.run())
            await rig.until(lambda: running.lines)
            assert await rig.exchange(running.port("web"), b"x") == b"x"
            running.stop.set()
        assert len(running.lines) == 1
    assert f"taken: cannot listen on 127.0.0.1:{tcp}: Address already in use" in caplog.text


async def test_one_port_in_use_fails_a_strict_start(monkeypatch: pytest.MonkeyPatch) -> None:
    async with fake_agents(monkeypatch) as made, rig.tcp_target(rig.echo) as tcp:
        both = config(target("taken", Port(80, tcp)), target("web", Port(tcp, 0)))
        supervisor = Supervisor(both, strict=True)
        with pytest.raises(ListenError):
            await supervisor.run(asyncio.Event())
        # It binds before an agent is made.
        assert [agent.server.listening.is_set() for agent in made] == [False]


async def test_one_target_that_cannot_be_followed_fails_a_strict_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def follow(target: Target, publish: Publish) -> None:
        if target.name == "bad":
            raise CredentialsError("not allowed")
        publish((Resolution.as_given(target, target.ports[0]),))

    async with fake_agents(monkeypatch), rig.tcp_target(rig.echo) as tcp:
        monkeypatch.setattr(module, "follow_constant", follow)
        both = config(target("bad", Port(tcp, 0)), target("web", Port(tcp, 0)))
        with pytest.raises(CredentialsError):
            await Supervisor(both, strict=True).run(asyncio.Event())
        running = Run(both)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(running.run())
            await rig.until(lambda: any(line.startswith("web:") for line in running.lines))
            assert await rig.exchange(running.port("web"), b"x") == b"x"
            running.stop.set()


async def test_one_missing_target_fails_a_strict_start_if_it_must_exist(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """But not where it may yet come, as `krelay run` waits for it."""

    async def follow(target: Target, publish: Publish) -> None:
        if target.name == "bad":
            publish((Resolution(Protocol.TCP, None, "service not found", missing=True),))
        else:
            publish((Resolution.as_given(target, target.ports[0]),))

    async with fake_agents(monkeypatch), rig.tcp_target(rig.echo) as tcp:
        monkeypatch.setattr(module, "follow_constant", follow)
        both = config(target("bad", Port(tcp, 0)), target("web", Port(tcp, 0)))
        supervisor = Supervisor(both, strict=True, must_exist=True)
        with pytest.raises(NotFoundError, match="service not found"):
            await supervisor.run(asyncio.Event())
        for strict in (True, False):
            supervisor = Supervisor(both, strict=strict, must_exist=not strict)
            stop = asyncio.Event()
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(supervisor.run(stop))
                await supervisor.started.wait()
                stop.set()


RUNNING = Resolution(Protocol.TCP, Endpoint(rig.HOST, 80), via="pod a")
PENDING = Resolution(Protocol.TCP, reason="pod a is not running: Pending", phase="Pending")
SUCCEEDED = Resolution(
    Protocol.TCP, reason="pod a is not running: Succeeded", phase="Succeeded", ended=True
)
GONE = Resolution(Protocol.TCP, reason='pods "a" not found', missing=True, ended=True)
UNREADY = Resolution(Protocol.TCP, reason="pod a is being deleted", fallback=RUNNING)
RESTARTING = Resolution(Protocol.TCP, reason="pod a is not ready: Error", phase="Running")


class Pods:
    """A run as that of `kubectl relay`, of a target with the resolutions of a test."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *first: Resolution) -> None:
        self.resolutions: asyncio.Queue[Resolution] = asyncio.Queue()
        for one in first:
            self.resolutions.put_nowait(one)
        monkeypatch.setattr(module, "follow_constant", self.follow)

    async def follow(self, target: Target, publish: Publish) -> None:
        while True:
            publish((await self.resolutions.get(),))

    def supervisor(self, timeout: float = 3600.0) -> Supervisor:
        one = config(target("a", Port(80, 0)))
        return Supervisor(one, must_exist=True, pod_running_timeout=timeout)


@pytest.mark.parametrize(
    ("resolutions", "error", "text"),
    [
        ([SUCCEEDED], NotRunningError, "pod is not running. Current status=Succeeded"),
        ([PENDING, SUCCEEDED], NotRunningError, "pod is not running. Current status=Succeeded"),
        ([GONE], NotFoundError, 'pods "a" not found'),
    ],
)
async def test_a_pod_that_has_ended_fails_the_start_in_kubectl_s_words(
    resolutions: list[Resolution],
    error: type[KrelayError],
    text: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with fake_agents(monkeypatch):
        supervisor = Pods(monkeypatch, *resolutions).supervisor()
        with pytest.raises(error) as caught:
            await supervisor.run(asyncio.Event())
        assert caught.value.message.endswith(text)
        assert caught.value.exit_code == 4
    # The command prints the error.
    assert [line for line in caplog.messages if resolutions[-1].reason in line] == []


async def test_what_ends_the_start_is_told_once_and_all_else_is_logged(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def follow(target: Target, publish: Publish) -> None:
        if target.name.startswith("denied"):
            raise CredentialsError(target.name.partition("-")[2], hint="ask")
        publish((Resolution(Protocol.TCP, None, f"no {target.name}", missing=True),))
        await asyncio.Event().wait()

    monkeypatch.setattr(module, "follow_constant", follow)
    expected = {
        ("web", "db"): ("no web", ["db: no db"]),
        ("denied-a", "denied-b"): ("a", ["denied-b: not followed: b; hint: ask"]),
    }
    async with fake_agents(monkeypatch):
        for names, (error, others) in expected.items():
            caplog.clear()
            targets = [target(name, Port(80, 0)) for name in names]
            supervisor = Supervisor(config(*targets), must_exist=True)
            with pytest.raises(KrelayError) as caught:
                await supervisor.run(asyncio.Event())
            assert (caught.value.message, caplog.messages) == (error, others)


async def test_a_pod_that_does_not_run_in_time_fails_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with fake_agents(monkeypatch):
        supervisor = Pods(monkeypatch, PENDING).supervisor(0.01)
        with pytest.raises(NotReadyError, match="Current status=Pending") as caught:
            await supervisor.run(asyncio.Event())
        assert caught.value.unready == ("a: pod a is not running: Pending",)
        supervisor = Pods(monkeypatch, Resolution(Protocol.TCP, reason="no pod")).supervisor(0.01)
        with pytest.raises(NotReadyError, match="timed out waiting for a pod to run"):
            await supervisor.run(asyncio.Event())


@pytest.mark.parametrize("then", [RUNNING, UNREADY, RESTARTING])
async def test_the_start_waits_for_a_pod_and_the_run_ends_with_it(
    then: Resolution, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with fake_agents(monkeypatch):
        pods = Pods(monkeypatch, PENDING)
        supervisor = pods.supervisor()
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(fails_to_run(supervisor))
            await rig.until(lambda: supervisor.active.forwards)
            (forward,) = supervisor.active.forwards.values()
            await rig.until(lambda: forward.route.resolution == PENDING)
            assert not supervisor.started.is_set()
            pods.resolutions.put_nowait(then)
            await supervisor.started.wait()
            assert forward.route.endpoint == (None if then is RESTARTING else RUNNING.endpoint)
            pods.resolutions.put_nowait(GONE)
            error = await running
    assert (str(error), error.exit_code) == ("lost connection to pod", 1)


async def fails_to_run(supervisor: Supervisor) -> KrelayError:
    with pytest.raises(KrelayError) as caught:
        await supervisor.run(asyncio.Event())
    return caught.value


async def test_other_runs_outlive_the_pods_of_their_targets(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with fake_agents(monkeypatch):
        pods = Pods(monkeypatch, SUCCEEDED)
        supervisor, stop = Supervisor(config(target("a", Port(80, 0)))), asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(supervisor.run(stop))
            await supervisor.started.wait()
            (forward,) = supervisor.active.forwards.values()
            assert (forward.health.state, forward.health.reason) == (
                State.PENDING,
                "pod a is not running: Succeeded",
            )
            pods.resolutions.put_nowait(RUNNING)
            await forward.route.wait_endpoint()
            stop.set()


async def test_all_ports_in_use_fail_the_start_each_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with fake_agents(monkeypatch), rig.tcp_target(rig.echo) as tcp:
        error = await fails(config(target("a", Port(80, tcp)), target("b", Port(81, tcp))))
        assert type(error) is ListenError
    # The command prints the first one.
    assert [line.partition(":")[0] for line in caplog.messages if "cannot listen" in line] == ["b"]


async def test_a_port_in_use_starts_no_agent_and_is_told_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Not even if only the Service knows whether the port is TCP or UDP."""

    async def follow(target: Target, publish: Publish) -> None:
        await asyncio.sleep(0)
        publish((Resolution(Protocol.TCP, Endpoint(rig.HOST, 80)),))

    async def start(agent: FakeAgent) -> None:
        pytest.fail("an agent is started")

    async with fake_agents(monkeypatch), rig.tcp_target(rig.echo) as taken:
        monkeypatch.setattr(module, "follow_constant", follow)
        monkeypatch.setattr(FakeAgent, "start", start)
        for protocol in (None, Protocol.TCP):
            port = Port("http", taken, protocol)
            error = await fails(config(target("web", port, kind=Kind.SERVICE)))
            assert type(error) is ListenError
            assert "Address already in use by this krelay" in str(error)
    # The command prints the error.
    assert "Address already in use" not in caplog.text


async def test_one_port_in_use_is_logged_while_the_others_serve(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with fake_agents(monkeypatch), rig.tcp_target(rig.echo) as tcp:
        running = Run(config(target("a", Port(80, tcp)), target("b", Port(tcp, 0))))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(running.run())
            await running.supervisor.started.wait()
            assert await rig.exchange(running.port("b"), b"x") == b"x"
            running.stop.set()
    assert caplog.text.count("Address already in use by this krelay") == 1


async def test_a_target_that_does_not_exist_holds_up_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    appears = asyncio.Event()

    async def follow(target: Target, publish: Publish) -> None:
        if target.name == "bad" and not appears.is_set():
            publish((Resolution(Protocol.TCP, reason="service not found", missing=True),))
            await appears.wait()
        publish((Resolution(Protocol.TCP, Endpoint(rig.HOST, tcp)),))

    async with fake_agents(monkeypatch), rig.tcp_target(rig.echo) as tcp:
        monkeypatch.setattr(module, "follow_constant", follow)
        monkeypatch.setattr(forward_module, "_SETTLE_DEADLINE", None)
        bad = target("bad", Port("http", 0), kind=Kind.SERVICE)
        running = Run(config(bad, target("web", Port(tcp, 0))))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(running.run())
            await running.supervisor.started.wait()
            assert await rig.exchange(running.port("web"), b"x") == b"x"
            with pytest.raises(ConnectionResetError):
                await rig.exchange(running.port("bad"), b"x")
            appears.set()
            await rig.until(lambda: running.supervisor.snapshot().ready)
            assert await rig.exchange(running.port("bad"), b"x") == b"x"
            running.stop.set()


# -- following ---------------------------------------------------------------------------------


async def test_a_forward_that_waits_is_announced_once_it_is_bound(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with fake_agents(monkeypatch), rig.tcp_target(rig.echo) as tcp:
        ready = asyncio.Event()

        async def follow(target: Target, publish: Publish) -> None:
            publish((Resolution(Protocol.TCP, None, "no ready pod"),))
            await ready.wait()
            publish((Resolution(Protocol.TCP, Endpoint(rig.HOST, tcp), via="pod x"),))

        monkeypatch.setattr(module, "follow_constant", follow)
        monkeypatch.setattr(forward_module, "_SETTLE_DEADLINE", 0.01)
        free = rig.closed_port()
        running = Run(config(target("web", Port("http", None, Protocol.TCP))))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(running.run())
            await rig.until(lambda: "web: waiting: no ready pod" in caplog.text)
            assert running.lines == []
            monkeypatch.setattr(TcpListener, "open", opens_on(free))
            ready.set()
            await rig.until(lambda: running.lines)
            assert running.lines == [f"web: 127.0.0.1:{free} -> ip/127.0.0.1:http (tcp)"]
            assert await rig.exchange(free, b"x") == b"x"
            running.stop.set()


def opens_on(port: int) -> Callable[..., object]:
    """`TcpListener.open`, but on `port`: the target has that of the forward."""
    real = TcpListener.open

    async def open_there(listener: TcpListener, address: str, _: int) -> None:
        await real(listener, address, port)

    return open_there


async def test_a_target_that_cannot_be_followed_at_first_fails_the_start(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async def fail(target: Target, publish: Publish) -> None:
        raise CredentialsError("not allowed")

    async with fake_agents(monkeypatch):
        monkeypatch.setattr(module, "follow_constant", fail)
        error = await fails(config(target("web", Port(80, 0))))
        assert type(error) is CredentialsError


async def test_a_target_that_cannot_be_followed_later_keeps_its_route(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with fake_agents(monkeypatch), rig.tcp_target(rig.echo) as tcp:
        fail = asyncio.Event()

        async def follow(target: Target, publish: Publish) -> None:
            publish((Resolution(Protocol.TCP, Endpoint(rig.HOST, tcp)),))
            if not fail.is_set():
                await fail.wait()
                raise CredentialsError("no longer allowed")

        monkeypatch.setattr(module, "follow_constant", follow)
        running = Run(config(target("web", Port(tcp, 0))))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(running.run())
            await rig.until(lambda: running.lines)
            fail.set()
            await rig.until(lambda: "web: not followed: no longer allowed" in caplog.text)
            assert await rig.exchange(running.port("web"), b"x") == b"x"
            running.stop.set()


# -- the end -----------------------------------------------------------------------------------


async def test_an_agent_that_is_not_removed_in_time_is_named_in_the_log(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def forever(agent: FakeAgent) -> None:
        agent.stopped = True
        await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(group_module, "_REMOVE_DEADLINE", 0.05)
    async with fake_agents(monkeypatch):
        monkeypatch.setattr(FakeAgent, "stop", forever)
        running = Run(config(target("web", Port(80, 0))))
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(running.run())
            await rig.until(lambda: running.lines)
            running.stop.set()
    assert "the agent was not removed in time" in caplog.text


# -- waiting until it is ready ---------------------------------------------------------------------


async def waited(supervised: Config, timeout: float, **words: str) -> tuple[ForwardState, ...]:
    """What it gives, as it is used: beside the supervisor's run."""
    supervisor = Supervisor(supervised, strict=True)
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(supervisor.run(stop))
        found = await supervisor.wait_ready(timeout, **words)
        stop.set()
    return found


async def test_waiting_returns_all_forwards_in_file_order(monkeypatch: pytest.MonkeyPatch) -> None:
    async with fake_agents(monkeypatch), rig.tcp_target(rig.echo) as tcp:
        two = (Port(tcp, 0), Port(tcp, 0))
        found = await waited(config(target("b", *two), target("a", two[0])), 5.0)
    assert [(f.target, f.index, f.state) for f in found] == [
        ("b", 0, State.READY),
        ("b", 1, State.READY),
        ("a", 0, State.READY),
    ]
    assert all(f.listen for f in found)


async def test_a_forward_that_is_not_ready_in_time_is_named_with_its_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    dead = rig.closed_port()
    async with fake_agents(monkeypatch), rig.tcp_target(rig.echo) as tcp:
        supervised = config(target("web", Port(tcp, 0)), target("db", Port(dead, 0)))
        with pytest.raises(ExceptionGroup) as caught:
            await waited(supervised, 1.5, then="nothing was done", hint="wait")
    (error,) = caught.value.exceptions
    assert isinstance(error, KrelayError)
    line, message, hint = error.report()
    assert line.startswith("db: failed: refused: ")
    assert message == "not ready after 1.5 s; nothing was done"
    assert hint == "  hint: check the port, and that the program behind it has started"


async def test_before_the_start_nothing_is_ready() -> None:
    supervisor = Supervisor(config(target("web", Port(80, 0))))
    with pytest.raises(NotReadyError) as caught:
        await supervisor.wait_ready(0.0, hint="wait")
    assert caught.value.unready == ("krelay is starting",)
    assert caught.value.hint == "wait"


# -- requests --------------------------------------------------------------------------------------


def test_a_request_that_is_replaced_or_given_up_is_done() -> None:
    first, second = ApplyRequest(Config(()), "first"), ApplyRequest(Config(()), "second")
    first.finish(newer=second)
    assert first.done.is_set()
    assert first.newer is second
    second.finish(failure=KrelayError("too late"))
    assert second.done.is_set()
    assert str(second.failure) == "too late"


def test_a_request_that_is_done_stays_as_it_is() -> None:
    done = ApplyRequest(Config(()), "done")
    done.done.set()
    done.finish(newer=ApplyRequest(Config(()), "newer"))
    done.finish(failure=KrelayError("too late"))
    assert (done.newer, done.failure) == (None, None)
