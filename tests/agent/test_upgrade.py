"""The request at the door: plain HTTP/1.1 for an upgrade to krelay, and nothing else."""

from __future__ import annotations

import h11
import pytest
from hypothesis import given
from hypothesis import strategies as st

from agent.upgrade import HEAD_LIMIT, SWITCHING, UpgradeError, UpgradeRequest, refusal

FIELDS = b"Host: 10.244.0.7:10250\r\nConnection: Upgrade\r\nUpgrade: krelay\r\n"
REQUEST = b"GET / HTTP/1.1\r\n" + FIELDS + b"\r\n"


def with_field(line: bytes) -> bytes:
    """The request with a line more."""
    return REQUEST[:-2] + line + b"\r\n\r\n"


def outcome(*pieces: bytes) -> tuple[int, str] | bytes:
    """What becomes of the pieces: the bytes after the head, or the refusal."""
    request = UpgradeRequest()
    for number, piece in enumerate(pieces):
        try:
            rest = request.receive_data(piece)
        except UpgradeError as exc:
            return exc.status, str(exc)
        if rest is not None:
            return rest + b"".join(pieces[number + 1 :])
    return b"incomplete"


GOOD = [
    REQUEST,
    b"GET / HTTP/1.1\r\nHost:\r\nCONNECTION:upgrade\r\nUPGRADE:KRelay\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: a\r\nconnection: keep-alive , \tUPGRADE\r\nupgrade: krelay\r\n\r\n",
    with_field(b"Connection: keep-alive\r\nUpgrade: websocket"),
    b"GET / HTTP/1.1\r\nHost: a\r\nConnection: Upgrade\r\nUpgrade: krelay, websocket\r\n\r\n",
    with_field(b'X-Forwarded-For: 10.99.0.1, \xe9\t"x"'),
    with_field(b"User-Agent: Go-http-client/1.1"),
    with_field(b"Content-Length: 0"),
    with_field(b"Empty:"),
]


@pytest.mark.parametrize("head", GOOD)
def test_a_request_for_krelay_is_accepted_however_it_is_split(head: bytes) -> None:
    assert outcome(head) == b""
    assert outcome(head + b"early\r\n\r\n") == b"early\r\n\r\n"
    assert outcome(*(bytes([byte]) for byte in head + b"early")) == b"early"


@pytest.mark.parametrize("head", GOOD)
def test_h11_accepts_what_is_accepted(head: bytes) -> None:
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(head)
    event = connection.next_event()
    assert isinstance(event, h11.Request)
    assert (event.method, event.target) == (b"GET", b"/")


MALFORMED = (400, "a malformed request line")
FIELD = (400, "a malformed header field")
NO_UPGRADE = (426, "only upgrades to krelay are served here")

BAD: list[tuple[bytes, tuple[int, str]]] = [
    (b"\r\n" + REQUEST, MALFORMED),
    (b"\0\0\x12abcde\x4b\r\n", MALFORMED),
    (b"GET  / HTTP/1.1\r\n", MALFORMED),
    (b"GET / HTTP/1.1 \r\n", MALFORMED),
    (b" GET / HTTP/1.1\r\n", MALFORMED),
    (b"GET /\r\n", MALFORMED),
    (b"GET / HTTP/2.0\r\n", MALFORMED),
    (b"PRI * HTTP/2.0\r\n", MALFORMED),
    (b"get / HTTP/1.1\r\n", MALFORMED),
    (b"GET /\0 HTTP/1.1\r\n", MALFORMED),
    (b"GET / HTTP/1.1\r\r\n", MALFORMED),
    (b"POST / HTTP/1.1\r\n", (400, "only GET is served here")),
    (b"CONNECT a:1 HTTP/1.1\r\n", (400, "only GET is served here")),
    (b"GET /x HTTP/1.1\r\n", (404, "only / is served here")),
    (b"GET /?x HTTP/1.1\r\n", (404, "only / is served here")),
    (b"GET http://10.244.0.7:10250/ HTTP/1.1\r\n", (404, "only / is served here")),
    (b"GET * HTTP/1.1\r\n", (404, "only / is served here")),
    (b"GET / HTTP/1.0\r\n", (426, "an upgrade needs HTTP/1.1")),
    (b"GET / HTTP/1.1\n", (400, "a line without CRLF")),
    (b"GET / HTTP/1.1\r\nHost: a\n", (400, "a line without CRLF")),
    (b"GET / HTTP/1.1\r\n" + FIELDS + b"\n", (400, "a line without CRLF")),
    (with_field(b" folded"), FIELD),
    (with_field(b"\tfolded"), FIELD),
    (with_field(b"X-A : 1"), FIELD),
    (with_field(b": 1"), FIELD),
    (with_field(b"no colon"), FIELD),
    (with_field(b"X-A: \0"), FIELD),
    (with_field(b"X-A: \x7f"), FIELD),
    (with_field(b"X-A: a\rb"), FIELD),
    (with_field(b"X-\xe9: a"), FIELD),
    (with_field(b"Content-Length: 1"), (400, "a request with a body")),
    (with_field(b"content-length: +0"), (400, "a request with a body")),
    (with_field(b"Transfer-Encoding: chunked"), (400, "a request with a body")),
    (with_field(b"TRANSFER-ENCODING:"), (400, "a request with a body")),
    (with_field(b"Host: b"), (400, "2 Host fields")),
    (REQUEST.replace(b"Host: 10.244.0.7:10250\r\n", b""), (400, "0 Host fields")),
    (REQUEST.replace(b"Upgrade: krelay\r\n", b""), NO_UPGRADE),
    (REQUEST.replace(b"Connection: Upgrade\r\n", b""), NO_UPGRADE),
    (REQUEST.replace(b": krelay", b": websocket"), NO_UPGRADE),
    (REQUEST.replace(b": krelay", b": krelay/2"), NO_UPGRADE),
    (REQUEST.replace(b": krelay", b": krelay websocket"), NO_UPGRADE),
    (REQUEST.replace(b": Upgrade", b": close"), NO_UPGRADE),
]


