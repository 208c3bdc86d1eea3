"""The Header that opens every stream, byte for byte that of the Go krelay (protocol.md, section 2).

Bytes: version 1, total length 2, request id 5, protocol 1, port 2, address type 1, address.
Numbers are big-endian; the address is 4 or 16 bytes of an IP, or a host name.
"""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from enum import IntEnum
from struct import Struct

from krelay.wire.errors import ErrorCode, ProtocolError

VERSION = 0
TCP = 0
UDP = 1
HEARTBEAT = 2
SESSION = 75

_FIXED = Struct(">BH5sBHB")
_PREFIX = 3
_MAX_HOST = 255
_MAX_PORT = 65_535
_IP = 0
_HOST = 1


class Status(IntEnum):
    """The byte that answers a Header in legacy mode (v0)."""

    OK = 1
    UNKNOWN_ERROR = 2
    NO_SUCH_HOST = 3
    RESOLVE_TIMEOUT = 4
    CONNECT_TIMEOUT = 5
    UNKNOWN_PROTOCOL = 6


_STATUS_OF = {
    ErrorCode.NO_SUCH_HOST: Status.NO_SUCH_HOST,
    ErrorCode.RESOLVE_TIMEOUT: Status.RESOLVE_TIMEOUT,
    ErrorCode.CONNECT_TIMEOUT: Status.CONNECT_TIMEOUT,
    ErrorCode.UNKNOWN_PROTOCOL: Status.UNKNOWN_PROTOCOL,
}


def status_of(code: ErrorCode) -> Status:
    """Return the v0 status that is closest to an error code."""
    return _STATUS_OF.get(code, Status.UNKNOWN_ERROR)


def code_of(status: int) -> ErrorCode:
    """Return the error code that is closest to a v0 status."""
    return next((code for code, found in _STATUS_OF.items() if found == status), ErrorCode.REFUSED)


@dataclass(frozen=True, slots=True)
class Header:
    """The target of one stream. `host` is an IP address or a name; `request_id` has 5 bytes."""

    protocol: int
    host: str
    port: int
    request_id: bytes = b"-----"
    version: int = VERSION

    def encode(self) -> bytes:
        """Return the Header's bytes.

        Raises:
            ValueError: a Header cannot carry this host or port, or an agent would refuse it.
        """
        if not 0 <= self.port <= _MAX_PORT:
            raise ValueError(f"a port is at most {_MAX_PORT}: {self.port}")
        try:
            kind, address = _IP, ipaddress.ip_address(self.host).packed
        except ValueError:
            kind, address = _HOST, self.host.encode()
        if not 0 < len(address) <= _MAX_HOST:
            raise ValueError(f"a host name has 1 to {_MAX_HOST} bytes: {self.host[:80]!r}")
        if not self.host.isprintable():
            raise ValueError(f"a host name has no control characters: {self.host!r}")
        fixed = _FIXED.pack(
            self.version,
            _FIXED.size + len(address),
            self.request_id,
            self.protocol,
            self.port,
            kind,
        )
        return fixed + address


def header_length(data: bytes | bytearray | memoryview) -> int | None:
    """Return the length of the Header at the beginning of `data`, None if that is not known yet.

    Raises:
        ProtocolError: a Header cannot have this length.
    """
    if len(data) < _PREFIX:
        return None
    total = int.from_bytes(data[1:_PREFIX], "big")
    if not _FIXED.size <= total <= _FIXED.size + _MAX_HOST:
        raise ProtocolError(f"a header of {total} bytes")
    return total


def decode_header(data: bytes | bytearray | memoryview) -> Header:
    """Return the Header in exactly these bytes.

    Raises:
        ProtocolError: the bytes are not one Header.
    """
    if header_length(data) != len(data):
        raise ProtocolError("truncated header")
    version, _, request_id, protocol, port, kind = _FIXED.unpack_from(data)
    address = bytes(data[_FIXED.size :])
    if protocol in (HEARTBEAT, SESSION) and not address:
        host = ""
    elif kind == _IP and len(address) in (4, 16):
        host = str(ipaddress.ip_address(address))
    elif kind == _HOST and address:
        host = _host_name(address)
    else:
        raise ProtocolError(f"an address of type {kind} with {len(address)} bytes")
    return Header(protocol, host, port, request_id, version)


def _host_name(address: bytes) -> str:
    try:
        host = address.decode()
    except UnicodeDecodeError as exc:
        raise ProtocolError("a host name that is not UTF-8") from exc
    if not host.isprintable():
        raise ProtocolError("a host name with control characters")
    return host
