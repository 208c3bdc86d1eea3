"""The way to a pod through the API server's proxy: the request, the bytes, and each refusal."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest

from krelay.errors import (
    AccessDeniedError,
    CredentialsError,
    KrelayError,
    NotListeningError,
    TunnelError,
    UnreachableError,
)
from krelay.transport.pod_proxy import open_pod_proxy
from krelay.transport.upgrade import UnauthorizedError

from .conftest import Peer, Server, Witness, serving

SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: krelay\r\n\r\n"


def status(code: int, message: str) -> bytes:
    text = json.dumps({"kind": "Status", "message": message})
    return f"HTTP/1.1 {code} X\r\nContent-Length: {len(text)}\r\n\r\n{text}".encode()


def text(code: int, body: str) -> bytes:
    return f"HTTP/1.1 {code} X\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()


async def dial(
    server: Server, timeout: float = 5.0, **changes: Any
) -> tuple[asyncio.Transport, Witness]:
    witness = Witness()
    transport = await open_pod_proxy(
        server.access(**changes),
        namespace="team",
        pod="agent-0",
        port=10250,
        protocol=witness,
        timeout=timeout,
    )
    return transport, witness


def answering(server: Server, answer: bytes) -> None:
    async def play(peer: Peer) -> None:
        peer.writer.write(answer)
        await peer.writer.drain()
        peer.writer.close()
        await peer.closed()

    server.play = play


async def test_bytes_pass_both_ways_after_the_upgrade(server: Server) -> None:
    async def play(peer: Peer) -> None:
        peer.writer.write(SWITCHED + b"early")
        while data := await peer.reader.read(1 << 16):
            peer.writer.write(data)
            await peer.writer.drain()

    server.play = play
    transport, witness = await dial(server)
    assert witness.calls == ["made"]
    assert witness.transport is transport
    sent = bytes(range(256)) * (4 << 10)
    transport.write(sent)
    await witness.until(lambda: len(witness.data) == 5 + len(sent))
    assert witness.data == b"early" + sent
    head = server.peers[0]._head.decode().split("\r\n")
    assert head[0] == "GET /prefix/api/v1/namespaces/team/pods/agent-0:10250/proxy/ HTTP/1.1"
    assert {"Connection: Upgrade", "Upgrade: krelay", "Authorization: Bearer t"} <= set(head)
    transport.abort()
    await witness.lost


async def test_nothing_is_sent_before_the_101(server: Server) -> None:
    """The API server drops it."""
    granted = asyncio.Event()

    async def play(peer: Peer) -> None:
        await granted.wait()
        peer.writer.write(SWITCHED)
        assert await peer.reader.readexactly(5) == b"hello"
        peer.writer.write(b"!")

    server.play = play

    class Eager(Witness):
        def connection_made(self, transport: asyncio.BaseTransport) -> None:
            super().connection_made(transport)
            assert granted.is_set()
            transport.write(b"hello")  # type: ignore[attr-defined]

    witness = Eager()
    async with asyncio.TaskGroup() as tasks:
        dialling = tasks.create_task(
            open_pod_proxy(
                server.access(), namespace="team", pod="agent-0", port=10250, protocol=witness
            )
        )
        while not server.peers:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        granted.set()
    await witness.until(lambda: bytes(witness.data) == b"!")
    dialling.result().abort()
    await witness.lost


async def test_a_slow_peer_pauses_the_writer(server: Server) -> None:
    read = asyncio.Event()

    async def play(peer: Peer) -> None:
        peer.writer.write(SWITCHED)
        await read.wait()
        while await peer.reader.read(1 << 16):
            pass

    server.play = play
    transport, witness = await dial(server)
    while "pause" not in witness.calls:
        transport.write(bytes(1 << 20))
        await asyncio.sleep(0)
    read.set()
    await witness.until(lambda: "resume" in witness.calls)
    transport.abort()
    await witness.lost


async def test_the_end_of_the_connection_is_an_error_of_the_tunnel(server: Server) -> None:
    ended = asyncio.Event()

    async def play(peer: Peer) -> None:
        peer.writer.write(SWITCHED)
        await ended.wait()

    server.play = play
    _, witness = await dial(server)
    ended.set()
    lost = await witness.lost
    assert isinstance(lost, TunnelError)
    assert str(lost) == "the connection to the agent was lost: it ended"


FORBIDDEN = (
    'pods "agent-0:10250" is forbidden: User "dev" cannot get resource "pods/proxy" in API '
    'group "" in the namespace "team"'
)
REFUSED = "error dialing backend: dial tcp 10.244.0.9:10250: connect: connection refused"


@pytest.mark.parametrize(
    ("answer", "kind", "shown"),
    [
        (status(403, FORBIDDEN), AccessDeniedError, 'cannot get pods/proxy in namespace "team"'),
        (
            status(403, "denied by a webhook"),
            AccessDeniedError,
            'cannot get pods/proxy in namespace "team": denied by a webhook',
        ),
        (status(401, "Unauthorized"), UnauthorizedError, "rejects the credentials: Unauthorized"),
        (status(404, 'pods "agent-0" not found'), TunnelError, "pod team/agent-0 is gone"),
        (status(500, REFUSED), NotListeningError, "nothing listens on port 10250"),
        (status(500, "x" * 999), TunnelError, f"pods/proxy: {'x' * 200} (500)"),
        (text(503, "the agent does not\n know the key\x1b[0m"), TunnelError, "know the key (503)"),
        # Answers of a program in the agent's place say nothing of the user or the pod.
        (text(401, "who?"), TunnelError, "pods/proxy: who? (401)"),
        (text(403, "<h1>no</h1>"), TunnelError, "pods/proxy: no (403)"),
        (text(404, "page not found"), TunnelError, "pods/proxy: page not found (404)"),
        (
            text(400, "Client sent an HTTP request to an HTTPS server."),
            TunnelError,
            "pods/proxy: Client sent an HTTP request to an HTTPS server. (400)",
        ),
        (text(200, ""), TunnelError, "pods/proxy: the answer is empty (200)"),
        (SWITCHED.replace(b": krelay", b": SPDY/3.1"), TunnelError, "an upgrade to something else"),
        (b"\x16\x03\x01", TunnelError, "pods/proxy: its answer is not HTTP"),
        (b"", TunnelError, "pods/proxy: it closed the connection"),
    ],
)
async def test_any_other_answer_is_an_error_that_says_why(
    server: Server, answer: bytes, kind: type[KrelayError], shown: str
) -> None:
    answering(server, answer)
    with pytest.raises(KrelayError) as caught:
        await dial(server)
    assert type(caught.value) is kind
    assert shown in str(caught.value)


async def test_a_swallowed_request_has_a_deadline(server: Server) -> None:
    async def play(peer: Peer) -> None:
        await peer.closed()

    server.play = play
    with pytest.raises(UnreachableError, match="no answer by pods/proxy within 0.3 s"):
        await dial(server, timeout=0.3)
    await server.gone.wait()


async def test_a_body_without_end_is_cut(server: Server) -> None:
    async def play(peer: Peer) -> None:
        peer.writer.write(b"HTTP/1.1 500 X\r\nTransfer-Encoding: chunked\r\n\r\n")
        while True:
            peer.writer.write(b"400\r\n" + b"y" * 0x400 + b"\r\n")
            await peer.writer.drain()

    server.play = play
    with pytest.raises(TunnelError, match="pods/proxy: y{200} "):
        await dial(server)


async def test_no_request_is_made_where_it_could_be_read() -> None:
    async with serving("http") as server:
        with pytest.raises(CredentialsError, match="not encrypted"):
            await dial(server, url="http://10.0.0.1:1")
        assert server.peers == []
