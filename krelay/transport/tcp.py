"""TCP: plain connections, to an agent on this machine, a proxy or an API server."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable
from typing import TypeVar

from krelay.errors import NotListeningError, TunnelError
from krelay.net.dns import lookup
from krelay.tasks import TaskGroup

AGAIN = 1.0
"""Seconds after which a connection that has no answer yet is tried once more, beside the first.

TCP itself tries again after 1, 3 and 7 seconds, while the network may long be back.
"""
ADDRESS_DEADLINE = 2.0
"""Seconds for each but the last of a host's addresses.

One after the other, since asyncio's own race of them leaves tasks behind when it is cancelled.
"""

_KEEP_ALIVE = {"TCP_KEEPIDLE": 4, "TCP_KEEPALIVE": 4, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3}
"""Seconds and probes; the second is the first's name on macOS. One whose other end is gone is known
to be within 10 s, as a session's pings would tell: plain mode has none."""

_SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
"""There is no socket to be had now, which says nothing about the other end."""

_ProtocolT = TypeVar("_ProtocolT", bound=asyncio.BaseProtocol)


async def dial(
    factory: Callable[[], _ProtocolT], host: str, port: int, *, insist: bool = False
) -> tuple[asyncio.Transport, _ProtocolT]:
    """Connect, without Nagle's delay (asyncio's default) and with keepalive.

    `insist`: what gets no answer is tried again each second, beside the first; then `factory` makes
    another protocol for each try.

    Raises:
        OSError: no connection, for the reason that the last address gave.
    """
    found = await lookup(host)
    for left, (family, address) in zip(range(len(found))[::-1], found, strict=True):
        try:
            async with asyncio.timeout(ADDRESS_DEADLINE if left else None):
                connect = _insist if insist else _connect
                transport, protocol = await connect(factory, address, port, family)
        except OSError:
            if not left:
                raise
        else:
            with contextlib.suppress(OSError):  # it has ended meanwhile; its protocol knows
                _keep_alive(transport.get_extra_info("socket"))
            return transport, protocol
    raise OSError(f"no address for {host}")


def _keep_alive(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEP_ALIVE.items():
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


async def _connect(
    factory: Callable[[], _ProtocolT], address: str, port: int, family: int
) -> tuple[asyncio.Transport, _ProtocolT]:
    loop = asyncio.get_running_loop()
    return await loop.create_connection(factory, address, port, family=family)


async def _insist(
    factory: Callable[[], _ProtocolT], address: str, port: int, family: int
) -> tuple[asyncio.Transport, _ProtocolT]:
    """Connect to one address, by the first of as many tries as it takes; the caller sets the
    deadline. Raises OSError: as soon as one is refused."""
    made: list[tuple[asyncio.Transport, _ProtocolT]] = []
    there = asyncio.Event()

    async def attempt() -> None:
        try:
            found = await _connect(factory, address, port, family)
        except OSError as exc:
            if exc.errno in _SHORT and len(tries) > 1:
                return  # the first still waits for an answer
            raise
        if made:
            found[0].abort()
        else:
            made.append(found)
            there.set()

    tries: list[asyncio.Task[None]] = []
    try:
        async with TaskGroup() as tasks:
            while not there.is_set():
                tries.append(tasks.create_task(attempt()))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(AGAIN):
                        await there.wait()
            for late in tries:
                late.cancel()
    except BaseException:
        for transport, _ in made:
            transport.abort()
        raise
    return made[0]


async def open_tcp(
    host: str, port: int, *, protocol: asyncio.Protocol, timeout: float = 10.0
) -> asyncio.Transport:
    """A pipe to an agent that listens on `host` and `port`. `timeout` is in seconds.

    Raises:
        NotListeningError: refused: it may not listen yet.
        TunnelError: no connection.
    """
    try:
        async with asyncio.timeout(timeout):
            transport, _ = await dial(lambda: protocol, host, port)
    except ConnectionRefusedError as exc:
        raise NotListeningError(f"nothing listens on {host} port {port}") from exc
    except TimeoutError as exc:
        raise TunnelError(f"no answer from {host} port {port} within {timeout:g} s") from exc
    except OSError as exc:
        raise TunnelError(f"cannot reach {host} port {port}: {exc.strerror or exc}") from exc
    return transport
