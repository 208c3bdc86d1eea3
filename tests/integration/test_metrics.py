"""Each count of /metrics, made by having what it counts happen so often: in a real `krelay up`, or
with an agent in the test's own process where something has to be brought about."""

from __future__ import annotations

import asyncio
import fcntl
import functools
import os
import platform
import re
import signal
import socket
import struct
import sys
import termios
import threading
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, aclosing, asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ParamSpec

import pytest
from prometheus_client import parser

from agent import targets as targets
from agent.dial import DialError
from agent.sessions import KeptSession
from agent.udp import UdpSocket, dial_udp
from krelay import __version__
from krelay.datapath import carrier, metrics, udp
from krelay.datapath.metrics import REFUSALS
from krelay.datapath.tunnel import Tunnel
from krelay.datapath.udp import _EARLY_DATAGRAMS, UdpListener, _LocalSocket
from krelay.errors import AgentError, ConfigError, TunnelError
from krelay.model import UDP_CLIENTS, StatusConfig
from krelay.mux.connection import MuxConnection
from krelay.mux.datagrams import FixedRoom
from krelay.mux.descriptors import raise_file_limit
from krelay.proxy import udp_associate
from krelay.proxy.server import ProxyConnection, ProxyListener
from krelay.proxy.socks5 import write_datagram
from krelay.proxy.udp_associate import _MAX_UNPROVEN, same_user
from krelay.status.servers import TcpServer
from krelay.supervisor.control import Control
from krelay.wire.errors import ErrorCode
from krelay.wire.session import Limits
from krelay.wire.stream import INITIAL_WINDOW
from tests import rig
from tests.datapath import v0
from tests.integration.product import Up, document, up
from tests.integration.test_status import get, served
from tests.proxy.test_server import HELLO
from tests.proxy.test_udp_associate import ASSOCIATE
from tests.status.reports import report
from tests.status.test_metrics import samples
from tests.supervisor.agents import FakeAgent
from tests.supervisor.world import HEAD, World, text, world

Labels = dict[str, str]
P = ParamSpec("P")

CLAIMED: set[tuple[str, str]] = set()
"""The metrics that tests here count, and those values of their labels that tell events apart."""
_asked: set[tuple[str, str]] = set()


def family(name: str) -> str:
    """The metric that a sample belongs to, without krelay's prefix."""
    return re.sub(r"_(bucket|count|sum)$", "", name.removeprefix("krelay_"))


def counts(
    *claims: str,
) -> Callable[[Callable[P, Awaitable[None]]], Callable[P, Awaitable[None]]]:
    """Say what a test counts: `forward_streams_total:ok,reset`. It fails if it has read less."""
    claimed = set()
    for claim in claims:
        name, _, values = claim.partition(":")
        claimed |= {(name, ""), *((name, value) for value in values.split(",") if value)}
    CLAIMED.update(claimed)

    def decorated(test: Callable[P, Awaitable[None]]) -> Callable[P, Awaitable[None]]:
        @functools.wraps(test)
        async def run(*args: P.args, **kwargs: P.kwargs) -> None:
            _asked.clear()
            await test(*args, **kwargs)
            assert claimed <= _asked

        return run

    return decorated


class Scraper:
    """The metrics of a running krelay."""

    def __init__(self, url: str) -> None:
        self._url = url

    async def scrape(self) -> dict[str, list[tuple[Labels, float]]]:
        _, text = await get(f"{self._url}/metrics")
        found: dict[str, list[tuple[Labels, float]]] = {}
        for family in parser.text_string_to_metric_families(text):
            for sample in family.samples:
                found.setdefault(sample.name, []).append((sample.labels, sample.value))
        return found

    async def value(self, name: str, **labels: str) -> float:
        """The sum of the series that have these labels."""
        _asked.add((family(name), ""))
        _asked.update((family(name), value) for value in labels.values())
        series = (await self.scrape()).get(f"krelay_{name}", [])
        return sum(value for has, value in series if labels.items() <= has.items())

    async def becomes(self, expected: float, name: str, **labels: str) -> None:
        """Wait for a value; what passes it will never be it."""
        while (now := await self.value(name, **labels)) != expected:
            if name.endswith("_total"):
                assert now <= expected
            await asyncio.sleep(0.02)


