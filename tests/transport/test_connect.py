from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest

from krelay.errors import (
    ClusterError,
    CredentialsError,
    NotListeningError,
    TunnelError,
    UnreachableError,
)
from krelay.model import Transport
from krelay.net import engine
from krelay.net.api_access import ApiAccess
from krelay.net.dial import dial
from krelay.net.dns import Address
from krelay.transport.connect import connect, open_tcp

from .conftest import PKI, Server, Witness, client_context, open_pipe, server_context, serving

pytestmark = pytest.mark.usefixtures("engine")

Ask = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[tuple[str, int] | None]]


class Proxy:
    """A real one: `ask` reads what the client wants; then bytes pass."""

    def __init__(self) -> None:
        self.port = 0
        self.asked: list[bytes] = []
        self.open = 0

    async def copy(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(ConnectionError):
            while got := await reader.read(1 << 16):
                writer.write(got)
                await writer.drain()
        writer.close()

    async def serve(
        self, ask: Ask, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        self.open += 1
        try:
            with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
                wanted = await ask(reader, writer)
                if wanted is None:
                    return
                there, back = await asyncio.open_connection("127.0.0.1", wanted[1])
                async with asyncio.TaskGroup() as group:
                    group.create_task(self.copy(reader, back))
                    group.create_task(self.copy(there, writer))
        finally:
            self.open -= 1
            writer.transport.abort()

    async def http(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> tuple[str, int] | None:
        head = await reader.readuntil(b"\r\n\r\n")
        self.asked.append(head)
        if b"Proxy-Authorization: Basic dTpwQA==" not in head:
            writer.write(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n")
            return None
        host, _, port = head.split(b" ")[1].decode().rpartition(":")
        if host == "forbidden.test":
            writer.write(b"HTTP/1.0 403 Forbidden\r\n\r\n")
            return None
        writer.write(b"HTTP/1.0 200 Connection established\r\nVia: x\r\n\r\n")
        return host, int(port)

    async def socks(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> tuple[str, int] | None:
        version, count = await reader.readexactly(2)
        assert (version, await reader.readexactly(count)) == (5, b"\0\2")
        writer.write(b"\5\2")
        assert await reader.readexactly(6) == b"\1\1u\2p@"
        writer.write(b"\1\0")
        assert await reader.readexactly(4) == b"\5\1\0\3"
        host = await reader.readexactly((await reader.readexactly(1))[0])
        port = int.from_bytes(await reader.readexactly(2), "big")
        self.asked.append(host)
        if host == b"forbidden.test":
            writer.write(b"\5\2\0\1" + bytes(6))
            return None
        writer.write(b"\5\0\0\1" + bytes(6))
        return host.decode(), port


@contextlib.asynccontextmanager
async def proxying(scheme: str) -> AsyncIterator[Proxy]:
    proxy = Proxy()
    ask = proxy.socks if scheme.startswith("socks") else proxy.http
    tasks: set[asyncio.Task[Any] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        await proxy.serve(ask, reader, writer)
        tasks.discard(asyncio.current_task())

    context = server_context() if scheme == "https" else None
    listener = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    proxy.port = listener.sockets[0].getsockname()[1]
    yield proxy
    listener.close()
    await asyncio.gather(*(task for task in tasks if task is not None), return_exceptions=True)
    assert proxy.open == 0


SCHEMES = ["http", "https", "socks5", "socks5h"]


@pytest.mark.parametrize("scheme", SCHEMES)
async def test_a_port_forward_through_a_proxy_carries_bytes(
    server: Server, transport: Transport, scheme: str
) -> None:
    async with proxying(scheme) as proxy:
        pipe, witness = await open_pipe(
            server,
            transport,
            url=f"https://kube.test:{server.port}",
            proxy=f"{scheme}://u:p%40@127.0.0.1:{proxy.port}",
        )
        pipe.write(bytes(100_000))
        await witness.until(lambda: len(witness.data) == 100_000)
        pipe.abort()
        assert await witness.lost is None
        assert b"kube.test" in proxy.asked[0]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize(
    ("url", "user", "shown"),
    [
        ("https://forbidden.test:1", "u:p%40@", ("403 to CONNECT", "not allowed by its rules")),
        ("https://kube.test", "", ("user name and a password", "it closed the connection")),
    ],
)
async def test_a_proxy_s_refusal_is_shown_without_its_password(
    server: Server, scheme: str, url: str, user: str, shown: tuple[str, str]
) -> None:
    async with proxying(scheme) as proxy:
        given = f"{scheme}://{user}127.0.0.1:{proxy.port}"
        with pytest.raises(UnreachableError) as caught:
            await connect(server.access(url=url, proxy=given))
        assert str(caught.value).startswith(
            f"cannot reach the proxy {scheme}://127.0.0.1:{proxy.port}: "
        )
        assert any(words in str(caught.value) for words in shown)
        assert "p@" not in str(caught.value)
        assert "p%40" not in str(caught.value)


async def test_an_https_proxy_with_an_untrusted_certificate_is_refused(server: Server) -> None:
    async with proxying("https") as proxy:
        access = server.access(
            ssl=client_context("other-ca.pem"), proxy=f"https://127.0.0.1:{proxy.port}"
        )
        with pytest.raises(CredentialsError, match="the certificate of the proxy"):
            await connect(access)


async def test_a_server_of_another_name_behind_an_https_proxy_is_refused(server: Server) -> None:
    """The handshake fails within the proxy's TLS."""
    async with proxying("https") as proxy:
        access = server.access(
            url=f"https://kube.test:{server.port}",
            server_hostname="other.test",
            proxy=f"https://u:p%40@127.0.0.1:{proxy.port}",
        )
        with pytest.raises(CredentialsError, match=r"other\.test"):
            await connect(access)


async def test_a_proxy_that_does_not_listen_is_unreachable(
    unused_port: int, server: Server
) -> None:
    proxy = f"http://127.0.0.1:{unused_port}"
    with pytest.raises(UnreachableError, match=f"the proxy {proxy}: connection refused") as caught:
        await connect(server.access(proxy=proxy))
    assert "NO_PROXY" in (caught.value.hint or "")


@pytest.fixture
async def unused_port() -> AsyncIterator[int]:
    """A port that refuses: it is bound, and no socket listens on it."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        yield sock.getsockname()[1]


async def test_a_server_that_does_not_listen_is_unreachable(
    unused_port: int, server: Server
) -> None:
    with pytest.raises(UnreachableError, match="connection refused"):
        await connect(server.access(url=f"https://127.0.0.1:{unused_port}"))


async def test_a_host_without_an_address_is_unreachable(server: Server) -> None:
    with pytest.raises(UnreachableError, match="cannot reach the API server https://no.invalid"):
        await connect(server.access(url="https://no.invalid"))


async def test_a_server_with_an_untrusted_certificate_is_refused(server: Server) -> None:
    for changes in ({"ssl": client_context("other-ca.pem")}, {"ssl": None}):
        with pytest.raises(CredentialsError, match="is not trusted: ") as caught:
            await connect(server.access(**changes))
        assert caught.value.hint is not None
    assert not server.peers


async def test_a_certificate_has_to_name_the_server_or_tls_server_name(server: Server) -> None:
    with pytest.raises(CredentialsError, match="(?i)hostname mismatch"):
        await connect(server.access(server_hostname="other.test"))
    stream = await connect(server.access(server_hostname="kube.test"))
    stream.abort()


async def test_a_server_that_does_not_speak_tls_is_an_error(server: Server) -> None:
    async with serving("http") as plain:

        async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1)
            writer.write(b"HTTP/1.1 400 Bad Request\r\n\r\n")
            writer.close()

        plain.serve = answer  # type: ignore[method-assign]
        with pytest.raises(ClusterError, match="TLS with the API server"):
            await connect(server.access(url=f"https://127.0.0.1:{plain.port}"))


async def test_a_server_that_requires_a_client_certificate_is_an_error(server: Server) -> None:
    """In TLS 1.3 its no comes after the client thinks that all is well."""
    context = server_context()
    context.load_verify_locations(PKI / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED

    def refuse(listener: socket.socket) -> None:
        accepted, _ = listener.accept()
        with context.wrap_socket(accepted, server_side=True, do_handshake_on_connect=False) as tls:
            with pytest.raises(ssl.SSLError):
                tls.do_handshake()
            # Closed with bytes unread it would be a reset, which overtakes the alert.
            with socket.socket(fileno=tls.detach()) as bare, contextlib.suppress(ConnectionError):
                while bare.recv(1 << 16):
                    pass

    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://localhost:{listener.getsockname()[1]}"
        async with asyncio.TaskGroup() as group:
            group.create_task(asyncio.to_thread(refuse, listener))
            with pytest.raises(ClusterError, match="certificate required"):
                await open_pipe(server, Transport.SPDY, url=url)


async def test_a_cancelled_handshake_closes_its_connection(server: Server) -> None:
    """Cancelled within TLS: the connection is closed."""
    there, closed = asyncio.Event(), asyncio.Event()

    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there.set()
        with contextlib.suppress(ConnectionError):
            while await reader.read(1 << 16):
                pass
        writer.close()
        closed.set()

    listener = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    proxies = [f"{scheme}://127.0.0.1:{port}" for scheme in ("http", "https", "socks5")]
    accesses = [server.access(proxy=proxy) for proxy in proxies]
    for access in (*accesses, server.access(url=f"https://127.0.0.1:{port}")):
        there.clear()
        closed.clear()
        async with asyncio.TaskGroup() as tasks:
            connecting = tasks.create_task(connect(access))
            await there.wait()
            await asyncio.sleep(0.05)  # into the handshake, or not quite: it must not matter
            connecting.cancel()
        await closed.wait()
    listener.close()


async def test_a_host_that_idna_cannot_encode_is_unreachable() -> None:
    access = ApiAccess(f"https://{'a' * 300}.test", None, None, ())
    with pytest.raises(UnreachableError, match="cannot reach"):
        await connect(access)


async def test_open_tcp_connects_without_delay_and_with_keepalive() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(await reader.readexactly(5))
        writer.close()

    listener = await asyncio.start_server(echo, "127.0.0.1", 0)
    witness = Witness()
    transport = await open_tcp(*listener.sockets[0].getsockname(), protocol=witness)
    assert witness.transport is transport
    sock = transport.get_extra_info("socket")
    assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
    assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
    options = ("TCP_KEEPIDLE", "TCP_KEEPINTVL", "TCP_KEEPCNT")
    idle, between, count = (
        sock.getsockopt(socket.IPPROTO_TCP, getattr(socket, name)) for name in options
    )
    assert idle + between * count == 10
    transport.write(b"hello")
    assert await witness.lost is None
    assert witness.data == b"hello"
    listener.close()


async def test_open_tcp_refused_says_that_nothing_listens() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        with pytest.raises(NotListeningError, match="nothing listens on 127.0.0.1 port"):
            await open_tcp(*sock.getsockname(), protocol=Witness())


async def test_open_tcp_without_an_answer_fails_at_the_deadline() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen(0)
        address = sock.getsockname()
        # A full queue: the kernel answers no further connection.
        with socket.create_connection(address), pytest.raises(TunnelError, match="within 0.05 s"):
            await open_tcp(*address, protocol=Witness(), timeout=0.05)


async def test_a_dial_without_an_answer_is_joined_by_another(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The first SYN is lost, and TCP would wait for long: a second connection is there first."""
    loop = asyncio.get_running_loop()
    listener = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    real, tries = engine.create_connection, 0

    async def lossy(*args: Any, **kwargs: Any) -> Any:
        nonlocal tries
        tries += 1
        if tries == 1:
            await loop.create_future()
        return await real(*args, **kwargs)

    monkeypatch.setattr(engine, "create_connection", lossy)
    _, witness = await dial(Witness, *listener.sockets[0].getsockname(), redial_every=0.01)
    assert tries >= 2  # more on a busy machine
    await witness.lost
    listener.close()


async def test_of_two_dials_that_connect_one_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
    real, both = engine.create_connection, asyncio.Barrier(2)
    made: list[Any] = []

    async def together(*args: Any, **kwargs: Any) -> Any:
        found = await real(*args, **kwargs)
        made.append(found)
        if len(made) <= 2:
            await both.wait()
        return found

    monkeypatch.setattr(engine, "create_connection", together)
    transport, witness = await dial(Witness, *listener.sockets[0].getsockname(), redial_every=0.01)
    (other,) = [w for t, w in made if t is not transport]
    await other.lost
    assert not transport.is_closing()
    transport.abort()
    await witness.lost
    listener.close()


async def test_a_refused_dial_is_not_repeated() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        with pytest.raises(ConnectionRefusedError):
            await dial(Witness, *sock.getsockname(), redial_every=0.01)


async def test_a_dial_goes_on_to_the_next_address(monkeypatch: pytest.MonkeyPatch) -> None:
    listener = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.2", 0)
    port = listener.sockets[0].getsockname()[1]
    for hosts, meets in (
        (("127.0.0.3", "127.0.0.2"), None),
        (("127.0.0.3", "127.0.0.4"), NotListeningError),
        ((), TunnelError),
    ):
        found: list[Address] = [(socket.AF_INET, host) for host in hosts]

        async def lookup(name: str, found: list[Address] = found) -> list[Address]:
            return found

        monkeypatch.setattr("krelay.net.dial.lookup", lookup)
        witness = Witness()
        if meets is None:
            await open_tcp("name.test", port, protocol=witness)
            await witness.lost
        else:
            with pytest.raises(meets):
                await open_tcp("name.test", port, protocol=witness)
        monkeypatch.undo()
    listener.close()


async def test_open_tcp_to_an_unknown_host_is_a_tunnel_error() -> None:
    with pytest.raises(TunnelError, match="cannot reach no.invalid port 1"):
        await open_tcp("no.invalid", 1, protocol=Witness())


async def test_a_second_dial_without_a_descriptor_does_not_end_the_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    loop = asyncio.get_running_loop()
    listener = await loop.create_server(asyncio.Protocol, "127.0.0.1", 0)
    real, tried = engine.create_connection, asyncio.Event()
    tries = 0

    async def connect(*args: Any, **options: Any) -> Any:
        nonlocal tries
        tries += 1
        if tries > 1:
            tried.set()
            raise OSError(errno.EMFILE, "Too many open files")
        await tried.wait()
        return await real(*args, **options)

    monkeypatch.setattr(engine, "create_connection", connect)
    transport, witness = await dial(Witness, *listener.sockets[0].getsockname(), redial_every=0.01)
    transport.abort()
    await witness.lost
    listener.close()
