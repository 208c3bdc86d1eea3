"""The unix socket and the TCP listener: who may ask, where they are, and what they leave."""

from __future__ import annotations

import asyncio
import dataclasses
import errno
import json
import os
import shutil
import socket
from collections.abc import Callable, Iterator, Mapping
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientConnectionError, ClientPayloadError, ClientSession, UnixConnector

import krelay.net.bind
from krelay.errors import ConfigError, KrelayError, NotReadyError, Problem
from krelay.model import StatusConfig
from krelay.state.bus import EventBus
from krelay.status import connections
from krelay.status.client import NotRunningError, ask, is_running
from krelay.status.servers import AlreadyRunningError, serve_unix
from krelay.status.socket_path import socket_path
from tests import rig
from tests.state.said import said
from tests.status.reports import Live, forward
from tests.status.serving import TOKEN, Service, service


@pytest.fixture
def path(runtime_directory: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    directory = runtime_directory / "s"
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(directory))
    yield socket_path("krelay.yaml")
    shutil.rmtree(directory, ignore_errors=True)


async def echo(body: Mapping[str, Any]) -> Any:
    return {"got": dict(body)}


HANDLERS = {("POST", "/v1/echo"): echo}


async def asked(resource: str, body: dict[str, Any] | None = None, method: str = "POST") -> Any:
    return await asyncio.to_thread(ask, "krelay.yaml", method, resource, body, timeout=5.0)


async def test_a_request_on_the_socket_is_answered(path: Path) -> None:
    async with serve_unix(path, HANDLERS):
        assert await asked("/v1/echo", {"a": [1]}) == {"got": {"a": [1]}}
        assert await asked("/v1/echo") == {"got": {}}


async def test_the_socket_serves_every_resource_without_a_token(path: Path) -> None:
    live, bus = Live(), EventBus()
    async with serve_unix(path, HANDLERS, snapshot=live, bus=bus):
        assert await asked("/v1/status", method="GET") == json.loads(json.dumps(live.now.as_json()))
        assert await asked("/v1/echo", {"a": 1}) == {"got": {"a": 1}}
        async with ClientSession(connector=UnixConnector(str(path))) as http:
            async with http.get("http://any.name/readyz?target=web") as response:
                assert response.status == 200
            async with http.get("http://any.name/v1/events?after=0") as response:
                bus.publish(said("state", "ready", target="web"))
                assert "ready" in (await response.content.readuntil(b"}\n\n")).decode()
        assert path.stat().st_mode & 0o777 == 0o600


async def test_the_socket_is_private_and_removed_at_the_end(path: Path) -> None:
    async with serve_unix(path, HANDLERS):
        assert path.stat().st_mode & 0o777 == 0o600
    assert list(path.parent.iterdir()) == []
    with pytest.raises(NotRunningError, match=r"krelay is not running for krelay\.yaml") as caught:
        await asked("/v1/echo")
    assert caught.value.hint == "start it with `krelay up -f krelay.yaml`"
    with pytest.raises(NotRunningError) as caught:
        await asyncio.to_thread(ask, "my file; rm x.yaml", "GET", "/v1/status", timeout=1.0)
    assert caught.value.hint == "start it with `krelay up -f 'my file; rm x.yaml'`"


async def test_a_stale_socket_is_replaced(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True)
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(path))
    with pytest.raises(NotRunningError):
        await asked("/v1/echo")
    async with serve_unix(path, HANDLERS):
        assert await asked("/v1/echo") == {"got": {}}


async def test_a_second_server_for_the_same_file_is_refused(path: Path) -> None:
    async with serve_unix(path, HANDLERS):
        owner = rf"\(pid {os.getpid()}, since 20"
        with pytest.raises(AlreadyRunningError, match=f"already running for this file {owner}"):
            async with serve_unix(path, HANDLERS):
                pytest.fail("two of them")
        assert await asked("/v1/echo") == {"got": {}}
    async with serve_unix(path, HANDLERS):
        assert await asked("/v1/echo") == {"got": {}}


def others_may_enter(directory: Path) -> None:
    directory.chmod(0o755)


def somebody_else_s(directory: Path) -> None:
    if os.getuid() != 0:
        pytest.skip("only root can give a directory away")
    os.chown(directory, 12345, -1)


def a_link(directory: Path) -> None:
    directory.rename(directory.with_name("moved"))
    directory.symlink_to("moved")


