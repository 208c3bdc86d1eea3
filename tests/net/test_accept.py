"""AcceptLoop and DescriptorBudget on real sockets."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import socket
from collections.abc import AsyncIterator, Iterator

import pytest

from krelay.mux.descriptors import open_files, reserve
from krelay.net import accept
from krelay.net.accept import AcceptLoop, descriptor_budget
from krelay.net.bind import bind
from tests import rig


class Served(asyncio.Protocol):
    """Sends a greeting, and counts itself."""

    def __init__(self, all_: list[Served]) -> None:
        all_.append(self)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(b"hi")
        transport.close()


@contextlib.asynccontextmanager
async def open_port() -> AsyncIterator[tuple[AcceptLoop, tuple[str, int], list[Served]]]:
    (sock,) = bind(rig.HOST, 0, socket.SOCK_STREAM)
    address = sock.getsockname()
    served: list[Served] = []
    accepting = AcceptLoop("web", sock, lambda: Served(served))
    try:
        yield accepting, address, served
    finally:
        accepting.close()


@contextlib.contextmanager
def no_descriptors() -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (1, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


async def greeting(address: tuple[str, int]) -> bytes:
    reader, writer = await asyncio.open_connection(*address)
    try:
        return await reader.read()
    finally:
        writer.close()


async def test_each_connection_of_a_burst_gets_a_protocol() -> None:
    async with open_port() as (_, address, served), asyncio.TaskGroup() as tasks:
        answers = [tasks.create_task(greeting(address)) for _ in range(200)]
    assert [answer.result() for answer in answers] == [b"hi"] * 200
    assert len(served) == 200


async def test_a_closed_port_can_be_bound_at_once() -> None:
    async with open_port() as (_, address, _):
        pass
    for sock in bind(rig.HOST, address[1], socket.SOCK_STREAM):
        sock.close()


@pytest.mark.parametrize("turns", range(5))
async def test_a_connection_accepted_before_the_close_is_served(turns: int) -> None:
    """A connection takes several turns of the loop to begin: closing in any of them loses none."""
    loop = asyncio.get_running_loop()
    async with open_port() as (accepting, address, _):
        with socket.create_connection(address) as client:
            client.setblocking(False)
            done = loop.create_future()

            def close(left: int) -> None:
                if left:
                    loop.call_soon(close, left - 1)
                else:
                    accepting.close()
                    done.set_result(None)

            close(turns)
            await done
            if turns > 1:
                assert await loop.sock_recv(client, 9) == b"hi"
            else:
                with pytest.raises(ConnectionResetError):  # by the kernel, which still had it
                    await loop.sock_recv(client, 9)


async def test_without_descriptors_it_waits_and_warns_once(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The system may have none although this process may have more."""
    tries = 0
    pause = AcceptLoop._pause

    def count(self: AcceptLoop, cause: str, *, bug: bool = False) -> None:
        nonlocal tries
        tries += 1
        pause(self, cause, bug=bug)

    monkeypatch.setattr(accept, "RETRY_AFTER", 0.01)
    monkeypatch.setattr(accept, "open_files", lambda: None)
    monkeypatch.setattr(AcceptLoop, "_pause", count)
    async with open_port() as (_, address, served):
        with socket.create_connection(address) as client:
            client.setblocking(False)
            with no_descriptors():
                await rig.until(lambda: tries > 3)
                assert not served
            assert await asyncio.get_running_loop().sock_recv(client, 9) == b"hi"
    assert caplog.messages == ["web: connections wait, none can be accepted: Too many open files"]


