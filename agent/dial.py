"""The end of the path: from a Header's host and port to a connected socket, or a reason why not."""

from __future__ import annotations

import asyncio
import errno
import os
import socket
from collections.abc import Callable
from typing import TypeVar

from agent.dns import Address, Lookups, literal
from agent.errors import DialError
from agent.losses import Losses
from agent.udp import UdpSocket
from krelay.mux.descriptors import files_to_spare
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


_lookups = Lookups()


def _spare_one() -> None:
    """Leave descriptors for tunnels: without one, no client could reach this agent again.

    Raises:
        DialError: there is none to spare.
    """
    if not files_to_spare():
        raise DialError(ErrorCode.LIMIT, "the agent has no file descriptor to spare")


async def dial_tcp(
    host: str,
    port: int,
    timeout: float,
    protocol: Callable[[], _P],
    lookups: Lookups = _lookups,
    client: object = None,
) -> _P:
    """Connect to the first address that takes it, within `timeout` seconds in all. `client` is
    whom its look-up counts for.

    Raises:
        DialError: none did; it tells of the last.
    """
    _spare_one()
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    addresses = await lookups.find(host, client, timeout)
    try:
        async with asyncio.timeout_at(deadline):
            return await _first(addresses, port, deadline, protocol)
    except TimeoutError as exc:
        message = f"connecting to {host}:{port} took over {timeout:g} s"
        raise DialError(ErrorCode.CONNECT_TIMEOUT, message) from exc


async def _first(
    addresses: list[Address], port: int, deadline: float, protocol: Callable[[], _P]
) -> _P:
    loop = asyncio.get_running_loop()
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
    losses: Losses | None = None,
    lookups: Lookups = _lookups,
    client: object = None,
) -> UdpSocket:
    """A UDP socket connected to the first address of `host`.

    Raises:
        DialError: it has none, or no socket could be had.
    """
    _spare_one()
    addresses = await lookups.find(host, client, timeout)
    # Of the two loopback addresses the older one: a connected UDP socket does not try the next.
    family, address = addresses[-1] if addresses == literal("localhost") else addresses[0]
    try:
        sock = socket.socket(family, socket.SOCK_DGRAM)
        try:
            sock.setblocking(False)
            sock.connect((address, port))
            _, connected = await asyncio.get_running_loop().create_datagram_endpoint(
                lambda: UdpSocket(sock, on_datagram, on_gone, losses or Losses()), sock=sock
            )
        except BaseException:
            sock.close()
            raise
        return connected
    except OSError as exc:
        code = _CODES.get(exc.errno or 0, ErrorCode.DIAL_FAILED)
        raise DialError(code, f"{host}:{port}: {exc.strerror or exc}") from exc
