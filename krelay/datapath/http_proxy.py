"""HTTP proxying: the head of a client's request, and what of it goes on. Sans-I/O.

CONNECT (RFC 9110, section 9.3.6), and requests in absolute form (RFC 9112, section 3.2.2), which
go on in origin form. Bodies and answers pass as they are: one request a connection.
"""

from __future__ import annotations

import base64
import hmac
from dataclasses import dataclass
from urllib.parse import urlsplit

MAX_HEAD = 1 << 16
_END = b"\r\n\r\n"
# RFC 9110, section 7.6.1, but for Transfer-Encoding, which says how the body that passes is framed.
_HOP_BY_HOP = {
    b"connection",
    b"keep-alive",
    b"proxy-authorization",
    b"proxy-connection",
    b"te",
    b"upgrade",
}

_REASONS = {
    400: "Bad Request",
    407: "Proxy Authentication Required",
    431: "Request Header Fields Too Large",
    502: "Bad Gateway",
    503: "Service Unavailable",
    504: "Gateway Timeout",
}


@dataclass(frozen=True, slots=True)
class HttpAsked:
    """What a client asks for. `head` is what goes on to the host; empty for CONNECT."""

    host: str
    port: int
    head: bytes


class HttpRefusal(Exception):
    """The client cannot be served; `answer` is what it is told."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.answer = answer(status, message)


ESTABLISHED = b"HTTP/1.1 200 Connection established\r\n\r\n"


def answer(status: int, message: str) -> bytes:
    """An error, whole."""
    body = f"krelay: {message}\n".encode()
    lines = [
        f"HTTP/1.1 {status} {_REASONS[status]}",
        "Content-Type: text/plain; charset=utf-8",
        f"Content-Length: {len(body)}",
        "Connection: close",
        *(['Proxy-Authenticate: Basic realm="krelay"'] if status == 407 else []),
    ]
    return "\r\n".join(lines).encode() + _END + body


def cut_head(data: bytes) -> tuple[bytes, bytes] | None:
    """The head of a request and what is behind it, once it is whole.

    Raises:
        HttpRefusal: it is too long.
    """
    head, end, rest = data.partition(_END)
    if len(head) > MAX_HEAD:
        raise HttpRefusal(431, "the head of the request is longer than 64 KiB")
    return (head + end, rest) if end else None


def read_head(head: bytes, credentials: tuple[str, str] | None = None) -> HttpAsked:
    """What the head of a request asks for.

    Raises:
        HttpRefusal: it is none, or is not allowed.
    """
    import h11

    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD + 4)
    try:
        connection.receive_data(head)
        request = connection.next_event()
    except h11.RemoteProtocolError as exc:
        raise HttpRefusal(400, f"not HTTP: {exc}") from exc
    assert isinstance(request, h11.Request)
    if credentials is not None:
        _check(dict(request.headers).get(b"proxy-authorization", b""), credentials)
    target = request.target.decode("ascii", "replace")
    if request.method == b"CONNECT":
        host, port = _authority(f"//{target}", None)
        return HttpAsked(host, port, b"")
    if not target.lower().startswith("http://"):
        raise HttpRefusal(400, "a proxy is asked for http://HOST/PATH, or with CONNECT")
    host, port = _authority(target, 80)
    parts = urlsplit(target)
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    dropped = _HOP_BY_HOP | {b"host"}
    for name, value in request.headers:
        if name == b"connection":
            dropped |= {token.strip().lower() for token in value.split(b",")}
    lines = [
        b"%s %s HTTP/1.1" % (request.method, path.encode("ascii", "replace")),
        b"Host: " + parts.netloc.rpartition("@")[2].encode("ascii", "replace"),
        *(
            b"%s: %s" % pair
            for pair in request.headers.raw_items()
            if pair[0].lower() not in dropped
        ),
        b"Connection: close",
    ]
    return HttpAsked(host, port, b"\r\n".join(lines) + _END)


def _authority(url: str, default: int | None) -> tuple[str, int]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or default
    except ValueError as exc:
        raise HttpRefusal(400, f"no address: {exc}") from exc
    if not host or not port or len(host.encode()) > 255 or not host.isprintable():
        raise HttpRefusal(400, "no HOST:PORT in the request")
    return host, port


def _check(header: bytes, credentials: tuple[str, str]) -> None:
    kind, _, encoded = header.partition(b" ")
    try:
        given = base64.b64decode(encoded, validate=True) if kind.lower() == b"basic" else b""
    except ValueError:
        given = b""
    if not hmac.compare_digest(given, ":".join(credentials).encode()):
        raise HttpRefusal(407, "a user name and a password are needed")
