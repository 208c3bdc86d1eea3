"""Which pod a direct stream goes to, and which connections are kept to pods."""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import AsyncIterator, Callable

import pytest

from krelay.datapath import direct
from krelay.datapath.connector import open_now, open_within
from krelay.datapath.direct import CONNECTIONS, CROWDED, IDLE, Connection, DirectPool
from krelay.datapath.route import Route
from krelay.datapath.tcp import TcpListener
from krelay.errors import AccessDeniedError, KrelayError, PodGoneError, TunnelError
from krelay.model import Endpoint, PodPort, Protocol, Resolution
from krelay.mux.relay import TcpRelay
from krelay.mux.stream import Stream, StreamHandler
from krelay.tasks import TaskGroup
from krelay.wire.errors import ErrorCode, ProtocolError
from krelay.wire.frames import Buffer
from tests import rig


class FakeStream:
    """A stream of a FakeConnection."""

    def __init__(self, connection: FakeConnection, handler: StreamHandler) -> None:
        self.connection = connection
        self.handler: StreamHandler | None = handler
        self.written = b""

    def write(self, data: Buffer) -> bool:
        self.written += bytes(data)
        return True

    def end(self) -> None:
        pass

    def reset(self, code: ErrorCode = ErrorCode.CANCELLED) -> None:
        self.connection.streams.discard(self)
        self.connection.on_change()

    def consume(self, count: int) -> None:
        pass

    def datagram(self, data: Buffer) -> bool:
        return False

    def refuse(self) -> None:
        handler, self.handler = self.handler, None
        self.connection.streams.discard(self)
        self.connection.on_refused(80)
        assert handler is not None
        handler.on_refused(ErrorCode.REFUSED, "nothing there")


class FakeConnection:
    """A connection that only counts its streams."""

    carrier = "spdy"

    def __init__(
        self, pod: PodPort, on_change: Callable[[], None], on_refused: Callable[[int], None]
    ) -> None:
        self.name = pod.name
        self.expires = math.inf
        self.failure: KrelayError | None = None
        self.streams: set[FakeStream] = set()
        self.takes_streams = True
        self.stalled = False
        self.verified = False
        self.on_change = on_change
        self.on_refused = on_refused

    @property
    def count(self) -> int:
        return len(self.streams)

    def open(self, port: int, handler: StreamHandler) -> Stream:
        stream = FakeStream(self, handler)
        self.streams.add(stream)
        return stream

    def verify(self) -> None:
        self.verified = True

    def close(self) -> None:
        self.lose()

    def lose(self) -> None:
        self.failure = TunnelError("lost")
        self.takes_streams = False
        self.streams.clear()
        self.on_change()


class Cluster:
    """A PodLink: the pods that cannot be reached, and the connections to the others."""

    def __init__(self) -> None:
        self.failures: dict[str, Exception] = {}
        self.dials: list[str] = []
        self.made: list[FakeConnection] = []

    async def dial(
        self, pod: PodPort, on_change: Callable[[], None], on_refused: Callable[[int], None]
    ) -> Connection:
        self.dials.append(pod.name)
        await asyncio.sleep(0)
        if failure := self.failures.get(pod.name):
            raise failure
        self.made.append(FakeConnection(pod, on_change, on_refused))
        return self.made[-1]

    @property
    def live(self) -> list[str]:
        return sorted(made.name for made in self.made if made.failure is None)


class World:
    def __init__(self) -> None:
        self.cluster = Cluster()
        self.pool = DirectPool("d1", self.cluster)

    def route(self, *names: str, balanced: bool = False) -> Route:
        route = Route(self.pool)
        lead(route, *names, balanced=balanced)
        return route

    async def reached(self, route: Route) -> None:
        while not route.reached:
            await self.pool.wait_change()


def lead(
    route: Route, *names: str, balanced: bool = False, protocol: Protocol = Protocol.TCP
) -> None:
    pods = tuple(
        PodPort("shop", name.lstrip("-"), f"uid-{name}", 80, ready=name[0] != "-") for name in names
    )
    route.update(Resolution(protocol, Endpoint("10.1.0.1", 80), pods=pods, balanced=balanced))


@pytest.fixture
async def world() -> AsyncIterator[World]:
    made = World()
    async with TaskGroup() as tasks:
        running = tasks.create_task(made.pool.run())
        yield made
        running.cancel()
    assert made.cluster.live == []


def opened(route: Route) -> str | None:
    """The pod that a new stream goes to."""
    stream = open_now(route, Protocol.TCP, TcpRelay())
    if stream is None:
        return None
    assert isinstance(stream, FakeStream)
    return stream.connection.name


async def test_each_route_has_a_connection_and_pods_share_theirs(world: World) -> None:
    one, two = world.route("a"), world.route("a")
    assert one.obstacle == "no port-forward to pod a yet"
    assert opened(one) is None
    await world.reached(one)
    assert opened(one) == opened(two) == "a"
    assert world.cluster.dials == ["a"]
    assert world.pool.streams == 2


