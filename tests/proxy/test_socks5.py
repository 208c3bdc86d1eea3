"""The proxy's half of SOCKS5: any split gives the same, any bytes give an answer."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from krelay.proxy.socks5 import (
    Command,
    Negotiation,
    Reply,
    SocksRefusal,
    SocksRequest,
    read_datagram,
    reply,
    write_datagram,
)

GREETING = b"\5\1\0"
LOGIN = ("me", "päss")
LOGGED_IN = b"\5\2\0\2" + b"\1\2me\5" + "päss".encode()
NAME = b"\5\1\0\3\x08web.shop\0\x50"


def run(
    pieces: list[bytes], credentials: tuple[str, str] | None = None
) -> tuple[bytes, Negotiation]:
    negotiation = Negotiation(credentials)
    return b"".join(negotiation.receive(piece) for piece in pieces), negotiation


@pytest.mark.parametrize(
    ("request_", "asked"),
    [
        (NAME, SocksRequest(Command.CONNECT, "web.shop", 80)),
        (b"\5\1\0\1\x0a\0\0\1\x1f\x90", SocksRequest(Command.CONNECT, "10.0.0.1", 8080)),
        (b"\5\1\0\4" + bytes(15) + b"\1\0\x16", SocksRequest(Command.CONNECT, "::1", 22)),
        (b"\5\3\0\1\0\0\0\0\0\0", SocksRequest(Command.UDP_ASSOCIATE, "0.0.0.0", 0)),
    ],
)
def test_requests(request_: bytes, asked: SocksRequest) -> None:
    out, negotiation = run([GREETING + request_ + b"early"])
    assert out == b"\5\0"
    assert negotiation.request == asked
    assert negotiation.rest == b"early"


def test_a_login() -> None:
    out, negotiation = run([LOGGED_IN + NAME], LOGIN)
    assert out == b"\5\2\1\0"
    assert negotiation.request is not None


@pytest.mark.parametrize(
    ("data", "credentials", "told"),
    [
        (b"\4\1\0\x50\0\0\0\1me\0", None, b"\0\x5b" + bytes(6)),
        (b"GET / HTTP/1.1\r\n", None, b"\0\x5b" + bytes(6)),
        (b"\5\1\2", None, b"\5\xff"),
        (b"\5\0", None, b"\5\xff"),
        (b"\5\1\0", LOGIN, b"\5\xff"),
        (LOGGED_IN.replace(b"me", b"he"), LOGIN, b"\5\2\1\1"),
        (LOGGED_IN[:-1] + b"x", LOGIN, b"\5\2\1\1"),
        (b"\5\1\2\1\0\0", LOGIN, b"\5\2\1\1"),
        (GREETING + b"\5\2\0\1\0\0\0\0\0\0", None, b"\5\0" + reply(Reply.COMMAND)),
        (GREETING + b"\5\1\0\7", None, b"\5\0" + reply(Reply.ADDRESS)),
        (GREETING + b"\5\1\0\3\0\0\x50", None, b"\5\0" + reply(Reply.ADDRESS)),
        (GREETING + b"\5\1\0\3\1\xff\0\x50", None, b"\5\0" + reply(Reply.ADDRESS)),
        (GREETING + b"\5\1\0\3\2a\n\0\x50", None, b"\5\0" + reply(Reply.ADDRESS)),
        (GREETING + NAME + bytes(1 << 17), None, b"\5\0" + reply(Reply.FAILURE)),
    ],
)
def test_refusals(data: bytes, credentials: tuple[str, str] | None, told: bytes) -> None:
    # What is due before the refusal goes first, also to a client that did not wait for it.
    with pytest.raises(SocksRefusal) as caught:
        run([data], credentials)
    assert caught.value.reply == told


def test_replies() -> None:
    assert reply(Reply.OK) == b"\5\0\0\1\0\0\0\0\0\0"
    assert reply(Reply.REFUSED, "::1", 1) == b"\5\5\0\4" + bytes(15) + b"\1\0\1"


@given(st.lists(st.integers(0, 60)), st.booleans())
def test_any_split_gives_the_same(cuts: list[int], login: bool) -> None:
    data = (LOGGED_IN if login else GREETING) + NAME + b"rest"
    places = sorted({0, len(data), *(cut for cut in cuts if cut <= len(data))})
    pieces = [data[a:b] for a, b in zip(places, places[1:], strict=False)]
    out, negotiation = run(pieces, LOGIN if login else None)
    assert out == (b"\5\2\1\0" if login else b"\5\0")
    assert (negotiation.request, negotiation.rest) == (
        SocksRequest(Command.CONNECT, "web.shop", 80),
        b"rest",
    )


@given(st.lists(st.binary(max_size=40)), st.booleans())
@example([b"\5\1\0", b"\5\1\0\3\1a\0\0"], False)
def test_any_bytes_give_a_request_or_a_refusal_or_need_more(
    pieces: list[bytes], login: bool
) -> None:
    negotiation = Negotiation(LOGIN if login else None)
    try:
        for piece in pieces:
            negotiation.receive(piece)
    except SocksRefusal as exc:
        assert exc.reply
    else:
        assert negotiation.request is None or negotiation.request.host


HOSTS = st.sampled_from(["10.0.0.1", "::1", "web.shop", "x" * 255])


@given(HOSTS, st.integers(0, 65535), st.binary())
def test_datagrams_there_and_back(host: str, port: int, payload: bytes) -> None:
    assert read_datagram(write_datagram(host, port, payload)) == (host, port, payload)


@given(st.binary(max_size=30))
@example(b"\0\0\1\1\x7f\0\0\1\0\x35x")
@example(b"\0\0\0\3\0\0\0")
@example(b"\0\0\0\5\0\0\0")
@example(b"\0\0\0\1\0\0\0\0")
def test_any_datagram_is_one_or_none(data: bytes) -> None:
    found = read_datagram(data)
    if found is not None:
        assert data[2] == 0
        assert data.endswith(found[2])
