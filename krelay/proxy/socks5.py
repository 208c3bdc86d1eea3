"""SOCKS5, the proxy's half: negotiations and datagrams. Sans-I/O.

RFC 1928 (CONNECT, UDP ASSOCIATE) and RFC 1929 (user name and password).
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Generator
from dataclasses import dataclass
from enum import IntEnum

VERSION = 5
_NO_LOGIN, _PASSWORD, _NO_METHOD = 0, 2, 0xFF
_IPV4, _NAME, _IPV6 = 1, 3, 4
_SIZES = {_IPV4: 4, _IPV6: 16}
_MAX_REST = 1 << 16


class Command(IntEnum):
    """The supported commands of RFC 1928, section 4."""

    CONNECT = 1
    UDP_ASSOCIATE = 3


class Reply(IntEnum):
    """The reply codes of RFC 1928, section 6."""

    OK = 0
    FAILURE = 1
    NETWORK_UNREACHABLE = 3
    HOST_UNREACHABLE = 4
    REFUSED = 5
    EXPIRED = 6
    COMMAND = 7
    ADDRESS = 8


@dataclass(frozen=True, slots=True)
class SocksRequest:
    """A client's request; `host` is a name or an address."""

    command: Command
    host: str
    port: int


class SocksRefusal(Exception):
    """The client cannot be served; `reply` are the last bytes for it."""

    def __init__(self, message: str, reply: bytes) -> None:
        super().__init__(message)
        self.reply = reply


def reply(code: Reply, host: str = "0.0.0.0", port: int = 0) -> bytes:
    """Return the reply to a request; `host` and `port` are the address that serves it."""
    return bytes([VERSION, code, 0]) + _address(host, port)


class Negotiation:
    """One client's negotiation. When it is over, `request` is set, and `rest` has the bytes behind
    the request."""

    def __init__(self, credentials: tuple[str, str] | None = None) -> None:
        """`credentials` are the user name and password that the client must give, if any."""
        self.request: SocksRequest | None = None
        self.rest = b""
        self._steps = _negotiate(credentials)
        _, self._needed = next(self._steps)

    def receive(self, data: bytes) -> bytes:
        """Take bytes, however they are split; return the bytes to send to the client.

        Raises:
            SocksRefusal: the client breaks the protocol, or requests something unsupported.
        """
        self.rest += data
        out = b""
        while self.request is None and len(self.rest) >= self._needed:
            taken, self.rest = self.rest[: self._needed], self.rest[self._needed :]
            try:
                send, self._needed = self._steps.send(taken)
            except StopIteration as end:
                self.request = end.value
            except SocksRefusal as exc:
                # A client that has sent its request early reads the earlier answers first.
                exc.reply = out + exc.reply
                raise
            else:
                out += send
        if len(self.rest) > _MAX_REST:
            raise SocksRefusal("it sends too much too early", out + reply(Reply.FAILURE))
        return out


def _negotiate(
    credentials: tuple[str, str] | None,
) -> Generator[tuple[bytes, int], bytes, SocksRequest]:
    """Yield bytes to send and how many bytes to read then; take exactly these bytes."""
    version, count = yield b"", 2
    if version != VERSION:
        raise SocksRefusal(f"it speaks SOCKS version {version}", b"\0\x5b" + bytes(6))
    methods = yield b"", count
    method = _NO_LOGIN if credentials is None else _PASSWORD
    if method not in methods:
        raise SocksRefusal("it offers no known authentication method", bytes([5, _NO_METHOD]))
    answer = bytes([VERSION, method])
    if credentials is not None:
        _, size = yield answer, 2
        user = yield b"", size
        (size,) = yield b"", 1
        password = yield b"", size
        expected = (part.encode() for part in credentials)
        # Compare both, so that the time does not tell which one is wrong.
        right = [
            hmac.compare_digest(*pair) for pair in zip((user, password), expected, strict=True)
        ]
        if not all(right):
            raise SocksRefusal("a wrong user name or password", b"\1\1")
        answer = b"\1\0"
    _, command, _, kind = yield answer, 4
    if kind == _NAME:
        (size,) = yield b"", 1
    elif kind in _SIZES:
        size = _SIZES[kind]
    else:
        raise SocksRefusal(f"address type {kind}", reply(Reply.ADDRESS))
    place = yield b"", size + 2
    host, port = _host(kind, place[:-2]), int.from_bytes(place[-2:], "big")
    if command not in tuple(Command):
        raise SocksRefusal(f"command {command}", reply(Reply.COMMAND))
    if host is None:
        raise SocksRefusal("a host name that is not valid", reply(Reply.ADDRESS))
    return SocksRequest(Command(command), host, port)


def read_datagram(data: bytes) -> tuple[str, int, bytes] | None:
    """Return the host, port and payload of a client's datagram; None for a fragment or nonsense."""
    if len(data) < 5 or data[2] != 0:
        return None
    kind, at = data[3], 4
    if kind == _NAME:
        size, at = data[4], 5
    elif kind in _SIZES:
        size = _SIZES[kind]
    else:
        return None
    if len(data) < at + size + 2:
        return None
    host = _host(kind, data[at : at + size])
    end = at + size + 2
    return None if host is None else (host, int.from_bytes(data[end - 2 : end], "big"), data[end:])


def write_datagram(host: str, port: int, payload: bytes | bytearray | memoryview) -> bytes:
    """Return a datagram from a host and port for the client."""
    return b"\0\0\0" + _address(host, port) + payload


def _host(kind: int, data: bytes) -> str | None:
    if kind != _NAME:
        return str(ipaddress.ip_address(data))
    try:
        name = data.decode()
    except UnicodeDecodeError:
        return None
    return name if name and name.isprintable() and " " not in name else None


def _address(host: str, port: int) -> bytes:
    try:
        address = ipaddress.ip_address(host)
        packed = bytes([_IPV4 if address.version == 4 else _IPV6]) + address.packed
    except ValueError:
        name = host.encode()
        packed = bytes([_NAME, len(name)]) + name
    return packed + port.to_bytes(2, "big")