async def test_a_workload_s_connections_stay_with_its_pod(world: World) -> None:
    route = world.route("a", "b")
    await world.reached(route)
    assert [opened(route) for _ in range(3)] == ["a"] * 3
    assert world.cluster.dials == ["a"]


async def test_a_service_s_connections_go_to_all_ready_pods(world: World) -> None:
    route = world.route("a", "b", "-c", balanced=True)
    await world.reached(route)
    opened(route)
    opened(route)  # dials the other one
    await rig.until(lambda: world.cluster.live == ["a", "b"])
    counts = [opened(route) for _ in range(20)]
    assert min(counts.count(name) for name in "ab") >= 9
    assert "c" not in world.cluster.dials


@pytest.mark.looptime
async def test_a_pod_that_refused_comes_last_for_a_while(world: World) -> None:
    route = world.route("a", "b")
    await world.reached(route)
    stream = open_now(route, Protocol.TCP, TcpRelay())
    assert isinstance(stream, FakeStream)
    stream.refuse()
    assert route.has_other
    assert opened(route) is None  # b is dialled
    await rig.until(lambda: world.cluster.live == ["a", "b"])
    assert opened(route) == "b"
    await asyncio.sleep(direct.REFUSED_FOR)
    assert opened(route) == "a"


async def test_a_refused_connection_is_tried_on_every_pod_with_its_early_bytes(
    world: World,
) -> None:
    route = world.route("a", "b", "c", balanced=True)
    await world.reached(route)
    streams: list[FakeStream] = []

    def live() -> list[FakeStream]:
        return [stream for made in world.cluster.made for stream in made.streams if stream.written]

    async with TaskGroup() as tasks:
        listener = TcpListener("web", route, tasks, open_timeout=30.0)
        await listener.open(rig.HOST, 0)
        async with rig.connect(listener.addresses[0][1]) as (_, writer):
            writer.write(b"early")
            for left in (2, 1, 0):
                await rig.until(live)
                streams += live()
                if left:
                    streams[-1].refuse()
        listener.cut()
    assert {stream.connection.name for stream in streams} == {"a", "b", "c"}
    assert {stream.written for stream in streams} == {b"early"}


async def test_a_connection_waits_for_the_way_to_the_pod_that_it_falls_back_to(
    world: World,
) -> None:
    route = Route(world.pool)
    pod = PodPort("shop", "a", "uid-a", 80, ready=False)
    endpoint = Endpoint("10.1.0.1", 80)
    fallback = Resolution(Protocol.TCP, endpoint, pods=(pod,), unready=True)
    route.update(Resolution(Protocol.TCP, reason="no pod is ready", fallback=fallback))
    async with TaskGroup() as tasks:
        listener = TcpListener("web", route, tasks, open_timeout=0.1)
        await listener.open(rig.HOST, 0)
        async with rig.connect(listener.addresses[0][1]) as (_, writer):
            writer.write(b"early")
            await rig.until(lambda: [s for made in world.cluster.made for s in made.streams])
        listener.cut()


async def test_another_pod_is_dialled_if_the_first_cannot_be_reached(world: World) -> None:
    world.cluster.failures["a"] = PodGoneError("pod shop/a is gone")
    route = world.route("a", "b")
    await world.reached(route)
    assert opened(route) == "b"
    assert world.pool.failure is world.cluster.failures["a"]


async def test_the_reason_of_a_failure_is_told_and_the_dial_repeated(world: World) -> None:
    world.cluster.failures["a"] = TunnelError("no way")
    route = world.route("a")
    await rig.until(lambda: "no way" in route.obstacle)
    assert route.obstacle == "no port-forward to pod a: no way"
    del world.cluster.failures["a"]
    await world.reached(route)
    assert world.pool.failure is None


@pytest.mark.looptime
async def test_a_denied_port_forward_is_not_repeated_soon(world: World) -> None:
    world.cluster.failures["a"] = AccessDeniedError("cannot create pods/portforward")
    route = world.route("a")
    await rig.until(lambda: "cannot create" in route.obstacle)
    before = len(world.cluster.dials)
    await asyncio.sleep(direct.DENIED_PAUSE - 1)
    assert len(world.cluster.dials) == before


async def test_what_carries_the_streams_of_a_route_leads_to_its_own_pods(world: World) -> None:
    first, second = world.route("a"), world.route("b")
    await world.reached(first)
    await world.reached(second)
    assert [list(route.carriers) for route in (first, second)] == [
        [made] for made in sorted(world.cluster.made, key=lambda made: made.name)
    ]


async def test_a_lost_connection_is_dialled_again(world: World) -> None:
    route = world.route("a")
    await world.reached(route)
    world.cluster.made[0].lose()
    await rig.until(lambda: len(world.cluster.made) == 2)
    await world.reached(route)


@pytest.mark.looptime
async def test_many_streams_get_more_connections_up_to_a_limit(world: World) -> None:
    route = world.route("a")
    await world.reached(route)
    for _ in range(CROWDED * (CONNECTIONS + 2)):
        assert opened(route) == "a"
        await asyncio.sleep(0.5)
    assert world.cluster.live == ["a"] * CONNECTIONS


