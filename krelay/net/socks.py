"""SOCKS5: the client's side of the handshake with a proxy in front of a cluster; sans-I/O.

RFC 1928 (CONNECT only) and RFC 1929 (user name and password). The proxy resolves names.
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
_NO_AUTHENTICATION, _PASSWORD = 0, 2


class SocksError(Exception):
    """The proxy refused, or speaks another protocol."""


def handshake(proxy: str, host: str, port: int) -> Generator[tuple[bytes, int], bytes, None]:
    """Ask `proxy` (its URL) for a connection to `host` and `port`; return once it is granted.

    Yield the bytes to send, perhaps none, and the number of bytes to read next; these have to be
    sent into the generator.

    Raises:
        SocksError: the connection was not granted.
    """
    parts = urlsplit(proxy)
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    offers = bytes([_NO_AUTHENTICATION, _PASSWORD] if user else [_NO_AUTHENTICATION])
    version, method = yield bytes([5, len(offers)]) + offers, 2
    if version != 5:
        raise SocksError("it does not speak SOCKS5")
    if method == _PASSWORD and user:
        status = (yield b"\1" + _short(user) + _short(password), 2)[1]
        if status != 0:
            raise SocksError("it refuses the user name or the password")
    elif method != _NO_AUTHENTICATION:
        raise SocksError("it wants another kind of authentication")
    yield from _connect(host, port)


def _connect(host: str, port: int) -> Generator[tuple[bytes, int], bytes, None]:
    request = b"\5\1\0" + _address(host) + port.to_bytes(2, "big")
    _, reply, _, kind = yield request, 4
    if reply != 0:
        raise SocksError(_REPLIES.get(reply, f"reply {reply}"))
    # The address that the proxy dialled from is read and not used.
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
