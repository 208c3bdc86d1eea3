"""DNS: look up the addresses of a host in threads on which nothing else waits.

A lookup cannot be stopped, and hangs while a network is down. In asyncio's own executor it would
delay files and credentials, and the end of a program that embeds krelay. These threads share
nothing with others, and Python does not wait for daemon threads at its end.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import socket
import threading

REPEAT_AFTER = 1.0
"""Seconds after which a lookup without an answer is joined by another one: a resolver itself
repeats its query after five, while the network may long be back."""
CONCURRENCY_LIMIT = 8
"""Lookups of one host at a time, for all callers: enough for one of them to query each second."""

Address = tuple[int, str]
"""An address family, and the address as text."""


async def lookup(name: str) -> list[Address]:
    """Return the addresses of `name`. The caller sets the deadline.

    Raises:
        OSError: the name has no address, or the lookup failed.
    """
    try:
        version = ipaddress.ip_address(name).version
    except ValueError:
        pass
    else:
        return [(socket.AF_INET if version == 4 else socket.AF_INET6, name)]
    loop = asyncio.get_running_loop()
    host = _hosts.get((loop, name)) or _hosts.setdefault((loop, name), _Host(loop, name))
    failure = host.latest_failure()
    while True:
        await asyncio.wait(
            (host.found, failure), timeout=REPEAT_AFTER, return_when=asyncio.FIRST_COMPLETED
        )
        if host.found.done():
            return host.found.result()
        if failure.done():
            raise failure.result()
        host.latest_failure()


class _Host:
    """The pending lookups of one host.

    The first one that succeeds answers all callers. One that fails answers only the callers that
    arrived while it was the latest.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop, name: str) -> None:
        self.found: asyncio.Future[list[Address]] = loop.create_future()
        self._loop = loop
        self._name = name
        self._pending: list[asyncio.Future[Exception]] = []
        self._started_at = 0.0

    def latest_failure(self) -> asyncio.Future[Exception]:
        """Return the failure of the latest lookup; start another lookup if one is due.

        Raises:
            OSError: no lookup is pending, and no thread can be started.
        """
        now, pending = self._loop.time(), len(self._pending)
        if not pending or (pending < CONCURRENCY_LIMIT and now >= self._started_at + REPEAT_AFTER):
            failure: asyncio.Future[Exception] = self._loop.create_future()
            thread = threading.Thread(
                target=self._look_up, args=(failure,), name=f"lookup {self._name}", daemon=True
            )
            try:
                thread.start()
            except (RuntimeError, MemoryError) as exc:
                if pending:  # one of them may still succeed
                    return self._pending[-1]
                self._forget()
                raise OSError(errno.ENOMEM, f"cannot look up {self._name}: {exc}") from exc
            self._pending.append(failure)
            self._started_at = now
        return self._pending[-1]

    def _look_up(self, failure: asyncio.Future[Exception]) -> None:
        outcome: list[Address] | Exception
        try:
            infos = socket.getaddrinfo(self._name, None, type=socket.SOCK_STREAM)
            outcome = [(family, str(address[0])) for family, *_, address in infos]
        except Exception as exc:
            outcome = exc
        try:
            self._loop.call_soon_threadsafe(self._done, failure, outcome)
        except RuntimeError:  # the loop has been closed
            self._forget()

    def _done(self, failure: asyncio.Future[Exception], outcome: list[Address] | Exception) -> None:
        self._pending.remove(failure)
        if isinstance(outcome, Exception):
            failure.set_result(outcome)
        elif not self.found.done():
            self.found.set_result(outcome)
        if self.found.done() or not self._pending:
            self._forget()

    def _forget(self) -> None:
        """Make the next caller start a new look-up."""
        if _hosts.get((self._loop, self._name)) is self:
            del _hosts[self._loop, self._name]


_hosts: dict[tuple[asyncio.AbstractEventLoop, str], _Host] = {}
