"""Notify: tells the service manager that started us how we are, by sd_notify(3)'s datagrams."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
import time
from collections.abc import Mapping

from krelay.text import one_line

logger = logging.getLogger("krelay.status")

_DEADLINE = 1.0
"""Seconds that a manager may take to have room for a datagram."""
_LONGEST = 300
"""Characters of a status; it is a line for people."""


class Notifier:
    """One run's way to its service manager; nothing is told where there is none.

    `watchdog` is the time in seconds within which a sign of life is wanted, if one is.
    """

    def __init__(self, address: str | None = None, watchdog: float | None = None) -> None:
        """`address`: a socket's path, or `@` and a name of Linux's abstract ones."""
        if address is not None and address[:1] not in ("/", "@"):
            logger.debug("the service manager's socket is of an unknown kind: %s", address)
            address = None
        self._address = address
        self.watchdog = watchdog if address is not None else None

    @classmethod
    def from_env(cls, environ: Mapping[str, str]) -> Notifier:
        """As NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID say."""
        usec, pid = environ.get("WATCHDOG_USEC", ""), environ.get("WATCHDOG_PID")
        wanted = usec.isdecimal() and int(usec) > 0 and pid in (None, "", str(os.getpid()))
        address = environ.get("NOTIFY_SOCKET") or None
        return cls(address, int(usec) / 1e6 if wanted else None)

    @property
    def there(self) -> bool:
        """Whether there is anybody to tell."""
        return self._address is not None

    async def ready(self, status: str) -> None:
        """It relays: after the start, and after each reload."""
        await self._tell("READY=1", _status(status))

    async def reloading(self) -> None:
        """A reload begins; `ready` ends it."""
        now = time.clock_gettime_ns(time.CLOCK_MONOTONIC) // 1000
        await self._tell("RELOADING=1", f"MONOTONIC_USEC={now}", _status("reloading"))

    async def stopping(self, status: str) -> None:
        """The end begins."""
        await self._tell("STOPPING=1", _status(status))

    async def status(self, status: str) -> None:
        """What to show to people."""
        await self._tell(_status(status))

    async def alive(self) -> None:
        """The loop turns."""
        await self._tell("WATCHDOG=1")

    async def _tell(self, *lines: str) -> None:
        """A manager that does not take it is no reason to end, nor to wait for long."""
        if self._address is None:
            return
        address = self._address
        if address.startswith("@"):
            address = "\0" + address[1:]
        try:
            async with asyncio.timeout(_DEADLINE):
                with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
                    sock.setblocking(False)
                    # Connected, so that it is writable when the manager's queue has room.
                    sock.connect(address)
                    await asyncio.get_running_loop().sock_sendall(sock, "\n".join(lines).encode())
        except OSError as exc:  # a TimeoutError is one
            logger.debug("the service manager was not told %s: %s", lines[0], exc or "no room")


def _status(text: str) -> str:
    return f"STATUS={one_line(text, _LONGEST)}"