@pytest.mark.parametrize("spoil", [others_may_enter, somebody_else_s, a_link])
async def test_a_client_does_not_connect_in_a_directory_of_others(
    spoil: Callable[[Path], None], path: Path
) -> None:
    """Another user may have created it first, in the directory of temporary files."""
    asked_for: list[object] = []

    async def stop(body: Mapping[str, Any]) -> Any:
        asked_for.append(body)
        return {}

    async with serve_unix(path, {("POST", "/v1/stop"): stop}):
        assert await asyncio.to_thread(is_running, "krelay.yaml")
        await asyncio.to_thread(spoil, path.parent)
        with pytest.raises(
            NotRunningError, match=r"krelay is not running for krelay\.yaml: /.* is not "
        ) as caught:
            await asked("/v1/stop")
        assert caught.value.hint == "remove it, or set XDG_RUNTIME_DIR to a directory of your own"
        assert not await asyncio.to_thread(is_running, "krelay.yaml")
    assert asked_for == []


async def test_an_error_arrives_with_its_type_and_hint(path: Path) -> None:
    problem = Problem(1, 2, "bad", "mend it", "other.yaml")
    errors = iter(
        [
            ConfigError("krelay.yaml", [problem, Problem(3, 4, "worse")]),
            NotReadyError("not yet", ["web: pending"], hint="wait"),
        ]
    )

    async def refuse(body: Mapping[str, Any]) -> Any:
        raise next(errors)

    async with serve_unix(path, {("GET", "/v1/no"): refuse}):
        with pytest.raises(ConfigError) as config:
            await asked("/v1/no", method="GET")
        with pytest.raises(KrelayError) as other:
            await asked("/v1/no", method="GET")
    assert (config.value.path, config.value.exit_code) == ("krelay.yaml", 2)
    assert config.value.problems == [Problem(3, 4, "worse"), problem]
    assert other.value.report() == ["web: pending", "not yet", "  hint: wait"]
    assert other.value.exit_code == 3


@pytest.mark.parametrize("body", [b"[]", b"{", b"\xff"])
async def test_a_body_that_is_no_object_is_refused(body: bytes, path: Path) -> None:
    async with serve_unix(path, HANDLERS):
        reader, writer = await asyncio.open_unix_connection(path)
        head = f"POST /v1/echo HTTP/1.1\r\nHost: x\r\nContent-Length: {len(body)}\r\n"
        writer.write(head.encode() + b"Connection: close\r\n\r\n" + body)
        answer = await reader.read()
        writer.close()
        await writer.wait_closed()
    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"not a JSON object" in answer


async def test_an_unknown_resource_is_an_error(path: Path) -> None:
    async with serve_unix(path, HANDLERS):
        with pytest.raises(KrelayError, match="POST /v1/nothing: not found"):
            await asked("/v1/nothing")


async def test_a_missing_answer_times_out(path: Path) -> None:
    asking = asyncio.Event()

    async def never(body: Mapping[str, Any]) -> Any:
        asking.set()
        await asyncio.get_running_loop().create_future()

    async with serve_unix(path, {("POST", "/v1/never"): never}):
        with pytest.raises(KrelayError, match="did not answer in time"):
            await asyncio.to_thread(ask, "krelay.yaml", "POST", "/v1/never", timeout=0.05)
        assert asking.is_set()


async def test_a_client_that_reads_nothing_does_not_delay_the_close_of_the_socket(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "CLOSE_DEADLINE", 0.05)
    stuck = asyncio.Event()

    async def much(body: Mapping[str, Any]) -> Any:
        stuck.set()
        return "x" * (4 << 20)

    async with serve_unix(path, {("GET", "/v1/much"): much}):
        reader, writer = await asyncio.open_unix_connection(path, limit=1)
        writer.write(b"GET /v1/much HTTP/1.1\r\nHost: x\r\n\r\n")
        await stuck.wait()
    assert list(path.parent.iterdir()) == []
    with pytest.raises(asyncio.IncompleteReadError):
        await reader.readexactly(4 << 20)
    writer.close()


async def test_a_socket_that_cannot_be_created_is_an_error(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True)
    path.mkdir()
    with pytest.raises(KrelayError, match=f"cannot listen on {path}"):
        async with serve_unix(path, HANDLERS):
            pytest.fail("served")


