"""The HTTP relay without sockets: what reaches which target, and what the client gets."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krelay.model import Endpoint
from krelay.proxy import http_relay as module
from krelay.proxy.http_proxy import route
from krelay.proxy.http_relay import (
    ESTABLISHED,
    MAX_HEAD,
    MAX_HEADERS,
    MAX_PIPELINED,
    Action,
    CloseTarget,
    CutClient,
    EndClient,
    EndTarget,
    HttpRelay,
    Open,
    Splice,
    ToClient,
    ToTarget,
    answer,
)

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi"


class Talk:
    """A relay, and what it did: `hosts` in their order, what each got, what the client got."""

    def __init__(self, *, credentials: tuple[str, str] | None = None) -> None:
        self.relay: HttpRelay[Endpoint] = HttpRelay(lambda head: route(head, credentials))
        self.hosts: list[str] = []
        self.got: list[bytes] = []
        self.client = b""
        self.events: list[Action[Endpoint]] = []
        """All other actions."""

    def do(self) -> Talk:
        while self.relay.more and not self.relay.switched:
            self.relay.go_on()
        for action in self.relay.actions():
            match action:
                case Open(place):
                    self.hosts.append(str(place))
                    self.got.append(b"")
                case ToTarget(data):
                    self.got[-1] += data
                case ToClient(data):
                    self.client += data
                case _:
                    self.events.append(action)
        return self

    def asks(self, *parts: bytes) -> Talk:
        for part in parts:
            self.relay.receive_from_client(part)
        return self.do()

    def answers(self, *parts: bytes) -> Talk:
        for part in parts:
            self.relay.receive_from_target(part)
        return self.do()

    def ends(self) -> Talk:
        self.relay.target_sent_end()
        return self.do()

    def took(self) -> bytes:
        """What the client got since the last call."""
        taken, self.client = self.client, b""
        return taken


def get(host: str, *headers: str, first: str = "GET http://{}/") -> bytes:
    lines = [first.format(host) + " HTTP/1.1", f"Host: {host}", *headers]
    return "\r\n".join(lines).encode() + b"\r\n\r\n"


def post(host: str, *headers: str) -> bytes:
    return get(host, *headers, first="POST http://{}/")


# -- routing -----------------------------------------------------------------------------------


def test_each_request_of_a_connection_is_routed_by_itself() -> None:
    talk = Talk()
    for host in ("a", "b:81", "a"):
        talk.asks(get(host, f"Cookie: {host}")).answers(OK)
        assert talk.took().endswith(b"hi")
    assert talk.hosts == ["a:80", "b:81", "a:80"]
    for host, got in zip(("a", "b:81", "a"), talk.got, strict=True):
        assert (
            got
            == (
                f"GET / HTTP/1.1\r\nHost: {host}\r\nCookie: {host}\r\nVia: 1.1 krelay\r\n"
                "Connection: close\r\n\r\n"
            ).encode()
        )
    assert talk.events == [CloseTarget(clean=True)] * 3


def test_what_a_target_sends_behind_its_response_goes_nowhere() -> None:
    talk = Talk().asks(get("a")).answers(OK + OK)
    assert talk.took().count(b"HTTP/1.1") == 1
    talk.asks(get("b"))
    assert talk.took() == b""


def test_pipelined_requests_are_answered_in_order() -> None:
    talk = Talk().asks(get("a") + post("b", "Content-Length: 3") + b"abc" + get("c"))
    assert talk.hosts == ["a:80"]
    for n in range(3):
        talk.answers(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\n%d" % n)
    assert talk.hosts == ["a:80", "b:80", "c:80"]
    assert talk.got[1].endswith(b"\r\n\r\nabc")
    assert [part[-1:] for part in talk.took().split(b"HTTP/1.1 ")[1:]] == [b"0", b"1", b"2"]


def test_pipelined_requests_are_kept_up_to_a_bound() -> None:
    talk = Talk().asks(get("a"))
    assert talk.relay.wants_client
    talk.asks(bytes(MAX_PIPELINED))
    assert not talk.relay.wants_client


def test_a_client_that_takes_nothing_begins_no_further_request() -> None:
    talk = Talk().asks(get("a") + get("b"))
    talk.relay.blocked = True
    talk.answers(OK)
    assert talk.hosts == ["a:80"]
    assert talk.relay.wants_client
    talk.asks(bytes(MAX_PIPELINED))
    assert not talk.relay.wants_client
    talk.relay.blocked = False
    talk.relay.go_on()
    assert talk.do().hosts == ["a:80", "b:80"]


def test_the_host_is_the_target_s_and_hop_by_hop_headers_end_here() -> None:
    talk = Talk(credentials=("me", "secret")).asks(
        get(
            "web.shop:8080",
            "X-Mine: 1",
            "Connection: keep-alive, X-Hop, Host, Content-Length",
            "X-Hop: 1",
            "Keep-Alive: timeout=5",
            "Proxy-Connection: keep-alive",
            "Proxy-Authorization: Basic bWU6c2VjcmV0",
            "Proxy-Anything: 1",
            "TE: trailers",
            "Upgrade: websocket",
            "Via: 1.0 other",
            "Content-Length: 2",
            first="POST http://{}/a?b",
        ).replace(b"Host: web.shop:8080", b"Host: elsewhere")
        + b"hi"
    )
    (got,) = talk.got
    assert got == (
        b"POST /a?b HTTP/1.1\r\nHost: web.shop:8080\r\nX-Mine: 1\r\nVia: 1.0 other\r\n"
        b"Content-Length: 2\r\nVia: 1.1 krelay\r\nConnection: close\r\n\r\nhi"
    )
    talk.answers(
        b"HTTP/1.1 200 Fine\r\nConnection: close, x-hop\r\nX-Hop: 1\r\nKeep-Alive: timeout=5\r\n"
        b"Proxy-Authenticate: Basic\r\nUpgrade: h2c\r\nX-Mine: 2\r\nContent-Length: 0\r\n\r\n"
    )
    assert talk.took() == (
        b"HTTP/1.1 200 Fine\r\nX-Mine: 2\r\nContent-Length: 0\r\nVia: 1.1 krelay\r\n\r\n"
    )
    assert talk.relay.idle


def test_bytes_of_a_target_pass_as_they_are() -> None:
    for target in ("/é/ü?ñ".encode(), b"/\xff\xfe%C3~", b"//a/../b"):
        talk = Talk().asks(b"GET http://a%s HTTP/1.1\r\nHost: a\r\n\r\n" % target)
        assert talk.got[0].startswith(b"GET %s HTTP/1.1\r\n" % target)


# -- bodies ------------------------------------------------------------------------------------


def test_a_body_is_chunked_again_with_its_trailers() -> None:
    talk = Talk().asks(
        post("a", "Transfer-Encoding: Chunked", "Trailer: X-Sum"),
        *(b"3;ext=1\r\nabc\r\n", b"2\r\nde\r\n0\r\nX-Sum: 5\r\nContent-Length: 9\r\n"),
        b"Proxy-X: 1\r\n\r\n" + get("b"),
    )
    assert talk.got[0].endswith(b"\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\nX-Sum: 5\r\n\r\n")
    assert b"Trailer: X-Sum\r\n" in talk.got[0]
    talk.answers(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\nX-Sum: 1\r\n\r\n"
    )
    assert talk.took().endswith(b"\r\n\r\n1\r\nx\r\n0\r\nX-Sum: 1\r\n\r\n")
    assert talk.hosts == ["a:80", "b:80"]


def test_bytes_of_a_body_are_no_request() -> None:
    inner = get("evil")
    talk = Talk().asks(post("a", f"Content-Length: {len(inner)}") + inner + get("b"))
    assert talk.got[0].endswith(inner)
    talk.answers(OK)
    assert talk.hosts == ["a:80", "b:80"]


def test_tiny_chunks_are_handled_in_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "EVENTS_A_TURN", 10)
    talk = Talk()
    talk.relay.receive_from_client(post("a", "Transfer-Encoding: chunked") + b"1\r\nx\r\n" * 100)
    assert talk.relay.more
    talk.do()
    assert talk.got[0].count(b"x") == 100
    talk.relay.receive_from_client(b"0\r\n\r\n")
    talk.do()
    talk.relay.receive_from_target(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        + b"1\r\nz\r\n" * 100
        + b"0\r\n\r\n"
    )
    assert talk.relay.more
    assert talk.do().took().count(b"z") == 100
    assert talk.relay.idle


@pytest.mark.parametrize(
    ("first", "response", "passed"),
    [
        ("HEAD", b"HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\n", b"Content-Length: 7\r\n"),
        ("GET", b"HTTP/1.1 204 No\r\nContent-Length: 7\r\n\r\n", b""),
        ("GET", b"HTTP/1.1 204 No\r\nTransfer-Encoding: chunked\r\n\r\n", b""),
        ("GET", b"HTTP/1.1 304 Not\r\nContent-Length: 7\r\n\r\n", b"Content-Length: 7\r\n"),
        ("GET", b"HTTP/1.1 304 Not\r\nTransfer-Encoding: chunked\r\n\r\n", b""),
    ],
)
def test_a_response_without_a_body_has_none(first: str, response: bytes, passed: bytes) -> None:
    talk = Talk().asks(get("a", first=first + " http://{}/") + get("b")).answers(response)
    took = talk.took()
    assert took.endswith(b"\r\n" + passed + b"Via: 1.1 krelay\r\n\r\n")
    assert b"chunked" not in took
    assert talk.hosts == ["a:80", "b:80"]


def test_a_response_that_ends_with_its_connection_is_chunked() -> None:
    talk = Talk().asks(get("a")).answers(b"HTTP/1.0 200 OK\r\n\r\nabc", b"de")
    assert not talk.relay.idle
    talk.ends()
    assert talk.took() == (
        b"HTTP/1.1 200 OK\r\nVia: 1.0 krelay\r\nTransfer-Encoding: chunked\r\n\r\n"
        b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"
    )
    assert talk.relay.idle


def test_a_response_that_is_cut_short_is_no_whole_one() -> None:
    for head in (b"Content-Length: 9", b"Transfer-Encoding: chunked"):
        talk = Talk().asks(get("a")).answers(b"HTTP/1.1 200 OK\r\n%s\r\n\r\n1\r\nx" % head).ends()
        assert talk.events == [CloseTarget(clean=False), CutClient()]
    for response in (
        b"HTTP/1.0 200 OK\r\n\r\nabc",
        b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n",
    ):
        talk = Talk().asks(get("a")).answers(response)
        talk.relay.target_lost()
        assert talk.do().events == [CloseTarget(clean=False), CutClient()]


# -- versions ----------------------------------------------------------------------------------


def test_an_http_1_0_client_gets_what_it_understands() -> None:
    talk = Talk().asks(b"GET http://a/ HTTP/1.0\r\nExpect: 100-continue\r\nUpgrade: x\r\n\r\n")
    assert talk.got[0].startswith(b"GET / HTTP/1.1\r\nHost: a\r\nVia: 1.0 krelay\r\n")
    assert b"Expect" not in talk.got[0]
    talk.answers(b"HTTP/1.1 103 Early\r\nLink: x\r\n\r\n")
    assert talk.took() == b""
    talk.answers(
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nTrailer: X\r\n\r\n"
        b"1\r\nx\r\n0\r\nX: 1\r\n\r\n"
    )
    took = talk.took()
    assert took.endswith(b"\r\n\r\nx")
    assert b"chunked" not in took
    assert b"Connection: close" in took.replace(b"connection", b"Connection")
    assert talk.events == [CloseTarget(clean=True), EndClient()]


@pytest.mark.parametrize("version", ["HTTP/2.0", "HTTP/0.9"])
def test_another_major_version_is_refused(version: str) -> None:
    talk = Talk().asks(get("a").replace(b"HTTP/1.1", version.encode()))
    assert talk.took().startswith(b"HTTP/1.1 505 ")
    assert talk.hosts == []


# -- ambiguous messages -------------------------------------------------------------------------

AMBIGUOUS = [
    ("Content-Length: 3", "Transfer-Encoding: chunked"),
    ("Transfer-Encoding: chunked", "Content-Length: 0"),
    ("Content-Length: 3", "Content-Length: 4"),
    ("Content-Length: 3", "Content-Length: 3"),
    ("Content-Length: 3, 3",),
    ("Content-Length: 3, 4",),
    ("content-length: +3",),
    ("Content-Length: -1",),
    ("Content-Length: 0x3",),
    ("Content-Length : 3",),
    ("Content-Length: 3\r\n , 3",),
    ("X: 1\r\n folded",),
    ("Transfer-Encoding: chunked", "Transfer-Encoding: chunked"),
    ("Transfer-Encoding: gzip, chunked",),
    ("Transfer-Encoding: chunked, identity",),
    ("Transfer-Encoding: identity",),
    ("Transfer-Encoding: \x0bchunked",),
    ("X: a\x00b",),
    ("X: a\rb",),
]


@pytest.mark.parametrize("headers", AMBIGUOUS)
def test_an_ambiguous_request_is_refused(headers: tuple[str, ...]) -> None:
    talk = Talk().asks(post("a", *headers) + b"abc" + get("b"))
    assert talk.took().startswith((b"HTTP/1.1 400 ", b"HTTP/1.1 501 "))
    assert talk.hosts == []
    assert talk.events == [EndClient()]
    assert talk.asks(get("b")).hosts == []


@pytest.mark.parametrize("headers", AMBIGUOUS)
def test_an_ambiguous_response_is_a_502(headers: tuple[str, ...]) -> None:
    head = "\r\n".join(("HTTP/1.1 200 OK", *headers)).encode()
    talk = Talk().asks(get("a")).answers(head + b"\r\n\r\nabc")
    assert talk.took().startswith(b"HTTP/1.1 502 ")
    assert talk.events == [CloseTarget(clean=False)]
    assert talk.asks(get("b")).hosts == ["a:80", "b:80"]


@pytest.mark.parametrize("coding", ["chunked", "identity", "gzip, chunked"])
def test_a_coding_in_an_http_1_0_response_is_a_502(coding: str) -> None:
    """RFC 9112, section 6.1: its framing is faulty."""
    head = f"HTTP/1.0 200 OK\r\nTransfer-Encoding: {coding}\r\n\r\n".encode()
    talk = Talk().asks(get("a")).answers(head + b"2\r\nhi\r\n0\r\n\r\n")
    assert talk.took().startswith(b"HTTP/1.1 502 ")
    assert talk.events == [CloseTarget(clean=False)]


@pytest.mark.parametrize(
    "request_",
    [
        b"POST http://a/ HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc",
        b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        b"GET http://a/ HTTP/1.1\r\n\r\n",
        b"GET http://a/ HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        b"GET  http://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET http://a/ x HTTP/1.1\r\nHost: a\r\n\r\n",
        b"GET http://a/\x01 HTTP/1.1\r\nHost: a\r\n\r\n",
        b"G\xc3T http://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
        b"\x16\x03\x01\x02\x00\x01",
        b"\r\n\r\n\r\n",
        b"nonsense\r\n\r\n",
    ],
)
def test_other_faults_are_refused(request_: bytes) -> None:
    talk = Talk().asks(request_)
    assert talk.took().startswith(b"HTTP/1.1 400 ")
    assert talk.hosts == []
    assert talk.events == [EndClient()]


def test_a_bad_chunk_ends_both_sides() -> None:
    talk = Talk().asks(post("a", "Transfer-Encoding: chunked") + b"1\r\nxx\r\n")
    assert talk.took().startswith(b"HTTP/1.1 400 ")
    assert talk.events == [CloseTarget(clean=False), EndClient()]
    talk = Talk().asks(get("a"))
    talk.answers(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nxx\r\n")
    assert talk.events == [CloseTarget(clean=False), CutClient()]


def test_heads_are_bounded() -> None:
    long = b"GET http://a/ HTTP/1.1\r\nHost: a\r\nX: " + b"x" * MAX_HEAD
    many = get("a", *["X: y"] * (MAX_HEADERS + 1))
    for request in (long, long + b"\r\n\r\n", many):
        assert Talk().asks(request).took().startswith(b"HTTP/1.1 431 ")
    for head in (b"HTTP/1.1 200 OK\r\nX: " + b"x" * MAX_HEAD, b"HTTP/1.1 200 OK\r\n" + many):
        talk = Talk().asks(get("a")).answers(head)
        assert talk.took().startswith(b"HTTP/1.1 502 ")
    talk = Talk().asks(post("a", "Transfer-Encoding: chunked") + b"1;" + b"x" * 2 * MAX_HEAD)
    assert talk.took().startswith(b"HTTP/1.1 431 ")
    trailers = b"X: y\r\n" * (MAX_HEADERS + 1)
    talk = Talk().asks(post("a", "Transfer-Encoding: chunked") + b"0\r\n" + trailers + b"\r\n")
    assert talk.took().startswith(b"HTTP/1.1 431 ")


def test_a_head_may_come_in_any_pieces() -> None:
    request = b"\r\n" + post("a", "Content-Length: 2") + b"hi"
    talk = Talk().asks(*(request[n : n + 1] for n in range(len(request))))
    whole = Talk().asks(request)
    assert talk.got == whole.got


# -- informational responses -------------------------------------------------------------------


def test_100_continue_passes_both_ways() -> None:
    talk = Talk().asks(post("a", "Expect: 100-continue", "Content-Length: 2"))
    assert b"Expect: 100-continue\r\n" in talk.got[0]
    talk.answers(b"HTTP/1.1 100 Continue\r\nX: 1\r\n\r\n")
    assert talk.took() == b"HTTP/1.1 100 Continue\r\nX: 1\r\n\r\n"
    talk.asks(b"hi").answers(b"HTTP/1.1 103 Early Hints\r\n\r\n" + OK)
    took = talk.took()
    assert took.startswith(b"HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\n")
    assert b"close" not in took
    assert talk.relay.idle


def test_a_final_response_before_the_body_ends_the_connection() -> None:
    talk = Talk().asks(post("a", "Expect: 100-continue", "Content-Length: 2"))
    talk.answers(b"HTTP/1.1 413 Too Large\r\nContent-Length: 0\r\n\r\n")
    assert b"Connection: close\r\n" in talk.took()
    assert talk.events == [EndClient()]
    # It may have decided to read the body nevertheless.
    talk.asks(b"hi" + get("b"))
    assert talk.got[0].endswith(b"hi")
    assert talk.hosts == ["a:80"]
    assert talk.events == [EndClient(), CloseTarget(clean=True)]
    assert talk.relay.discarding


@pytest.mark.parametrize("how", ["target_sent_end", "target_lost"])
def test_an_early_response_s_target_may_leave(how: str) -> None:
    talk = Talk().asks(post("a", "Content-Length: 9") + b"x").answers(OK)
    getattr(talk.relay, how)()
    assert talk.do().events == [EndClient(), CloseTarget(clean=False)]
    assert talk.relay.discarding
    assert talk.took().endswith(b"hi")


def test_a_target_that_ends_with_an_early_response_is_closed() -> None:
    talk = Talk().asks(post("a", "Content-Length: 9") + b"x")
    talk.answers(b"HTTP/1.1 400 Bad\r\n\r\nno")
    talk.ends()
    assert talk.took().endswith(b"2\r\nno\r\n0\r\n\r\n")
    assert talk.events == [EndClient(), CloseTarget(clean=False)]


@pytest.mark.parametrize(
    ("response", "ends"),
    [(OK, EndClient()), (OK[:-1], CutClient())],
    ids=["whole", "begun"],
)
def test_a_bad_chunk_behind_an_early_response_ends_both_sides(
    response: bytes, ends: Action[Endpoint]
) -> None:
    talk = Talk().asks(post("a", "Transfer-Encoding: chunked")).answers(response)
    talk.asks(b"1\r\nxx\r\n")
    assert b" 400 " not in talk.took()
    assert sorted(map(repr, talk.events)) == sorted(map(repr, [CloseTarget(clean=False), ends]))


def test_a_client_that_ends_behind_its_body_ends_the_target_s_direction() -> None:
    talk = Talk().asks(post("a", "Content-Length: 2"))
    talk.relay.receive_from_client(b"h")
    talk.relay.client_ended = True
    talk.asks(b"i")
    assert talk.events == [EndTarget()]


def test_part_of_a_head_is_told_from_an_idle_connection() -> None:
    talk = Talk()
    assert not talk.relay.in_head
    talk.asks(b"GET http://a/ HT")
    assert talk.relay.in_head


def test_empty_reads_in_a_body_change_nothing() -> None:
    talk = Talk().asks(post("a", "Content-Length: 2"), b"", b"hi", b"")
    assert talk.got[0].endswith(b"hi")
    talk.answers(OK[:-1], b"", OK[-1:])
    assert talk.took().endswith(b"hi")


def test_events_of_a_target_outside_an_exchange_are_ignored() -> None:
    talk = Talk()
    talk.relay.target_accepted()
    talk.relay.target_refused(502, "late")
    talk.relay.target_lost()
    talk.relay.target_sent_end()
    assert talk.do().events == []
    assert talk.client == b""


# -- upgrades and tunnels ----------------------------------------------------------------------

WEBSOCKET = ("Connection: keep-alive, Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: x")


def test_an_upgrade_is_a_splice_after_101() -> None:
    talk = Talk().asks(get("a", *WEBSOCKET, first="GET ws://{}/chat") + b"early")
    assert talk.got[0] == (
        b"GET /chat HTTP/1.1\r\nHost: a\r\nSec-WebSocket-Key: x\r\nVia: 1.1 krelay\r\n"
        b"Connection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    )
    talk.answers(
        b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nX: 1\r\n\r\nfirst"
    )
    assert talk.took() == (
        b"HTTP/1.1 101 Switching\r\nX: 1\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"
    )
    assert talk.events == [Splice(b"early", b"first")]


def test_a_refused_upgrade_ends_the_connection() -> None:
    """What follows it may be meant for the other protocol."""
    talk = Talk().asks(get("a", *WEBSOCKET) + get("b", "Cookie: mine"))
    talk.answers(b"HTTP/1.1 426 Upgrade Required\r\nUpgrade: foo\r\nContent-Length: 0\r\n\r\n")
    assert talk.took().endswith(
        b"Via: 1.1 krelay\r\nUpgrade: foo\r\nConnection: Upgrade, close\r\n\r\n"
    )
    assert talk.asks(get("b")).hosts == ["a:80"]
    assert b"Cookie" not in talk.got[0]
    assert talk.events == [CloseTarget(clean=True), EndClient()]


def test_an_upgrade_whose_target_is_not_reached_ends_the_connection() -> None:
    talk = Talk().asks(get("a", *WEBSOCKET) + get("b"))
    talk.relay.target_refused(502, "connection refused")
    assert b"Connection: close\r\n" in talk.do().took()
    assert talk.hosts == ["a:80"]


@pytest.mark.parametrize(
    "headers",
    [
        (),
        ("Upgrade: websocket",),
        ("Connection: Upgrade",),
        ("Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: x"),
    ],
)
def test_a_101_that_was_not_asked_for_is_a_502(headers: tuple[str, ...]) -> None:
    talk = Talk().asks(get("a", *headers))
    assert b"Upgrade" not in talk.got[0]
    talk.answers(b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\n\r\n")
    assert talk.took().startswith(b"HTTP/1.1 502 ")
    assert not talk.relay.switched


def test_a_101_before_the_request_is_whole_is_a_502() -> None:
    talk = Talk().asks(post("a", *WEBSOCKET, "Content-Length: 2"))
    talk.answers(b"HTTP/1.1 101 Switching\r\nUpgrade: websocket\r\n\r\n")
    assert talk.took().startswith(b"HTTP/1.1 502 ")


def test_connect_is_a_splice_once_the_target_is_reached() -> None:
    talk = Talk().asks(b"CONNECT db:5432 HTTP/1.1\r\nHost: x\r\n\r\nearly")
    assert (talk.hosts, talk.got, talk.client) == (["db:5432"], [b""], b"")
    talk.asks(b" and more")
    talk.relay.target_accepted()
    assert talk.do().took() == ESTABLISHED
    assert talk.events == [Splice(b"early and more", b"")]


def test_a_refused_connect_ends_the_connection() -> None:
    """What follows it is meant for the tunnel, and is no request."""
    talk = Talk().asks(b"CONNECT db:5432 HTTP/1.1\r\nHost: x\r\n\r\n" + get("a"))
    talk.relay.target_refused(504, "no answer")
    took = talk.do().took()
    assert took.startswith(b"HTTP/1.1 504 ")
    assert took.count(b"HTTP/1.1 ") == 1
    assert b"Connection: close\r\n" in took
    assert talk.events == [EndClient()]
    assert talk.asks(get("a")).hosts == ["db:5432"]


@pytest.mark.parametrize("how", ["nowhere", "without the password", "target lost", "no such way"])
def test_bytes_behind_a_refused_connect_are_no_request(how: str) -> None:
    login = "" if how == "without the password" else "Proxy-Authorization: Basic bWU6cHc=\r\n"
    coding = "Transfer-Encoding: identity\r\n" if how == "no such way" else ""
    target = "nowhere" if how == "nowhere" else "db:5432"
    connect = f"CONNECT {target} HTTP/1.1\r\nHost: x\r\n{login}{coding}\r\n".encode()
    follows = get("a", "Proxy-Authorization: Basic bWU6cHc=")
    talk = Talk(credentials=("me", "pw")).asks(connect + follows)
    if how == "target lost":
        talk.relay.target_lost()
        talk.do()
    talk.asks(follows)
    took = talk.took()
    assert took.startswith((b"HTTP/1.1 400", b"HTTP/1.1 407", b"HTTP/1.1 501", b"HTTP/1.1 502"))
    assert took.count(b"HTTP/1.1 ") == 1
    assert b"Connection: close\r\n" in took
    assert "a:80" not in talk.hosts


# -- refusals ----------------------------------------------------------------------------------


def test_a_refusal_keeps_the_connection_of_a_request_without_a_body() -> None:
    talk = Talk(credentials=("me", "secret")).asks(get("a"))
    took = talk.took()
    assert took.startswith(b"HTTP/1.1 407 ")
    assert b'\r\nProxy-Authenticate: Basic realm="krelay"\r\n' in took
    assert b"close" not in took
    talk.asks(get("a", "Proxy-Authorization: Basic bWU6c2VjcmV0"))
    assert talk.hosts == ["a:80"]
    talk.relay.target_refused(502, "connection refused")
    assert talk.do().took().startswith(b"HTTP/1.1 502 ")
    assert talk.relay.idle


@pytest.mark.parametrize("body", [b"", b"x", b"x" * 9])
def test_a_refusal_ends_the_connection_of_a_request_with_a_body(body: bytes) -> None:
    talk = Talk().asks(post("a", "Content-Length: 9") + body)
    talk.relay.target_refused(502, "connection refused")
    talk.do()
    assert b"Connection: close\r\n" in talk.took()
    assert talk.events == [EndClient()]
    assert talk.asks(get("b")).hosts == ["a:80"]


def test_pipelined_refusals_are_one_a_turn() -> None:
    """Each costs far more than a part of a body, and waits for nothing."""
    relay = HttpRelay(route)
    relay.receive_from_client(b"GET x HTTP/1.1\r\nHost: a\r\n\r\n" * 5 + get("a"))
    for _ in range(5):
        (action,) = relay.actions()
        assert isinstance(action, ToClient)
        assert action.data.count(b"HTTP/1.1 400 ") == 1
        assert relay.more
        relay.go_on()
    assert isinstance(relay.actions()[0], Open)
    assert not relay.more


def test_a_refusal_of_a_head_request_has_no_body() -> None:
    talk = Talk().asks(get("a", first="HEAD http://{}/"))
    talk.relay.target_refused(502, "connection refused")
    assert talk.do().took().endswith(b"\r\n\r\n")


def test_a_target_that_says_nothing_is_a_502() -> None:
    for how in ("target_sent_end", "target_lost"):
        talk = Talk().asks(get("a"))
        getattr(talk.relay, how)()
        assert talk.do().took().startswith(b"HTTP/1.1 502 ")
        assert talk.relay.idle


def test_an_answer_is_whole_and_of_printable_text() -> None:
    top, body = answer(502, "web:80: \x1b[31mconnection\nrefused").split(b"\r\n\r\n")
    assert body == b"krelay: web:80: ?[31mconnection?refused\n"
    assert f"Content-Length: {len(body)}".encode() in top


# -- ends --------------------------------------------------------------------------------------


def test_a_client_that_ends_gets_what_it_asked_for() -> None:
    talk = Talk().asks(get("a") + get("b"))
    talk.relay.client_sent_end()
    talk.do().answers(OK).answers(OK)
    assert talk.hosts == ["a:80", "b:80"]
    assert talk.took().count(b"hi") == 2
    assert talk.events == [
        *(EndTarget(), CloseTarget(clean=True), EndTarget(), CloseTarget(clean=True)),
        EndClient(),
    ]


@pytest.mark.parametrize("request_", [b"GET htt", post("a", "Content-Length: 9") + b"abc"])
def test_a_client_that_ends_within_a_request_is_refused(request_: bytes) -> None:
    talk = Talk().asks(request_)
    talk.relay.client_sent_end()
    assert talk.do().took().startswith(b"HTTP/1.1 400 ")
    assert talk.events[-1] == EndClient()
    assert EndTarget() not in talk.events


def test_close_is_kept_by_both_sides() -> None:
    talk = Talk().asks(get("a", "Connection: close") + get("b")).answers(OK)
    assert b"Connection: close\r\n" in talk.took()
    assert talk.events == [CloseTarget(clean=True), EndClient()]
    assert talk.hosts == ["a:80"]


@pytest.mark.parametrize("when", ["idle", "before", "within"])
def test_finish_serves_the_current_request_only(when: str) -> None:
    talk = Talk()
    if when != "idle":
        talk.asks(get("a") + get("b"))
    if when == "within":
        talk.answers(OK[:-1])
    talk.relay.finish()
    if when == "idle":
        assert talk.do().events == [EndClient()]
        return
    talk.answers(OK[-1:] if when == "within" else OK)
    assert talk.took().endswith(b"hi")
    assert talk.events == [CloseTarget(clean=True), EndClient()]
    assert talk.hosts == ["a:80"]


# -- any bytes ---------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=60), max_size=8), st.lists(st.binary(max_size=60), max_size=8))
def test_any_bytes_do_no_harm(requests: list[bytes], responses: list[bytes]) -> None:
    talk = Talk().asks(*requests, get("a"))
    talk.answers(*responses).ends()
    talk.relay.client_sent_end()
    talk.do()
    if talk.hosts:
        assert talk.relay.ending or not talk.relay.idle
