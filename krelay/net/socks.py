"""SOCKS5: what to say to such a proxy, sans-I/O; for whoever opens a connection to a cluster.

RFC 1928 (CONNECT only) and RFC 1929 (a user's name and password). The proxy resolves names.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Generator
from urllib.parse import unquote, urlsplit

_REPLIES = {
    1: "general failure",
    2: "not allowed by its rules",
    3: "network unreachable",
    4: "host unreachable",
    5: "connection refused",
    6: "time to live expired",
    7: "command not supported",
    8: "address type not supported",
}
_LENGTHS = {1: 4, 4: 16}
_NOTHING, _PASSWORD = 0, 2


class SocksError(Exception):
    """The proxy refuses, or speaks another protocol."""


def handshake(proxy: str, host: str, port: int) -> Generator[tuple[bytes, int], bytes, None]:
    """Asks `proxy` (its URL) for a connection to `host` and `port`; ends when it stands.

    Yields what to send and how many bytes to read then; is sent exactly these bytes.

    Raises:
        SocksError: no connection.
    """
    parts = urlsplit(proxy)
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    offers = bytes([_NOTHING, _PASSWORD] if user else [_NOTHING])
    version, method = yield bytes([5, len(offers)]) + offers, 2
    if version != 5:
        raise SocksError("it does not speak SOCKS5")
    if method == _PASSWORD and user:
        status = (yield b"\1" + _short(user) + _short(password), 2)[1]
        if status != 0:
            raise SocksError("it refuses the user name or the password")
    elif method != _NOTHING:
        raise SocksError("it wants another kind of authentication")
    yield from _connect(host, port)


def _connect(host: str, port: int) -> Generator[tuple[bytes, int], bytes, None]:
    request = b"\5\1\0" + _address(host) + port.to_bytes(2, "big")
    _, reply, _, kind = yield request, 4
    if reply != 0:
        raise SocksError(_REPLIES.get(reply, f"reply {reply}"))
    # The address that the proxy dialled from, of no use to anyone.
    length = (yield b"", 1)[0] if kind == 3 else _LENGTHS.get(kind, 0)
    yield b"", length + 2


def _address(host: str) -> bytes:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return b"\3" + _short(host)
    return bytes([1 if address.version == 4 else 4]) + address.packed


def _short(text: str) -> bytes:
    data = text.encode()
    if len(data) > 255:
        raise SocksError("a name or a password of more than 255 bytes")
    return bytes([len(data)]) + data