@pytest.mark.parametrize(("head", "refused"), BAD)
def test_any_other_request_is_refused_however_it_is_split(
    head: bytes, refused: tuple[int, str]
) -> None:
    assert outcome(head) == refused
    assert outcome(head + b"more" * 2_000) == refused
    assert outcome(*(bytes([byte]) for byte in head)) == refused


def test_a_line_is_refused_before_the_head_is_complete() -> None:
    assert outcome(b"SSH-2.0-OpenSSH_9.6\r\n") == MALFORMED


def test_a_head_has_a_limit() -> None:
    limit = (400, f"a head of more than {HEAD_LIMIT} bytes")
    padding = HEAD_LIMIT - len(with_field(b"X: "))
    assert outcome(with_field(b"X: " + b"a" * padding) + b"early") == b"early"
    assert outcome(with_field(b"X: " + b"a" * (padding + 1))) == limit
    assert outcome(b"G" * HEAD_LIMIT) == limit
    assert outcome(*[b"G"] * (HEAD_LIMIT - 1)) == b"incomplete"
    assert outcome(*[b"G"] * HEAD_LIMIT) == limit
    assert outcome(b"GET / HTTP/1.1\r\n" + b"a:\r\n" * HEAD_LIMIT) == limit


@given(st.binary(max_size=200), st.lists(st.integers(0, 400), max_size=4))
def test_the_split_of_any_bytes_changes_nothing(noise: bytes, cuts: list[int]) -> None:
    for data in (noise, REQUEST[: len(noise)] + noise, with_field(noise)):
        at = [0, *sorted(min(cut, len(data)) for cut in cuts), len(data)]
        pieces = [data[start:end] for start, end in zip(at, at[1:], strict=False)]
        assert outcome(*pieces) == outcome(data)


@pytest.mark.parametrize("status", [400, 404, 426, 503])
def test_a_refusal_is_a_whole_response(status: int) -> None:
    client = h11.Connection(h11.CLIENT)
    client.send(h11.Request(method="GET", target="/", headers=[("Host", "a")]))
    client.send(h11.EndOfMessage())
    client.receive_data(refusal(UpgradeError(status, "not here")))
    response = client.next_event()
    assert isinstance(response, h11.Response)
    assert response.status_code == status
    assert (b"connection", b"close") in list(response.headers)
    assert ((b"upgrade", b"krelay") in list(response.headers)) == (status == 426)
    body = client.next_event()
    assert isinstance(body, h11.Data)
    assert body.data == b"not here\n"
    assert isinstance(client.next_event(), h11.EndOfMessage)


def test_the_consent_switches_protocols() -> None:
    client = h11.Connection(h11.CLIENT)
    fields = [("Host", "a"), ("Connection", "Upgrade"), ("Upgrade", "krelay")]
    client.send(h11.Request(method="GET", target="/", headers=fields))
    client.send(h11.EndOfMessage())
    client.receive_data(SWITCHING + b"early")
    response = client.next_event()
    assert isinstance(response, h11.InformationalResponse)
    assert response.status_code == 101
    assert dict(response.headers)[b"upgrade"] == b"krelay"
    assert client.trailing_data == (b"early", False)
