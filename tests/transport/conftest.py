"""The API server's side of a port-forward, byte by byte on loopback, and a recording protocol."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import struct
import zlib
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any, cast

import pytest
from websockets.frames import Frame
from websockets.http11 import Request
from websockets.server import ServerProtocol

from krelay.model import Transport
from krelay.net.api_access import ApiAccess
from krelay.transport.pipe import Pipe
from krelay.transport.portforward import TransportPreference, open_portforward

PKI = Path(__file__).parent.parent / "cluster" / "pki"
SUBPROTOCOL = "SPDY/3.1+portforward.k8s.io"
ERROR, DATA = 1, 3


def client_context(authority: str = "ca.pem") -> ssl.SSLContext:
    context = ssl.create_default_context(cafile=PKI / authority)
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def server_context() -> ssl.SSLContext:
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(PKI / "server.pem", PKI / "server-key.pem")
    return context


def data(payload: bytes, stream: int = DATA, *, fin: bool = False) -> bytes:
    return struct.pack(">II", stream, fin << 24 | len(payload)) + payload


def control(kind: int, body: bytes, flags: int = 0) -> bytes:
    return struct.pack(">II", 0x80030000 | kind, flags << 24 | len(body)) + body


FIN = data(b"", fin=True)


class _Upgraded(ServerProtocol):
    def process_subprotocol(self, headers: Any) -> Any:
        assert headers.get_all("Sec-WebSocket-Protocol") == [SUBPROTOCOL]
        return SUBPROTOCOL


class Peer:
    """One connection: the request's head, then SPDY both ways in its carrier."""

    def __init__(
        self, head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        line, *lines = head.decode().rstrip().split("\r\n")
        self.method, self.target, _ = line.split(" ")
        self.headers = [tuple(text.split(": ", 1)) for text in lines]
        self.reader, self.writer = reader, writer
        self.web: ServerProtocol | None = _Upgraded() if self.method == "GET" else None
        self._head = head
        self._pending = b""
        self._inflate = zlib.decompressobj()
        self.events: list[Frame] = []

    def accept(self, extra: bytes = b"") -> None:
        """Send the 101; `extra` follows in the same write."""
        if self.web is None:
            head = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\n"
            self.writer.write(head + b"Upgrade: SPDY/3.1\r\n\r\n" + self.carried(extra))
            return
        self.web.receive_data(self._head)
        request = cast(Request, self.web.events_received()[0])
        self.web.send_response(self.web.accept(request))
        self.writer.write(b"".join(self.web.data_to_send()) + self.carried(extra))

    def carried(self, spdy: bytes) -> bytes:
        """Frame like the API server: two messages, each with an empty continuation behind."""
        if self.web is None or not spdy:
            return spdy
        for part in (spdy[:8], spdy[8:]):
            self.web.send_binary(part, fin=False)
            self.web.send_continuation(b"", fin=True)
        return b"".join(self.web.data_to_send())

    async def send(self, *frames: bytes, pieces: int = 0) -> None:
        """Send `frames` in writes of `pieces` bytes; 0 means one write."""
        carried = b"".join(map(self.carried, frames))
        for at in range(0, len(carried), pieces or len(carried)):
            self.writer.write(carried[at : at + (pieces or len(carried))])
            await self.writer.drain()

    async def read(self, size: int) -> bytes:
        """`size` bytes of SPDY.

        Raises:
            IncompleteReadError: the client closed.
        """
        while len(self._pending) < size:
            got = await self.reader.read(1 << 16)
            if not got:
                raise asyncio.IncompleteReadError(self._pending, size)
            if self.web is not None:
                self.web.receive_data(got)
                frames = [event for event in self.web.events_received() if isinstance(event, Frame)]
                self.events += [frame for frame in frames if frame.opcode > 2]
                got = b"".join(frame.data for frame in frames if frame.opcode <= 2)
            self._pending += got
        taken, self._pending = self._pending[:size], self._pending[size:]
        return taken

    async def frame(self) -> tuple[int, int, bytes]:
        """(first word, flags, payload) of the next frame."""
        word, tail = struct.unpack(">II", await self.read(8))
        return word, tail >> 24, await self.read(tail & 0xFFFFFF)

    async def streams(self) -> list[tuple[int, dict[str, str]]]:
        """Read the two streams that the client opens: id and headers."""
        found = []
        for _ in range(2):
            word, flags, body = await self.frame()
            assert (word, flags) == (0x80030001, 0)
            block = self._inflate.decompress(body[10:])
            texts, at = [], 4
            while at < len(block):
                size = int.from_bytes(block[at : at + 4], "big")
                texts.append(block[at + 4 : at + 4 + size].decode())
                at += 4 + size
            assert len(texts) == 2 * int.from_bytes(block[:4], "big")
            headers = dict(zip(texts[::2], texts[1::2], strict=True))
            found.append((int.from_bytes(body[:4], "big"), headers))
        return found

    async def payload(self, size: int) -> bytes:
        """Read `size` bytes of the data stream."""
        got = bytearray()
        while len(got) < size:
            word, flags, piece = await self.frame()
            assert (word, flags) == (DATA, 0)
            got += piece
        return bytes(got)

    async def closed(self) -> None:
        """Read until the client has closed the connection."""
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            while True:
                await self.read(1)


Play = Callable[[Peer], Awaitable[None]]


class Server:
    """Runs `play` for each connection, which `peers` collects; an error in it fails the test."""

    def __init__(self, scheme: str) -> None:
        self.scheme = scheme
        self.peers: list[Peer] = []
        self.failed: list[BaseException] = []
        self.play: Play = self.echo
        self.port = 0
        self.gone = asyncio.Event()

    @property
    def url(self) -> str:
        return f"{self.scheme}://127.0.0.1:{self.port}/prefix"

    def access(self, **changes: Any) -> ApiAccess:
        secure = self.scheme == "https"
        fields: dict[str, Any] = {
            "url": self.url,
            "ssl": client_context() if secure else None,
            "server_hostname": None,
            "headers": (("Authorization", "Bearer t"), ("Impersonate-Group", "a")),
        }
        return ApiAccess(**{**fields, **changes})

    async def echo(self, peer: Peer) -> None:
        peer.accept()
        await peer.streams()
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                await peer.send(data((await peer.frame())[2]))

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            peer = Peer(await reader.readuntil(b"\r\n\r\n"), reader, writer)
            self.peers.append(peer)
            await self.play(peer)
        except (ConnectionError, asyncio.IncompleteReadError):
            pass
        except Exception as exc:
            self.failed.append(exc)
        finally:
            self.gone.set()
            writer.transport.abort()


@contextlib.asynccontextmanager
async def serving(scheme: str = "https", port: int = 0) -> AsyncIterator[Server]:
    server = Server(scheme)
    tasks: set[asyncio.Task[Any] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        tasks.add(asyncio.current_task())
        await server.serve(reader, writer)
        tasks.discard(asyncio.current_task())

    context = server_context() if scheme == "https" else None
    listener = await asyncio.start_server(serve, "127.0.0.1", port, ssl=context)
    server.port = listener.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listener.close()
        left = [task for task in tasks if task is not None]
        for task in left:
            task.cancel()
        await asyncio.gather(*left, return_exceptions=True)
    for exc in server.failed:
        raise exc


@pytest.fixture
async def server() -> AsyncIterator[Server]:
    async with serving() as server:
        yield server


@pytest.fixture(params=[Transport.SPDY, Transport.WEBSOCKET], ids=str)
def transport(request: pytest.FixtureRequest) -> Transport:
    return cast(Transport, request.param)


class Witness(asyncio.Protocol):
    """Records all calls and bytes."""

    def __init__(self) -> None:
        self.data = bytearray()
        self.calls: list[str] = []
        self.changed = asyncio.Event()
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport
        self.calls.append("made")

    def data_received(self, data: bytes) -> None:
        assert type(data) is bytes
        self.data += data
        self.changed.set()

    def pause_writing(self) -> None:
        self.calls.append("pause")
        self.changed.set()

    def resume_writing(self) -> None:
        self.calls.append("resume")
        self.changed.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.calls.append("lost")
        self.lost.set_result(exc)

    async def until(self, met: Callable[[], bool]) -> None:
        while not met():
            self.changed.clear()
            await self.changed.wait()


async def open_pipe(
    server: Server, transport: Transport, protocol: asyncio.Protocol | None = None, **changes: Any
) -> tuple[Pipe, Witness]:
    witness = protocol if protocol is not None else Witness()
    pipe = await open_portforward(
        server.access(**changes),
        namespace="team",
        pod="web-0",
        port=8080,
        protocol=witness,
        transport=transport,
        preference=TransportPreference(),
    )
    return pipe, cast(Witness, witness)
