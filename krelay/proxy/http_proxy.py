"""HTTP proxying: the routing function of a proxy. Sans-I/O; `http_relay` does the rest.

CONNECT (RFC 9110, section 9.3.6), and requests in absolute form (RFC 9112, section 3.2.2), which
go on in origin form.
"""

from __future__ import annotations

import base64
import hmac
import ipaddress
import re

from krelay.model import Endpoint
from krelay.proxy.http_relay import Hop, HttpRefusal, RequestHead

# curl sends `ws` since version 8; it is HTTP until it switches.
_ABSOLUTE = re.compile(rb"(?:http|ws)://([^/?#]*)([^?#]*)(\?[^#]*)?", re.IGNORECASE)
_AUTHORITY = re.compile(r"(\[[^\[\]]*\]|[^:\[\]]*)(?::([0-9]*))?")
_MAX_HOST = 255


def route(head: RequestHead, credentials: tuple[str, str] | None = None) -> Hop[Endpoint]:
    """Return where a request goes, with which request target and Host header.

    Raises:
        HttpRefusal: the request is not one to a proxy, or lacks the credentials.
    """
    if credentials is not None:
        _authenticate(head.values(b"proxy-authorization"), credentials)
    if head.method == b"CONNECT":
        return Hop(_endpoint(head.target, None), b"", head.target)
    found = _ABSOLUTE.match(head.target)
    if found is None:
        raise HttpRefusal(400, "a proxy accepts http://HOST/PATH URLs and CONNECT")
    authority, path, query = (part or b"" for part in found.groups())
    # A target's user name and password are dropped (RFC 9110, section 4.2.4).
    host = authority.rpartition(b"@")[2]
    if not path and not query and head.method == b"OPTIONS":
        path = b"*"
    return Hop(_endpoint(host, 80), (path or b"/") + query, host)


def _endpoint(authority: bytes, default: int | None) -> Endpoint:
    try:
        text = authority.decode()
    except UnicodeDecodeError as exc:
        raise HttpRefusal(400, "the host is not UTF-8") from exc
    found = _AUTHORITY.fullmatch(text)
    if found is None:
        raise HttpRefusal(400, "no HOST:PORT in the request")
    host, digits = found.groups()
    if host.startswith("["):
        host = host[1:-1]
        try:
            ipaddress.IPv6Address(host)
        except ValueError as exc:
            raise HttpRefusal(400, f"no address: {exc}") from exc
    port = int(digits) if digits and len(digits) <= 5 else default if not digits else None
    if not host or not port or port > 0xFFFF or len(host.encode()) > _MAX_HOST:
        raise HttpRefusal(400, "no HOST:PORT in the request")
    if not host.isprintable():
        raise HttpRefusal(400, "the host is not printable")
    return Endpoint(host, port)


def _authenticate(given: list[bytes], credentials: tuple[str, str]) -> None:
    kind, _, encoded = (given[0] if len(given) == 1 else b"").partition(b" ")
    try:
        login = base64.b64decode(encoded, validate=True) if kind.lower() == b"basic" else b""
    except ValueError:
        login = b""
    if not hmac.compare_digest(login, ":".join(credentials).encode()):
        raise HttpRefusal(407, "a user name and a password are required")
