"""Surroundings: what the system tells of this machine's sleep and of its network."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
import time
from collections.abc import Callable

logger = logging.getLogger("krelay.supervisor")

_LOOK_EVERY = 1.0
ASLEEP = 3.0
"""Seconds by which the clocks must disagree before it counts as sleep."""
# One change of the network is many messages: this long, in seconds, is waited for the last.
_SETTLE = 0.25
# linux/rtnetlink.h: RTMGRP_LINK, _IPV4_IFADDR, _IPV4_ROUTE, _IPV6_IFADDR, _IPV6_ROUTE
_GROUPS = 0x1 | 0x10 | 0x40 | 0x100 | 0x400


async def watch_sleep(
    on_wake: Callable[[], None], *, wall: Callable[[], float] = time.time
) -> None:
    """Call `on_wake` after each sleep of this machine, within a second; lasts until cancelled.

    The loop's clock stands still meanwhile, the one on the wall (`wall`, in seconds) does not. One
    that is set forward looks the same, and costs no more than tunnels that are made anew, and in
    plain mode their connections.
    """
    clock = asyncio.get_running_loop().time
    before = wall() - clock()
    while True:
        await asyncio.sleep(_LOOK_EVERY)
        now = wall() - clock()
        slept, before = now - before, now
        if slept >= ASLEEP:
            logger.info("this machine was asleep for %.0f s", slept)
            on_wake()


async def watch_routes(on_change: Callable[[], None]) -> None:
    """Call `on_change` when addresses, links or routes of this machine have changed, as far as the
    system tells; lasts until cancelled."""
    sock = _open()
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


def _open() -> socket.socket | None:
    """What tells of routes: netlink on Linux (man 7 rtnetlink), a routing socket on BSD and macOS;
    None where there is neither."""
    try:
        if sys.platform == "linux":
            sock = socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, socket.NETLINK_ROUTE)
            sock.bind((0, _GROUPS))
        elif hasattr(socket, "AF_ROUTE"):
            sock = socket.socket(socket.AF_ROUTE, socket.SOCK_RAW, 0)
        else:
            return None
    except OSError as exc:
        logger.debug("changes of the network are not told: %s", exc)
        return None
    sock.setblocking(False)
    return sock


def _drain(sock: socket.socket, changed: asyncio.Event) -> None:
    """What it says in detail does not matter; nor that it says more than fits (ENOBUFS)."""
    changed.set()
    with contextlib.suppress(OSError):
        while sock.recv(1 << 16):
            pass
