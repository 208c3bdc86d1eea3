"""The head of a request to an HTTP proxy."""

from __future__ import annotations

import base64

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from krelay.datapath.http_proxy import (
    MAX_HEAD,
    HttpAsked,
    HttpRefusal,
    answer,
    cut_head,
    read_head,
)

LOGIN = ("me", "secret")


def head(*lines: str) -> bytes:
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


@pytest.mark.parametrize(
    ("target", "host", "port"),
    [("web.shop:443", "web.shop", 443), ("10.0.0.1:80", "10.0.0.1", 80), ("[::1]:22", "::1", 22)],
)
def test_connect(target: str, host: str, port: int) -> None:
    assert read_head(head(f"CONNECT {target} HTTP/1.1", f"Host: {target}")) == HttpAsked(
        host, port, b""
    )


def test_the_absolute_form_goes_on_in_origin_form_without_what_is_ours() -> None:
    asked = read_head(
        head(
            "POST http://web.shop:8080/a/b?c=d#e HTTP/1.1",
            "Host: elsewhere",
            "X-Mine: 1",
            "Connection: keep-alive, X-Hop",
            "X-Hop: 1",
            "Proxy-Connection: keep-alive",
            "Proxy-Authorization: Basic eA==",
            "TE: trailers",
            "Upgrade: websocket",
            "Transfer-Encoding: chunked",
            "Expect: 100-continue",
        )
    )
    assert (asked.host, asked.port) == ("web.shop", 8080)
    assert asked.head.decode().split("\r\n") == [
        "POST /a/b?c=d HTTP/1.1",
        "Host: web.shop:8080",
        "X-Mine: 1",
        "Transfer-Encoding: chunked",
        "Expect: 100-continue",
        "Connection: close",
        "",
        "",
    ]


@pytest.mark.parametrize(
    ("target", "host", "port", "line"),
    [
        ("http://web", "web", 80, b"GET / HTTP/1.1"),
        ("HTTP://u:p@web/?x", "web", 80, b"GET /?x HTTP/1.1"),
        ("http://[::1]:8080/x", "::1", 8080, b"GET /x HTTP/1.1"),
    ],
)
def test_targets(target: str, host: str, port: int, line: bytes) -> None:
    asked = read_head(head(f"GET {target} HTTP/1.1", "Host: x"))
    assert (asked.host, asked.port) == (host, port)
    assert asked.head.startswith(line + b"\r\nHost: ")
    assert b"u:p" not in asked.head


@pytest.mark.parametrize(
    "first",
    [
        "nonsense",
        "GET /path HTTP/1.1",
        "GET https://web/ HTTP/1.1",
        "GET http:///x HTTP/1.1",
        "GET http://web:99999/ HTTP/1.1",
        "GET http://[::1/ HTTP/1.1",
        "CONNECT web HTTP/1.1",
        "CONNECT :80 HTTP/1.1",
        f"CONNECT {'x' * 256}:80 HTTP/1.1",
    ],
)
def test_what_is_no_request_to_a_proxy(first: str) -> None:
    with pytest.raises(HttpRefusal) as caught:
        read_head(head(first, "Host: x"))
    assert caught.value.answer.startswith(b"HTTP/1.1 400 Bad Request\r\n")


@pytest.mark.parametrize(
    "given_",
    [None, "Basic", "Basic %%%", "Bearer bWU6c2VjcmV0", "Basic " + "bWU6d3Jvbmc="],
)
def test_who_is_nobody_is_asked(given_: str | None) -> None:
    lines = ["CONNECT web:80 HTTP/1.1", "Host: x"]
    lines += [f"Proxy-Authorization: {given_}"] if given_ else []
    with pytest.raises(HttpRefusal) as caught:
        read_head(head(*lines), LOGIN)
    assert caught.value.answer.startswith(b"HTTP/1.1 407 ")
    assert b'\r\nProxy-Authenticate: Basic realm="krelay"\r\n' in caught.value.answer


def test_who_is_somebody_is_not() -> None:
    token = base64.b64encode(b"me:secret").decode()
    lines = ["CONNECT web:80 HTTP/1.1", "Host: x", f"proxy-authorization: basic {token}"]
    assert read_head(head(*lines), LOGIN).host == "web"


def test_a_head_ends_where_it_ends() -> None:
    whole = head("GET http://a/ HTTP/1.1", "Host: a")
    assert cut_head(whole[:-1]) is None
    assert cut_head(whole + b"body\r\n\r\n") == (whole, b"body\r\n\r\n")
    for data in (bytes(MAX_HEAD + 1), bytes(MAX_HEAD + 1) + b"\r\n\r\n"):
        with pytest.raises(HttpRefusal) as caught:
            cut_head(data)
        assert caught.value.answer.startswith(b"HTTP/1.1 431 ")


def test_an_answer_is_whole() -> None:
    text = answer(502, "web:80: connection refused")
    top, body = text.split(b"\r\n\r\n")
    assert body == b"krelay: web:80: connection refused\n"
    assert f"Content-Length: {len(body)}".encode() in top


@given(st.binary(max_size=200))
@example(b"GET http://\xff/ HTTP/1.1\r\nHost: x")
def test_any_head_is_a_request_or_a_refusal(data: bytes) -> None:
    try:
        asked = read_head(data + b"\r\n\r\n")
    except HttpRefusal as exc:
        assert exc.answer
    else:
        assert asked.host


@given(st.text(alphabet="htp:/[]@?#.%a1\u00e9 ", max_size=20))
def test_any_target_is_one_or_a_refusal(target: str) -> None:
    for method in ("GET http://", "CONNECT "):
        try:
            read_head(head(f"{method}{target} HTTP/1.1", "Host: x"))
        except HttpRefusal as exc:
            assert exc.answer
