"""TLS with an API server, on both engines: what is trusted, and what an error says."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from krelay.cluster.auth.identity import tls_context
from krelay.errors import ClusterError, CredentialsError, UnreachableError
from krelay.net import engine as engines
from krelay.net.api_access import ApiAccess
from krelay.net.dial import dial
from krelay.net.handshake_stream import HandshakeStream
from krelay.transport.connect import connect

from .conftest import PKI, client_context, server_context

pytestmark = pytest.mark.usefixtures("engine")


class TlsServer:
    """Says hello to each connection, and keeps what its TLS knows of the client."""

    def __init__(self) -> None:
        self.port = 0
        self.names: list[str | None] = []
        self.versions: list[str | None] = []
        self.certificates: list[Any] = []

    def access(self, context: ssl.SSLContext, host: str = "localhost", **more: Any) -> ApiAccess:
        fields: dict[str, Any] = {"server_hostname": None, "headers": (), **more}
        return ApiAccess(url=f"https://{host}:{self.port}", ssl=context, **fields)

    def name_sent(
        self, connection: ssl.SSLSocket | ssl.SSLObject, name: str | None, context: ssl.SSLContext
    ) -> None:
        self.names.append(name)

    async def greet(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = writer.get_extra_info("ssl_object")
        self.versions.append(connection.version())
        self.certificates.append(connection.getpeercert())
        writer.write(b"hello")
        with contextlib.suppress(OSError):
            await reader.read(1)
        writer.transport.abort()


@contextlib.asynccontextmanager
async def tls_server(
    context: ssl.SSLContext | None = None, certificate: str | None = None
) -> AsyncIterator[TlsServer]:
    server = TlsServer()
    context = context or server_context()
    if certificate is not None:
        context.load_cert_chain(PKI / certificate, PKI / "server-key.pem")
    context.sni_callback = server.name_sent
    tasks: set[asyncio.Task[Any] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        await server.greet(reader, writer)
        tasks.discard(asyncio.current_task())

    listener = await asyncio.start_server(serve, "127.0.0.1", 0, ssl=context)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        await asyncio.gather(*(task for task in tasks if task is not None))


async def greeted(access: ApiAccess) -> None:
    """Connect, and read the greeting."""
    stream = await connect(access)
    try:
        assert await stream.read_exactly(5) == b"hello"
    finally:
        stream.abort()


def read(name: str) -> bytes:
    return (PKI / name).read_bytes()


@pytest.mark.parametrize(
    ("authority", "certificate", "host", "name", "said"),
    [
        ("other-ca.pem", None, "localhost", None, "unable to get local issuer certificate"),
        (
            "ca.pem",
            None,
            "localhost",
            "other.test",
            "Hostname mismatch, certificate is not valid for 'other.test'.",
        ),
        (
            "ca.pem",
            None,
            "localhost",
            "bücher.test",
            "Hostname mismatch, certificate is not valid for 'xn--bcher-kva.test'.",
        ),
        (
            "ca.pem",
            None,
            "localhost",
            "127.0.0.9",
            "IP address mismatch, certificate is not valid for '127.0.0.9'.",
        ),
        ("ca.pem", "expired.pem", "localhost", None, "certificate has expired"),
        ("ca.pem", "future.pem", "localhost", None, "certificate is not yet valid"),
    ],
)
async def test_an_untrusted_certificate_is_refused_with_openssl_s_reason(
    authority: str, certificate: str | None, host: str, name: str | None, said: str
) -> None:
    async with tls_server(certificate=certificate) as server:
        access = server.access(client_context(authority), host, server_hostname=name)
        with pytest.raises(CredentialsError) as caught:
            await connect(access)
    url = f"https://{host}:{server.port}"
    assert str(caught.value) == f"the certificate of the API server {url} is not trusted: {said}"
    assert isinstance(caught.value.__cause__, ssl.SSLCertVerificationError)
    assert server.versions == []


@pytest.mark.parametrize("certificate", [None, "expired.pem", "future.pem"])
async def test_without_verification_every_certificate_is_accepted(certificate: str | None) -> None:
    context = await asyncio.to_thread(tls_context, read("other-ca.pem"), None, verify=False)
    async with tls_server(certificate=certificate) as server:
        await greeted(server.access(context, server_hostname="other.test"))
    assert server.names == ["other.test"]


async def test_an_address_in_the_certificate_is_enough_and_is_no_server_name() -> None:
    async with tls_server() as server:
        await greeted(server.access(client_context(), "127.0.0.1"))
    assert server.names == [None]


async def test_tls_server_name_is_sent_and_verified() -> None:
    async with tls_server() as server:
        await greeted(server.access(client_context(), "127.0.0.1", server_hostname="kube.test"))
    assert server.names == ["kube.test"]


async def test_a_name_that_idna_cannot_encode_is_an_error() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://127.0.0.1:{listener.getsockname()[1]}"
        with pytest.raises(UnreachableError, match="cannot reach the API server .* 'idna' codec"):
            await connect(ApiAccess(url, client_context(), ".kube.test", ()))


async def test_a_client_certificate_is_given_to_a_server_that_requires_one() -> None:
    context = server_context()
    context.load_verify_locations(PKI / "ca.pem")
    context.verify_mode = ssl.CERT_REQUIRED
    client = read("client.pem") + read("client-key.pem")
    mine = await asyncio.to_thread(tls_context, read("ca.pem"), client, verify=True)
    async with tls_server(context) as server:
        await greeted(server.access(mine))
    assert (("commonName", "dev"),) in server.certificates[0]["subject"]


@pytest.mark.parametrize("version", [ssl.TLSVersion.TLSv1_2, ssl.TLSVersion.TLSv1_3])
async def test_a_server_may_speak_one_version_only(version: ssl.TLSVersion) -> None:
    context = server_context()
    context.minimum_version = context.maximum_version = version
    async with tls_server(context) as server:
        await greeted(server.access(client_context()))
    assert server.versions == [version.name.replace("_", ".")]


@pytest.mark.parametrize(
    ("answer", "error", "said"),
    [
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", ClusterError, "wrong version number"),
        (b"", UnreachableError, "ConnectionResetError"),
    ],
)
async def test_a_server_that_ends_the_handshake_is_one_error_and_no_log(
    answer: bytes, error: type[Exception], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1 << 16)
        writer.write(answer)
        writer.close()

    listener = await asyncio.start_server(serve, "127.0.0.1", 0)
    port = listener.sockets[0].getsockname()[1]
    with caplog.at_level(logging.INFO), pytest.raises(error, match=f"failed: {said}|: {said}$"):
        await connect(ApiAccess(f"https://localhost:{port}", client_context(), None, ()))
    assert caplog.messages == []
    listener.close()


async def test_a_context_with_a_key_log_writes_it(tmp_path: Path) -> None:
    context = client_context()
    keys = tmp_path / "keys"
    context.keylog_filename = str(keys)
    async with tls_server() as server:
        await greeted(server.access(context))
    text = await asyncio.to_thread(keys.read_text)
    assert "CLIENT_TRAFFIC_SECRET_0" in text


async def test_a_handshake_without_room_for_a_temporary_file_is_the_last_on_its_engine(
    engine: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    """The next connection works, whatever the engine is then."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "missing"))
    async with tls_server() as server:
        if engine == "aiofastnet":
            with pytest.raises(UnreachableError, match="No such file or directory"):
                await connect(server.access(client_context()))
            (said,) = caplog.messages
            assert said.startswith("asyncio's transports are used from now on: aiofastnet failed: ")
        await greeted(server.access(client_context()))
        await greeted(server.access(client_context()))
    assert engines.choose().name == "asyncio"


async def test_tls_goes_on_with_asyncio_on_a_connection_made_before(
    engine: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with tls_server() as server:
        _, stream = await dial(HandshakeStream, "127.0.0.1", server.port)
        engines._give_up(OSError("no space left"))
        await stream.start_tls(client_context(), "localhost")
        assert await stream.read_exactly(5) == b"hello"
        stream.abort()


async def test_bytes_behind_the_handshake_are_kept_for_the_reader() -> None:
    """They come with the server's last words of the handshake, or at once after."""

    def serve(listener: socket.socket) -> None:
        accepted, _ = listener.accept()
        with server_context().wrap_socket(accepted, server_side=True) as tls:
            for piece in (b"one", b"two", b"three"):
                tls.sendall(piece)
            assert tls.recv(1) == b"k"

    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"https://localhost:{listener.getsockname()[1]}"
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(asyncio.to_thread(serve, listener))
            stream = await connect(ApiAccess(url, client_context(), None, ()))
            assert await stream.read_exactly(11) == b"onetwothree"
            stream.write(b"k")
            with pytest.raises((EOFError, OSError)):
                await stream.read(1)