async def test_a_failure_in_accepting_is_retried(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(accept, "RETRY_AFTER", 0.01)
    failing, take = True, AcceptLoop._accept_pending

    def fail(self: AcceptLoop) -> None:
        if failing:
            raise MemoryError
        take(self)

    monkeypatch.setattr(AcceptLoop, "_accept_pending", fail)
    async with open_port() as (_, address, _):
        asking = asyncio.create_task(greeting(address))
        await rig.until(lambda: caplog.messages)
        failing = False
        assert await asking == b"hi"
    assert caplog.messages == ["web: connections wait, none can be accepted: MemoryError()"]


async def test_a_connection_that_cannot_be_served_is_reset(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail() -> asyncio.BaseProtocol:
        raise ZeroDivisionError

    (sock,) = bind(rig.HOST, 0, socket.SOCK_STREAM)
    accepting = AcceptLoop("web", sock, fail)
    try:
        with pytest.raises(ConnectionResetError):
            await greeting(sock.getsockname())
    finally:
        accepting.close()
    assert caplog.messages == ["web: connection reset: ZeroDivisionError()"]


class Held(asyncio.Protocol):
    """Stays open."""

    transport: asyncio.Transport

    def __init__(self, all_: list[Held]) -> None:
        self.all = all_

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.all.append(self)

    def connection_lost(self, exc: Exception | None) -> None:
        self.all.remove(self)
        descriptor_budget().closed()


@contextlib.contextmanager
def limited(more: int) -> Iterator[int]:
    """This process may have `more` descriptors than it has now; yields the limit."""
    used, (soft, hard) = open_files(), resource.getrlimit(resource.RLIMIT_NOFILE)
    assert used is not None
    resource.setrlimit(resource.RLIMIT_NOFILE, (used + more, hard))
    try:
        yield used + more
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


def settled(limit: int, held: list[Held]) -> bool:
    """Whether accepting has stopped: only the reserve is left, or as many as were accepted."""
    used = open_files()
    assert used is not None
    return bool(descriptor_budget().waiters) and limit - used <= max(min(reserve(), len(held)), 4)


@contextlib.contextmanager
def clients(address: tuple[str, int], count: int) -> Iterator[list[socket.socket]]:
    made = [socket.create_connection(address) for _ in range(count)]
    try:
        yield made
    finally:
        for sock in made:
            sock.close()


async def test_connections_leave_a_reserve_and_resume_when_descriptors_are_free(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(accept, "RECHECK_EVERY", 3600.0)
    (sock,) = bind(rig.HOST, 0, socket.SOCK_STREAM)
    held: list[Held] = []
    served = 0

    def serve() -> Held:
        nonlocal served
        served += 1
        return Held(held)

    accepting = AcceptLoop("web", sock, serve)
    try:
        with clients(sock.getsockname(), 80), limited(60) as limit:
            await rig.until(lambda: held and settled(limit, held))
            left = limit - (open_files() or 0)
            assert left >= 4
            with contextlib.ExitStack() as stack:  # for anything else
                for _ in range(left - 1):
                    stack.enter_context(socket.socket())
            while served < 80:
                for each in held:
                    each.transport.abort()
                await asyncio.sleep(0.001)
    finally:
        accepting.close()
        for each in held:
            each.transport.abort()
        await rig.until(lambda: not held)
    (message,) = caplog.messages
    assert message.startswith("web: connections wait, ")
    assert message.endswith(f" of {limit} file descriptors are in use")


async def test_waiting_listeners_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Many clients of one listener do not shut out the only client of another."""
    monkeypatch.setattr(accept, "RECHECK_EVERY", 0.01)
    socks = [bind(rig.HOST, 0, socket.SOCK_STREAM)[0] for _ in range(2)]
    many: list[Held] = []
    few: list[Held] = []
    accepts = [
        AcceptLoop("many", socks[0], lambda: Held(many)),
        AcceptLoop("few", socks[1], lambda: Held(few)),
    ]
    try:
        with clients(socks[0].getsockname(), 200), limited(40) as limit:
            await rig.until(lambda: many and settled(limit, many))
            with clients(socks[1].getsockname(), 1):
                while not few:
                    many[0].transport.abort()
                    await asyncio.sleep(0.001)
                assert descriptor_budget().waiters  # the others still wait
    finally:
        for accepting in accepts:
            accepting.close()
        for each in [*many, *few]:
            each.transport.abort()
        await rig.until(lambda: not (many or few))


async def test_control_connections_may_use_the_reserve() -> None:
    (sock,) = bind(rig.HOST, 0, socket.SOCK_STREAM)
    served: list[Served] = []
    with socket.create_connection(sock.getsockname()) as client, limited(2):
        client.setblocking(False)
        accepting = AcceptLoop("status", sock, lambda: Served(served), control=True)
        try:
            assert await asyncio.get_running_loop().sock_recv(client, 9) == b"hi"
        finally:
            accepting.close()
