"""Targets of the agent: a hostile client harms only itself, and takes bounded memory."""

from __future__ import annotations

import asyncio
from unittest.mock import patch

import h11

from agent.connection import AgentConnection
from agent.dial import Lookups
from agent.legacy import Resources, _Framed
from agent.memory import Client, MemoryBudget, ReadBuffer
from agent.pending import RefusalLog
from agent.sessions import KeptSession, Sessions
from agent.settings import Settings
from agent.upgrade import HEAD_LIMIT, UpgradeError, UpgradeRequest
from fuzz.draw import Draw
from fuzz.memory import Nowhere, run
from fuzz.wire import AGENT_NONCE, KEY
from krelay.mux.stream import MuxStream
from krelay.wire.errors import ErrorCode
from krelay.wire.header import HEARTBEAT, SESSION, Header


class _Sessions(Sessions):
    """Sessions without targets: half of the streams are refused, the others stay silent."""

    def _open_target(self, kept: KeptSession, stream: MuxStream) -> None:
        if stream.header.port & 1:
            stream.refuse(ErrorCode.REFUSED, "no")
        else:
            stream.accept()


class _Host:
    def __init__(self, tasks: asyncio.TaskGroup, *, secured: bool) -> None:
        settings = Settings(key=KEY if secured else None)
        self.here = 0
        self.legacy: list[tuple[Header, bytes]] = []
        self.buffer = ReadBuffer()
        self.refusals = RefusalLog()
        self.deadline = 10.0
        self.budget = MemoryBudget(32 << 20)
        self.sessions: Sessions = _Sessions(
            settings,
            tasks,
            lambda said_goodbye: None,
            budget=self.budget,
            buffer=self.buffer,
            lookups=Lookups(),
        )

    def connected(self, connection: AgentConnection) -> None:
        self.here += 1

    def authenticated(self, connection: AgentConnection) -> None:
        assert len(self.sessions) == 1

    def disconnected(self, connection: AgentConnection) -> None:
        self.here -= 1

    def serve_legacy(self, connection: AgentConnection, request: Header, early: bytes) -> None:
        self.legacy.append((request, early))


def connection(data: bytes) -> None:
    """A connection from its first byte to its last, then its loss."""
    run(_connection(data))


async def _connection(data: bytes) -> None:
    draw = Draw(data)
    flags = draw.number()
    async with asyncio.TaskGroup() as tasks:
        host = _Host(tasks, secured=bool(flags & 1))
        transport = Nowhere()
        connection = AgentConnection(host)
        connection.connection_made(transport)
        with patch("agent.sessions.os.urandom", lambda size: AGENT_NONCE[:size]):
            for piece in draw.pieces():
                connection.data_received(piece)
                if transport.closed or host.legacy:
                    break
                if flags & 2:
                    await asyncio.sleep(0)
        connection.connection_lost(None)
        assert host.here == 0
        assert len(host.sessions) <= 1
        assert all(request.protocol not in (SESSION, HEARTBEAT) for request, _ in host.legacy)
        assert not (host.legacy and flags & 1)
        assert len(connection._buffer) < 600  # a Header, and the piece that completed it
        host.sessions.close(ErrorCode.GOING_AWAY, "over")
        host.refusals.close()
        assert connection._deadline is None
        assert host.budget.left == host.budget.size


def door(data: bytes) -> None:
    """A request at the door: any split gives the same outcome, little is kept, and h11 takes what
    is accepted for the same request."""
    pieces = list(Draw(data).pieces())
    stream = b"".join(pieces)
    outcome = _request(pieces)
    assert outcome == _request([stream])
    if isinstance(outcome, bytes):
        server = h11.Connection(h11.SERVER, max_incomplete_event_size=HEAD_LIMIT)
        server.receive_data(stream)
        event = server.next_event()
        assert isinstance(event, h11.Request)
        assert (event.method, event.target, event.http_version) == (b"GET", b"/", b"1.1")
        assert isinstance(server.next_event(), h11.EndOfMessage)
        assert server.trailing_data[0] == outcome


def _request(pieces: list[bytes]) -> bytes | tuple[int, str] | None:
    """Return the bytes after the head, the refusal, or None if the head is incomplete."""
    request = UpgradeRequest()
    for number, piece in enumerate(pieces):
        try:
            rest = request.receive_data(piece)
        except UpgradeError as exc:
            return exc.status, str(exc)
        if rest is not None:
            return rest + b"".join(pieces[number + 1 :])
        assert len(request._buffer) < HEAD_LIMIT
    return None


class _Socket:
    def __init__(self) -> None:
        self.sent: list[bytes] = []

    def send(self, data: bytes) -> None:
        self.sent.append(bytes(data))


def framing(data: bytes) -> None:
    """Datagrams after their lengths: any split gives the same ones, and little is kept."""
    run(_framing(data))


async def _framing(data: bytes) -> None:
    pieces = list(Draw(data).pieces())
    stream = b"".join(pieces)
    expected, at = [], 0
    while len(stream) - at >= 2:
        size = int.from_bytes(stream[at : at + 2], "big")
        if len(stream) - at - 2 < size:
            break
        expected.append(stream[at + 2 : at + 2 + size])
        at += 2 + size
    target = _Socket()
    share = Client(MemoryBudget(16 << 20))
    client = _Framed(Nowhere(), Resources(share, share.reserve(), ReadBuffer(), Lookups(), 5.0))
    client.start(target, pieces[0] if pieces else b"")  # type: ignore[arg-type]
    for piece in pieces[1:]:
        client.data_received(piece)
    client.finish()
    assert target.sent == expected
    assert client._buffer == stream[at:]
