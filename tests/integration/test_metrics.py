"""Each count of /metrics, made by having what it counts happen so often, in a real `krelay up`."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import struct
import sys
from contextlib import AsyncExitStack, suppress
from pathlib import Path

import pytest
from prometheus_client import parser

from krelay.mux.files import raise_file_limit
from tests import rig
from tests.integration.product import Up, document, up
from tests.integration.test_status import get, served

pytestmark = pytest.mark.timeout(60)

Labels = dict[str, str]


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
            found = await seen.scrape()
            tunnels = len(found["krelay_tunnel_up"])
            assert sum(value for _, value in found["krelay_tunnel_up"]) == tunnels
            assert sum(value for _, value in found["krelay_tunnel_connects_total"]) == tunnels
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


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what its kernel dropped")
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


async def test_flows_that_make_room_are_idle_and_lose_nothing(tmp_path: Path) -> None:
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
            assert await seen.value("forward_streams_total", result="idle") == more
            assert await seen.value("forward_streams_total") == more
            assert await seen.value("forward_open_streams") == 1_024
            assert await seen.value("forward_dropped_datagrams_total") == 0
            assert await seen.value("tunnel_lost_datagrams_total") == 0