async def slam(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Take a byte, then reset."""
    await reader.read(1)
    rig.rst(writer)


async def refused(port: int) -> None:
    """Connect, and see that there is nothing behind it."""
    with suppress(ConnectionError):
        reader, writer = await asyncio.open_connection(rig.HOST, port)
        try:
            writer.write(b"x")
            assert await reader.read() == b""
        finally:
            writer.close()


@counts(
    "forward_opened_streams_total",
    "forward_open_streams",
    "forward_streams_total:ok,reset,refused",
    "forward_bytes_total:to_remote,to_local",
    "forward_dial_seconds",
    "tunnel_streams",
    "tunnel_up",
    "tunnel_connects_total",
    "tunnel_rtt_seconds",
)
@pytest.mark.process
async def test_streams_bytes_and_dials_by_what_became_of_them(tmp_path: Path) -> None:
    async with rig.tcp_target(rig.echo) as echo, rig.tcp_target(slam) as slams:
        targets = {
            "web": f"{{target: ip/127.0.0.1, ports: [':{echo}'], check: none}}",
            "slams": f"{{target: ip/127.0.0.1, ports: [':{slams}'], check: none}}",
            "gone": f"{{target: ip/127.0.0.1, ports: [':{rig.closed_port()}'], check: none}}",
        }
        async with up(tmp_path / "k.yaml", targets, "status: {listen: 0}") as krelay:
            seen = Scraper(await served(krelay))
            for _ in range(5):
                assert await rig.exchange(krelay.ports["web"], b"x" * 1_000) == b"x" * 1_000
            for _ in range(3):
                await refused(krelay.ports["slams"])
            for _ in range(4):
                await refused(krelay.ports["gone"])
            async with rig.connect(krelay.ports["web"]) as (reader, writer):
                writer.write(b"y")
                await reader.readexactly(1)
                for expected, name, labels in (
                    (6, "forward_opened_streams_total", {"target": "web"}),
                    (5, "forward_streams_total", {"target": "web", "result": "ok"}),
                    (5, "forward_streams_total", {"target": "web"}),
                    (1, "forward_open_streams", {"target": "web"}),
                    (5_001, "forward_bytes_total", {"target": "web", "direction": "to_remote"}),
                    (5_001, "forward_bytes_total", {"target": "web", "direction": "to_local"}),
                    (6, "forward_dial_seconds_count", {"target": "web"}),
                    (6, "forward_dial_seconds_bucket", {"target": "web", "le": "+Inf"}),
                    (3, "forward_streams_total", {"target": "slams", "result": "reset"}),
                    (3, "forward_streams_total", {"target": "slams"}),
                    (4, "forward_streams_total", {"target": "gone", "result": "refused"}),
                    (4, "forward_streams_total", {"target": "gone"}),
                    (0, "forward_opened_streams_total", {"target": "gone"}),
                    (1, "tunnel_streams", {}),
                ):
                    await seen.becomes(expected, name, **labels)
            tunnels = len((await seen.scrape())["krelay_tunnel_up"])
            assert await seen.value("tunnel_up") == tunnels
            assert await seen.value("tunnel_connects_total") == tunnels
            assert await seen.value("tunnel_rtt_seconds") > 0
            for name in ("resumptions", "rotations", "replayed_bytes"):
                assert await seen.value(f"tunnel_{name}_total") == 0
            assert await seen.value("forward_dropped_datagrams_total") == 0
            assert await seen.value("tunnel_lost_datagrams_total") == 0
            for target in targets:
                assert await seen.value("forward_state", target=target) == 1
            # An agent that dies takes its tunnels with it; the next one's come up.
            os.kill(krelay.agent, signal.SIGKILL)
            await seen.becomes(2 * tunnels, "tunnel_connects_total")
            await seen.becomes(tunnels, "tunnel_up")
            assert await seen.value("tunnel_resumptions_total") == 0


@counts(
    "config_generation",
    "config_reloads_total:ok,failed",
    "config_in_step",
    "config_last_reload_success_timestamp_seconds",
    "process_resident_memory_bytes",
    "process_open_fds",
    "process_tasks",
    "process_start_time_seconds",
)
@pytest.mark.process
async def test_reloads_by_result(tmp_path: Path) -> None:
    file = tmp_path / "k.yaml"
    async with rig.tcp_target(rig.echo) as echo:
        targets = {"web": f"ip/127.0.0.1 :{echo}"}
        more = "status: {listen: 0}"
        async with up(file, targets, more) as krelay:
            seen = Scraper(await served(krelay))
            at = await seen.value("config_last_reload_success_timestamp_seconds")
            first = await seen.value("config_reloads_total", result="ok")
            assert await seen.value("config_generation") == 1
            for number in (1, 2, 3):
                named = {**targets, f"web{number}": f"ip/127.0.0.1 :{echo}"}
                await asyncio.to_thread(file.write_text, document(named, more))
                await seen.becomes(1 + number, "config_generation")
            assert await seen.value("config_reloads_total", result="ok") == first + 3
            assert await seen.value("config_last_reload_success_timestamp_seconds") > at
            for number in (1, 2):
                await asyncio.to_thread(file.write_text, f"nonsense: {number}\n")
                await seen.becomes(number, "config_reloads_total", result="failed")
                await seen.becomes(0, "config_in_step")
            assert await seen.value("config_generation") == 4
            await asyncio.to_thread(file.write_text, document(targets, more))
            await seen.becomes(1, "config_in_step")
            for name in ("resident_memory_bytes", "open_fds", "tasks", "start_time_seconds"):
                assert await seen.value(f"process_{name}") > 0


class Echo:
    """A UDP target that counts what comes, and can say something by itself."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        self.came = 0
        self.peer: tuple[str, int] = ("", 0)
        asyncio.get_running_loop().add_reader(sock, self._read)

    def _read(self) -> None:
        with suppress(BlockingIOError):
            while True:
                data, self.peer = self.sock.recvfrom(1 << 16)
                self.came += 1
                if data == b"ping":
                    self.sock.sendto(data, self.peer)

    def close(self) -> None:
        asyncio.get_running_loop().remove_reader(self.sock)


async def flow(krelay: Up, sock: socket.socket) -> None:
    """Something has gone there and back."""
    sock.connect((rig.HOST, krelay.ports["dns"]))
    sock.send(b"ping")
    assert await rig.recv(sock) == b"ping"


@counts(
    "forward_dropped_datagrams_total:kernel_receive",
    "tunnel_lost_datagrams_total:agent_kernel_receive",
)
@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what its kernel dropped")
@pytest.mark.process
async def test_datagrams_that_the_kernel_dropped_at_either_end(tmp_path: Path) -> None:
    """Either process stands still for a moment, as on a machine that is busy."""
    count, size = 6_000, 1_000
    async with rig.udp_socket() as there, rig.udp_socket() as client:
        there.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
        target = Echo(there)
        targets = {"dns": f"ip/127.0.0.1 :{there.getsockname()[1]}/udp"}
        async with up(tmp_path / "k.yaml", targets, "status: {listen: 0}") as krelay:
            seen = Scraper(await served(krelay))
            await flow(krelay, client)
            assert (await seen.value("forward_opened_streams_total"), target.came) == (1, 1)

            os.kill(krelay.process.pid, signal.SIGSTOP)
            for _ in range(count):
                client.send(bytes(size))
            os.kill(krelay.process.pid, signal.SIGCONT)

            async def elsewhere() -> float:
                """Lost, but not at krelay's socket."""
                all_here = await seen.value("forward_dropped_datagrams_total")
                here = await seen.value("forward_dropped_datagrams_total", reason="kernel_receive")
                return all_here - here + await seen.value("tunnel_lost_datagrams_total")

            lost = 0.0
            while lost + await elsewhere() + target.came - 1 + drops_at(there) < count:
                lost = await seen.value("forward_dropped_datagrams_total", reason="kernel_receive")
                await asyncio.sleep(0.02)
            assert lost + await elsewhere() + target.came - 1 + drops_at(there) == count
            assert lost > 1_000

            before = await elsewhere()
            came = 0

            def read() -> None:
                nonlocal came
                with suppress(BlockingIOError):
                    while client.recv(1 << 16):
                        came += 1

            asyncio.get_running_loop().add_reader(client, read)
            os.kill(krelay.agent, signal.SIGSTOP)
            for _ in range(count):
                there.sendto(bytes(size), target.peer)
            os.kill(krelay.agent, signal.SIGCONT)
            while came + await elsewhere() - before + drops_at(client) < count:  # noqa: ASYNC110
                await asyncio.sleep(0.02)
            assert came + await elsewhere() - before + drops_at(client) == count
            reason = "agent_kernel_receive"
            assert await seen.value("tunnel_lost_datagrams_total", reason=reason) > 1_000
            asyncio.get_running_loop().remove_reader(client)
        target.close()


def drops_at(sock: socket.socket) -> int:
    """What the kernel dropped at a socket of the test's own."""
    told = sock.getsockopt(socket.SOL_SOCKET, 55, 36)
    value: int = struct.unpack("=9I", told)[8]
    return value


@counts("forward_streams_total:evicted", "forward_open_streams")
@pytest.mark.process
async def test_flows_that_make_room_lose_nothing(tmp_path: Path) -> None:
    more = 5
    raise_file_limit()
    async with rig.udp_echo() as port, AsyncExitStack() as stack:
        targets = {"dns": f"ip/127.0.0.1 :{port}/udp"}
        async with up(tmp_path / "k.yaml", targets, "status: {listen: 0}") as krelay:
            seen = Scraper(await served(krelay))
            for _ in range(1_024 + more):
                # Open until the end: a port that comes again would be the flow that it had.
                sock = stack.enter_context(socket.socket(socket.AF_INET, socket.SOCK_DGRAM))
                sock.setblocking(False)
                await flow(krelay, sock)
            await seen.becomes(1_024 + more, "forward_opened_streams_total")
            assert await seen.value("forward_streams_total", result="evicted") == more
            assert await seen.value("forward_streams_total") == more
            assert await seen.value("forward_open_streams") == 1_024
            assert await seen.value("forward_dropped_datagrams_total") == 0
            assert await seen.value("tunnel_lost_datagrams_total") == 0


# -- with an agent in the test's own process, where something has to be brought about ------------


@dataclass
class Scene:
    """A supervisor, its one agent and its one tunnel, and the metrics that it serves."""

    world: World
    seen: Scraper

    @property
    def reach(self) -> FakeAgent:
        """The way to the agent."""
        return self.world.agents[-1]

    @property
    def tunnel(self) -> Tunnel:
        [group] = self.world.supervisor.active.groups.values()
        return group.pool.tunnels[0]

    @property
    def driver(self) -> MuxConnection:
        """This end of the session."""
        return rig.connection(self.tunnel)

    @property
    def kept(self) -> KeptSession:
        """The agent's end of it."""
        [kept] = self.reach.server.sessions._kept.values()
        return kept

    @property
    def agents_transport(self) -> asyncio.Transport:
        """What carries the session at the agent's end."""
        transport = self.kept.mux._transport
        assert transport is not None
        return transport

    @property
    def transport(self) -> asyncio.Transport:
        """What carries it at this end."""
        transport = self.driver._transport
        assert transport is not None
        return transport

    async def acknowledged(self) -> None:
        """Wait until nothing is under way."""
        session = self.driver.session
        await rig.until(lambda: not session.unacknowledged and not session._send_queue.urgent)

    async def blocked(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Cut the tunnel, and let none come up."""

        async def shut(protocol: asyncio.Protocol) -> asyncio.Transport:
            raise TunnelError("the way is shut")

        monkeypatch.setattr(self.reach, "dial", shut)
        self.transport.abort()
        await rig.until(lambda: not self.tunnel.up)

    async def reachable_again(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Let the tunnel come up again."""
        monkeypatch.setattr(self.reach, "dial", partial(FakeAgent.dial, self.reach))
        self.tunnel.network_changed(broken=True)
        await rig.until(lambda: self.tunnel.up)

    def flows(self, name: str) -> _LocalSocket:
        """The one socket of a UDP forward."""
        for forward in self.world.supervisor.active.forwards.values():
            if forward.name == name and isinstance(forward.listener, UdpListener):
                return forward.listener._sockets[0]
        raise AssertionError(name)


@asynccontextmanager
async def scene(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *lines: str, head: str = HEAD
) -> AsyncIterator[Scene]:
    """A run of a file with these targets."""
    async with world(monkeypatch, tmp_path, text(*lines, head=head)) as made:
        control = Control(made.supervisor, made.reloader)
        server = TcpServer({}, snapshot=control.snapshot, bus=made.supervisor.bus)
        async with aclosing(server) as listening:
            await listening.apply(StatusConfig((rig.HOST, 0)))
            yield Scene(made, Scraper(f"http://{listening.addresses[0]}"))


def unprobed(name: str, port: int, protocol: str = "tcp", *, more: str = "") -> str:
    """A line of a file: a target whose streams are those of its clients alone."""
    fields = f"target: ip/127.0.0.1, ports: [':{port}/{protocol}'], check: none{more}"
    return f"{name}: {{{fields}}}"


async def answered(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, size: int = 1
) -> None:
    """So many bytes have gone there and back."""
    writer.write(bytes(size))
    assert len(await reader.readexactly(size)) == size


@counts("tunnel_connects_total", "tunnel_resumptions_total", "tunnel_replayed_bytes_total")
async def test_resumptions_and_the_bytes_that_they_send_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size, head = 1_000, 8
    async with (
        rig.tcp_target(rig.echo) as echo,
        scene(monkeypatch, tmp_path, unprobed("web", echo)) as here,
        rig.connect(here.world.port("web")) as (reader, writer),
    ):
        await answered(reader, writer)
        for number in (1, 2, 3):
            await here.acknowledged()
            here.agents_transport.pause_reading()
            writer.write(bytes(size))
            session = here.driver.session
            await rig.until(lambda session=session: session.unacknowledged == size + head)
            here.transport.abort()
            assert len(await reader.readexactly(size)) == size
            await here.seen.becomes(number, "tunnel_resumptions_total")
            await here.seen.becomes(number * (size + head), "tunnel_replayed_bytes_total")
            await here.seen.becomes(1 + number, "tunnel_connects_total")
        assert await here.seen.value("tunnel_rotations_total") == 0


@counts("tunnel_rotations_total")
async def test_rotations_of_a_tunnel_that_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with scene(monkeypatch, tmp_path, unprobed("web", 9)) as here:
        for number in (1, 2):
            here.tunnel.network_changed(broken=True)
            await here.seen.becomes(number, "tunnel_rotations_total")
            assert await here.seen.value("tunnel_resumptions_total") == number
        assert await here.seen.value("tunnel_connects_total") == 3


@counts("tunnel_limit_stalls_total")
async def test_stalls_by_the_tunnels_own_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with (
        rig.tcp_target(rig.echo) as echo,
        scene(monkeypatch, tmp_path, unprobed("web", echo)) as here,
        rig.connect(here.world.port("web")) as (reader, writer),
    ):
        await answered(reader, writer)
        for number in (1, 2, 3):
            await here.acknowledged()
            here.agents_transport.pause_reading()
            here.driver.session._congestion.limit = 30_000
            writer.write(bytes(40_000))
            await here.seen.becomes(number, "tunnel_limit_stalls_total")
            here.driver.session._congestion.limit = 1 << 20
            here.agents_transport.resume_reading()
            await reader.readexactly(40_000)
        assert await here.seen.value("tunnel_limit_stalls_total") == 3
        assert await here.seen.value("tunnel_window_stalls_total") == 0


@counts("tunnel_compression_input_bytes_total", "tunnel_compression_output_bytes_total")
async def test_bytes_that_cross_the_tunnel_compressed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = 40_000
    async with (
        rig.tcp_target(rig.echo) as echo,
        scene(monkeypatch, tmp_path, unprobed("web", echo)) as here,
        rig.connect(here.world.port("web")) as (reader, writer),
    ):
        await answered(reader, writer)
        assert await here.seen.value("tunnel_compression_input_bytes_total") == 0
        session = here.driver.session
        compressor = session._send_queue.compressor = session._compressor
        assert compressor is not None
        compressor.limited(1e6)
        await answered(reader, writer, size)
        await here.seen.becomes(size, "tunnel_compression_input_bytes_total")
        sent = await here.seen.value("tunnel_compression_output_bytes_total")
        assert 0 < sent == compressor.output_bytes < size / 50


@counts("tunnel_window_stalls_total")
@pytest.mark.parametrize("filled_first", [False, True])
async def test_stalls_for_want_of_credit(
    filled_first: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fills the window to the last byte does not stall; what comes behind it does."""
    rest = 1_000
    async with (
        rig.tcp_target(rig.echo) as echo,
        scene(monkeypatch, tmp_path, unprobed("web", echo)) as here,
    ):
        for number in (1, 2, 3):
            async with rig.connect(here.world.port("web")) as (reader, writer):
                await answered(reader, writer)
                await here.acknowledged()
                here.agents_transport.pause_reading()
                here.driver.session._congestion.limit = 1 << 20
                [stream] = here.driver.session.streams.values()
                credit = stream.credit
                assert credit == INITIAL_WINDOW - 1
                if filled_first:
                    writer.write(bytes(credit))
                    await rig.until(lambda stream=stream: not stream.credit)
                    assert await here.seen.value("tunnel_window_stalls_total") == number - 1
                    writer.write(bytes(rest))
                else:
                    writer.write(bytes(credit + rest))
                await here.seen.becomes(number, "tunnel_window_stalls_total")
                here.agents_transport.resume_reading()
                assert len(await reader.readexactly(credit + rest)) == credit + rest
            await here.seen.becomes(0, "tunnel_streams")
        assert await here.seen.value("tunnel_window_stalls_total") == 3


@counts("forward_streams_total:" + ",".join(sorted(set(REFUSALS.values()) - {"cancelled"})))
async def test_refusals_by_the_agents_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected: Counter[str] = Counter()
    async with scene(monkeypatch, tmp_path, unprobed("web", 9)) as here:
        port = here.world.port("web")
        for code in ErrorCode:
            if code is ErrorCode.CANCELLED:
                continue  # a client that left

            async def fail(*_: object, code: ErrorCode = code) -> None:
                raise DialError(code, "by the test")

            monkeypatch.setattr(targets, "begin", lambda host, port: None)
            monkeypatch.setattr(targets, "dial_tcp", fail)
            for _ in range(2):
                await refused(port)
            expected[REFUSALS[code]] += 2
            await here.seen.becomes(
                expected[REFUSALS[code]], "forward_streams_total", result=REFUSALS[code]
            )
        assert await here.seen.value("forward_streams_total") == expected.total()
        assert await here.seen.value("forward_opened_streams_total") == 0
        assert await here.seen.value("forward_dial_seconds_count") == 0


@counts("forward_streams_total:cancelled,no_stream")
async def test_connections_that_never_had_a_stream(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    async def hang(*_: object) -> None:
        asked.append(True)
        await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(targets, "begin", lambda host, port: None)
    monkeypatch.setattr(targets, "dial_tcp", hang)
    async with scene(monkeypatch, tmp_path, unprobed("web", 9)) as here:
        for number in (1, 2, 3):
            async with rig.connect(here.world.port("web")) as (_, writer):
                await rig.until(lambda number=number: len(asked) == number)
                rig.rst(writer)
            await here.seen.becomes(number, "forward_streams_total", result="cancelled")
        here.driver.session.limits = Limits(streams=0)
        for _ in range(4):
            await refused(here.world.port("web"))
        await here.seen.becomes(4, "forward_streams_total", result="no_stream")
        assert await here.seen.value("forward_streams_total") == 7


@counts("forward_state:pending,ready,degraded,failed,draining")
async def test_states_by_how_many_are_in_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def probed(name: str, port: int) -> str:
        return f"{name}: ip/127.0.0.1 :{port}"

    head = HEAD.replace("0.05", "50")
    closed = rig.closed_port()
    async with AsyncExitStack() as stack:
        echo = await stack.enter_async_context(rig.tcp_target(rig.echo))
        going = AsyncExitStack()
        gone = await going.enter_async_context(rig.tcp_target(rig.echo))
        silent = stack.enter_context(rig.silent())
        staying = [
            *(probed(f"ready{number}", echo) for number in range(3)),
            *(probed(f"failed{number}", closed) for number in range(2)),
            *(probed(f"degraded{number}", gone) for number in range(2)),
            probed("pending", silent),
        ]
        here = await stack.enter_async_context(
            scene(monkeypatch, tmp_path, *staying, probed("draining", echo), head=head)
        )
        await here.seen.becomes(6, "forward_state", state="ready")
        await going.aclose()
        for number in range(2):
            await refused(here.world.port(f"degraded{number}"))
        async with rig.connect(here.world.port("draining")) as (reader, writer):
            await answered(reader, writer)
            await here.world.edit(text(*staying, head=head))
            for state, count in (
                ("ready", 3),
                ("failed", 2),
                ("degraded", 2),
                ("pending", 1),
                ("draining", 1),
            ):
                await here.seen.becomes(count, "forward_state", state=state)
            await answered(reader, writer)
        await here.seen.becomes(8, "forward_state")


@counts("config_reloads_total:ok,failed", "config_generation", "config_in_step")
async def test_a_reload_that_is_not_carried_out_has_failed_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = unprobed("web", 9)
    async with scene(monkeypatch, tmp_path, line) as here:
        assert await here.seen.value("config_reloads_total") == 0
        await here.world.edit(text(line, unprobed("more", 9)))
        await here.world.edit(text(line, unprobed("more", 9)))
        assert await here.seen.value("config_reloads_total", result="ok") == 2

        async def fails(self: FakeAgent) -> None:
            raise AgentError("by the test")

        monkeypatch.setattr(FakeAgent, "start", fails)
        for number in (1, 2, 3):
            with pytest.raises(AgentError):
                await here.world.edit(
                    text(line, head=HEAD.replace("sessions: 1", f"sessions: {1 + number}"))
                )
            assert await here.seen.value("config_reloads_total", result="failed") == number
            assert await here.seen.value("config_in_step") == 0
        with pytest.raises(ConfigError):
            await here.world.edit("nonsense: 1\n")
        assert await here.seen.value("config_reloads_total", result="failed") == 4
        assert await here.seen.value("config_reloads_total", result="ok") == 2
        assert await here.seen.value("config_generation") == 2


# -- datagrams -----------------------------------------------------------------------------------


@asynccontextmanager
async def datagrams(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, *, udp_clients: int = UDP_CLIENTS
) -> AsyncIterator[tuple[Scene, Echo, socket.socket]]:
    """A scene with a UDP target, and a client without a flow yet."""
    async with rig.udp_socket() as there:
        target = Echo(there)
        line = unprobed("dns", there.getsockname()[1], "udp", more=f", udpClients: {udp_clients}")
        async with (
            scene(monkeypatch, tmp_path, line) as here,
            rig.udp_socket(connect=here.world.port("dns")) as client,
        ):
            try:
                yield here, target, client
            finally:
                target.close()


async def asked(client: socket.socket) -> None:
    """A datagram has gone there and back."""
    client.send(b"ping")
    assert await rig.recv(client) == b"ping"


@counts("forward_streams_total:idle")
async def test_flows_that_are_quiet_are_idle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(udp, "IDLE", 0.05)
    async with datagrams(monkeypatch, tmp_path) as (here, _, client):
        await asked(client)
        await here.seen.becomes(1, "forward_streams_total", result="idle")


@counts("forward_dropped_datagrams_total:early,no_stream,backlog")
async def test_datagrams_that_find_no_stream_or_no_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "forward_dropped_datagrams_total"
    async with datagrams(monkeypatch, tmp_path) as (here, target, client):
        await here.blocked(monkeypatch)
        for _ in range(_EARLY_DATAGRAMS + 3):
            client.send(b"x")
        await here.seen.becomes(3, name, reason="early")
        await here.reachable_again(monkeypatch)
        await rig.until(lambda: target.came == _EARLY_DATAGRAMS)
        await asked(client)
        await here.blocked(monkeypatch)
        for number in (1, 2, 3, 4):
            client.send(b"x")
            await here.seen.becomes(number, name, reason="backlog")
        await here.reachable_again(monkeypatch)
        await asked(client)
        here.driver.session.limits = Limits(streams=0)
        async with rig.udp_socket(connect=here.world.port("dns")) as other:
            for number in (1, 2):
                other.send(b"x")
                await here.seen.becomes(number, name, reason="no_stream")
                await here.seen.becomes(number, "forward_streams_total", result="no_stream")
        assert await here.seen.value(name) == 9
        assert await here.seen.value("tunnel_lost_datagrams_total") == 0
        assert target.came == _EARLY_DATAGRAMS + 2


class Refusing:
    """A socket whose kernel takes no datagram."""

    def __init__(self, sock: socket.socket, error: type[OSError]) -> None:
        self._sock = sock
        self._error = error

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def send(self, *_: object) -> int:
        raise self._error

    sendto = sendmsg = send


@counts("forward_dropped_datagrams_total:kernel", "forward_bytes_total:to_local")
@pytest.mark.parametrize("error", [BlockingIOError, PermissionError])
async def test_answers_that_the_kernel_does_not_take(
    error: type[OSError], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with datagrams(monkeypatch, tmp_path) as (here, target, client):
        await asked(client)
        endpoint = here.flows("dns")._endpoint
        assert endpoint is not None
        sock = endpoint.socket
        endpoint.socket = Refusing(sock, error)  # type: ignore[assignment]
        endpoint._room = FixedRoom(0)
        for number in (1, 2, 3):
            client.send(b"ping")
            await here.seen.becomes(number, "forward_dropped_datagrams_total", reason="kernel")
        endpoint.socket = sock
        assert await here.seen.value("forward_bytes_total", direction="to_local") == 4
        assert await here.seen.value("forward_bytes_total", direction="to_remote") == 16
        await asked(client)
        assert await here.seen.value("forward_bytes_total", direction="to_local") == 8


@counts("tunnel_lost_datagrams_total:queued")
async def test_datagrams_that_waited_for_a_tunnel_that_was_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "tunnel_lost_datagrams_total"
    async with datagrams(monkeypatch, tmp_path) as (here, target, client):
        await asked(client)
        for number in (1, 2):
            driver = here.driver
            driver.pause_writing(here.transport)
            for _ in range(3):
                client.send(b"x")
            await rig.until(lambda driver=driver: len(driver.session._send_queue._datagrams) == 3)
            here.transport.abort()
            await here.seen.becomes(3 * number, name, reason="queued")
            await here.seen.becomes(1 + number, "tunnel_connects_total")
        await asked(client)
        assert target.came == 2
        # What waits as the session is given up.
        send_queue = here.driver.session._send_queue
        here.driver.session._congestion.limit = 0
        client.send(b"x")
        await rig.until(lambda: len(send_queue._datagrams) == 1)
        here.tunnel._drop_session("by the test")
        await here.seen.becomes(7, name, reason="queued")
        assert await here.seen.value(name) == 7


@counts("tunnel_lost_datagrams_total:queued,late", "forward_streams_total:evicted")
async def test_datagrams_of_flows_that_made_room(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "tunnel_lost_datagrams_total"
    async with datagrams(monkeypatch, tmp_path, udp_clients=1) as (here, target, client):
        port = here.world.port("dns")
        await asked(client)
        # Answers are under way as their flow ends.
        await here.acknowledged()
        here.transport.pause_reading()
        before = here.kept.mux.session._congestion.sent
        for _ in range(3):
            target.sock.sendto(b"late", target.peer)
        await rig.until(lambda: here.kept.mux.session._congestion.sent >= before + 3 * 12)
        async with rig.udp_socket(connect=port) as other:
            other.send(b"ping")
            await here.seen.becomes(1, "forward_streams_total", result="evicted")
            here.transport.resume_reading()
            assert await rig.recv(other) == b"ping"
            await here.seen.becomes(3, name, reason="late")
            # Questions wait for the tunnel as their flow ends.
            driver = here.driver
            driver.pause_writing(here.transport)
            for _ in range(4):
                other.send(b"x")
            await rig.until(lambda: len(driver.session._send_queue._datagrams) == 4)
            came = target.came
            client.send(b"ping")
            await here.seen.becomes(2, "forward_streams_total", result="evicted")
            driver.resume_writing(here.transport)
            assert await rig.recv(client) == b"ping"
            await here.seen.becomes(4, name, reason="queued")
            assert target.came == came + 1
        assert await here.seen.value(name) == 7
        assert await here.seen.value("forward_dropped_datagrams_total") == 0


@counts("tunnel_lost_datagrams_total:agent_early,agent_kernel_send,agent_backlog")
async def test_datagrams_that_the_agent_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "tunnel_lost_datagrams_total"
    found = asyncio.Event()

    async def late(*args: Any) -> UdpSocket:
        await found.wait()
        return await dial_udp(*args)

    monkeypatch.setattr(targets, "dial_udp", late)
    async with datagrams(monkeypatch, tmp_path) as (here, target, client):
        for _ in range(targets._MOST_EARLY_DATAGRAMS + 3):
            client.send(b"x")
        await here.seen.becomes(3, name, reason="agent_early")
        found.set()
        await rig.until(lambda: target.came == targets._MOST_EARLY_DATAGRAMS)
        await asked(client)

        [flow] = [stream.owner.handler for stream in here.kept.mux.session.streams.values()]
        for number, error in enumerate((BlockingIOError, PermissionError), 1):
            endpoint = flow._socket._endpoint
            sock, room = endpoint.socket, endpoint._room
            endpoint.socket, endpoint._room = Refusing(sock, error), FixedRoom(0)
            client.send(b"x")
            client.send(b"x")
            await rig.until(lambda number=number: here.kept.losses[1] == 2 * number)
            endpoint.socket, endpoint._room = sock, room
            await asked(client)
        await here.seen.becomes(4, name, reason="agent_kernel_send")

        send_queue = here.kept.mux.session._send_queue
        most, send_queue._max_datagrams = send_queue._max_datagrams, 0
        for _ in range(5):
            target.sock.sendto(b"x", target.peer)
        await here.seen.becomes(5, name, reason="agent_backlog")
        send_queue._max_datagrams = most
        await asked(client)
        assert await here.seen.value(name) == 12
        # Another tunnel says the same once more, and a session that is lost leaves its counts.
        here.transport.abort()
        await here.seen.becomes(1, "tunnel_resumptions_total")
        await asked(client)
        here.tunnel._drop_session("by the test")
        assert await here.seen.value(name) == 12


@counts("tunnel_lost_datagrams_total:queued")
async def test_datagrams_that_waited_for_a_plain_tunnel(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = "tunnel_lost_datagrams_total"
    async with v0.v0_agent() as (_, port), datagrams(monkeypatch, tmp_path) as (here, _, client):
        go = asyncio.Event()
        fails = False

        async def plain(protocol: asyncio.Protocol) -> asyncio.Transport:
            if not here.tunnel.multiplexed:
                await go.wait()
                if fails:
                    raise TunnelError("by the test")
            loop = asyncio.get_running_loop()
            return (await loop.create_connection(lambda: protocol, rig.HOST, port))[0]

        monkeypatch.setattr(here.reach, "dial", plain)
        here.tunnel._drop_session("by the test")
        await rig.until(lambda: not here.tunnel.multiplexed)
        for number in (1, 2):
            fails = True
            for _ in range(3):
                client.send(b"x")
            await here.seen.becomes(3 * number, "forward_bytes_total", direction="to_remote")
            go.set()
            await here.seen.becomes(3 * number, name, reason="queued")
            go.clear()
        fails = False
        go.set()
        await asked(client)
        assert await here.seen.value(name) == 6


@counts("forward_dropped_datagrams_total:early")
async def test_datagrams_that_come_before_it_is_known_whose_they_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A SOCKS client's first datagrams wait until its user is known: four of each moment."""
    known = threading.Event()
    asked_about: list[object] = []

    def slowly(client: Any, senders: Any) -> Any:
        asked_about.append(senders)
        known.wait()
        return same_user(client, senders)

    monkeypatch.setattr(udp_associate, "same_user", slowly)
    head = HEAD + "proxies: {all: {port: 0}}\n"
    async with rig.udp_socket() as there:
        target = Echo(there)
        place = rig.HOST, there.getsockname()[1]
        async with scene(monkeypatch, tmp_path, unprobed("web", 9), head=head) as here:
            try:
                async with rig.connect(here.world.port("all")) as (reader, writer):
                    writer.write(HELLO + ASSOCIATE)
                    answer = await reader.readexactly(12)
                    async with rig.udp_socket(connect=int.from_bytes(answer[10:])) as client:
                        client.send(write_datagram(*place, b"x"))
                        await rig.until(lambda: asked_about)
                        for _ in range(_MAX_UNPROVEN + 3):
                            client.send(write_datagram(*place, b"x"))
                        [connection] = [
                            found
                            for forward in here.world.supervisor.active.forwards.values()
                            if isinstance(forward.listener, ProxyListener)
                            for found in forward.listener.connections
                        ]
                        assert isinstance(connection, ProxyConnection)
                        association = connection._association
                        assert association is not None
                        client.send(write_datagram(*place, b"last"))
                        endpoint = association._endpoint
                        assert endpoint is not None
                        await rig.until(lambda: not waiting(endpoint.socket))
                        known.set()
                        await here.seen.becomes(
                            4, "forward_dropped_datagrams_total", reason="early"
                        )
                        await rig.until(lambda: target.came == 1 + _MAX_UNPROVEN)
            finally:
                known.set()
                target.close()


def waiting(sock: Any) -> int:
    """Bytes that wait in the kernel for a socket's reader."""
    told = fcntl.ioctl(sock.fileno(), termios.FIONREAD, bytes(4))
    return int.from_bytes(told, sys.byteorder)


# -- that nothing was forgotten ------------------------------------------------------------------


@counts("build_info")
async def test_what_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async with scene(monkeypatch, tmp_path, unprobed("web", 9)) as here:
        told = {"version": __version__, "python": platform.python_version()}
        assert await here.seen.value("build_info", **told) == 1


def test_every_metric_and_every_value_of_its_labels_is_counted_here() -> None:
    """What is added has a test above that makes what it counts happen."""
    exported = {("forward_streams_total", result) for result in metrics.RESULTS}
    exported |= {("forward_dropped_datagrams_total", reason) for reason in metrics.DROPS}
    exported |= {("tunnel_lost_datagrams_total", reason) for reason in carrier.LOSSES}
    own = {"target", "forward", "tunnel", "le", "version", "python"}
    for name, labels in samples(report()):
        exported.add((family(name), ""))
        exported |= {(family(name), value) for label, value in labels if label not in own}
    assert exported == CLAIMED
