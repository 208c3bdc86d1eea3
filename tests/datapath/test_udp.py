"""The UDP listener: a flow for each client, datagrams as they are, drops rather than waits."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
from contextlib import AsyncExitStack

import pytest

from krelay.datapath import udp as module
from krelay.datapath.udp import UdpListener
from krelay.errors import ListenError
from krelay.model import UDP_CLIENTS, Endpoint, Kind, Protocol, Resolution, Target
from krelay.wire.errors import ErrorCode
from krelay.wire.session import Limits
from tests import rig


@pytest.mark.parametrize("size", [0, 1, 512, 1472, 9000, 65_506, 65_507])
async def test_datagrams_of_any_size_come_back_whole(size: int) -> None:
    data = rig.noise(size)
    async with rig.path() as path, rig.udp_echo() as target:
        port = rig.port_of(await path.udp(target))
        async with rig.udp_socket(connect=port) as client:
            client.send(data)
            assert await rig.recv(client) == data


async def test_boundaries_and_order_of_datagrams_are_kept() -> None:
    sent = [b"%d" % number * (number % 7) for number in range(200)]
    async with rig.path() as path, rig.udp_echo() as target:
        port = rig.port_of(await path.udp(target))
        async with rig.udp_socket(connect=port) as client:
            client.send(b"first")
            assert await rig.recv(client) == b"first"
            for at in range(0, len(sent), 20):
                for data in sent[at : at + 20]:
                    client.send(data)
                got = [await rig.recv(client) for _ in range(20)]
                assert got == sent[at : at + 20]


async def test_each_client_has_its_own_flow_and_its_own_answers() -> None:
    async with rig.path(tunnels=2) as path, rig.udp_echo() as target, AsyncExitStack() as stack:
        listener = await path.udp(target)
        port = rig.port_of(listener)
        clients = [
            await stack.enter_async_context(rig.udp_socket(connect=port)) for _ in range(100)
        ]
        for turn in range(3):
            for number, client in enumerate(clients):
                client.send(b"%d/%d" % (turn, number))
            for number, client in enumerate(clients):
                assert await rig.recv(client) == b"%d/%d" % (turn, number)
        assert listener.live == 100
        assert path.streams == (100, 100)
    assert path.streams == (0, 0)


async def test_the_target_sees_one_socket_for_each_client() -> None:
    async with rig.path() as path, rig.udp_socket() as target:
        loop = asyncio.get_running_loop()
        port = rig.port_of(await path.udp(target.getsockname()[1]))
        async with rig.udp_socket(connect=port) as one, rig.udp_socket(connect=port) as two:
            seen: dict[bytes, tuple[str, int]] = {}
            for client, data in ((one, b"1"), (two, b"2"), (one, b"1"), (two, b"2")):
                client.send(data)
                got, address = await loop.sock_recvfrom(target, 100)
                assert seen.setdefault(got, address) == address
            assert len(seen) == 2
            target.sendto(b"late 1", seen[b"1"])
            target.sendto(b"late 2", seen[b"2"])
            assert await rig.recv(two) == b"late 2"
            assert await rig.recv(one) == b"late 1"


async def test_the_least_recently_used_flow_makes_room(caplog: pytest.LogCaptureFixture) -> None:
    async with rig.path() as path, rig.udp_echo() as target, AsyncExitStack() as stack:
        listener = await path.udp(target)
        listener.max_flows = 2
        port = rig.port_of(listener)
        one, two, three = [
            await stack.enter_async_context(rig.udp_socket(connect=port)) for _ in range(3)
        ]

        async def ask(client: socket.socket) -> None:
            client.send(b"x")
            assert await rig.recv(client) == b"x"

        def who() -> set[int]:
            return {address[1] for sock in listener._sockets for address in sock.flows}

        def ports(*clients: socket.socket) -> set[int]:
            return {client.getsockname()[1] for client in clients}

        for client in (one, two, one, three):
            await ask(client)
        assert who() == ports(one, three)
        await ask(two)
        assert who() == ports(three, two)
        await rig.until(lambda: path.streams == (2, 2))
        assert listener.metrics.results == {"evicted": 2}
        assert [r.getMessage() for r in caplog.records].count(
            "dns: more than 2 UDP clients at once: the flows that are quiet for the longest end;"
            " set `udpClients` of the target to allow more"
        ) == 1


async def test_idle_flows_expire(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "IDLE", 0.05)
    async with rig.path() as path, rig.udp_echo() as target:
        listener = await path.udp(target)
        async with rig.udp_socket(connect=rig.port_of(listener)) as client:
            client.send(b"x")
            await rig.until(lambda: path.streams == (1, 1))
            await rig.until(lambda: listener.live == 0)
            await rig.until(lambda: path.streams == (0, 0))


async def test_datagrams_in_either_direction_keep_a_flow() -> None:
    async with rig.path() as path, rig.udp_socket() as target:
        loop = asyncio.get_running_loop()
        listener = await path.udp(target.getsockname()[1])
        port = rig.port_of(listener)
        (sock,) = listener._sockets

        def pass_time() -> None:
            """As if every flow had been idle for too long."""
            for flow in sock.flows.values():
                flow.active_at -= module.IDLE

        async with (
            rig.udp_socket(connect=port) as idle,
            rig.udp_socket(connect=port) as asking,
            rig.udp_socket(connect=port) as listening,
        ):
            for client in (idle, listening, asking):
                client.send(b"x")
                _, address = await loop.sock_recvfrom(target, 100)
                target.sendto(b"y", address)
                assert await rig.recv(client) == b"y"
                if client is listening:
                    subscriber = address
            pass_time()
            asking.send(b"more")
            await loop.sock_recvfrom(target, 100)
            target.sendto(b"news", subscriber)
            assert await rig.recv(listening) == b"news"
            sock._sweep()
            assert list(sock.flows) == [asking.getsockname(), listening.getsockname()]
            assert sock._sweeper is not None
            pass_time()
            sock._sweeper.cancel()
            sock._sweep()
            assert listener.live == 0
            assert sock._sweeper is None
            await rig.until(lambda: path.streams == (0, 0))
            idle.send(b"again")
            assert (await loop.sock_recvfrom(target, 100))[0] == b"again"


async def test_a_closed_port_ends_its_flow_only() -> None:
    async with rig.path() as path, rig.udp_echo() as target:
        connection = rig.connection(path.pool)
        session = connection.session
        good = await path.udp(target)
        bad = await path.udp(rig.closed_port(socket.SOCK_DGRAM))
        async with (
            rig.udp_socket(connect=rig.port_of(good)) as client,
            rig.udp_socket(connect=rig.port_of(bad)) as lost,
        ):
            client.send(b"1")
            assert await rig.recv(client) == b"1"
            for _ in range(3):
                opened = session._next_id
                lost.send(b"x")
                await rig.until(lambda opened=opened: session._next_id > opened)
                await rig.until(lambda: bad.live == 0)
            client.send(b"2")
            assert await rig.recv(client) == b"2"
            assert path.streams == (1, 1)


async def test_an_unknown_name_is_logged_as_a_warning(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def resolve(*_: object, **__: object) -> None:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", resolve)
    async with rig.path() as path:
        listener = await path.udp(path.route(53, Protocol.UDP, "nowhere.test"))
        async with rig.udp_socket(connect=rig.port_of(listener)) as client:
            client.send(b"x")
            await rig.until(lambda: "dns: no such host: nowhere.test" in caplog.text)
            await rig.until(lambda: listener.live == 0)


async def test_a_few_datagrams_wait_for_the_route() -> None:
    async with rig.path() as path, rig.udp_echo() as target:
        route = path.route(None)
        listener = await path.udp(route)
        async with rig.udp_socket(connect=rig.port_of(listener)) as client:
            for number in range(40):
                client.send(b"%d" % number)
            (sock,) = listener._sockets
            await rig.until(lambda: sock.flows and flow_of(listener)._early[-1] == b"39")
            route.update(Resolution(Protocol.UDP, Endpoint(rig.HOST, target)))
            got = [await rig.recv(client) for _ in range(16)]
            assert got == [b"%d" % number for number in range(24, 40)]


def flow_of(listener: UdpListener) -> module.Flow:
    """The only flow of a listener."""
    (sock,) = listener._sockets
    (flow,) = sock.flows.values()
    return flow


async def test_a_flow_that_waited_long_enough_is_forgotten(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with rig.path() as path:
        listener = await path.udp(path.route(None), open_timeout=0.05)
        async with rig.udp_socket(connect=rig.port_of(listener)) as client:
            client.send(b"x")
            await rig.until(lambda: "datagrams dropped" in caplog.text)
            assert listener.live == 0
    assert "dns: datagrams dropped: waited 0.05 s: not resolved yet" in caplog.text


async def test_datagrams_are_dropped_and_not_held_while_the_tunnel_is_cut() -> None:
    async with rig.path() as path, rig.udp_echo() as target:
        listener = await path.udp(target)
        async with rig.udp_socket(connect=rig.port_of(listener)) as client:
            client.send(b"before")
            assert await rig.recv(client) == b"before"
            carrier = path.pool.pick()
            assert carrier is not None
            path.link.cut(blocked=True)
            await rig.until(lambda: path.pool.pick() is None)
            client.send(b"lost")
            await rig.until(lambda: listener.metrics.drops == {"backlog": 1})
            path.link.blocked = False
            await rig.until(path.pool.pick)
            client.send(b"after")
            assert await rig.recv(client) == b"after"
            assert listener.live == 1


async def test_a_full_session_drops_datagrams_with_a_reason(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with rig.path() as path, rig.udp_echo() as target:
        connection = rig.connection(path.pool)
        connection.session.limits = Limits(streams=0)
        listener = await path.udp(target)
        async with rig.udp_socket(connect=rig.port_of(listener)) as client:
            client.send(b"x")
            await rig.until(lambda: "dns: datagrams dropped: 0 streams are open" in caplog.text)
        assert listener.live == 0


async def test_a_flow_that_the_agent_ends_is_forgotten() -> None:
    async with rig.path() as path, rig.udp_echo() as target:
        listener = await path.udp(target)
        async with rig.udp_socket(connect=rig.port_of(listener)) as client:
            for end in ("end", "close"):
                client.send(b"x")
                assert await rig.recv(client) == b"x"
                (kept,) = path.server.sessions._kept.values()
                (stream,) = kept.mux.session.streams.values()
                if end == "end":
                    stream.owner.end()
                else:
                    stream.owner.handler.close(ErrorCode.IDLE)
                await rig.until(lambda: listener.live == 0)
                await rig.until(lambda: path.streams == (0, 0))


async def test_a_flow_ignores_events_of_tcp_streams() -> None:
    async with rig.path() as path, rig.udp_echo() as target:
        listener = await path.udp(target)
        async with rig.udp_socket(connect=rig.port_of(listener)) as client:
            client.send(b"x")
            assert await rig.recv(client) == b"x"
            flow = flow_of(listener)
            flow.on_data(b"stray")
            flow.on_writable()
            client.send(b"y")
            assert await rig.recv(client) == b"y"


async def test_a_client_that_has_gone_does_not_disturb_others() -> None:
    async with rig.path() as path, rig.udp_socket() as target:
        loop = asyncio.get_running_loop()
        listener = await path.udp(target.getsockname()[1])
        port = rig.port_of(listener)
        async with rig.udp_socket(connect=port) as client:
            client.send(b"x")
            _, gone = await loop.sock_recvfrom(target, 100)
        for _ in range(3):
            target.sendto(b"nobody hears this", gone)
        async with rig.udp_socket(connect=port) as client:
            client.send(b"y")
            data, address = await loop.sock_recvfrom(target, 100)
            assert data == b"y"
            target.sendto(b"z", address)
            assert await rig.recv(client) == b"z"


async def test_the_end_closes_sockets_and_flows() -> None:
    async with rig.path() as path, rig.udp_echo() as target:
        listener = await path.udp(target)
        (sock,) = listener._sockets
        async with rig.udp_socket(connect=rig.port_of(listener)) as client:
            client.send(b"x")
            assert await rig.recv(client) == b"x"
            flow = flow_of(listener)
            await listener.drain(3600.0)
            assert listener.live == 0
            await rig.until(lambda: path.streams == (0, 0))
            sock.reply(b"late", client.getsockname())
            sock.close()
            flow.close(ErrorCode.CANCELLED)
            assert listener.live == 0
        again = UdpListener("dns", path.route(target), path.tasks, open_timeout=1.0)
        await again.open(rig.HOST, listener.addresses[0][1])
        again.cut()


async def test_an_address_in_use_is_a_listen_error() -> None:
    async with rig.path() as path:
        port = rig.port_of(await path.udp(1))
        listener = UdpListener("dns", path.route(1), path.tasks, open_timeout=1.0)
        with pytest.raises(ListenError, match="Address already in use"):
            await listener.open(rig.HOST, port)


async def test_the_log_says_once_that_tftp_does_not_work(caplog: pytest.LogCaptureFixture) -> None:
    async with rig.path() as path, rig.udp_socket() as one, rig.udp_socket() as two:
        listener = await path.udp(path.route(module.TFTP, Protocol.UDP))
        for client in (one, two, one):
            client.sendto(b"x", (rig.HOST, rig.port_of(listener)))
        await rig.until(lambda: listener.metrics.to_remote == 3)
        assert sum("TFTP" in record.getMessage() for record in caplog.records) == 1


async def test_an_edit_changes_how_many_clients_a_port_serves() -> None:
    async with rig.path() as path, rig.udp_echo() as target, AsyncExitStack() as stack:
        listener = await path.udp(target)
        listener.update(Target("dns", Kind.IP, rig.HOST, (), udp_clients=3), 30.0)
        port = rig.port_of(listener)
        clients = [await stack.enter_async_context(rig.udp_socket(connect=port)) for _ in range(5)]
        for client in clients:
            client.send(b"x")
            assert await rig.recv(client) == b"x"
        assert listener.live == 3
        listener.update(Target("dns", Kind.IP, rig.HOST, (), udp_clients=1), 30.0)
        clients[0].send(b"y")
        assert await rig.recv(clients[0]) == b"y"
        assert listener.live == 1


@pytest.mark.skipif(sys.platform != "linux", reason="needs IP_PKTINFO")
async def test_a_wildcard_port_answers_from_the_address_that_was_asked() -> None:
    async with rig.path() as path, rig.udp_echo() as target, AsyncExitStack() as stack:
        listener = await path.udp(target, address="0.0.0.0")
        port = rig.port_of(listener)
        asked = ["127.0.0.1", "127.0.0.2", "127.4.5.6"]
        clients = [await stack.enter_async_context(rig.udp_socket()) for _ in asked]
        for turn in range(2):
            for client, address in zip(clients, asked, strict=True):
                if not turn:
                    client.connect((address, port))  # and so takes no other's answers
                client.send(address.encode())
            for client, address in zip(clients, asked, strict=True):
                assert await rig.recv(client) == address.encode()
        assert listener.live == len(asked)


@pytest.mark.skipif(sys.platform != "linux", reason="needs IP_PKTINFO")
async def test_one_socket_may_ask_several_addresses_of_a_wildcard_port() -> None:
    loop = asyncio.get_running_loop()
    async with rig.path() as path, rig.udp_echo() as target, rig.udp_socket() as client:
        port = rig.port_of(await path.udp(target, address="0.0.0.0"))
        for address in ("127.0.0.2", "127.0.0.3") * 2:
            await loop.sock_sendto(client, address.encode(), (address, port))
            async with asyncio.timeout(10):
                assert await loop.sock_recvfrom(client, 100) == (address.encode(), (address, port))


async def test_thousands_of_flows_get_their_own_answers() -> None:
    async with rig.path() as path, rig.udp_echo() as target:
        port = rig.port_of(listener := await path.udp(target))
        for first in range(0, 2_000, 100):
            async with AsyncExitStack() as stack:
                clients = [
                    await stack.enter_async_context(rig.udp_socket(connect=port))
                    for _ in range(100)
                ]
                for number, client in enumerate(clients, first):
                    client.send(b"%d" % number)
                for number, client in enumerate(clients, first):
                    assert await rig.recv(client) == b"%d" % number
        assert listener.live <= UDP_CLIENTS
        assert not listener.metrics.lost()


async def test_a_flood_of_datagrams_does_not_starve_another_forward() -> None:
    async with rig.path() as path, rig.udp_socket() as deaf, rig.tcp_target(rig.echo) as echo:
        flooded = rig.port_of(await path.udp(deaf.getsockname()[1]))
        web = rig.port_of(await path.tcp(echo))
        over = threading.Event()

        def flood() -> None:
            with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
                sock.connect((rig.HOST, flooded))
                while not over.is_set():
                    sock.send(bytes(1_200))

        flooding = threading.Thread(target=flood)
        flooding.start()
        try:
            async with rig.connect(web) as (reader, writer):
                for number in range(50):
                    writer.write(b"%02d" % number)
                    assert await reader.readexactly(2) == b"%02d" % number
        finally:
            over.set()
            flooding.join()
