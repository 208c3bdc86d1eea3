"""Dial: connect TCP to a host, whatever its addresses do."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
from collections.abc import Callable
from typing import TypeVar

from krelay.net import engine
from krelay.net.dns import lookup
from krelay.tasks import TaskGroup

ADDRESS_DEADLINE = 2.0
"""Seconds for each but the last of a host's addresses.

They are dialled one after the other: asyncio's own race leaves tasks behind when it is cancelled.
"""

_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
"""This machine has no socket left, which says nothing about the peer."""

_ProtocolT = TypeVar("_ProtocolT", bound=asyncio.BaseProtocol)


async def dial(
    factory: Callable[[], _ProtocolT],
    host: str,
    port: int,
    *,
    redial_every: float | None = None,
) -> tuple[asyncio.Transport, _ProtocolT]:
    """Connect, without Nagle's delay (asyncio's default) and with keepalive.

    With `redial_every`, a connection that is not answered for so many seconds is dialled again
    beside the first one; `factory` then makes a protocol for each attempt.

    Raises:
        OSError: no address could be connected to, for the reason that the last one gave.
    """
    found = await lookup(host)
    for left, (family, address) in zip(range(len(found))[::-1], found, strict=True):
        try:
            async with asyncio.timeout(ADDRESS_DEADLINE if left else None):
                transport, protocol = await _dial_address(
                    factory, address, port, family, redial_every
                )
        except OSError:
            if not left:
                raise
        else:
            sock: socket.socket = transport.get_extra_info("socket")
            with contextlib.suppress(OSError):  # already closed: the protocol knows
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                # A dead peer is noticed within 10 s, as by a session's pings, which legacy mode
                # does not have.
                set_keep_alive(sock, idle=4, interval=2)
            return transport, protocol
    raise OSError(f"no address for {host}")


def set_keep_alive(sock: socket.socket, *, idle: int, interval: int) -> None:
    """Probe a peer that was silent for `idle` seconds: three times, each `interval` seconds."""
    # macOS calls TCP_KEEPIDLE TCP_KEEPALIVE.
    names = ("TCP_KEEPIDLE", "TCP_KEEPALIVE", "TCP_KEEPINTVL", "TCP_KEEPCNT")
    for name, value in zip(names, (idle, idle, interval, 3), strict=True):
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


async def _dial_address(
    factory: Callable[[], _ProtocolT],
    address: str,
    port: int,
    family: int,
    redial_every: float | None,
) -> tuple[asyncio.Transport, _ProtocolT]:
    """Connect to one address; the first attempt that succeeds wins. A refusal ends all of them."""
    made: list[tuple[asyncio.Transport, _ProtocolT]] = []
    connected = asyncio.Event()

    async def attempt() -> None:
        try:
            found = await engine.create_connection(factory, address, port, family)
        except OSError as exc:
            if exc.errno in _EXHAUSTED and len(attempts) > 1:
                return  # the first one still waits for its answer
            raise
        if made:
            found[0].abort()
        else:
            made.append(found)
            connected.set()

    attempts: list[asyncio.Task[None]] = []
    try:
        async with TaskGroup() as tasks:
            while not connected.is_set():
                attempts.append(tasks.create_task(attempt()))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(redial_every):
                        await connected.wait()
            for late in attempts:
                late.cancel()
    except BaseException:
        for transport, _ in made:
            transport.abort()
        raise
    return made[0]
