"""Host monitor: notice that this machine was asleep, or that its network has changed."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
import time
from collections.abc import Callable

logger = logging.getLogger("krelay.supervisor")

_CHECK_EVERY = 1.0  # seconds between two comparisons of the clocks
ASLEEP = 3.0  # seconds by which the clocks must differ before that counts as sleep
_SETTLE = 0.25  # seconds to wait for the last message of a change; one change causes many messages
# linux/rtnetlink.h: RTMGRP_LINK, _IPV4_IFADDR, _IPV4_ROUTE, _IPV6_IFADDR, _IPV6_ROUTE
_GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400


async def watch_sleep(
    on_wake: Callable[[], None], *, wall: Callable[[], float] = time.time
) -> None:
    """Call `on_wake` within a second after each sleep of this machine; run until cancelled.

    During sleep the event loop's clock stands still, the wall clock (`wall`, in seconds) does not.
    A wall clock that is set forward looks the same: it costs new tunnels, and in legacy mode their
    connections.
    """
    clock = asyncio.get_running_loop().time
    before = wall() - clock()
    while True:
        await asyncio.sleep(_CHECK_EVERY)
        now = wall() - clock()
        slept, before = now - before, now
        if slept >= ASLEEP:
            logger.info("this machine was asleep for %.0f s", slept)
            on_wake()


async def watch_routes(on_change: Callable[[], None]) -> None:
    """Call `on_change` when addresses, links or routes of this machine change; run until cancelled.

    It returns at once if the system does not report such changes.
    """
    sock = _open_route_socket()
    if sock is None:
        return
    loop = asyncio.get_running_loop()
    with sock:
        changed = asyncio.Event()
        loop.add_reader(sock, _drain, sock, changed)
        try:
            while True:
                await changed.wait()
                await asyncio.sleep(_SETTLE)
                changed.clear()
                logger.debug("the network has changed")
                on_change()
        finally:
            loop.remove_reader(sock)


def _open_route_socket() -> socket.socket | None:
    """Return a netlink socket on Linux (man 7 rtnetlink), a routing socket on BSD and macOS."""
    try:
        if sys.platform == "linux":
            sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
            sock.bind((0, _GROUPS))
        elif hasattr(socket, "AF_ROUTE"):
            sock = socket.socket(socket.AF_ROUTE, socket.SOCK_RAW, 0)
        else:
            return None
    except OSError as exc:
        logger.debug("cannot watch for network changes: %s", exc)
        return None
    sock.setblocking(False)
    return sock


def _drain(sock: socket.socket, changed: asyncio.Event) -> None:
    """Discard the messages: only their arrival counts, also if some did not fit (ENOBUFS)."""
    changed.set()
    with contextlib.suppress(OSError):
        while sock.recv(1 << 16):
            pass
