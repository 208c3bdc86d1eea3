"""Where the status service may listen."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krelay.config.grammar import ParseError, parse_listen_address
from krelay.model import is_loopback


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (9527, ("127.0.0.1", 9527)),
        (9527.0, ("127.0.0.1", 9527)),
        ("9527", ("127.0.0.1", 9527)),
        ("0", ("127.0.0.1", 0)),
        ("0.0.0.0:65535", ("0.0.0.0", 65535)),
        ("localhost:80", ("localhost", 80)),
        ("[::1]:80", ("::1", 80)),
    ],
)
def test_a_place(value: int | str, place: tuple[str, int]) -> None:
    assert parse_listen_address(value) == place


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("127.0.0.1", "`127.0.0.1` has no port"),
        ("127.0.0.1:", "`127.0.0.1:` has no port"),
        ("127.0.0.1:http", "`127.0.0.1:http` has no port"),
        ("::1:80", "`::1:80` is ambiguous: an IPv6 address has brackets"),
        ("127.0.0.1:65536", "port 65536 is out of range"),
        ("1" * 5000, "port 111111111111 is out of range"),
        (":80", '`""` is not an address to listen on'),
        ("example.org:80", "`example.org` is not an address to listen on"),
    ],
)
def test_no_place(value: str, message: str) -> None:
    with pytest.raises(ParseError) as caught:
        parse_listen_address(value)
    assert caught.value.message == message
    assert caught.value.hint


@pytest.mark.parametrize("address", ["127.0.0.1", "127.8.9.1", "::1", "localhost"])
def test_what_only_this_machine_reaches(address: str) -> None:
    assert is_loopback(address)


@pytest.mark.parametrize("address", ["0.0.0.0", "::", "10.0.0.1", "192.168.1.2", "fe80::1%1"])
def test_what_others_reach(address: str) -> None:
    assert not is_loopback(address)


@given(st.text(alphabet="0123456789.:[]lochst%é٣", max_size=40))
def test_any_text_is_a_place_or_a_flaw(text: str) -> None:
    with contextlib.suppress(ParseError):
        address, port = parse_listen_address(text)
        assert 0 <= port <= 65535
        is_loopback(address)
