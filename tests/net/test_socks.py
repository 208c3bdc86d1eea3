from __future__ import annotations

import asyncio
from contextlib import suppress
from urllib.parse import urlsplit

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krelay.net.handshake_stream import HandshakeStream
from krelay.net.socks import ProxyError, socks_connect


class Transport(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.sent: list[bytes] = []

    def write(self, data: bytes | bytearray | memoryview) -> None:
        self.sent.append(bytes(data))


def answering(*replies: bytes) -> tuple[HandshakeStream, list[bytes]]:
    """A stream from a proxy that answers with `replies`, and all that is written to it."""
    stream, transport = HandshakeStream(), Transport()
    stream.connection_made(transport)
    stream.data_received(b"".join(replies))
    stream.eof_received()
    return stream, transport.sent


async def play(proxy: str, host: str, port: int, *replies: bytes) -> list[bytes]:
    """All that is sent, when the proxy answers with `replies`, which are read to their end."""
    stream, sent = answering(*replies)
    await socks_connect(stream, urlsplit(proxy), host, port)
    with pytest.raises(EOFError):
        await stream.read(1)
    return sent


OK_V4 = (b"\5\0\0\1", bytes(6))


async def test_a_host_name_is_sent_as_a_name() -> None:
    sent = await play("socks5://p", "h.test", 6443, b"\5\0", *OK_V4)
    assert sent == [b"\5\1\0", b"\5\1\0\3\6h.test\x19\x2b"]


@pytest.mark.parametrize(
    ("host", "address"),
    [("10.0.0.1", b"\1\x0a\0\0\1"), ("::1", b"\4" + bytes(15) + b"\1")],
)
async def test_an_address_is_sent_as_bytes(host: str, address: bytes) -> None:
    assert (await play("socks5://p", host, 1, b"\5\0", *OK_V4))[1] == b"\5\1\0" + address + b"\0\1"


async def test_a_password_is_sent_if_the_proxy_chooses_it() -> None:
    sent = await play("socks5://me:p%40ss@p", "h", 1, b"\5\2", b"\1\0", *OK_V4)
    assert sent[:2] == [b"\5\2\0\2", b"\1\2me\4p@ss"]
    assert (await play("socks5://me:x@p", "h", 1, b"\5\0", *OK_V4))[1][:3] == b"\5\1\0"


@pytest.mark.parametrize(
    "bound", [(b"\5\0\0\4", bytes(18)), (b"\5\0\0\3", b"\4", bytes(6)), (b"\5\0\0\1", bytes(6))]
)
async def test_the_bound_address_of_any_type_is_read(bound: tuple[bytes, ...]) -> None:
    await play("socks5://p", "h", 1, b"\5\0", *bound)


@pytest.mark.parametrize(
    ("replies", "message"),
    [
        ((b"HT",), "does not speak SOCKS5"),
        ((b"\5\xff",), "unsupported kind of authentication"),
        ((b"\5\2", b"\1\1"), "rejects the user name"),
        ((b"\5\0", b"\5\5\0\1"), "connection refused"),
        ((b"\5\0", b"\5\x63\0\1"), "reply 99"),
    ],
)
async def test_a_refusal_is_an_error_with_its_reason(
    replies: tuple[bytes, ...], message: str
) -> None:
    with pytest.raises(ProxyError, match=message):
        await play("socks5://me:x@p", "h", 1, *replies)


async def test_a_proxy_that_chooses_a_method_not_offered_is_refused() -> None:
    with pytest.raises(ProxyError, match="unsupported kind"):
        await play("socks5://p", "h", 1, b"\5\2")


async def test_a_name_over_255_bytes_is_an_error() -> None:
    with pytest.raises(ProxyError, match="255 bytes"):
        await play("socks5://p", "h" * 256, 1, b"\5\0")


@given(st.binary(max_size=600))
async def test_any_replies_end_the_handshake(replies: bytes) -> None:
    stream, _ = answering(replies)
    with suppress(ProxyError, EOFError):
        await socks_connect(stream, urlsplit("socks5://me:x@p"), "h", 1)
