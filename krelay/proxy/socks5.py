"""SOCKS5, the proxy's half: what a client asks for, and the answers. Sans-I/O.

RFC 1928 (CONNECT, UDP ASSOCIATE) and RFC 1929 (a user's name and password).
"""

from __future__ import annotations

import hmac
import ipaddress
from collections.abc import Generator
from dataclasses import dataclass
from enum import IntEnum

VERSION = 5
_NOTHING, _PASSWORD, _NO_METHOD = 0, 2, 0xFF
_IPV4, _NAME, _IPV6 = 1, 3, 4
_SIZES = {_IPV4: 4, _IPV6: 16}
_MAX_LEFT = 1 << 16


class Command(IntEnum):
    """What a client may ask for."""

    CONNECT = 1
    UDP_ASSOCIATE = 3


class Reply(IntEnum):
    """The answers of RFC 1928, section 6."""

    OK = 0
    FAILURE = 1
    NETWORK_UNREACHABLE = 3
    HOST_UNREACHABLE = 4
    REFUSED = 5
    EXPIRED = 6
    COMMAND = 7
    ADDRESS = 8


@dataclass(frozen=True, slots=True)
class Asked:
    """What a client asks for; `host` is a name or an address."""

    command: Command
    host: str
    port: int


class SocksRefusal(Exception):
    """The client cannot be served; `reply` is what it is told before the end."""

    def __init__(self, message: str, reply: bytes) -> None:
        super().__init__(message)
        self.reply = reply


def reply(code: Reply, host: str = "0.0.0.0", port: int = 0) -> bytes:
    """The answer to a request; `host` and `port` are the address that serves it."""
    return bytes([VERSION, code, 0]) + _address(host, port)


class Acceptor:
    """One client's negotiation. `asked` is there when that is over, `rest` what came behind."""

    def __init__(self, credentials: tuple[str, str] | None = None) -> None:
        self.asked: Asked | None = None
        self.rest = b""
        self._talk = _talk(credentials)
        _, self._need = next(self._talk)

    def receive(self, data: bytes) -> bytes:
        """Take bytes, however they fall; return what to send to the client.

        Raises:
            SocksRefusal: it speaks nonsense, or asks for what there is not.
        """
        self.rest += data
        out = b""
        while self.asked is None and len(self.rest) >= self._need:
            taken, self.rest = self.rest[: self._need], self.rest[self._need :]
            try:
                send, self._need = self._talk.send(taken)
            except StopIteration as end:
                self.asked = end.value
            except SocksRefusal as exc:
                # A client that did not wait for the first answer reads it first.
                exc.reply = out + exc.reply
                raise
            else:
                out += send
        if len(self.rest) > _MAX_LEFT:
            raise SocksRefusal("it says too much too early", out + reply(Reply.FAILURE))
        return out


def _talk(credentials: tuple[str, str] | None) -> Generator[tuple[bytes, int], bytes, Asked]:
    """Yields what to send and how many bytes to read then; is sent exactly these bytes."""
    version, count = yield b"", 2
    if version != VERSION:
        raise SocksRefusal(f"it speaks SOCKS version {version}", b"\0\x5b" + bytes(6))
    methods = yield b"", count
    wanted = _NOTHING if credentials is None else _PASSWORD
    if wanted not in methods:
        raise SocksRefusal("it offers no way to log in that is known", bytes([5, _NO_METHOD]))
    chosen = bytes([VERSION, wanted])
    if credentials is not None:
        _, size = yield chosen, 2
        user = yield b"", size
        (size,) = yield b"", 1
        password = yield b"", size
        known = (part.encode() for part in credentials)
        right = [hmac.compare_digest(*pair) for pair in zip((user, password), known, strict=True)]
        if not all(right):
            raise SocksRefusal("a wrong user name or password", b"\1\1")
        chosen = b"\1\0"
    _, command, _, kind = yield chosen, 4
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
        raise SocksRefusal("a name that is none", reply(Reply.ADDRESS))
    return Asked(Command(command), host, port)


def read_datagram(data: bytes) -> tuple[str, int, bytes] | None:
    """Where a client's datagram goes, and its payload; None for what is to be dropped: a piece of
    one, or nonsense."""
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
    """An answer from there, for the client."""
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
