"""The state of a forward: judged by real agents, targets, cuts and refusals, and published."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
import socket
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from krelay.config.diff import Spec
from krelay.datapath.probe import ProbeError, probe
from krelay.errors import ListenError
from krelay.model import (
    Check,
    CheckKind,
    Endpoint,
    Kind,
    PodPort,
    Port,
    Protocol,
    Resolution,
    SessionConfig,
    Target,
)
from krelay.state.bus import EventBus
from krelay.state.states import State
from krelay.supervisor import health as module
from krelay.supervisor.forward import Forward
from krelay.wire.errors import ErrorCode
from tests import rig

AUTO, DIAL = Check(), Check(CheckKind.DIAL)
TCP, UDP = Port(80, 0, Protocol.TCP), Port(53, 0, Protocol.UDP)
NONE = Check(CheckKind.NONE)


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries do not take seconds; what works is not asked again within a test."""
    monkeypatch.setattr(module, "AGAIN", (0.01, 0.02, 0.05))
    monkeypatch.setattr(module, "INTERVAL", 3600.0)
    monkeypatch.setattr(module, "TICK", 0.001)
    monkeypatch.setattr(module, "_CONFIRM_WAIT", 0.01)


def leads(port: int, protocol: Protocol = Protocol.TCP) -> Resolution:
    return Resolution(protocol, Endpoint(rig.HOST, port))


class Watched:
    """A forward and the events about it."""

    def __init__(self, path: rig.Path, port: Port = TCP, check: Check = DIAL, **more: Any):
        target = Target("web", Kind.SERVICE, "nginx", (port,), check=check, **more)
        self.bus = EventBus()
        self.forward = Forward(
            Spec(target, 0),
            path.route(None, followed=True),
            path.tasks,
            open_timeout=30.0,
            bus=self.bus,
            on_bound=lambda forward: None,
        )
        self.health, self.route = self.forward.health, self.forward.route

    async def becomes(self, state: State, reason: str = "") -> None:
        await rig.until(lambda: self.health.state is state and reason in self.health.reason)

    @property
    def texts(self) -> list[str]:
        return [event.text for event in self.bus.history]

    @property
    def port(self) -> int:
        assert self.forward.listener is not None
        return rig.port_of(self.forward.listener)


@asynccontextmanager
async def watched(
    path: rig.Path, port: Port = TCP, check: Check = DIAL, **more: Any
) -> AsyncIterator[Watched]:
    made = Watched(path, port, check, **more)
    made.forward.bind()
    try:
        yield made
    finally:
        made.forward.cut()


async def test_a_forward_is_pending_until_a_probe_works(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "krelay.health")
    async with rig.path() as path, rig.tcp_target(rig.swallow) as target:
        async with watched(path) as w:
            assert (w.health.state, w.health.reason) == (State.PENDING, "not bound yet")
            began = w.health.since
            await w.becomes(State.PENDING, "not resolved yet")
            w.route.update(Resolution(Protocol.TCP, None, "no ready endpoint"))
            assert w.health.reason == "no ready endpoint"
            w.route.update(leads(target))
            await w.becomes(State.READY)
            assert w.health.since > began
            # It is no traffic.
            assert w.forward.metrics.opened == w.forward.live == 0
            await rig.until(lambda: path.streams == (0, 0))
        (event, last) = w.bus.history
        assert (event.kind, event.about) == ("state", "web")
        assert event.details == {"from": "pending", "to": "ready", "reason": "", "index": 0}
        assert last.details["to"] == "draining"
    assert [(r.levelname, r.message) for r in caplog.records] == [("INFO", "web: ready")]


