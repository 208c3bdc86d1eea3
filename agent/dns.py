"""Lookups: host names of all clients, resolved by threads of which slow names cannot take all.

Nothing ends a thread that waits for a resolver: an abandoned look-up goes on for half a minute or
more. So each counts until its thread returns. A client may have as many under way as it leaves for
others, and the names of one domain a part of them: one that does not answer blocks itself.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import threading
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from agent.errors import DialError
from krelay.wire.errors import ErrorCode

MOST = 256
"""Look-ups that may be under way."""
_DOMAIN_SHARE = 8
"""The names of one domain get one part in this many."""

Address = tuple[int, str]
"""Its family, and the address itself."""


def literal(host: str) -> list[Address] | None:
    """The addresses of what needs no look-up: an address, or a name of this machine (RFC 6761,
    section 6.3)."""
    try:
        version = ipaddress.ip_address(host).version
    except ValueError:
        name = host.rstrip(".").lower()
        if name == "localhost" or name.endswith(".localhost"):
            return [(socket.AF_INET6, "::1"), (socket.AF_INET, "127.0.0.1")]
        return None
    return [(socket.AF_INET6 if version == 6 else socket.AF_INET, host)]


@dataclass(slots=True, eq=False)
class _Lookup:
    host: str
    client: object
    domain: str
    loop: asyncio.AbstractEventLoop
    started: bool = False
    waiters: set[asyncio.Future[list[Address]]] = field(default_factory=set)


class Lookups:
    """The look-ups of an agent. A `client` is any object that stands for one."""

    def __init__(self, most: int = MOST) -> None:
        self._most = most
        self._known: dict[tuple[object, str], _Lookup] = {}
        self._waiting: dict[object, dict[_Lookup, None]] = {}
        self._of_client: Counter[object] = Counter()
        self._of_domain: Counter[str] = Counter()
        self.running = 0
        """How many are under way, also those that nothing waits for any more."""

    async def find(self, host: str, client: object, timeout: float) -> list[Address]:
        """The addresses of `host`, in the order in which to try them.

        Raises:
            DialError: it has none, or they are not known within `timeout` seconds.
        """
        if (found := literal(host)) is not None:
            return found
        lookup = self._known.get((client, host))
        if lookup is None:
            # What has no dot is completed by the search list: the domain is not known here.
            domain = host.rstrip(".").partition(".")[2] or host
            lookup = _Lookup(host, client, domain, asyncio.get_running_loop())
            self._known[client, host] = lookup
            if self._may_start(lookup):
                self._start(lookup)
            else:
                self._waiting.setdefault(client, {})[lookup] = None
        mine: asyncio.Future[list[Address]] = lookup.loop.create_future()
        lookup.waiters.add(mine)
        try:
            async with asyncio.timeout(timeout):
                return await mine
        except TimeoutError as exc:
            why = f"resolving {host} took over {timeout:g} s"
            if not lookup.started:
                busy = self._of_client[client]
                why += f": the agent waits for the answers to {busy} other names"
            raise DialError(ErrorCode.RESOLVE_TIMEOUT, why) from exc
        finally:
            lookup.waiters.discard(mine)
            if not lookup.waiters and not lookup.started:
                self._no_longer_waits(lookup)
                del self._known[client, host]

    def _may_start(self, lookup: _Lookup) -> bool:
        most = self._most
        return (
            self._of_client[lookup.client] < most - self.running
            and self._of_domain[lookup.domain] < most // _DOMAIN_SHARE
        )

    def _start_what_may(self) -> None:
        for client, waiting in list(self._waiting.items()):
            for lookup in list(waiting):
                if self._of_client[client] >= self._most - self.running:
                    break
                if self._may_start(lookup):
                    self._no_longer_waits(lookup)
                    self._start(lookup)

    def _no_longer_waits(self, lookup: _Lookup) -> None:
        waiting = self._waiting[lookup.client]
        del waiting[lookup]
        if not waiting:
            del self._waiting[lookup.client]

    def _start(self, lookup: _Lookup) -> None:
        lookup.started = True
        self.running += 1
        self._of_client[lookup.client] += 1
        self._of_domain[lookup.domain] += 1
        thread = threading.Thread(
            target=self._look_up, args=(lookup,), name=f"lookup {lookup.host}", daemon=True
        )
        try:
            thread.start()
        except RuntimeError:
            failure = DialError(ErrorCode.LIMIT, "the agent can start no more threads")
            lookup.loop.call_soon(self._done, lookup, failure)

    def _look_up(self, lookup: _Lookup) -> None:
        outcome: list[Address] | DialError
        try:
            outcome = _resolve(lookup.host)
        except DialError as exc:
            outcome = exc
        with suppress(RuntimeError):  # the loop may have ended meanwhile
            lookup.loop.call_soon_threadsafe(self._done, lookup, outcome)

    def _done(self, lookup: _Lookup, outcome: list[Address] | DialError) -> None:
        self.running -= 1
        _less(self._of_client, lookup.client)
        _less(self._of_domain, lookup.domain)
        del self._known[lookup.client, lookup.host]
        for waiter in lookup.waiters:
            if waiter.done():
                continue
            if isinstance(outcome, DialError):
                waiter.set_exception(outcome)
            else:
                waiter.set_result(outcome)
        self._start_what_may()


def _less(counts: Counter[Any], key: object) -> None:
    counts[key] -= 1
    if not counts[key]:
        del counts[key]


def _resolve(host: str) -> list[Address]:
    """Ask the system; blocks.

    Raises:
        DialError: there is no address.
    """
    try:
        infos = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
        return [(int(family), str(sockaddr[0])) for family, _, _, _, sockaddr in infos]
    except socket.gaierror as exc:
        code = ErrorCode.NO_SUCH_HOST
        if exc.errno == socket.EAI_AGAIN:
            code = ErrorCode.RESOLVE_TIMEOUT
        raise DialError(code, f"{host}: {exc.strerror}") from exc
    except UnicodeError as exc:
        raise DialError(ErrorCode.NO_SUCH_HOST, f"{host}: not a host name") from exc
    except Exception as exc:
        raise DialError(ErrorCode.DIAL_FAILED, f"{host}: {exc}") from exc
