"""The proxy port, over real sockets and by real clients."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from krelay.datapath.pool import Pool
from krelay.model import proxy_target
from krelay.proxy import server as module
from krelay.proxy.server import ProxyListener
from tests import rig

HELLO = b"\5\1\0"
OK = b"\5\0\0\1\0\0\0\0\0\0"


@asynccontextmanager
async def proxy(
    *, open_timeout: float = 5.0, credentials: tuple[str, str] | None = None
) -> AsyncIterator[tuple[ProxyListener, rig.Path]]:
    async with rig.path() as path:
        listener = ProxyListener(
            "proxy",
            path.route(None),
            path.tasks,
            open_timeout=open_timeout,
            credentials=credentials,
        )
        path.listeners.append(listener)
        await listener.open(rig.HOST, 0)
        yield listener, path


def connect_to(port: int, host: str = rig.HOST) -> bytes:
    name = host.encode()
    return b"\5\1\0\3" + bytes([len(name)]) + name + port.to_bytes(2, "big")


@asynccontextmanager
async def socks(
    listener: ProxyListener, port: int, host: str = rig.HOST
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """A connection by SOCKS5 to a target, when it stands."""
    async with rig.connect(rig.port_of(listener)) as (reader, writer):
        writer.write(HELLO)
        assert await reader.readexactly(2) == b"\5\0"
        writer.write(connect_to(port, host))
        assert await reader.readexactly(10) == OK
        yield reader, writer


async def curl(*args: str) -> tuple[int, bytes]:
    """curl's exit code and what it printed."""
    if shutil.which("curl") is None:
        pytest.skip("no curl")
    process = await asyncio.create_subprocess_exec(
        "curl", "-sS", "--max-time", "8", *args, stdout=-1, stderr=-3
    )
    out, _ = await process.communicate()
    assert process.returncode is not None
    return process.returncode, out


