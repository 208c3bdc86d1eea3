from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krelay.net.socks import SocksError, handshake


def play(proxy: str, host: str, port: int, *replies: bytes) -> list[bytes]:
    """All that is sent, when the proxy answers with `replies`."""
    steps = handshake(proxy, host, port)
    sent, wanted = next(steps)
    out = [sent]
    for reply in replies:
        assert len(reply) == wanted
        try:
            sent, wanted = steps.send(reply)
        except StopIteration:
            assert reply is replies[-1]
            return out
        out.append(sent)
    raise AssertionError("the handshake wants more")


OK_V4 = (b"\5\0\0\1", bytes(6))


def test_a_host_name_is_sent_as_a_name() -> None:
    sent = play("socks5://p", "h.test", 6443, b"\5\0", *OK_V4)
    assert sent == [b"\5\1\0", b"\5\1\0\3\6h.test\x19\x2b", b""]


@pytest.mark.parametrize(
    ("host", "address"),
    [("10.0.0.1", b"\1\x0a\0\0\1"), ("::1", b"\4" + bytes(15) + b"\1")],
)
def test_an_address_is_sent_as_bytes(host: str, address: bytes) -> None:
    assert play("socks5://p", host, 1, b"\5\0", *OK_V4)[1] == b"\5\1\0" + address + b"\0\1"


def test_a_password_is_sent_if_the_proxy_chooses_it() -> None:
    sent = play("socks5://me:p%40ss@p", "h", 1, b"\5\2", b"\1\0", *OK_V4)
    assert sent[:2] == [b"\5\2\0\2", b"\1\2me\4p@ss"]
    assert play("socks5://me:x@p", "h", 1, b"\5\0", *OK_V4)[1][:3] == b"\5\1\0"


@pytest.mark.parametrize(
    "bound", [(b"\5\0\0\4", bytes(18)), (b"\5\0\0\3", b"\4", bytes(6)), (b"\5\0\0\1", bytes(6))]
)
def test_the_bound_address_of_any_type_is_read(bound: tuple[bytes, ...]) -> None:
    play("socks5://p", "h", 1, b"\5\0", *bound)


@pytest.mark.parametrize(
    ("replies", "message"),
    [
        ((b"HT",), "does not speak SOCKS5"),
        ((b"\5\xff",), "another kind of authentication"),
        ((b"\5\2", b"\1\1"), "refuses the user name"),
        ((b"\5\0", b"\5\5\0\1"), "connection refused"),
        ((b"\5\0", b"\5\x63\0\1"), "reply 99"),
    ],
)
def test_a_refusal_is_an_error_with_its_reason(replies: tuple[bytes, ...], message: str) -> None:
    with pytest.raises(SocksError, match=message):
        play("socks5://me:x@p", "h", 1, *replies)


def test_a_proxy_that_chooses_a_method_not_offered_is_refused() -> None:
    with pytest.raises(SocksError, match="another kind"):
        play("socks5://p", "h", 1, b"\5\2")


def test_a_name_over_255_bytes_is_an_error() -> None:
    with pytest.raises(SocksError, match="255 bytes"):
        play("socks5://p", "h" * 256, 1, b"\5\0")


@given(st.data())
def test_any_replies_end_the_handshake(data: st.DataObject) -> None:
    steps = handshake("socks5://me:x@p", "h", 1)
    try:
        _, wanted = next(steps)
        for _ in range(6):
            _, wanted = steps.send(data.draw(st.binary(min_size=wanted, max_size=wanted)))
    except (SocksError, StopIteration):
        return
    raise AssertionError("it never ends")
