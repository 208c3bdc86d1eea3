"""Connections that wait for a stream: their ends, what is read of them, and which is dropped."""

from __future__ import annotations

import asyncio
import resource
import select
import socket
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import pytest

from krelay.datapath import connector as module
from krelay.datapath.connector import EARLY, connection_queue
from krelay.datapath.route import Route
from krelay.datapath.tcp import TcpListener
from krelay.model import Endpoint, Protocol, Resolution
from krelay.mux.descriptors import open_files
from krelay.net.accept import descriptor_budget
from krelay.proxy.server import ProxyListener
from tests import rig

needs_epoll = pytest.mark.skipif(not hasattr(select, "epoll"), reason="no epoll here")


@asynccontextmanager
async def waiting() -> AsyncIterator[tuple[rig.Path, Route, TcpListener]]:
    """A listener whose connections wait for an endpoint."""
    async with rig.path() as path:
        route = path.route(None)
        yield path, route, await path.tcp(route)
    assert not len(connection_queue())
    assert connection_queue()._epoll is None


def lead(route: Route, port: int) -> None:
    route.update(Resolution(Protocol.TCP, Endpoint(rig.HOST, port)))


@contextmanager
def clients(listener: TcpListener, count: int) -> Iterator[list[socket.socket]]:
    """So many have connected and said `hi`; closed at the end."""
    made: list[socket.socket] = []
    try:
        for _ in range(count):
            made.append(socket.create_connection(listener.addresses[0]))
            made[-1].setblocking(False)
            made[-1].send(b"hi")
        yield made
    finally:
        for client in made:
            client.close()


@contextmanager
def limited(more: int) -> Iterator[None]:
    """This process may have `more` descriptors than it has now."""
    used, (soft, hard) = open_files(), resource.getrlimit(resource.RLIMIT_NOFILE)
    assert used is not None
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + more, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    "size",
    [0, 2, pytest.param(EARLY, marks=needs_epoll), pytest.param(4 * EARLY, marks=needs_epoll)],
)
async def test_a_queued_client_that_resets_is_removed_at_once(size: int) -> None:
    """However much it has sent that was not read."""
    async with waiting() as (_, _, listener):
        async with rig.connect(rig.port_of(listener)) as (_, writer):
            writer.write(bytes(size))
            await writer.drain()
            await rig.until(
                lambda: (
                    len(connection_queue())
                    and sum(connection_queue()._sizes.values()) >= min(size, EARLY)
                )
            )
            rig.rst(writer)
            await rig.until(lambda: not listener.connections)


@needs_epoll
async def test_a_queued_client_that_ends_and_then_resets_is_removed_at_once() -> None:
    async with waiting() as (_, _, listener):
        async with rig.connect(rig.port_of(listener)) as (_, writer):
            writer.write(b"hello")
            writer.write_eof()
            await rig.until(lambda: connection_queue()._half_closed)
            assert len(listener.connections) == 1
            rig.rst(writer)
            await rig.until(lambda: not listener.connections)


@pytest.mark.parametrize("size", [0, 5, EARLY, 4 * EARLY])
async def test_a_queued_client_that_has_sent_its_end_is_served(size: int) -> None:
    data = rig.noise(size) if size else b""
    async with waiting() as (_, route, listener), rig.tcp_target(rig.echo) as target:
        async with asyncio.TaskGroup() as tasks:
            answer = tasks.create_task(rig.exchange(rig.port_of(listener), data))
            await rig.until(
                lambda: (
                    connection_queue()._half_closed
                    or sum(connection_queue()._sizes.values()) >= EARLY
                )
            )
            lead(route, target)
        assert answer.result() == data
        await rig.until(lambda: not listener.connections)
        assert listener.metrics.to_remote_bytes == size


async def test_the_bytes_kept_for_all_queued_clients_are_bounded(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(module, "EARLY_OF_ALL", 4 * EARLY)
    data = rig.noise(20 * EARLY)
    async with waiting() as (_, route, listener), rig.tcp_target(rig.echo) as target:
        async with asyncio.TaskGroup() as tasks:
            answers = [
                tasks.create_task(rig.exchange(rig.port_of(listener), data)) for _ in range(20)
            ]
            await rig.until(
                lambda: len(connection_queue()) == 20 and connection_queue()._total >= 4 * EARLY
            )
            assert connection_queue()._total <= 4 * EARLY + (256 << 10)
            lead(route, target)
        assert [answer.result() for answer in answers] == [data] * 20


async def test_the_connection_half_closed_for_the_longest_makes_room() -> None:
    async with waiting() as (_, _, listener):
        port = rig.port_of(listener)
        async with (
            rig.connect(port),
            rig.connect(port) as (first, first_writer),
            rig.connect(port) as (_, second_writer),
        ):
            await rig.until(lambda: len(connection_queue()) == 3)
            first_writer.write_eof()
            await rig.until(lambda: len(connection_queue()._half_closed) == 1)
            second_writer.write_eof()
            await rig.until(lambda: len(connection_queue()._half_closed) == 2)
            assert connection_queue().make_room()
            with pytest.raises(ConnectionResetError):
                await first.read()
            await rig.until(lambda: len(listener.connections) == 2)
            assert connection_queue().make_room()
            assert not connection_queue().make_room()
            await rig.until(lambda: len(listener.connections) == 1)


@asynccontextmanager
async def cut_off() -> AsyncIterator[tuple[rig.Path, Route, TcpListener]]:
    """The same, and there is no tunnel either."""
    async with waiting() as (path, route, listener):
        path.link.cut(blocked=True)
        await rig.until(lambda: path.pool.pick() is None)
        yield path, route, listener


async def test_more_clients_than_descriptors_leave_the_tunnel_one() -> None:
    """They wait in the backlog while there is no tunnel; then each of them is served."""
    async with cut_off() as (path, route, listener), rig.tcp_target(rig.echo) as target:
        with clients(listener, 100) as all_:
            with limited(40):
                await rig.until(
                    lambda: descriptor_budget().waiters and len(connection_queue()) >= 4
                )
                assert len(connection_queue()) < 40
                path.link.blocked = False
                await rig.until(path.pool.pick)
                assert descriptor_budget().waiters
            # The agent and the target share this process, and its descriptors.
            lead(route, target)
            for client in all_:
                assert await rig.recv(client, 2) == b"hi"


async def test_clients_that_have_gone_make_room_for_those_that_wait() -> None:
    """They have closed, which looks as if they had sent their ends."""
    async with cut_off() as (path, route, listener), rig.tcp_target(rig.echo) as target:
        with clients(listener, 100):
            pass
        with clients(listener, 4) as live:
            with limited(40):
                await rig.until(
                    lambda: (
                        len(connection_queue()) - len(connection_queue()._half_closed) == len(live)
                    )
                )
                await rig.until(lambda: not descriptor_budget().waiters)
            path.link.blocked = False
            lead(route, target)
            for client in live:
                assert await rig.recv(client, 2) == b"hi"


async def test_a_queued_proxy_client_that_resets_is_removed_at_once() -> None:
    async with rig.path() as path:
        path.link.cut(blocked=True)
        await rig.until(lambda: path.pool.pick() is None)
        listener = ProxyListener("proxy", path.route(None), path.tasks, open_timeout=3600.0)
        path.listeners.append(listener)
        await listener.open(rig.HOST, 0)
        async with rig.connect(rig.port_of(listener)) as (_, writer):
            writer.write(b"CONNECT web:80 HTTP/1.1\r\nHost: web:80\r\n\r\n")
            await rig.until(lambda: len(connection_queue()))
            rig.rst(writer)
            await rig.until(lambda: not listener.connections)