async def test_a_new_stream_waits_for_no_stalled_one(world: World) -> None:
    route = world.route("a")
    await world.reached(route)
    world.cluster.made[0].stalled = True
    assert opened(route) is None
    await rig.until(lambda: len(world.cluster.made) == 2)
    assert opened(route) == "a"
    assert [made.count for made in world.cluster.made] == [0, 1]


async def test_a_client_waits_for_another_connection_and_gets_the_stalled_one_without_it(
    world: World,
) -> None:
    route = world.route("a")
    await world.reached(route)
    world.cluster.made[0].stalled = True
    stream = await open_within(10.0, route, Protocol.TCP, TcpRelay())
    assert len(world.cluster.made) == 2
    assert isinstance(stream, FakeStream)
    assert stream.connection is world.cluster.made[1]
    world.cluster.made[1].stalled = True
    world.cluster.failures["a"] = TunnelError("no way")
    await open_within(10.0, route, Protocol.TCP, TcpRelay())
    assert len(world.cluster.live) == 2


@pytest.mark.looptime
async def test_a_connection_that_takes_no_more_is_closed_with_its_last_stream(
    world: World,
) -> None:
    route = world.route("a")
    await world.reached(route)
    for _ in range(20):
        world.cluster.made[-1].takes_streams = False
        world.cluster.made[-1].on_change()
        await world.reached(route)
        await asyncio.sleep(0)
        assert len(world.cluster.live) == 1


async def test_expired_credentials_get_another_connection(world: World) -> None:
    route = world.route("a")
    await world.reached(route)
    world.cluster.made[0].expires = time.time() - 1
    opened(route)
    await rig.until(lambda: len(world.cluster.made) == 2)
    opened(route)
    assert world.cluster.made[1].count == 1


async def test_a_renewed_pod_is_dialled_anew_without_those_who_use_it(world: World) -> None:
    one, two = world.route("a"), world.route("b")
    await world.reached(one)
    await world.reached(two)
    opened(two)
    (carries,) = [made for made in world.cluster.made if made.name == "b"]
    for route in (one, two):
        assert route.resolution is not None
        world.pool.renew(route.resolution)
    assert world.cluster.live == ["b"]
    await rig.until(lambda: world.cluster.live == ["a", "b"])
    opened(two)  # goes where the others are, and has another connection dialled
    assert carries.count == 2
    await rig.until(lambda: world.cluster.live == ["a", "b", "b"])
    opened(two)
    assert carries.count == 2
    unknown = Resolution(Protocol.TCP, None, pods=(PodPort("shop", "c", "uid-c", 80),))
    world.pool.renew(unknown)


async def test_a_pod_that_no_route_leads_to_is_left_with_its_last_stream(world: World) -> None:
    route = world.route("a")
    await world.reached(route)
    stream = open_now(route, Protocol.TCP, TcpRelay())
    assert stream is not None
    lead(route, "b")
    await rig.until(lambda: world.cluster.live == ["a", "b"])
    stream.reset()
    await rig.until(lambda: world.cluster.live == ["b"])


@pytest.mark.looptime
async def test_an_idle_connection_that_no_route_needs_is_closed(world: World) -> None:
    route = world.route("a", "b", balanced=True)
    await world.reached(route)
    streams = [open_now(route, Protocol.TCP, TcpRelay()) for _ in range(2)]
    await rig.until(lambda: world.cluster.live == ["a", "b"])
    for stream in streams:
        assert stream is not None
        stream.reset()
    await asyncio.sleep(IDLE + direct.LOOK_EVERY + 1)
    assert len(world.cluster.live) == 1
    assert route.reached


async def test_what_no_port_forward_carries_is_refused(world: World) -> None:
    route = Route(world.pool)
    lead(route)
    assert "reaches pods only" in route.obstacle
    with pytest.raises(ProtocolError, match="reaches pods only"):
        open_now(route, Protocol.TCP, TcpRelay())
    lead(route, "a", protocol=Protocol.UDP)
    assert not route.reached
    assert "TCP only" in route.obstacle
    with pytest.raises(ProtocolError, match="TCP only"):
        open_now(route, Protocol.UDP, TcpRelay())
    assert "nothing listens" in world.pool.explain(ErrorCode.REFUSED, "x")
    assert world.pool.explain(ErrorCode.DIAL_FAILED, "x") == "dial failed (x)"


async def test_another_network_verifies_connections_and_sleep_breaks_them(world: World) -> None:
    route = world.route("a")
    await world.reached(route)
    world.pool.network_changed(broken=False)
    assert world.cluster.made[0].verified
    world.pool.network_changed(broken=True)
    await rig.until(lambda: len(world.cluster.made) == 2)


async def test_a_bug_in_a_link_is_a_failed_dial(world: World) -> None:
    world.cluster.failures["a"] = RuntimeError("a bug")
    route = world.route("a")
    await rig.until(lambda: "internal error" in route.obstacle)
