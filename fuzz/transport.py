"""Targets of `krelay.transport`: whatever a server, or something before it, answers."""

from __future__ import annotations

import asyncio
from itertools import groupby
from urllib.parse import urlsplit

from websockets.utils import accept_key

from fuzz.draw import Draw
from fuzz.memory import Nowhere, run
from krelay.errors import KrelayError, TunnelError
from krelay.model import Transport
from krelay.net.api_access import ApiAccess
from krelay.net.handshake_stream import HandshakeStream
from krelay.net.socks import socks_connect
from krelay.transport.connect import http_connect
from krelay.transport.http import BODY_LIMIT, Exchange, HttpError
from krelay.transport.pipe import Pipe
from krelay.transport.spdy import Data, Decoder, Event, SpdyError
from krelay.transport.upgrade import Carrier, Plain, RefusedUpgrade, stream_error
from krelay.transport.upgrade import upgrade as ask
from krelay.transport.websocket import MAX_MESSAGE, SUBPROTOCOL, WebSocket


def spdy(data: bytes) -> None:
    """SPDY as it is: any split gives the same events; then the pipe that stands on it."""
    draw = Draw(data)
    flags = draw.number()
    pieces = list(draw.pieces())
    stream = b"".join(pieces)
    whole, parts = _decoded([stream]), _decoded(pieces)
    assert whole == parts
    if flags & 1:
        run(_through(Plain(), pieces))


def _decoded(pieces: list[bytes]) -> list[object] | str:
    decoder = Decoder()
    events: list[Event] = []
    try:
        for piece in pieces:
            events += decoder.receive_data(piece)
            assert len(decoder._head) + len(decoder._body) < 16
    except SpdyError as exc:
        return str(exc)
    joined: list[object] = []
    for stream_id, group in groupby(
        events, lambda event: event.stream_id if isinstance(event, Data) else None
    ):
        if stream_id is None:
            joined += group
        else:
            joined.append((stream_id, b"".join(event.payload for event in group)))  # type: ignore[union-attr]
    return joined


def websocket(data: bytes) -> None:
    """The answer to a WebSocket's request, and what comes in one, with a pipe on it."""
    draw = Draw(data)
    flags = draw.number()
    carrier = WebSocket()
    if flags & 1:
        lines = [line.partition(":") for line in draw.rest().decode("latin-1").split("\n")]
        wrong = carrier.accept([(name, value) for name, _, value in lines])
        assert wrong is None or isinstance(wrong, str)
        return
    if wrong := carrier.accept(_granted(carrier)):
        raise AssertionError(wrong)
    run(_through(carrier, list(draw.pieces())))


def _granted(carrier: WebSocket) -> list[tuple[str, str]]:
    key = dict(carrier.headers)["Sec-WebSocket-Key"]
    return [
        ("Upgrade", "websocket"),
        ("Connection", "Upgrade"),
        ("Sec-WebSocket-Accept", accept_key(key)),
        ("Sec-WebSocket-Protocol", SUBPROTOCOL),
    ]


class _Above(asyncio.Protocol):
    """What a tunnel hears of its pipe."""

    def __init__(self) -> None:
        self.received = 0
        self.lost: list[Exception | None] = []

    def data_received(self, data: bytes) -> None:
        self.received += len(data)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.append(exc)


async def _through(carrier: Carrier, pieces: list[bytes]) -> None:
    above, below = _Above(), Nowhere()
    pipe = Pipe(above, carrier, 9527)
    pipe.connection_made(below)
    before = below.written
    for piece in pieces:
        pipe.received(piece)
    pipe.write(b"x")
    size = sum(map(len, pieces))
    assert above.received <= size
    # A ping of a dozen bytes is worth its answer and a head.
    assert below.written - before <= 4 * size + 64
    pipe.connection_lost(None)
    (lost,) = above.lost
    assert isinstance(lost, TunnelError)
    assert len(str(lost)) < 1_000
    assert size < MAX_MESSAGE


def http_answer(data: bytes) -> None:
    """The head of an HTTP answer and its body."""
    run(_http_answer(data))


async def _http_answer(data: bytes) -> None:
    stream = HandshakeStream()
    stream.connection_made(Nowhere())
    for piece in Draw(data).pieces():
        stream.data_received(piece)
    stream.eof_received()
    try:
        exchange = Exchange(stream, "GET", "/", [("Host", "x"), ("Upgrade", "x")])
        status, _ = await exchange.read_head()
    except (HttpError, EOFError):
        return
    assert status == 101 or 200 <= status < 1_000
    if status != 101:
        assert len(await exchange.read_body()) <= BODY_LIMIT


_ACCESS = ApiAccess("https://kube.test", None, None, ())


def upgrade(data: bytes) -> None:
    """The answers of a proxy and then of a server that is asked for a port-forward."""
    run(_upgrade(data))


async def _upgrade(data: bytes) -> None:
    draw = Draw(data)
    flags = draw.number()
    stream = HandshakeStream()
    stream.connection_made(Nowhere())
    pieces = list(draw.pieces())
    for piece in pieces:
        stream.data_received(piece)
    stream.eof_received()
    transport = Transport.WEBSOCKET if flags & 1 else Transport.SPDY
    try:
        if flags & 2:
            await http_connect(stream, urlsplit("http://me:pw@proxy:1"), "kube.test", 443)
        elif flags & 4:
            await socks_connect(stream, urlsplit("socks5://proxy:1"), "kube.test", 443)
        await ask(stream, _ACCESS, namespace="x", pod="p", transport=transport)
    except RefusedUpgrade as exc:
        assert isinstance(exc.final, bool)
        error = exc.error(namespace="x", pod="p")
        assert isinstance(error, KrelayError)
        assert len(str(error)) < 1_000
    except (OSError, EOFError) as exc:
        assert len(str(exc)) < 1_000
    assert len(str(stream_error(b"".join(pieces)[:4_096].decode("utf-8", "replace")))) < 1_000
