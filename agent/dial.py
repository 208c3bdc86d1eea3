"""The end of the path: from a Header's host and port to a connected socket, or a reason why not."""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import socket
from collections.abc import Callable
from typing import TypeVar

from agent.udp import UdpSocket
from krelay.mux.files import files_to_spare
from krelay.wire.errors import ErrorCode

_P = TypeVar("_P", bound=asyncio.BaseProtocol)

_CODES = {
    errno.ECONNREFUSED: ErrorCode.REFUSED,
    errno.ECONNRESET: ErrorCode.REFUSED,
    errno.EHOSTUNREACH: ErrorCode.UNREACHABLE,
    errno.ENETUNREACH: ErrorCode.UNREACHABLE,
    errno.EADDRNOTAVAIL: ErrorCode.UNREACHABLE,
    errno.ETIMEDOUT: ErrorCode.CONNECT_TIMEOUT,
}


class DialError(Exception):
    """The target was not reached; `code` says why."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


def _spare_one() -> None:
    """Leave descriptors for tunnels: without one, nobody could reach this agent again.

    Raises:
        DialError: there is none to spare.
    """
    if not files_to_spare():
        raise DialError(ErrorCode.LIMIT, "the agent has no file descriptor to spare")


async def resolve(host: str, port: int, kind: socket.SocketKind) -> list[tuple[int, str]]:
    """(family, address) of a host name or an address, in the order in which to try them.

    Raises:
        DialError: there is none.
    """
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        pass
    else:
        return [(socket.AF_INET6 if address.version == 6 else socket.AF_INET, host)]
    try:
        infos = await asyncio.get_running_loop().getaddrinfo(host, port, type=kind)
    except socket.gaierror as exc:
        code = ErrorCode.NO_SUCH_HOST
        if exc.errno == socket.EAI_AGAIN:
            code = ErrorCode.RESOLVE_TIMEOUT
        raise DialError(code, f"{host}: {exc.strerror}") from exc
    except UnicodeError as exc:
        raise DialError(ErrorCode.NO_SUCH_HOST, f"{host}: not a host name") from exc
    return [(int(family), str(sockaddr[0])) for family, _, _, _, sockaddr in infos]


async def dial_tcp(host: str, port: int, timeout: float, protocol: Callable[[], _P]) -> _P:
    """Connect to the first address that takes it, within `timeout` seconds in all.

    Raises:
        DialError: none did; it tells of the last.
    """
    _spare_one()
    code, step = ErrorCode.RESOLVE_TIMEOUT, "resolving"
    try:
        async with asyncio.timeout(timeout):
            addresses = await resolve(host, port, socket.SOCK_STREAM)
            code, step = ErrorCode.CONNECT_TIMEOUT, "connecting to"
            return await _first(addresses, port, timeout, protocol)
    except TimeoutError as exc:
        raise DialError(code, f"{step} {host}:{port} took over {timeout:g} s") from exc


async def _first(
    addresses: list[tuple[int, str]], port: int, timeout: float, protocol: Callable[[], _P]
) -> _P:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    failure: DialError | None = None
    for left, (family, address) in zip(range(len(addresses), 0, -1), addresses, strict=True):
        try:
            # One address that drops packets must leave time for the others.
            async with asyncio.timeout((deadline - loop.time()) / left):
                _, connected = await loop.create_connection(protocol, address, port, family=family)
                return connected
        except TimeoutError:
            failure = DialError(ErrorCode.CONNECT_TIMEOUT, f"connecting to {address} timed out")
        except OSError as exc:
            code = _CODES.get(exc.errno or 0, ErrorCode.DIAL_FAILED)
            why = exc.strerror or str(exc)
            if exc.errno and why.startswith("Connect call failed"):
                why = os.strerror(exc.errno)  # asyncio's own text names the address again
            failure = DialError(code, f"{address}:{port}: {why}")
    raise failure or DialError(ErrorCode.NO_SUCH_HOST, "no address")


async def dial_udp(
    host: str,
    port: int,
    timeout: float,
    on_datagram: Callable[[bytes], None],
    on_gone: Callable[[], None],
) -> UdpSocket:
    """A UDP socket connected to the first address of `host`.

    Raises:
        DialError: it has none, or no socket could be had.
    """
    _spare_one()
    try:
        async with asyncio.timeout(timeout):
            family, address = (await resolve(host, port, socket.SOCK_DGRAM))[0]
            sock = socket.socket(family, socket.SOCK_DGRAM)
            try:
                sock.setblocking(False)
                sock.connect((address, port))
                _, connected = await asyncio.get_running_loop().create_datagram_endpoint(
                    lambda: UdpSocket(sock, on_datagram, on_gone), sock=sock
                )
            except BaseException:
                sock.close()
                raise
            return connected
    except TimeoutError as exc:
        raise DialError(ErrorCode.RESOLVE_TIMEOUT, f"resolving {host} timed out") from exc
    except OSError as exc:
        code = _CODES.get(exc.errno or 0, ErrorCode.DIAL_FAILED)
        raise DialError(code, f"{host}:{port}: {exc.strerror or exc}") from exc