async def web(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers with what it was asked, head and body; chunked."""
    head = await reader.readuntil(b"\r\n\r\n")
    if b"Expect: 100-continue" in head:
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    body = b""
    for line in head.split(b"\r\n"):
        if line.lower().startswith(b"content-length:"):
            body = await reader.readexactly(int(line.split(b":")[1]))
    if b"chunked" in head:
        body = await reader.readuntil(b"0\r\n\r\n")
    answer = head + hashlib.sha256(body).hexdigest().encode()
    writer.write(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    writer.write(f"{len(answer):x}\r\n".encode() + answer + b"\r\n0\r\n\r\n")
    await writer.drain()


# -- by real clients ---------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["--socks5-hostname", "--socks5", "--proxy", "--proxytunnel"])
@pytest.mark.parametrize("host", ["127.0.0.1", "localhost"])
async def test_curl_reaches_targets_by_every_kind_of_proxy(way: str, host: str) -> None:
    async with rig.tcp_target(web) as target, proxy() as (listener, _):
        port = rig.port_of(listener)
        args = [way, f"127.0.0.1:{port}"]
        if way == "--proxytunnel":
            args = ["--proxytunnel", "--proxy", f"127.0.0.1:{port}"]
        code, out = await curl(*args, f"http://{host}:{target}/path?q", "-H", "X-Mine: 1")
        assert code == 0, out
        assert out.startswith(b"GET /path?q HTTP/1.1\r\n")
        assert f"Host: {host}:{target}\r\n".encode() in out
        assert b"X-Mine: 1\r\n" in out
        assert b"Proxy-Connection" not in out
        await rig.until(lambda: not listener.connections)


@pytest.mark.parametrize("chunked", [False, True])
async def test_bodies_pass_as_they_are(chunked: bool) -> None:
    data = "x" * 100_000
    async with rig.tcp_target(web, limit=1 << 20) as target, proxy() as (listener, _):
        args = ["-H", "Transfer-Encoding: chunked"] if chunked else ["-H", "Expect: 100-continue"]
        code, out = await curl(
            *("-x", f"127.0.0.1:{rig.port_of(listener)}", "-d", data, *args),
            f"http://127.0.0.1:{target}/",
        )
        assert code == 0, out
        if not chunked:
            assert out.endswith(hashlib.sha256(data.encode()).hexdigest().encode())


async def test_clients_without_the_password_are_refused() -> None:
    async with rig.tcp_target(web) as target, proxy(credentials=("me", "pw")) as (listener, _):
        port, url = rig.port_of(listener), f"http://127.0.0.1:{target}/"
        for kind in ("http", "socks5h"):
            code, out = await curl("-x", f"{kind}://me:pw@127.0.0.1:{port}", url)
            assert code == 0, out
            assert b"Proxy-Authorization" not in out
        assert (await curl("-x", f"http://me:no@127.0.0.1:{port}", "-f", url))[0] == 22
        assert (await curl("-x", f"socks5h://me:no@127.0.0.1:{port}", url))[0] == 97
        assert (await curl("-x", f"socks5h://127.0.0.1:{port}", url))[0] == 97


@pytest.mark.parametrize("credentials", [None, ("me", "pw")])
async def test_a_proxy_open_to_other_machines_is_a_warning(
    credentials: tuple[str, str] | None,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with proxy(credentials=credentials):
        assert "other machines" not in caplog.text
    monkeypatch.setattr(module, "is_loopback", lambda address: False)
    async with proxy(credentials=credentials):
        warned = "proxy: open to other machines without a password" in caplog.text
        assert warned is (credentials is None)


async def test_a_refused_socks_client_gets_the_reason() -> None:
    closed = rig.closed_port()
    async with proxy() as (listener, _):
        port = rig.port_of(listener)
        code, out = await curl("-x", f"127.0.0.1:{port}", f"http://127.0.0.1:{closed}/")
        assert (code, out[:7]) == (0, b"krelay:")
        assert out.count(f"127.0.0.1:{closed}".encode()) == 1
        for host, wanted, reply in ((rig.HOST, closed, 5), ("nope.invalid", 80, 4)):
            async with rig.connect(port) as (reader, writer):
                writer.write(HELLO + connect_to(wanted, host))
                assert (await reader.readexactly(12))[2:4] == bytes([5, reply])
                assert await reader.read() == b""


async def test_a_refused_socks_client_that_still_sends_gets_the_reason(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    async with proxy() as (listener, _):
        for _ in range(5):
            async with rig.connect(rig.port_of(listener)) as (reader, writer):
                writer.write(HELLO + connect_to(rig.closed_port()))
                writer.write(bytes(300_000))
                await writer.drain()
                assert (await reader.readexactly(12))[2] == 5
                assert await reader.read() == b""
        monkeypatch.setattr(module, "LINGER", 0.05)
        async with rig.connect(rig.port_of(listener)) as (reader, writer):
            writer.write(HELLO + connect_to(rig.closed_port()))
            assert (await reader.readexactly(12))[2:4] == b"\5\5"
            await rig.until(lambda: not listener.connections)


# -- what a relay has to keep ------------------------------------------------------------------


async def test_bytes_and_ends_both_ways() -> None:
    data = rig.noise(8 << 20)

    async def digest(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(hashlib.sha256(await reader.read()).digest() + data)
        await writer.drain()

    async with rig.tcp_target(digest) as target, proxy() as (listener, path):
        async with socks(listener, target) as (reader, writer):
            writer.write(data)
            writer.write_eof()
            assert await reader.read() == hashlib.sha256(data).digest() + data
        await rig.until(lambda: not listener.connections and path.streams == (0, 0))


async def test_a_reset_ends_every_connection_and_accepts_new_ones() -> None:
    async with rig.tcp_target(rig.echo) as target, proxy() as (listener, _):
        async with socks(listener, target) as (reader, _), rig.connect(rig.port_of(listener)):
            await rig.until(lambda: len(listener.connections) == 2)
            assert listener.reset() == 2
            with pytest.raises(ConnectionResetError):
                await reader.read()
        async with socks(listener, target) as (reader, writer):
            writer.write(b"?")
            assert await reader.readexactly(1) == b"?"


async def test_bytes_behind_a_socks_request_go_first() -> None:
    async with rig.tcp_target(rig.echo) as target, proxy() as (listener, _):
        async with rig.connect(rig.port_of(listener)) as (reader, writer):
            writer.write(HELLO + connect_to(target) + b"early")
            await writer.drain()
            assert await reader.readexactly(12) == b"\5\0" + OK
            writer.write(b" and late")
            writer.write_eof()
            assert await reader.read() == b"early and late"


async def test_many_at_once() -> None:
    async with rig.tcp_target(rig.echo) as target, proxy() as (listener, _):

        async def ask(number: int) -> None:
            async with socks(listener, target) as (reader, writer):
                data = number.to_bytes(4, "big") * 500
                writer.write(data)
                writer.write_eof()
                assert await reader.read() == data

        await asyncio.gather(*(ask(number) for number in range(200)))
        await rig.until(lambda: not listener.connections)
        assert listener.pending == 0


async def test_a_reset_is_a_reset() -> None:
    async def cut(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        rig.rst(writer)

    async with rig.tcp_target(cut) as target, proxy() as (listener, _):
        async with socks(listener, target) as (reader, writer):
            writer.write(b"x")
            with pytest.raises(ConnectionResetError):
                await reader.read()


# -- who behaves badly -------------------------------------------------------------------------


@pytest.mark.parametrize("first", [b"\4\1\0\x50\x7f\0\0\1\0", b"\0\0\0\0", b"\r\n\r\n", b"\5\0"])
async def test_nonsense_is_answered_and_ended(first: bytes) -> None:
    async with proxy() as (listener, _):
        async with rig.connect(rig.port_of(listener)) as (reader, writer):
            writer.write(first + b"\r\n\r\n")
            assert await reader.read()
        await rig.until(lambda: not listener.connections)


async def test_a_client_without_a_request_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "REQUEST_TIMEOUT", 0.05)
    async with rig.tcp_target(rig.echo) as target, proxy() as (listener, _):
        async with socks(listener, target) as (kept, writer):
            for said in (b"", b"\5", b"GET http"):
                async with rig.connect(rig.port_of(listener)) as (reader, other):
                    other.write(said)
                    with pytest.raises(ConnectionResetError):
                        await reader.read()
            writer.write(b"x")
            assert await kept.readexactly(1) == b"x"


async def test_clients_without_a_request_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_PENDING", 2)
    async with rig.tcp_target(rig.echo) as target, proxy() as (listener, _):
        port = rig.port_of(listener)
        async with rig.connect(port), rig.connect(port):
            await rig.until(lambda: listener.pending == 2)
            async with rig.connect(port) as (reader, _):
                with pytest.raises(ConnectionResetError):
                    await reader.read()
        await rig.until(lambda: listener.pending == 0)
        async with socks(listener, target):
            pass


async def test_a_client_that_leaves_while_negotiating_leaves_nothing() -> None:
    async with proxy() as (listener, _):
        async with rig.connect(rig.port_of(listener)) as (reader, writer):
            writer.write(b"\5")
            writer.write_eof()
            assert await reader.read() == b""
        await rig.until(lambda: not listener.connections)
        assert listener.pending == 0


async def test_a_bug_costs_one_connection(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with rig.tcp_target(rig.echo) as target, proxy() as (listener, _):
        with monkeypatch.context() as patch:
            patch.setattr(module, "Negotiation", lambda credentials: 1 / 0)
            async with rig.connect(rig.port_of(listener)) as (reader, writer):
                writer.write(HELLO)
                with pytest.raises(ConnectionResetError):
                    await reader.read()
        async with socks(listener, target):
            pass
    assert "proxy: the negotiation failed" in caplog.text


# -- its life ----------------------------------------------------------------------------------


async def test_a_connection_waits_for_a_tunnel_also_on_another_pool() -> None:
    async with rig.tcp_target(rig.echo) as target, proxy() as (listener, path):
        path.link.cut(blocked=True)
        await rig.until(lambda: path.pool.pick() is None)
        async with rig.agent() as server:
            other = Pool("q", [rig.AgentLink(server)], rig.KEY, size=1)
            async with rig.running(other):
                async with rig.connect(rig.port_of(listener)) as (reader, writer):
                    writer.write(HELLO + connect_to(target))
                    assert await reader.readexactly(2) == b"\5\0"
                    await rig.until(lambda: not listener.pending)
                    listener.route.move(other)
                    listener.update(proxy_target("proxy"), 5.0)
                    assert await reader.readexactly(10) == OK
                async with socks(listener, target):
                    pass
                path.link.blocked = False


async def test_a_destination_without_a_tunnel_is_refused_in_time() -> None:
    async with proxy(open_timeout=0.05) as (listener, path):
        path.link.cut(blocked=True)
        await rig.until(lambda: path.pool.pick() is None)
        async with rig.connect(rig.port_of(listener)) as (reader, writer):
            writer.write(HELLO + connect_to(80))
            assert (await reader.readexactly(12))[2:4] == b"\5\1"
        path.link.blocked = False


async def test_draining_lets_the_live_finish() -> None:
    async with rig.tcp_target(rig.echo) as target, proxy() as (listener, _):
        async with rig.connect(rig.port_of(listener)) as (asking, _):
            await rig.until(lambda: listener.pending)
            async with socks(listener, target) as (reader, writer):
                async with asyncio.TaskGroup() as tasks:
                    draining = tasks.create_task(listener.drain(3600.0))
                    with pytest.raises(ConnectionResetError):
                        await asking.read()
                    writer.write(b"x")
                    writer.write_eof()
                    assert await reader.read() == b"x"
                assert draining.done()
        assert listener.live == 0
