"""TCP and UDP as they are, through `krelay up` into the real cluster."""

from __future__ import annotations

import asyncio
import hashlib
import secrets
import shutil
import subprocess

import pytest

from tests.e2e import kit, program
from tests.e2e.kit import Krelay

SIZE = 256 << 20


def command_port(relay: Krelay) -> kit.Address:
    return relay.address("pod", index=1)


def test_256_mib_down(relay: Krelay) -> None:
    received, whole = 0, hashlib.sha256()
    with kit.command(command_port(relay), f"send {SIZE}") as sock:
        while data := sock.recv(1 << 20):
            received += len(data)
            whole.update(data)
    assert received == SIZE
    assert whole.hexdigest() == program.digest(SIZE)


def test_256_mib_up(relay: Krelay) -> None:
    with kit.command(command_port(relay), "receive") as sock:
        for block in program.blocks(SIZE):
            sock.sendall(block)
        sock.shutdown(1)
        count, digest = kit.read_all(sock).decode().split()
    assert int(count) == SIZE
    assert digest == program.digest(SIZE)


async def test_200_connections_at_once(relay: Krelay) -> None:
    host, port = relay.address("svc", index=1)
    together = asyncio.Barrier(200)

    async def one(number: int) -> bool:
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"echo\n")
        await together.wait()
        message = f"{number}:".encode() * 500
        writer.write(message)
        answer = await reader.readexactly(len(message))
        writer.close()
        await writer.wait_closed()
        return answer == message

    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        ends = [tasks.create_task(one(number)) for number in range(200)]
    assert all(end.result() for end in ends)


def test_the_client_ends_first(relay: Krelay) -> None:
    with kit.command(command_port(relay), "receive") as sock:
        sock.sendall(b"x" * 1000)
        sock.shutdown(1)
        assert kit.read_all(sock).startswith(b"1000 ")


def test_the_target_ends_first(relay: Krelay) -> None:
    name = secrets.token_hex(4)
    with kit.command(command_port(relay), f"shut {name}") as sock:
        assert kit.read_all(sock) == b"bye"
        sock.sendall(b"y" * 5000)
        sock.shutdown(1)

    def heard() -> bytes:
        with kit.command(command_port(relay), f"heard {name}") as sock:
            return kit.read_all(sock)

    kit.eventually(lambda: heard() == b"5000", "the target hears all of it")


def test_printf_into_nc(relay: Krelay) -> None:
    assert shutil.which("nc"), "install netcat-openbsd"
    host, port = command_port(relay)
    done = subprocess.run(
        ["nc", "-N", host, str(port)],
        input=b"receive\nx",
        capture_output=True,
        timeout=30,
        check=True,
    )
    assert done.stdout.startswith(b"1 ")


def test_a_reset_by_the_target_is_a_reset(relay: Krelay) -> None:
    with kit.command(command_port(relay), "reset") as sock, pytest.raises(ConnectionResetError):
        kit.read_all(sock)


async def test_500_cancelled_requests_leave_a_working_forward(relay: Krelay) -> None:
    host, port = relay.address("pod")

    async def cancelled() -> None:
        reader, writer = await asyncio.open_connection(host, port)
        writer.write(b"GET /bytes?n=10000000 HTTP/1.1\r\n\r\n")
        await reader.readexactly(1)
        writer.transport.abort()

    async with asyncio.timeout(90):
        for _ in range(10):
            async with asyncio.TaskGroup() as tasks:
                for _ in range(50):
                    tasks.create_task(cancelled())
    assert await asyncio.to_thread(kit.http_get, (host, port)) == b"solo\n"


async def test_udp_clients_have_flows_of_their_own(relay: Krelay) -> None:
    address = relay.address("pod", "udp")

    async def one(number: int) -> None:
        message = f"client {number}".encode() * (number + 1)
        assert await asyncio.to_thread(kit.ask_udp, address, message) == message

    async with asyncio.timeout(60), asyncio.TaskGroup() as tasks:
        for number in range(20):
            tasks.create_task(one(number))


def test_a_large_datagram(relay: Krelay) -> None:
    message = secrets.token_bytes(60_000)
    assert kit.ask_udp(relay.address("pod", "udp"), message) == message
