"""One port of a target: its name, and when and where it is bound."""

from __future__ import annotations

import asyncio
import socket

import pytest

from krelay.config.diff import Spec
from krelay.datapath.tcp import TcpListener
from krelay.datapath.udp import UdpListener
from krelay.model import Endpoint, Kind, Port, Protocol, Resolution, Target
from krelay.state.bus import EventBus
from krelay.state.states import State
from krelay.supervisor.forward import Forward
from krelay.supervisor.snapshot import forward_state
from tests import rig

HTTP = Port("http", 0)
DNS = Port(53, 0, Protocol.UDP)


def make(path: rig.Path, port: Port, *others: Port, listen: str = rig.HOST) -> Forward:
    target = Target("web", Kind.SERVICE, "nginx", (port, *others), listen=listen)
    return Forward(
        Spec(target, 0),
        path.route(None),
        path.tasks,
        open_timeout=30.0,
        bus=EventBus(),
        on_bound=lambda forward: None,
    )


async def bound(forward: Forward) -> None:
    forward.bind()
    await forward.settled.wait()


def resolved(port: int = 80, protocol: Protocol = Protocol.TCP) -> Resolution:
    return Resolution(protocol, Endpoint(rig.HOST, port))


async def test_a_name_has_its_port_where_a_target_has_several() -> None:
    async with rig.path() as path:
        assert make(path, HTTP).name == "web"
        assert make(path, HTTP, DNS).name == "web[:http]"
        assert make(path, DNS, HTTP).name == "web[:53/udp]"


async def test_an_unbound_forward_has_no_addresses_and_ends_at_once() -> None:
    async with rig.path() as path:
        forward = make(path, HTTP)
        assert forward.addresses == []
        await forward.drain(3600.0)
        forward.cut()


async def test_a_forward_with_protocol_and_port_binds_at_once() -> None:
    async with rig.path() as path:
        for port, kind, text in (
            (Port(80, 0, Protocol.TCP), TcpListener, "svc/nginx:80 (tcp)"),
            (DNS, UdpListener, "svc/nginx:53 (udp)"),
        ):
            forward = make(path, port)
            await bound(forward)
            listener = forward.listener
            assert isinstance(listener, kind)
            local = rig.port_of(listener)
            assert forward_state(forward, None).routes() == [f"web: 127.0.0.1:{local} -> {text}"]
            forward.cut()


async def test_ipv6_is_in_brackets() -> None:
    async with rig.path() as path:
        forward = make(path, Port(80, 0, Protocol.TCP), listen="::1")
        await bound(forward)
        if forward.failure is not None:
            pytest.skip("no IPv6 here")
        assert forward.addresses[0].startswith("[::1]:")
        forward.cut()


@pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.UDP])
async def test_localhost_with_a_port_taken_in_one_family_is_bound_in_the_other(
    protocol: Protocol, caplog: pytest.LogCaptureFixture
) -> None:
    kind = socket.SOCK_STREAM if protocol is Protocol.TCP else socket.SOCK_DGRAM
    async with rig.path() as path:
        with socket.socket(socket.AF_INET, kind) as taken:
            taken.bind((rig.HOST, 0))
            if kind is socket.SOCK_STREAM:
                taken.listen()
            port = taken.getsockname()[1]
            forward = make(path, Port(80, port, protocol), listen="localhost")
            await bound(forward)
            if forward.failure is not None:
                pytest.skip("no IPv6 here")
            assert forward.addresses == [f"[::1]:{port}"]
            assert forward.failure is None
            line = f"web: it listens only on [::1]:{port}: 127.0.0.1:{port} is taken by "
            assert line in caplog.text
            forward.cut()


@pytest.mark.parametrize("protocol", [Protocol.TCP, Protocol.UDP])
async def test_a_forward_at_several_addresses_has_one_free_port(protocol: Protocol) -> None:
    async with rig.path() as path:
        forward = make(path, Port(80, 0, protocol), listen="127.0.0.1,127.0.0.2")
        await bound(forward)
        assert forward.listener is not None
        ports = {port for _, port in forward.listener.addresses}
        assert forward.addresses == [f"{host}:{min(ports)}" for host in ("127.0.0.1", "127.0.0.2")]
        forward.cut()


