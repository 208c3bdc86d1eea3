"""SOCKS5: the client's side of the handshake with a proxy in front of a cluster.

RFC 1928 (CONNECT only) and RFC 1929 (user name and password).
"""

from __future__ import annotations

import ipaddress
from urllib.parse import SplitResult, unquote

from krelay.net.handshake_stream import HandshakeStream

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


class ProxyError(OSError):
    """A proxy refused the connection."""


async def socks_connect(stream: HandshakeStream, proxy: SplitResult, host: str, port: int) -> None:
    """Ask a SOCKS5 proxy for the connection; the proxy resolves the name.

    Raises:
        ProxyError: the proxy refused, or speaks another protocol.
        OSError, EOFError: the connection failed.
    """
    user, password = unquote(proxy.username or ""), unquote(proxy.password or "")
    offers = bytes([_NO_AUTHENTICATION, _PASSWORD] if user else [_NO_AUTHENTICATION])
    stream.write(bytes([5, len(offers)]) + offers)
    version, method = await stream.read_exactly(2)
    if version != 5:
        raise ProxyError("it does not speak SOCKS5")
    if method == _PASSWORD and user:
        stream.write(b"\1" + _short(user) + _short(password))
        if (await stream.read_exactly(2))[1] != 0:
            raise ProxyError("it rejects the user name or password")
    elif method != _NO_AUTHENTICATION:
        raise ProxyError("it requires an unsupported kind of authentication")
    stream.write(b"\5\1\0" + _address(host) + port.to_bytes(2, "big"))
    _, reply, _, kind = await stream.read_exactly(4)
    if reply != 0:
        raise ProxyError(_REPLIES.get(reply, f"reply {reply}"))
    # The address that the proxy dialled from is read and not used.
    length = (await stream.read_exactly(1))[0] if kind == 3 else _LENGTHS.get(kind, 0)
    await stream.read_exactly(length + 2)


def _address(host: str) -> bytes:
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return b"\3" + _short(host)
    return bytes([1 if address.version == 4 else 4]) + address.packed


def _short(text: str) -> bytes:
    data = text.encode()
    if len(data) > 255:
        raise ProxyError("a name or a password of more than 255 bytes")
    return bytes([len(data)]) + data