async def test_a_refused_probe_is_failed_before_the_first_success_and_degraded_after(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with rig.path() as path, rig.tcp_target(rig.swallow) as target:
        async with watched(path) as w:
            closed = rig.closed_port()
            w.route.update(leads(closed))
            await w.becomes(State.FAILED, "refused: ")
            assert "nothing listens there (127.0.0.1:" in w.health.reason
            w.route.update(leads(target))
            await w.becomes(State.READY)
            w.route.update(leads(closed))
            await w.becomes(State.DEGRADED, "refused: ")
            w.route.update(leads(target))
            await w.becomes(State.READY)
            w.route.update(Resolution(Protocol.TCP, None, "no ready endpoint"))
            await w.becomes(State.DEGRADED, "no ready endpoint")
            w.route.update(leads(target))
            await w.becomes(State.READY)
    # Each once, however many probes there were; the watcher logs its own findings.
    texts = [r.message for r in caplog.records if r.name == "krelay.health"]
    assert [text[:15] for text in texts] == ["web: failed: re", "web: degraded: "]
    assert w.texts[-3:-1] == ["web: degraded: no ready endpoint", "web: ready"]


async def test_a_missing_or_forbidden_target_has_failed() -> None:
    async with rig.path() as path, watched(path) as w:
        w.route.update(Resolution(Protocol.TCP, None, "service not found", missing=True))
        assert (w.health.state, w.health.reason) == (State.FAILED, "service not found")
        async with watched(path) as other:
            other.route.fail("forbidden")
            assert (other.health.state, other.health.reason) == (State.FAILED, "forbidden")


async def test_a_port_in_use_has_failed_until_it_is_free() -> None:
    async with rig.path() as path, rig.tcp_target(rig.swallow) as target:
        taken = await path.tcp(1)
        port = Port(80, rig.port_of(taken), Protocol.TCP)
        async with watched(path, port) as w:
            w.route.update(leads(target))
            await w.becomes(State.FAILED, "cannot listen on 127.0.0.1:")
            taken.close()
            await w.becomes(State.READY)


async def test_the_last_error_stays_with_its_hint_after_it_is_over() -> None:
    async with rig.path() as path, rig.tcp_target(rig.swallow) as target:
        async with watched(path) as w:
            w.route.update(Resolution(Protocol.TCP, None, "svc/nginx does not exist", missing=True))
            await w.becomes(State.FAILED)
            first = w.health.last_error
            assert first is not None
            assert (first.message, "kubectl get svc" in first.hint) == (w.health.reason, True)
            w.route.update(leads(rig.closed_port()))
            await w.becomes(State.FAILED, "refused")
            await rig.until(lambda: w.health.last_error is not first)
            last = w.health.last_error
            assert last is not None
            assert last.message.startswith("refused: ")
            assert "has started; `via: direct`" in last.hint
            w.route.update(leads(target))
            await w.becomes(State.READY)
            assert w.health.last_error is last


async def test_a_target_that_is_not_followed_has_the_hint_of_its_error() -> None:
    async with rig.path() as path, watched(path) as w:
        w.route.fail("services is forbidden", "ask an administrator")
        await w.becomes(State.FAILED)
        assert w.health.last_error is not None
        assert w.health.last_error.hint == "ask an administrator"


async def test_without_a_tunnel_a_forward_is_pending_or_degraded() -> None:
    async with rig.path() as path, rig.tcp_target(rig.swallow) as target:
        path.link.cut(blocked=True)
        await rig.until(lambda: path.pool.pick() is None)
        async with watched(path) as w:
            w.route.update(leads(target))
            await w.becomes(State.PENDING, "no tunnel to the agent: the way is shut")
            path.link.blocked = False
            await w.becomes(State.READY)
            path.link.cut(blocked=True)
            await w.becomes(State.DEGRADED, "no tunnel to the agent: ")
            await w.becomes(State.DEGRADED, "the way is shut")
            path.link.blocked = False
            await w.becomes(State.READY)
        # The tunnel has its own events; hundreds of forwards must not repeat them.
        assert [event.details["to"] for event in w.bus.history][:3] == [
            "ready",
            "degraded",
            "ready",
        ]


async def test_real_traffic_postpones_the_next_probe(monkeypatch: pytest.MonkeyPatch) -> None:
    async def never(*_: Any) -> None:
        pytest.fail("a probe although traffic has shown that the endpoint works")

    async with rig.path() as path, rig.tcp_target(rig.echo) as target:
        async with watched(path) as w:
            await w.forward.settled.wait()
            w.route.update(leads(target))
            await w.becomes(State.READY)
            monkeypatch.setattr(module, "probe", never)
            began = asyncio.get_running_loop().time()
            assert await rig.exchange(w.port, b"x") == b"x"
            assert w.health._due >= began + module.INTERVAL


async def test_a_refused_connection_degrades_until_another_one_works() -> None:
    async with rig.path() as path, rig.tcp_target(rig.echo) as target:
        async with watched(path, check=NONE) as w:
            w.route.followed = False
            await w.forward.settled.wait()
            w.route.update(leads(rig.closed_port()))
            # An unprobed forward counts as ready.
            await w.becomes(State.READY)
            async with rig.connect(w.port) as (reader, _):
                with pytest.raises(ConnectionResetError):
                    await reader.read()
            await w.becomes(State.DEGRADED, "refused: ")
            w.route.update(leads(target))
            await w.becomes(State.READY)
            assert await rig.exchange(w.port, b"x") == b"x"
            assert w.texts == [
                "web: ready",
                f"web: degraded: {w.bus.history[1].details['reason']}",
                "web: ready",
            ]


@pytest.mark.parametrize("protocol", list(Protocol))
async def test_an_unprobed_forward_counts_as_working_again_after_a_while(
    protocol: Protocol, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with rig.path() as path, watched(path, Port(80, 0, protocol), check=NONE) as w:
        w.route.update(leads(1, protocol))
        await w.becomes(State.READY)
        w.health._dialled(ErrorCode.REFUSED, "")
        assert w.health.state is State.DEGRADED
        monkeypatch.setattr(module, "INTERVAL", 0.01)
        w.health._dialled(ErrorCode.REFUSED, "")
        await w.becomes(State.READY)
        assert [event.details["to"] for event in w.bus.history] == ["ready", "degraded", "ready"]


async def test_a_probe_is_repeated_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INTERVAL", 0.01)
    seen = 0

    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal seen
        seen += 1

    async with rig.path() as path, rig.tcp_target(count) as target, watched(path) as w:
        w.route.update(leads(target))
        await rig.until(lambda: seen > 3)
        assert w.texts == ["web: ready"]


async def test_forwards_to_one_endpoint_share_its_probes() -> None:
    seen = 0

    async def count(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal seen
        seen += 1

    async with rig.path() as path, rig.tcp_target(count) as target, AsyncExitStack() as stack:
        many = [await stack.enter_async_context(watched(path)) for _ in range(20)]
        for w in many:
            await w.forward.settled.wait()
        for w in many:
            w.route.update(leads(target))
        for w in many:
            await w.becomes(State.READY)
        await rig.until(lambda: seen)
        assert seen == 1
        other = await stack.enter_async_context(watched(path, check=Check(CheckKind.HTTP)))
        other.route.update(leads(target))
        await other.becomes(State.FAILED)
        assert many[0].health.state is State.READY, "another check is another question"


async def test_forwards_to_one_endpoint_share_a_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "INTERVAL", 0.01)
    async with rig.path() as path, AsyncExitStack() as stack:
        many = [await stack.enter_async_context(watched(path)) for _ in range(5)]
        async with rig.tcp_target(rig.swallow) as target:
            for w in many:
                w.route.update(leads(target))
            for w in many:
                await w.becomes(State.READY)
        for w in many:
            await w.becomes(State.DEGRADED, "refused: ")


async def test_a_ready_forward_gets_a_second_probe_before_it_degrades(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "INTERVAL", 0.01)
    real, odd = probe, 0

    async def flaky(*args: Any) -> None:
        nonlocal odd
        odd += 1
        if odd % 2 == 0:
            raise ProbeError("once", ErrorCode.REFUSED)
        await real(*args)

    monkeypatch.setattr(module, "probe", flaky)
    async with rig.path() as path, rig.tcp_target(rig.swallow) as target, watched(path) as w:
        w.route.update(leads(target))
        await rig.until(lambda: odd > 7)
        assert w.texts == ["web: ready"]


async def test_a_check_that_changes_during_a_probe_starts_over() -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        status = b"200 OK" if request.startswith(b"GET /good ") else b"503 No"
        writer.write(b"HTTP/1.1 " + status + b"\r\n\r\n")

    async with rig.path() as path, rig.tcp_target(serve) as target:
        async with watched(path, check=Check(CheckKind.HTTP, path="/bad")) as w:
            w.route.update(leads(target))
            await w.becomes(State.FAILED, "GET /bad -> 503, expected 200 to 399")
            for check, state in (
                (Check(CheckKind.HTTP, path="/good"), State.READY),
                (Check(CheckKind.HTTP, path="/bad"), State.DEGRADED),
                (NONE, State.READY),
            ):
                spec = w.forward.spec
                new = Spec(dataclasses.replace(spec.target, check=check), 0)
                w.forward.update(new, path.pool, 30.0)
                assert w.health.check == check
                await w.becomes(state)


async def test_a_rerouted_forward_is_pending_again() -> None:
    async with rig.path() as path, rig.tcp_target(rig.swallow) as target:
        async with watched(path) as w:
            w.route.update(leads(target))
            await w.becomes(State.READY)
            other = Target("web", Kind.SERVICE, "other", (TCP,))
            w.forward.update(Spec(other, 0), path.pool, 30.0)
            assert w.health.state is State.PENDING
            w.route.update(leads(rig.closed_port()))
            await w.becomes(State.FAILED, "refused: ")


async def test_a_silent_target_has_another_reason_than_one_that_refuses() -> None:
    with rig.silent() as port:
        await _is_silent(port)


async def _is_silent(port: int) -> None:
    async with rig.path(connect_timeout=0.05) as path, watched(path) as w:
        w.route.update(leads(port))
        await w.becomes(State.FAILED, "timed out: ")
        assert "NetworkPolicy" in w.health.reason


async def test_a_udp_forward_is_ready_at_once_without_a_check() -> None:
    async with rig.path() as path, rig.udp_echo() as target:
        async with watched(path, UDP) as plain:
            assert str(plain.health.check) == "none"
            plain.route.update(leads(target, Protocol.UDP))
            await plain.becomes(State.READY)
        check = Check(CheckKind.DNS, name="a.b")
        async with watched(path, UDP, check) as dns, rig.udp_socket() as server:
            dns.route.update(leads(server.getsockname()[1], Protocol.UDP))
            query, address = await asyncio.get_running_loop().sock_recvfrom(server, 512)
            assert dns.health.state is State.PENDING
            server.sendto(query[:2] + b"\x81\x80" + query[4:], address)
            await dns.becomes(State.READY)


async def test_an_answered_datagram_is_ready_and_a_refused_one_is_not() -> None:
    async with rig.path() as path, rig.udp_echo() as target:
        async with watched(path, UDP) as w:
            await w.forward.settled.wait()
            w.route.update(leads(rig.closed_port(socket.SOCK_DGRAM), Protocol.UDP))
            async with rig.udp_socket(connect=w.port) as client:
                client.send(b"x")
                await w.becomes(State.DEGRADED, "refused: ")
                w.route.update(leads(target, Protocol.UDP))
                await w.becomes(State.READY)
                client.send(b"x")
                assert await rig.recv(client) == b"x"


async def test_a_proxy_is_ready_with_its_agent_whatever_clients_request() -> None:
    async with rig.path() as path:
        w = Watched(path, Port(1080, 0, Protocol.TCP))
        proxy = dataclasses.replace(w.forward.spec.target, kind=Kind.PROXY)
        w.forward.spec = w.health.spec = Spec(proxy, 0)
        w.route.update(Resolution.as_given(proxy, proxy.ports[0]))
        w.forward.bind()
        await w.becomes(State.READY)
        assert str(w.health.check) == "none"
        closed = rig.closed_port()
        async with rig.connect(w.port) as (reader, writer):
            lines = [f"GET http://127.0.0.1:{closed}/ HTTP/1.1", "Host: x", "Connection: close"]
            writer.write("\r\n".join([*lines, "", ""]).encode())
            assert (await reader.read()).startswith(b"HTTP/1.1 502 ")
        assert w.forward.metrics.results == {"refused": 1}
        assert w.health.state is State.READY
        w.forward.cut()


async def test_a_draining_forward_changes_its_state_no_more() -> None:
    async with rig.path() as path, rig.tcp_target(rig.swallow) as target:
        async with watched(path) as w:
            w.route.update(leads(target))
            await w.becomes(State.READY)
            await w.forward.drain(0.0)
            w.route.update(leads(rig.closed_port()))
            w.forward.health._dialled(ErrorCode.REFUSED, "")
            assert (w.health.state, w.health.reason) == (State.DRAINING, "")
            assert w.texts == ["web: ready", "web: draining"]


async def test_a_bug_in_a_probe_fails_that_forward_only(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    real, first = probe, True

    async def odd(*args: Any) -> None:
        nonlocal first
        if first:
            first = False
            raise ValueError("odd")
        await real(*args)

    monkeypatch.setattr(module, "probe", odd)
    async with rig.path() as path, rig.tcp_target(rig.swallow) as target, watched(path) as w:
        w.route.update(leads(target))
        await w.becomes(State.READY)
        assert w.texts == ["web: failed: internal error: ValueError('odd')", "web: ready"]
    assert "web: probing failed" in caplog.text


_STEPS = st.lists(
    st.sampled_from(
        ["here", "there", "nowhere", "missing", "works", "refused", "limit", "dial", "none"]
        + ["other", "port taken", "port free", "drain"]
    ),
    max_size=30,
)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(_STEPS)
async def test_in_any_sequence_of_events_no_state_is_better_than_its_cause(
    steps: list[str],
) -> None:
    async with rig.path() as path, watched(path) as w:
        await w.forward.settled.wait()
        spec, was_ready = w.forward.spec, False
        # No turn of the loop from here on, and so no probe: only what the steps say.
        for step in steps:
            if step in ("here", "there"):
                w.route.update(leads(1 if step == "here" else 2))
            elif step in ("nowhere", "missing"):
                gone = Resolution(Protocol.TCP, None, step, missing=step == "missing")
                w.route.update(gone)
            elif step in ("works", "refused", "limit"):
                code = None if step == "works" else ErrorCode[step.upper()]
                w.health._dialled(code, "")
            elif step in ("dial", "none", "other"):
                check = NONE if step == "none" else DIAL
                name = "other" if step == "other" else spec.target.resource
                was_ready = was_ready and name == spec.target.resource
                spec = Spec(dataclasses.replace(spec.target, check=check, resource=name), 0)
                w.forward.update(spec, path.pool, 30.0)
            elif step == "drain":
                w.health.drain()
            else:
                w.forward.failure = ListenError("taken") if step == "port taken" else None
                if w.forward.failure is not None:
                    w.health.bind_failed(w.forward.failure)
                else:
                    w.health.bound(Protocol.TCP)
            state = w.health.state
            was_ready = was_ready or state is State.READY
            way = w.route.endpoint is not None and w.forward.failure is None
            assert state is not State.READY or way
            assert state is not State.DEGRADED or was_ready
            assert state is not State.FAILED or not was_ready or w.forward.failure
            assert bool(w.health.reason) is (state is not State.DRAINING)
        changes = [(event.details["from"], event.details["to"]) for event in w.bus.history]
        states = ["pending", *(after for _, after in changes)]
        assert changes == list(itertools.pairwise(states))
        assert states[-1] == w.health.state.value
        assert "draining" not in states[:-1]
        w.forward.failure = None


# -- check: auto -----------------------------------------------------------------------------------


class Counting:
    """A target that counts its connections."""

    def __init__(self) -> None:
        self.dials = 0
        self.port = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.dials += 1
        await rig.swallow(reader, writer)


@asynccontextmanager
async def counting(host: str = rig.HOST) -> AsyncIterator[Counting]:
    made = Counting()
    async with rig.tcp_target(made.serve, host) as made.port:
        yield made


def told(
    port: int,
    on_pod: int = 8080,
    *,
    ready: bool | None = True,
    protocol: Protocol = Protocol.TCP,
) -> Resolution:
    """An endpoint, and the pod behind it of which the kubelet says whether it is ready."""
    pods = () if ready is None else (PodPort("place", "web-1", "uid", on_pod, ready),)
    return Resolution(protocol, Endpoint(rig.HOST, port), pods=pods)


async def test_auto_dials_an_endpoint_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INTERVAL", 0.01)
    async with rig.path() as path, counting() as target, watched(path, check=AUTO) as w:
        w.route.update(told(target.port))
        await w.becomes(State.READY, "its endpoint is ready; its port accepted at ")
        for _ in range(5):
            # It flaps, and the tunnel is cut and resumed: the proof of the way stands.
            w.route.update(Resolution(Protocol.TCP, None, "no ready endpoint"))
            await w.becomes(State.DEGRADED, "no ready endpoint")
            w.route.update(told(target.port))
            assert w.health.state is State.READY
            path.link.cut(blocked=True)
            await w.becomes(State.DEGRADED, "no tunnel to the agent")
            path.link.blocked = False
            await w.becomes(State.READY, "its port accepted at ")
        assert str(w.health.check) == "auto"
        await rig.until(lambda: target.dials == 1)
        assert w.texts[0] == "web: ready"


async def test_a_proof_lasts_while_another_tunnel_comes_up() -> None:
    async with rig.path(tunnels=2) as path, counting() as target:
        first, _ = path.pool.tunnels
        late, first.carrier = first.carrier, None
        async with watched(path, check=AUTO) as w:
            w.route.update(told(target.port))
            await w.becomes(State.READY, "its port accepted at ")
            first.carrier = late
            assert path.pool.pick() is late
            w.route.update(Resolution(Protocol.TCP, None, "no ready endpoint"))
            w.route.update(told(target.port))
            assert w.health.state is State.READY


async def test_a_forward_to_another_object_is_not_ready_by_the_former_one() -> None:
    async with rig.path() as path, counting() as target, watched(path, check=AUTO) as w:
        w.route.update(told(target.port))
        await w.becomes(State.READY, "its port accepted at ")
        spec = w.forward.spec
        moved = dataclasses.replace(spec, target=dataclasses.replace(spec.target, resource="other"))
        w.forward.update(moved, path.pool, 30.0)
        assert (w.health.state, w.health.reason) == (State.PENDING, "not resolved yet")
        assert w.route.endpoint is None
        w.route.update(told(target.port))
        await w.becomes(State.READY, "its port accepted at ")
        await rig.until(lambda: target.dials == 1)


async def test_auto_dials_each_new_endpoint_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "INTERVAL", 0.01)
    async with rig.path() as path, counting() as one, counting() as two:
        async with watched(path, check=AUTO) as w:
            for target in (one, two, one, two):
                w.route.update(told(target.port))
                await w.becomes(State.READY, "its port accepted at ")
            await rig.until(lambda: (one.dials, two.dials) == (1, 1))


async def test_auto_dials_again_through_another_session() -> None:
    config = SessionConfig(resume_timeout=0.05)
    async with rig.path(config=config) as path, counting() as target:
        async with watched(path, check=AUTO) as w:
            w.route.update(told(target.port))
            await w.becomes(State.READY, "its port accepted at ")
            former = path.pool.pick()
            path.link.cut(blocked=True)
            await rig.until(lambda: path.link.abandoned)
            path.link.blocked = False
            path.link.opened.set()
            await rig.until(lambda: path.pool.pick() not in (None, former))
            await w.becomes(State.READY, "its port accepted at ")
            await rig.until(lambda: target.dials == 2)


async def test_auto_looks_again_after_a_connection_that_failed() -> None:
    async with rig.path() as path, counting() as target, watched(path, check=AUTO) as w:
        w.route.update(told(target.port))
        await w.becomes(State.READY, "its port accepted at ")
        w.health._dialled(ErrorCode.REFUSED, "")
        await w.becomes(State.READY)
        await rig.until(lambda: target.dials == 2)
        assert [text[:13] for text in w.texts] == ["web: ready", "web: degraded", "web: ready"]


async def test_auto_dials_an_endpoint_until_it_accepts() -> None:
    async with rig.path() as path, watched(path, check=AUTO) as w:
        closed = rig.closed_port()
        w.route.update(told(closed))
        await w.becomes(State.FAILED, "refused: ")
        with socket.create_server((rig.HOST, closed)):
            await w.becomes(State.READY, "its port accepted at ")


@pytest.mark.parametrize(
    ("remote", "on_pod"), [(2345, 2345), ("delve", 8080), (80, 5005), ("jvm-debug", 8000)]
)
async def test_auto_never_dials_the_port_of_a_debugger(remote: int | str, on_pod: int) -> None:
    async with rig.path() as path, counting() as target:
        async with watched(path, Port(remote, 0, Protocol.TCP), check=AUTO) as w:
            w.route.update(told(target.port, on_pod))
            await w.becomes(State.READY)
            assert w.health.reason == (
                "its endpoint is ready; not probed: a debugger's port takes one client"
            )
            # Another forward of the same endpoint is probed: by then this one would have been.
            async with watched(path, check=DIAL) as other:
                other.route.update(told(target.port))
                await other.becomes(State.READY)
            await rig.until(lambda: target.dials == 1)
            assert await rig.exchange(w.port, b"x") == b""
            assert "its port accepted at " in w.health.reason
            w.health._dialled(ErrorCode.REFUSED, "")
            assert w.health.state is State.DEGRADED


async def test_an_unready_endpoint_is_not_ready_even_if_it_accepts() -> None:
    async with rig.path() as path, counting() as target:
        async with watched(path, check=AUTO) as w:
            w.route.update(told(rig.closed_port(), ready=False))
            await w.becomes(State.PENDING, "its endpoint is not ready; refused: ")
            w.route.update(told(target.port, ready=False))
            await w.becomes(State.DEGRADED, "its endpoint is not ready, but its port accepted at ")
            for ready, state in ((True, State.READY), (False, State.DEGRADED)):
                w.route.update(told(target.port, ready=ready))
                assert w.health.state is state
            assert await rig.exchange(w.port, b"x") == b""
            assert w.health.state is State.DEGRADED
        await rig.until(lambda: target.dials == 2)


async def test_a_target_may_say_that_the_kubelet_s_word_does_not_count() -> None:
    async with rig.path() as path, counting() as target:
        async with watched(path, check=AUTO, ready=False) as w:
            w.route.update(told(rig.closed_port(), ready=False))
            await w.becomes(State.FAILED, "refused: ")
            w.route.update(told(target.port, ready=False))
            await w.becomes(State.READY, "its endpoint is not ready; its port accepted at ")


async def test_an_endpoint_of_which_the_kubelet_says_nothing_is_dialled() -> None:
    async with rig.path() as path, counting() as target:
        async with watched(path, check=AUTO) as w:
            w.route.update(told(target.port, 2345, ready=None))
            await w.becomes(State.READY, "its port accepted at ")
            assert str(w.health.check) == "dial"
            assert w.health.reason.startswith("its port accepted at ")


async def test_auto_takes_the_kubelets_word_for_udp() -> None:
    async with rig.path() as path, rig.udp_echo() as target:
        async with watched(path, UDP, check=AUTO) as w:
            w.route.update(told(target, protocol=Protocol.UDP, ready=False))
            await w.becomes(State.PENDING, "its endpoint is not ready")
            w.route.update(told(target, protocol=Protocol.UDP))
            await w.becomes(State.READY, "not probed: a UDP port answers nothing but its protocol")
            async with rig.udp_socket(connect=w.port) as client:
                client.send(b"x")
                assert await rig.recv(client) == b"x"
            assert "its endpoint is ready; it answered at " in w.health.reason


async def test_a_refusal_and_another_way_are_told() -> None:
    async with rig.path() as path, rig.path() as other, rig.tcp_target(rig.swallow) as target:
        async with watched(path) as w:
            refusals: list[bool] = []
            w.health.on_refused = lambda: refusals.append(w.health.refused)
            w.route.update(leads(rig.closed_port()))
            await rig.until(lambda: refusals)
            assert all(refusals)
            w.route.update(leads(target))
            await w.becomes(State.READY)
            assert not w.health.refused
            proof = w.health._since
            w.route.move(other.pool)
            # What the former way proved says nothing of this one.
            await rig.until(lambda: w.health._since > proof and w.health.state is State.READY)
