"""Targets of the proxies: what a client says to krelay's own, and what others' say to krelay."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from urllib.parse import urlsplit

import h11

from fuzz.draw import Draw
from fuzz.memory import Nowhere, run
from krelay.model import Endpoint
from krelay.net.handshake_stream import HandshakeStream
from krelay.net.socks import ProxyError, socks_connect
from krelay.proxy.http_proxy import route
from krelay.proxy.http_relay import (
    MAX_HEAD,
    HttpRefusal,
    HttpRelay,
    Open,
    RequestHead,
    Splice,
    ToClient,
    ToTarget,
)
from krelay.proxy.socks5 import Negotiation, SocksRefusal, read_datagram, write_datagram

_CREDENTIALS = ("me", "secret")


def socks5(data: bytes) -> None:
    """A client's negotiation, whole and in pieces, and its datagrams."""
    draw = Draw(data)
    credentials = _CREDENTIALS if draw.number() & 1 else None
    pieces = list(draw.pieces())
    whole, parts = Negotiation(credentials), Negotiation(credentials)
    stream = b"".join(pieces)
    outcomes = (_negotiated(whole, [stream]), _negotiated(parts, pieces))
    assert outcomes[0] == outcomes[1]
    asked = whole.request
    if asked is not None:
        assert 0 < len(asked.host.encode()) <= 255
        assert 0 <= asked.port < 65_536
    found = read_datagram(stream)
    if found is not None:
        host, port, payload = found
        assert read_datagram(write_datagram(host, port, payload)) == found


def _negotiated(negotiation: Negotiation, pieces: list[bytes]) -> tuple[object, ...]:
    out = b""
    try:
        for piece in pieces:
            out += negotiation.receive(piece)
    except SocksRefusal as exc:
        return (out + exc.reply, str(exc))
    return (out, negotiation.request, negotiation.rest)


def http_proxy(data: bytes) -> None:
    """A conversation: a client's bytes, and what each target answers. What a target gets is one
    request, the one that was for it; what follows a CONNECT is never one; how the bytes fall
    changes nothing."""
    draw = Draw(data)
    flags, size = draw.number(), draw.number() + 1
    credentials = _CREDENTIALS if flags & 1 else None
    client = draw.take(draw.number(2))
    answers = []
    while draw:
        answers.append(draw.take(draw.number(2)))
    reached = not flags & 2
    whole = _Conversation(client, answers, credentials, MAX_HEAD, MAX_HEAD, reached=reached)
    for pieces in ((size, MAX_HEAD), (MAX_HEAD, size)):
        other = _Conversation(client, answers, credentials, *pieces, reached=reached)
        assert other.outcome == whole.outcome
    expected, last = _expected(client, credentials)
    assert not last or len(whole.places) <= len(expected)
    for n, (place, got) in enumerate(zip(whole.places, whole.targets, strict=True)):
        if n < len(expected):
            assert place == expected[n][0]
            assert got is None or expected[n][1].startswith(got)


class _Conversation:
    """All of the client's bytes, then each target's answer in its turn, then the ends. No target is
    there unless they are `reached`."""

    def __init__(
        self,
        client: bytes,
        answers: list[bytes],
        credentials: tuple[str, str] | None,
        client_size: int,
        target_size: int,
        *,
        reached: bool,
    ) -> None:
        self.places: list[Endpoint] = []
        self._sent: list[bytes] = []
        self._taken: list[bytes] = [b""]
        self._ends: list[object] = []
        self._spliced = b""
        self._relay = relay = HttpRelay(lambda head: route(head, credentials))
        for piece in _pieces(client, client_size):
            relay.receive_from_client(piece)
            self._act()
        served = 0
        while not relay.ending and not relay.switched and served < len(self.places):
            served = len(self.places)
            if not reached:
                relay.target_refused(502, "nothing listens there")
                self._act()
                continue
            relay.target_accepted()
            self._act()
            answer = answers[served - 1] if served <= len(answers) else b""
            for piece in _pieces(answer, target_size):
                if relay.switched:
                    self._spliced += piece
                elif served == len(self.places):
                    relay.receive_from_target(piece)
                    self._act()
            if served == len(self.places) and not relay.switched and not relay.idle:
                relay.target_sent_end()
                self._act()
        relay.client_sent_end()
        self._act()
        self.requests = [_request(sent) if sent else None for sent in self._sent]
        self.targets = [found[1] if found else None for found in self.requests]
        responses = self._responses()
        self.outcome = (self.places, self.requests, responses, self._ends, self._spliced)

    def _act(self) -> None:
        relay = self._relay
        while relay.more and not relay.switched:
            relay.go_on()
        for action in relay.actions():
            match action:
                case Open(place):
                    assert 0 < place.port < 65_536
                    assert 0 < len(place.host.encode()) <= 255
                    self.places.append(place)
                    self._sent.append(b"")
                    self._taken.append(b"")
                case ToTarget(data):
                    self._sent[-1] += data
                case ToClient(data):
                    self._taken[-1] += data
                case Splice(to_target, to_client):
                    self._ends.append(to_target)
                    self._spliced = to_client
                case _:
                    self._ends.append(action)

    def _responses(self) -> list[object]:
        """What the client got before the first target was asked, then for each."""
        found: list[object] = [self._taken[0]]
        for request, taken in zip(self.requests, self._taken[1:], strict=True):
            found.append(_response(request[0][0] if request else b"CONNECT", taken))
        return found


