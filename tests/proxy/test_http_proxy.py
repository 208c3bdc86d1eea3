"""Where a request to the HTTP proxy goes."""

from __future__ import annotations

import base64

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from krelay.model import Endpoint
from krelay.proxy.http_proxy import route
from krelay.proxy.http_relay import Hop, HttpRefusal, RequestHead

LOGIN = ("me", "secret")


def head(first: str | bytes, *headers: tuple[bytes, bytes]) -> RequestHead:
    method, _, target = (first.encode() if isinstance(first, str) else first).partition(b" ")
    return RequestHead(method, target, [(b"host", b"elsewhere"), *headers])


@pytest.mark.parametrize(
    ("target", "host", "port"),
    [("web.shop:443", "web.shop", 443), ("10.0.0.1:80", "10.0.0.1", 80), ("[::1]:22", "::1", 22)],
)
def test_connect_names_host_and_port(target: str, host: str, port: int) -> None:
    assert route(head(f"CONNECT {target}")).place == Endpoint(host, port)


@pytest.mark.parametrize(
    ("first", "place", "target", "host"),
    [
        ("GET http://web", Endpoint("web", 80), b"/", b"web"),
        ("GET HTTP://u:p@web/?x", Endpoint("web", 80), b"/?x", b"web"),
        ("GET http://a@b@web?x#y", Endpoint("web", 80), b"/?x", b"web"),
        ("GET http://[::1]:8080/x", Endpoint("::1", 8080), b"/x", b"[::1]:8080"),
        ("POST http://web.shop:8080/a/b?c=d#e", Endpoint("web.shop", 8080), b"/a/b?c=d", b""),
        ("GET ws://web:81/chat", Endpoint("web", 81), b"/chat", b"web:81"),
        ("GET http://web:/x", Endpoint("web", 80), b"/x", b"web:"),
        ("GET http://web//a//b", Endpoint("web", 80), b"//a//b", b"web"),
        ("GET http://web/é?ü", Endpoint("web", 80), "/é?ü".encode(), b"web"),
        (b"GET http://web/\xff", Endpoint("web", 80), b"/\xff", b"web"),
        ("GET http://bücher/", Endpoint("bücher", 80), b"/", "bücher".encode()),
        ("OPTIONS http://web", Endpoint("web", 80), b"*", b"web"),
        ("OPTIONS http://web/", Endpoint("web", 80), b"/", b"web"),
    ],
)
def test_absolute_form_goes_on_in_origin_form(
    first: str | bytes, place: Endpoint, target: bytes, host: bytes
) -> None:
    assert route(head(first)) == Hop(place, target, host or str(place).encode())


@pytest.mark.parametrize(
    "first",
    [
        "GET /path",
        "GET *",
        "GET https://web/",
        "GET wss://web/",
        "GET http:///x",
        "GET http://web:99999/",
        "GET http://web:0/",
        "GET http://web:000080/",
        "GET http://web:8a/",
        "GET http://a:b:80/",
        "GET http://[::1/",
        "GET http://[web]/",
        "GET http://::1/",
        "GET http://web\u00a0x/",
        b"GET http://\xff/",
        "CONNECT web",
        "CONNECT :80",
        "CONNECT http://web/",
        f"CONNECT {'x' * 256}:80",
    ],
)
def test_other_targets_are_refused(first: str | bytes) -> None:
    with pytest.raises(HttpRefusal) as caught:
        route(head(first))
    assert caught.value.status == 400


@pytest.mark.parametrize(
    "given_",
    [
        [],
        [b"Basic"],
        [b"Basic %%%"],
        [b"Bearer bWU6c2VjcmV0"],
        [b"Basic bWU6d3Jvbmc="],
        [b"Basic bWU6c2VjcmV0", b"Basic bWU6c2VjcmV0"],
    ],
)
def test_missing_or_wrong_credentials_are_refused(given_: list[bytes]) -> None:
    with pytest.raises(HttpRefusal) as caught:
        route(head("CONNECT web:80", *((b"proxy-authorization", v) for v in given_)), LOGIN)
    assert caught.value.status == 407


def test_right_credentials_are_accepted() -> None:
    token = b"basic " + base64.b64encode(b"me:secret")
    asked = head("CONNECT web:80", (b"proxy-authorization", token))
    assert route(asked, LOGIN).place == Endpoint("web", 80)


@given(st.binary(max_size=40))
@example(b"http://\xff/")
def test_any_target_has_a_place_or_is_refused(target: bytes) -> None:
    for method in (b"GET http://", b"CONNECT "):
        try:
            hop = route(head(method + target))
        except HttpRefusal as exc:
            assert exc.status == 400
        else:
            assert 0 < hop.place.port < 65_536
            assert 0 < len(hop.place.host.encode()) <= 255
