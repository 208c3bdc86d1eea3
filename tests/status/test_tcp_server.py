"""The TCP listener: it follows what the file says, and can do without a port."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import socket

import pytest
from aiohttp import ClientConnectionError, ClientPayloadError, ClientSession

import krelay.net.bind
from krelay.model import StatusConfig
from krelay.status import connections
from tests import rig
from tests.status.reports import forward
from tests.status.serving import TOKEN, Service, service


async def asked(url: str, **headers: str) -> int:
    async with ClientSession() as session:
        async with session.get(f"{url}/v1/status", headers=headers) as response:
            return response.status


async def test_nowhere_until_it_is_told_where() -> None:
    made = Service()
    async with made.listening as listening:
        await listening.apply(StatusConfig())
        assert listening.addresses == []
        await listening.apply(StatusConfig(token=TOKEN))
        assert listening.addresses == []
        await listening.apply(StatusConfig(("127.0.0.1", 0)))
        assert await asked(made.url) == 200
    assert listening.addresses == []


async def test_it_moves() -> None:
    async with service() as made:
        before = made.url
        port = rig.closed_port()
        await made.listening.apply(StatusConfig(("127.0.0.1", port)))
        assert made.url == f"http://127.0.0.1:{port}"
        assert await asked(made.url) == 200
        with pytest.raises(ClientConnectionError):
            await asked(before)
        # the same port for another address of it
        await made.listening.apply(StatusConfig(("0.0.0.0", port), TOKEN))
        assert await asked(f"http://127.0.0.1:{port}") == 401


async def test_what_stays_is_not_touched() -> None:
    async with service() as made:
        connections, address = made.listening._connections, made.listening.addresses
        await made.listening.apply(StatusConfig(("127.0.0.1", 0)))
        assert (made.listening._connections, made.listening.addresses) == (connections, address)


async def test_another_token_ends_what_the_former_opened() -> None:
    async with service(TOKEN) as made, ClientSession() as session:
        shown = {"Authorization": f"Bearer {TOKEN}"}
        async with session.get(f"{made.url}/v1/events", headers=shown) as response:
            await response.content.readuntil(b"\n\n")
            await made.listening.apply(StatusConfig(("127.0.0.1", 0), TOKEN[::-1]))
            with pytest.raises(ClientPayloadError):
                await response.content.read()
        assert await asked(made.url, **shown) == 401


async def test_a_port_in_use_is_told_and_tried_at_the_next_change(
    caplog: pytest.LogCaptureFixture,
) -> None:
    made = Service()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        config = StatusConfig(taken.getsockname())
        async with made.listening as listening:
            for _ in range(2):
                await listening.apply(config)
                assert listening.addresses == []
            where = f"127.0.0.1:{taken.getsockname()[1]}"
            assert f"status is not served on {where}, until the next change" in caplog.text
            assert "Address already in use" in caplog.text
            assert len(caplog.records) == 2
            taken.close()
            await listening.apply(config)
            assert await asked(f"http://{where}") == 200


async def test_an_address_that_is_not_of_this_machine(caplog: pytest.LogCaptureFixture) -> None:
    made = Service()
    async with made.listening as listening:
        await listening.apply(StatusConfig(("192.0.2.1", 0), TOKEN))
        assert listening.addresses == []
    assert "status is not served on 192.0.2.1:0" in caplog.text


async def test_localhost_is_both_families_on_one_port() -> None:
    made = Service()
    async with made.listening as listening:
        await listening.apply(StatusConfig(("localhost", 0)))
        assert listening.addresses[0].host == "127.0.0.1"
        assert len({address.port for address in listening.addresses}) == 1
        for address in listening.addresses:
            assert await asked(f"http://{address}") == 200


async def test_localhost_without_ipv6_is_the_other(monkeypatch: pytest.MonkeyPatch) -> None:
    make = krelay.net.bind._bind_one

    def refuse(host: str, port: int, kind: socket.SocketKind) -> socket.socket:
        if ":" in host:
            raise OSError(errno.EAFNOSUPPORT, "no IPv6")
        return make(host, port, kind)

    monkeypatch.setattr(krelay.net.bind, "_bind_one", refuse)
    made = Service()
    async with made.listening as listening:
        await listening.apply(StatusConfig(("localhost", 0)))
        assert [address.host for address in listening.addresses] == ["127.0.0.1"]


async def test_a_client_that_takes_nothing_does_not_keep_it_from_moving(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(connections, "CLOSE_DEADLINE", 0.05)
    async with service() as made:
        address = made.listening.addresses[0]
        assert made.listening._connections is not None
        live = made.listening._connections.open
        many = tuple(forward(f"web-{number}") for number in range(20_000))
        made.live.now = dataclasses.replace(made.live.now, forwards=many)
        _, writer = await asyncio.open_connection(address.host, address.port, limit=1)
        writer.write(f"GET /v1/status HTTP/1.1\r\nHost: {address}\r\n\r\n".encode())
        await rig.until(lambda: any(connection.full for connection in live))
        port = rig.closed_port()
        await made.listening.apply(StatusConfig(("127.0.0.1", port)))
        assert await asked(f"http://127.0.0.1:{port}") == 200
        await rig.until(lambda: not live)
        writer.transport.abort()


@pytest.mark.parametrize("token", [None, TOKEN])
@pytest.mark.parametrize("said", ["", "GET / HTTP/1.1\r\nHost: x\r\n", "GET / HTTP/1.1\r\n\r\n"])
async def test_strangers_keep_neither_a_health_check_nor_the_owner_out(
    said: str, token: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "STRANGERS", 3)
    async with service(token) as made:
        address = made.listening.addresses[0]
        opened = []
        for _ in range(20):
            _, writer = await asyncio.open_connection(address.host, address.port)
            writer.write(said.encode())
            opened.append(writer)
        for _ in range(3):
            async with ClientSession() as session:
                async with session.get(f"{made.url}/healthz") as response:
                    assert response.status == 200
            shown = {"Authorization": f"Bearer {token}"} if token else {}
            assert await asked(made.url, **shown) == 200
        assert made.listening._connections is not None
        assert len(made.listening._connections.open) <= 2 * 3 + 1
        for writer in opened:
            writer.close()


@pytest.mark.parametrize(("files", "most"), [(64, 5), (1024, 64), (1 << 20, 64), (-1, 64)])
async def test_where_there_are_few_descriptors_there_are_fewer_places(
    files: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda which: (files, files))
    assert connections.places(connections.STRANGERS) == most