def _pieces(data: bytes, size: int) -> Iterator[bytes]:
    for at in range(0, len(data), size):
        yield data[at : at + size]


_Head = tuple[bytes, bytes, tuple[tuple[bytes, bytes], ...]]


def _request(sent: bytes) -> tuple[_Head, bytes, bool]:
    """What a target makes of it: head, body, and whether that is whole."""
    head, _, _ = sent.partition(b"\r\n")
    # h11 takes no UTF-8 in a request target.
    shown = head.translate(bytes(n if n < 0x80 else 0x7E for n in range(256))) + sent[len(head) :]
    far = h11.Connection(h11.SERVER, max_incomplete_event_size=2 * MAX_HEAD)
    far.receive_data(shown)
    request = far.next_event()
    assert isinstance(request, h11.Request)
    names = [name for name, _ in request.headers]
    assert names.count(b"host") == 1
    assert not {b"te", b"keep-alive"}.intersection(names)
    assert not any(name.startswith(b"proxy-") for name in names)
    assert not (b"content-length" in names and b"transfer-encoding" in names)
    body = b""
    while isinstance(event := far.next_event(), h11.Data):
        body += event.data
    whole = isinstance(event, h11.EndOfMessage)
    if whole:
        assert far.trailing_data[0] == b""
    return (request.method, head, tuple(request.headers)), body, whole


def _response(method: bytes, taken: bytes) -> object:
    """What a client makes of it; the bytes themselves where it is several messages, or none."""
    near = h11.Connection(h11.CLIENT, max_incomplete_event_size=2 * MAX_HEAD)
    near.send(h11.Request(method=method, target="/", headers=[("Host", "x"), ("Upgrade", "x")]))
    near.send(h11.EndOfMessage())
    near.receive_data(taken)
    heads: list[object] = []
    body = b""
    while True:
        event = near.next_event()
        if isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage):
            return heads, body, list(event.headers), near.trailing_data[0]
        elif isinstance(event, h11.Response | h11.InformationalResponse):
            names = [name for name, _ in event.headers]
            assert not {b"keep-alive", b"te"}.intersection(names)
            heads.append((event.status_code, event.reason, list(event.headers)))
        else:
            return heads, body, None, near.trailing_data[0]


def _expected(
    client: bytes, credentials: tuple[str, str] | None
) -> tuple[list[tuple[Endpoint, bytes]], bool]:
    """Where each request goes, and its body, as h11 reads them, up to what h11 alone refuses; and
    whether there can be no more, since the last is a CONNECT."""
    found: list[tuple[Endpoint, bytes]] = []
    last = False
    near = h11.Connection(h11.SERVER, max_incomplete_event_size=2 * MAX_HEAD)
    near.receive_data(client)
    try:
        while isinstance(request := near.next_event(), h11.Request):
            body = b""
            last = request.method == b"CONNECT"
            while isinstance(event := near.next_event(), h11.Data):
                body += event.data
            head = RequestHead(request.method, request.target, list(request.headers))
            with suppress(HttpRefusal):
                found.append((route(head, credentials).place, body))
            if not isinstance(event, h11.EndOfMessage) or near.their_state is not h11.DONE:
                break
            near.send(h11.Response(status_code=200, headers=[("Content-Length", "0")]))
            near.send(h11.EndOfMessage())
            if near.our_state is not h11.DONE:
                break
            near.start_next_cycle()
    except h11.RemoteProtocolError:
        pass
    return found, last


def socks_client(data: bytes) -> None:
    """The answers of a SOCKS5 proxy that krelay asks; it reads no more of them than it should."""
    run(_socks_client(data))


async def _socks_client(data: bytes) -> None:
    draw = Draw(data)
    flags = draw.number()
    proxy = "socks5://me:s%20t@proxy:1080" if flags & 1 else "socks5://proxy:1080"
    host = ("10.0.0.1", "fd00::7", "db.example.test")[(flags >> 1) % 3]
    stream, below = HandshakeStream(), Nowhere()
    stream.connection_made(below)
    answers = draw.rest()
    stream.data_received(answers)
    stream.eof_received()
    with suppress(ProxyError, EOFError):
        await socks_connect(stream, urlsplit(proxy), host, 443)
    assert below.written < 600
    assert len(answers) - len(stream._buffer) < 300
