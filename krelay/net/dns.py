"""Lookup: a host's addresses, for `transport` and `cluster`, by threads that hold up nobody.

Nothing stops a lookup that hangs, as it does while a network is down. In asyncio's own executor it
would keep files and credentials waiting, and the end of a program that embeds krelay. Threads apart
share nothing, and Python does not wait for daemons.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
import threading

AGAIN = 1.0
"""Seconds after which a lookup that has no answer yet is joined by another: a resolver itself asks
again after five, while the network may long be back."""
MOST = 8
"""Lookups of one host that may be under way, whoever waits: as many as it takes for one of them to
ask in each second."""

Address = tuple[int, str]
"""Its family, and the address itself."""


async def lookup(name: str) -> list[Address]:
    """The addresses of `name`. The caller sets the deadline.

    Raises:
        OSError: it has none, or nobody can tell.
    """
    try:
        version = ipaddress.ip_address(name).version
    except ValueError:
        pass
    else:
        return [(socket.AF_INET if version == 4 else socket.AF_INET6, name)]
    loop = asyncio.get_running_loop()
    host = _hosts.get((loop, name)) or _hosts.setdefault((loop, name), _Host(loop, name))
    mine = host.ask()
    while True:
        await asyncio.wait((host.found, mine), timeout=AGAIN, return_when=asyncio.FIRST_COMPLETED)
        if host.found.done():
            return host.found.result()
        if mine.done():
            raise mine.result()
        host.ask()


class _Host:
    """The lookups of one host that are under way. The first that finds it answers everybody; one
    that fails only those who came while it was the latest."""

    def __init__(self, loop: asyncio.AbstractEventLoop, name: str) -> None:
        self.found: asyncio.Future[list[Address]] = loop.create_future()
        self._loop = loop
        self._name = name
        self._failing: list[asyncio.Future[Exception]] = []
        self._asked_at = 0.0

    def ask(self) -> asyncio.Future[Exception]:
        """The failure of the latest lookup; it is begun if it is time for one."""
        now, under_way = self._loop.time(), len(self._failing)
        if not under_way or (under_way < MOST and now >= self._asked_at + AGAIN):
            failed: asyncio.Future[Exception] = self._loop.create_future()
            thread = threading.Thread(
                target=self._look_up, args=(failed,), name=f"lookup {self._name}", daemon=True
            )
            try:
                thread.start()
            except (RuntimeError, MemoryError) as exc:
                if under_way:  # those may still find it
                    return self._failing[-1]
                if _hosts.get((self._loop, self._name)) is self:
                    del _hosts[self._loop, self._name]
                raise OSError(errno.ENOMEM, f"cannot look up {self._name}: {exc}") from exc
            self._failing.append(failed)
            self._asked_at = now
        return self._failing[-1]

    def _look_up(self, failed: asyncio.Future[Exception]) -> None:
        outcome: list[Address] | Exception
        try:
            infos = socket.getaddrinfo(self._name, None, type=socket.SOCK_STREAM)
            outcome = [(family, str(address[0])) for family, *_, address in infos]
        except Exception as exc:
            outcome = exc
        try:
            self._loop.call_soon_threadsafe(self._heard, failed, outcome)
        except RuntimeError:  # the loop has ended meanwhile
            _hosts.pop((self._loop, self._name), None)

    def _heard(self, failed: asyncio.Future[Exception], outcome: list[Address] | Exception) -> None:
        self._failing.remove(failed)
        if isinstance(outcome, Exception):
            failed.set_result(outcome)
        elif not self.found.done():
            self.found.set_result(outcome)
        over = self.found.done() or not self._failing
        if over and _hosts.get((self._loop, self._name)) is self:
            del _hosts[self._loop, self._name]  # what is asked from now on is asked anew


_hosts: dict[tuple[asyncio.AbstractEventLoop, str], _Host] = {}
