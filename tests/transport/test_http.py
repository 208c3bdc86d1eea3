from __future__ import annotations

import asyncio
from typing import cast

import pytest

from krelay.errors import CredentialsError
from krelay.net.handshake_stream import HandshakeStream
from krelay.transport.http import (
    BODY_LIMIT,
    HEAD_LIMIT,
    INFORMATIONAL_LIMIT,
    Exchange,
    Headers,
    HttpError,
)

UPGRADE = (("Host", "kube.test"), ("Upgrade", "x"))
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
SWITCHED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: x\r\n\r\n"


class Transport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.sent = b""
        self.aborted = False

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent += data

    def abort(self) -> None:
        self.aborted = True


def exchange(
    *received: bytes, method: str = "GET", headers: Headers = UPGRADE, end: bool = True
) -> tuple[Exchange, HandshakeStream]:
    """An exchange on a connection that gives `received`, and then its end."""
    stream = HandshakeStream()
    stream.connection_made(Transport())
    made = Exchange(stream, method, "kube.test:443" if method == "CONNECT" else "/", headers)
    for piece in received:
        stream.data_received(piece)
    if end:
        stream.eof_received()
    return made, stream


async def test_a_request_keeps_the_order_and_the_case_of_its_headers() -> None:
    headers = (("Host", "h"), ("X-B", "1"), ("x-a", "2"), ("X-B", " ä\t"))
    _, stream = exchange(headers=headers)
    sent = cast(Transport, stream.transport).sent
    assert sent == "GET / HTTP/1.1\r\nHost: h\r\nX-B: 1\r\nx-a: 2\r\nX-B: ä\r\n\r\n".encode()


@pytest.mark.parametrize("character", ["\r", "\n", "\0", "\v", "\f"])
async def test_a_header_with_a_line_break_is_refused_without_its_value(character: str) -> None:
    with pytest.raises(CredentialsError, match="'Impersonate-User'") as caught:
        exchange(headers=(*UPGRADE, ("Impersonate-User", f"secret{character}X: y")))
    assert "secret" not in str(caught.value)


async def test_a_target_that_no_request_may_have_is_an_http_error() -> None:
    stream = HandshakeStream()
    stream.connection_made(Transport())
    with pytest.raises(HttpError, match="cannot be sent"):
        Exchange(stream, "CONNECT", "kube test:1", UPGRADE)


@pytest.mark.parametrize("size", [1, 1 << 16])
async def test_the_bytes_behind_a_101_stay_in_the_stream(size: int) -> None:
    received = CONTINUE + SWITCHED + b"spdy"
    pieces = [received[at : at + size] for at in range(0, len(received), size)]
    asking, stream = exchange(*pieces)
    assert await asking.read_head() == (101, [("upgrade", "x")])
    assert await stream.read_exactly(4) == b"spdy"


async def test_the_bytes_behind_a_2xx_to_connect_stay_in_the_stream() -> None:
    answer = b"HTTP/1.0 200 Connection established\r\nContent-Length: 9\r\n\r\ntls"
    asking, stream = exchange(answer, method="CONNECT")
    assert (await asking.read_head())[0] == 200
    assert await stream.read(99) == b"tls"


@pytest.mark.parametrize(
    "received",
    [
        b"SSH-2.0-x\r\n\r\n",
        b"HTTP/1.1 20 X\r\n\r\n",
        b"HTTP/1.1 099 X\r\n\r\n",
        b"HTTP/1.1 " + b"9" * 5_000 + b" X\r\n\r\n",
        b"HTTP/1.1 200 X\r\n" + b"X: y\r\n" * HEAD_LIMIT,
        b"x" * (2 * HEAD_LIMIT),
        CONTINUE * (INFORMATIONAL_LIMIT + 1) + SWITCHED,
    ],
    ids=["ssh", "two digits", "below 100", "long", "headers", "no line", "informational"],
)
async def test_an_answer_that_is_no_http_or_too_long_is_an_http_error(received: bytes) -> None:
    asking, _ = exchange(received, end=False)
    with pytest.raises(HttpError):
        await asking.read_head()


async def test_a_101_that_was_not_asked_for_is_an_http_error() -> None:
    asking, _ = exchange(SWITCHED, method="CONNECT", headers=(("Host", "h"),))
    with pytest.raises(HttpError):
        await asking.read_head()


async def test_a_connection_that_ends_within_the_head_is_an_eof_error() -> None:
    asking, _ = exchange(b"HTTP/1.1 200 OK\r\n")
    with pytest.raises(EOFError):
        await asking.read_head()


CHUNKED = b"Transfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("rest", "body"),
    [
        (b"\r\nuntil the end", b"until the end"),
        (b"Content-Length: 3\r\n\r\nabcdef", b"abc"),
        (b"Content-Length: 99\r\n\r\ncut", b"cut"),
        (CHUNKED + b"3\r\nabc\r\n2;x=y\r\nde\r\n0\r\n\r\n", b"abcde"),
        (CHUNKED + b"nonsense\r\nabc", b"abc"),
        (b"\r\n" + b"a" * (BODY_LIMIT + 1), b"a" * BODY_LIMIT),
        (CHUNKED + b"1\r\na\r\n" * 10_000, b"a" * 1024),
    ],
    ids=["to the end", "length", "cut short", "chunks", "no chunk", "too long", "small chunks"],
)
async def test_an_error_s_body_is_read_up_to_its_end_or_a_limit(rest: bytes, body: bytes) -> None:
    asking, _ = exchange(b"HTTP/1.1 500 X\r\n" + rest)
    assert (await asking.read_head())[0] == 500
    assert await asking.read_body() == body


async def test_an_error_s_body_that_does_not_end_is_read_up_to_the_deadline(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("krelay.transport.http.BODY_DEADLINE", 0.01)
    asking, _ = exchange(b"HTTP/1.1 500 X\r\nContent-Length: 9\r\n\r\nabc", end=False)
    await asking.read_head()
    assert await asking.read_body() == b"abc"
