"""Targets of the proxies: what a client says to krelay's own, and what others' say to krelay."""

from __future__ import annotations

import h11

from fuzz.draw import Draw
from krelay.datapath.http_proxy import MAX_HEAD, HttpRefusal, cut_head, read_head
from krelay.datapath.socks5 import Acceptor, SocksRefusal, read_datagram, write_datagram
from krelay.socks import SocksError, handshake

_CREDENTIALS = ("me", "secret")


def socks5(data: bytes) -> None:
    """A client's negotiation, whole and in pieces, and its datagrams."""
    draw = Draw(data)
    credentials = _CREDENTIALS if draw.number() & 1 else None
    pieces = list(draw.pieces())
    whole, parts = Acceptor(credentials), Acceptor(credentials)
    stream = b"".join(pieces)
    outcomes = (_negotiated(whole, [stream]), _negotiated(parts, pieces))
    assert outcomes[0] == outcomes[1]
    asked = whole.asked
    if asked is not None:
        assert 0 < len(asked.host.encode()) <= 255
        assert 0 <= asked.port < 65_536
    found = read_datagram(stream)
    if found is not None:
        host, port, payload = found
        assert read_datagram(write_datagram(host, port, payload)) == found


def _negotiated(acceptor: Acceptor, pieces: list[bytes]) -> tuple[object, ...]:
    out = b""
    try:
        for piece in pieces:
            out += acceptor.receive(piece)
    except SocksRefusal as exc:
        # What was due before goes out in one case and is lost with the connection in the other.
        return (exc.reply, str(exc))
    return (out, acceptor.asked, acceptor.rest)


def http_proxy(data: bytes) -> None:
    """A request: what goes on is one request too, for the host that was asked for."""
    draw = Draw(data)
    credentials = _CREDENTIALS if draw.number() & 1 else None
    try:
        parts = cut_head(draw.rest())
        if parts is None:
            return
        asked = read_head(parts[0], credentials)
    except HttpRefusal as exc:
        assert exc.answer.startswith(b"HTTP/1.1 4")
        return
    assert 0 < len(asked.host.encode()) <= 255
    assert 0 < asked.port < 65_536
    if not asked.head:
        return
    assert asked.head.count(b"\r\n\r\n") == 1
    far = h11.Connection(h11.SERVER, max_incomplete_event_size=2 * MAX_HEAD)
    far.receive_data(asked.head)
    request = far.next_event()
    assert isinstance(request, h11.Request)
    names = [name for name, _ in request.headers]
    assert names.count(b"host") == 1
    assert (b"connection", b"close") in list(request.headers)
    assert b"proxy-authorization" not in names
    assert request.target[:1] in (b"/", b"*")


def socks_client(data: bytes) -> None:
    """The answers of a SOCKS5 proxy that krelay asks; it reads no more of them than it should."""
    draw = Draw(data)
    flags = draw.number()
    proxy = "socks5://me:s%20t@proxy:1080" if flags & 1 else "socks5://proxy:1080"
    host = ("10.0.0.1", "fd00::7", "db.example.test")[(flags >> 1) % 3]
    talk = handshake(proxy, host, 443)
    total = 0
    try:
        said, need = next(talk)
        while True:
            assert len(said) < 600
            total += need
            assert total < 300
            answer = draw.take(need)
            if len(answer) < need:
                return
            said, need = talk.send(answer)
    except (StopIteration, SocksError):
        return