async def test_silent_clients_leave_descriptors_for_others(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda which: (36, 36))
    monkeypatch.setattr(connections, "GRACE", 0.0)
    async with serve_unix(path, HANDLERS):
        opened = [await asyncio.open_unix_connection(str(path)) for _ in range(8)]
        for reader, _ in opened[:5]:
            assert await reader.read() == b""  # three have a place
        assert await asked("/v1/echo", {"a": 1}) == {"got": {"a": 1}}
        assert await opened[5][0].read() == b""
        opened[7][1].write(b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n")
        assert await opened[7][0].readline() == b"HTTP/1.1 200 OK\r\n"
        for _, writer in opened:
            writer.close()


async def status_of(url: str, **headers: str) -> int:
    async with ClientSession() as session:
        async with session.get(f"{url}/v1/status", headers=headers) as response:
            return response.status


async def test_the_tcp_server_listens_only_if_configured() -> None:
    made = Service()
    async with aclosing(made.listening) as listening:
        await listening.apply(StatusConfig())
        assert listening.addresses == []
        await listening.apply(StatusConfig(token=TOKEN))
        assert listening.addresses == []
        await listening.apply(StatusConfig(("127.0.0.1", 0)))
        assert await status_of(made.url) == 200
    assert listening.addresses == []


async def test_the_tcp_server_follows_an_edited_address() -> None:
    async with service() as made:
        before = made.url
        port = rig.closed_port()
        await made.listening.apply(StatusConfig(("127.0.0.1", port)))
        assert made.url == f"http://127.0.0.1:{port}"
        assert await status_of(made.url) == 200
        with pytest.raises(ClientConnectionError):
            await status_of(before)
        # the same port for another address of it
        await made.listening.apply(StatusConfig(("0.0.0.0", port), TOKEN))
        assert await status_of(f"http://127.0.0.1:{port}") == 401


async def test_an_unchanged_address_keeps_its_connections() -> None:
    async with service() as made:
        connections, address = made.listening._connections, made.listening.addresses
        await made.listening.apply(StatusConfig(("127.0.0.1", 0)))
        assert (made.listening._connections, made.listening.addresses) == (connections, address)


async def test_a_new_token_closes_the_connections_of_the_old_one() -> None:
    async with service(TOKEN) as made, ClientSession() as session:
        shown = {"Authorization": f"Bearer {TOKEN}"}
        async with session.get(f"{made.url}/v1/events", headers=shown) as response:
            await response.content.readuntil(b"\n\n")
            await made.listening.apply(StatusConfig(("127.0.0.1", 0), TOKEN[::-1]))
            with pytest.raises(ClientPayloadError):
                await response.content.read()
        assert await status_of(made.url, **shown) == 401


async def test_a_port_in_use_is_logged_and_tried_after_the_next_edit(
    caplog: pytest.LogCaptureFixture,
) -> None:
    made = Service()
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        config = StatusConfig(taken.getsockname())
        async with aclosing(made.listening) as listening:
            for _ in range(2):
                await listening.apply(config)
                assert listening.addresses == []
            where = f"127.0.0.1:{taken.getsockname()[1]}"
            assert f"status is not served on {where} until the next edit" in caplog.text
            assert "Address already in use" in caplog.text
            assert len(caplog.records) == 2
            taken.close()
            await listening.apply(config)
            assert await status_of(f"http://{where}") == 200


async def test_an_address_of_another_machine_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    made = Service()
    async with aclosing(made.listening) as listening:
        await listening.apply(StatusConfig(("192.0.2.1", 0), TOKEN))
        assert listening.addresses == []
    assert "status is not served on 192.0.2.1:0" in caplog.text


async def test_localhost_listens_on_both_families_at_one_port() -> None:
    made = Service()
    async with aclosing(made.listening) as listening:
        await listening.apply(StatusConfig(("localhost", 0)))
        assert listening.addresses[0].host == "127.0.0.1"
        assert len({address.port for address in listening.addresses}) == 1
        for address in listening.addresses:
            assert await status_of(f"http://{address}") == 200


async def test_localhost_without_ipv6_listens_on_ipv4(monkeypatch: pytest.MonkeyPatch) -> None:
    make = krelay.net.bind._bind_one

    def refuse(host: str, port: int, kind: socket.SocketKind) -> socket.socket:
        if ":" in host:
            raise OSError(errno.EAFNOSUPPORT, "no IPv6")
        return make(host, port, kind)

    monkeypatch.setattr(krelay.net.bind, "_bind_one", refuse)
    made = Service()
    async with aclosing(made.listening) as listening:
        await listening.apply(StatusConfig(("localhost", 0)))
        assert [address.host for address in listening.addresses] == ["127.0.0.1"]


async def test_a_client_that_reads_nothing_does_not_delay_a_move(
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
        await rig.until(lambda: any(connection.blocked for connection in live))
        port = rig.closed_port()
        await made.listening.apply(StatusConfig(("127.0.0.1", port)))
        assert await status_of(f"http://127.0.0.1:{port}") == 200
        await rig.until(lambda: not live)
        writer.transport.abort()


@pytest.mark.parametrize("token", [None, TOKEN])
@pytest.mark.parametrize("said", ["", "GET / HTTP/1.1\r\nHost: x\r\n", "GET / HTTP/1.1\r\n\r\n"])
async def test_strangers_do_not_keep_out_a_health_check_or_the_owner(
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
            assert await status_of(made.url, **shown) == 200
        assert made.listening._connections is not None
        assert len(made.listening._connections.open) <= 2 * 3 + 1
        for writer in opened:
            writer.close()


@pytest.mark.parametrize(("files", "most"), [(64, 5), (1024, 64), (1 << 20, 64), (-1, 64)])
async def test_few_descriptors_mean_fewer_places(
    files: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("resource.getrlimit", lambda which: (files, files))
    assert connections.connection_limit(connections.STRANGERS) == most