async def test_a_forward_without_a_protocol_waits_for_its_service() -> None:
    async with rig.path() as path:
        forward = make(path, Port("dns", 0))
        forward.bind()
        await asyncio.sleep(0)
        assert not forward.settled.is_set()
        forward.route.update(resolved(53, Protocol.UDP))
        await forward.settled.wait()
        assert isinstance(forward.listener, UdpListener)
        forward.cut()


async def test_a_forward_of_what_does_not_exist_is_bound_at_once_and_again_for_udp() -> None:
    async with rig.path() as path, rig.udp_echo() as target:
        forward = make(path, Port("dns", 0))
        forward.route.update(Resolution(Protocol.TCP, None, "not found", missing=True))
        await bound(forward)
        assert forward.protocol is Protocol.TCP
        forward.route.update(resolved(target, Protocol.UDP))
        await rig.until(lambda: forward.protocol is Protocol.UDP)
        assert forward.listener is not None
        async with rig.udp_socket(connect=rig.port_of(forward.listener)) as client:
            client.send(b"x")
            assert await rig.recv(client) == b"x"
        await rig.until(lambda: forward.health.state is State.READY)
        forward.cut()


async def test_a_tcp_port_in_use_keeps_no_udp_target_from_its_port() -> None:
    async with rig.path() as path:
        taken = rig.port_of(await path.tcp(1))
        forward = make(path, Port("dns", taken))
        forward.route.update(Resolution(Protocol.TCP, None, "not found", missing=True))
        await bound(forward)
        assert forward.failure is not None
        forward.route.update(resolved(53, Protocol.UDP))
        await rig.until(lambda: forward.protocol is Protocol.UDP)
        assert forward.failure is None
        forward.cut()


async def test_a_forward_that_cannot_be_followed_settles_at_once() -> None:
    async with rig.path() as path:
        forward = make(path, Port("dns", 0))
        forward.bind()
        await asyncio.sleep(0)
        assert not forward.settled.is_set()
        forward.route.fail("forbidden")
        await forward.settled.wait()
        assert (forward.health.state, forward.health.reason) == (State.FAILED, "forbidden")
        forward.route.update(resolved(53, Protocol.UDP))
        await rig.until(lambda: forward.listener)
        forward.cut()


async def test_the_local_port_may_be_what_the_remote_one_resolves_to() -> None:
    async with rig.path() as path:
        forward = make(path, Port("http", None, Protocol.TCP))
        free = rig.closed_port()
        forward.bind()
        await asyncio.sleep(0)
        assert not forward.settled.is_set()
        forward.route.update(Resolution(Protocol.TCP, None, "no pod"))
        await forward.settled.wait()
        forward.route.update(resolved(free))
        await rig.until(lambda: forward.listener)
        assert forward.listener is not None
        assert rig.port_of(forward.listener) == free
        forward.cut()


async def test_a_port_in_use_is_the_failure_and_is_logged_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with rig.path() as path:
        taken = rig.port_of(await path.tcp(1))
        forward = make(path, Port(80, taken, Protocol.TCP), HTTP)
        await bound(forward)
        assert forward.listener is None
        assert forward.failure is not None
        forward.cut()
    assert f"web[{taken}:80/tcp]: cannot listen on 127.0.0.1:{taken}" in caplog.text
    assert "hint: stop the program that uses it, or choose another local port" in caplog.text


async def test_draining_and_cutting_reach_the_listener() -> None:
    async with rig.path() as path, rig.tcp_target(rig.hold) as target:
        for end in ("drain", "cut"):
            forward = make(path, Port(80, 0, Protocol.TCP))
            forward.route.update(resolved(target))
            await bound(forward)
            assert isinstance(forward.listener, TcpListener)
            async with rig.connect(rig.port_of(forward.listener)) as (reader, _):
                await rig.until(lambda: path.streams == (1, 1))
                if end == "drain":
                    await forward.drain(0.01)
                else:
                    forward.cut()
                with pytest.raises(ConnectionResetError):
                    await reader.read()
            await rig.until(lambda: path.streams == (0, 0))
