"""UDP sockets to targets, and the count of lost datagrams that reaches the client."""

from __future__ import annotations

import asyncio
import socket
import sys

import pytest

from agent import sessions as module
from agent import targets
from agent.memory import FLOOR, Client, MemoryBudget
from agent.udp import Losses, UdpSocket, dial_udp
from krelay.mux.datagrams import MAX_WAITING
from tests import rig
from tests.agent.peer import session
from tests.agent.test_targets import UDP, ask


async def test_a_closed_socket_calls_nothing() -> None:
    def fail(*_: object) -> None:
        pytest.fail("told")

    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as raw:
        sock = UdpSocket(raw, fail, fail, Losses())
        sock.close()
        sock.datagram_received(b"x", None)
        sock.error_received(ConnectionRefusedError())


def test_datagrams_that_wait_for_their_targets_take_their_client_s_memory() -> None:
    budget = MemoryBudget(64 << 20)
    client = Client(budget)
    room = targets.DatagramRoom(client.reserve())
    assert room.take(MAX_WAITING - 10)
    assert not room.take(11)
    assert client.held == MAX_WAITING - 10
    room.give_back(MAX_WAITING - 10)
    assert client.held == 0
    budget.left = 0
    assert room.take(FLOOR)
    assert not room.take(1)


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_LOSSES_EVERY", 0.01)


async def test_early_send_and_backlog_losses_reach_the_client(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(targets, "_MOST_EARLY_DATAGRAMS", 2)
    go = asyncio.Event()

    async def later(*args: object) -> object:
        await go.wait()
        return await dial_udp(*args)  # type: ignore[arg-type]

    monkeypatch.setattr(targets, "dial_udp", later)
    async with rig.agent() as server, rig.udp_echo() as port:
        client = await session(server)
        stream, seen = ask(client, UDP, port)
        for _ in range(5):
            stream.datagram(b"x")
        await rig.until(lambda: client.connection.peer_lost == (0, 0, 3, 0))
        go.set()
        await rig.until(lambda: len(seen.told) == 3)
        stream.datagram(bytes(65_520))  # no UDP datagram is that long
        stream.datagram(bytes(65_521))
        await rig.until(lambda: client.connection.peer_lost == (0, 2, 3, 0))
        (kept,) = server.sessions._kept.values()
        kept.mux.session._send_queue._max_datagrams = 0
        for _ in range(4):
            stream.datagram(b"x")
        await rig.until(lambda: client.connection.peer_lost == (0, 2, 3, 4))
        client.leave()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells")
async def test_drops_at_target_sockets_are_counted_also_after_their_flows() -> None:
    loop = asyncio.get_running_loop()
    async with rig.agent() as server, rig.udp_socket() as there:
        client = await session(server)
        stream, seen = ask(client, UDP, there.getsockname()[1])
        stream.datagram(b"x")
        _, address = await loop.sock_recvfrom(there, 10)
        (kept,) = server.sessions._kept.values()
        (flow,) = (s.owner.handler for s in kept.mux.session.streams.values())
        flow._socket._endpoint.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
        for _ in range(100):
            there.sendto(bytes(500), address)
        await rig.until(
            lambda: client.connection.peer_lost[0] + len(seen.told) - 1 == 100 and seen.told[1:]
        )
        lost = client.connection.peer_lost
        assert 0 < lost[0] < 100
        stream.reset()
        await rig.until(lambda: not kept.mux.session.streams)
        assert kept.losses == lost
        client.leave()


async def test_an_older_client_gets_no_lost_frame(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("krelay.wire.handshake.VERSION", 1)
    monkeypatch.setitem(
        __import__("krelay.wire.handshake", fromlist=["x"]).ClientHandshake.__init__.__kwdefaults__,
        "highest",
        1,
    )
    async with rig.agent() as server, rig.udp_echo() as port:
        client = await session(server)
        assert client.connection.session.version == 1
        stream, seen = ask(client, UDP, port)
        stream.datagram(bytes(65_520))
        (kept,) = server.sessions._kept.values()
        await rig.until(lambda: kept.reported == (0, 1, 0, 0))
        stream.datagram(b"x")
        await rig.until(lambda: b"x" in seen.told)
        assert client.connection.peer_lost == (0, 0, 0, 0)
        client.leave()
