"""Dials of targets: resolve a host name, connect to its addresses, or say why that failed.

A thread that waits for a resolver cannot be stopped: an abandoned lookup goes on for half a minute
or more, and counts until its thread returns. A client may have as many lookups running as it leaves
for others, and the names of one domain a fraction of all, so a domain that does not answer blocks
only itself.
"""

from __future__ import annotations

import asyncio
import errno
import ipaddress
import os
import socket
import sys
import threading
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar

from krelay.mux.descriptors import files_to_spare
from krelay.mux.transport import SocketTransport
from krelay.wire.errors import ErrorCode

_P = TypeVar("_P", bound=asyncio.BaseProtocol)

MAX_LOOKUPS = 256
"""Lookups that may run at once."""
_DOMAIN_SHARE = 8
"""The names of one domain get one lookup in this many."""
_CODES = {
    errno.ECONNREFUSED: ErrorCode.REFUSED,
    errno.ECONNRESET: ErrorCode.REFUSED,
    errno.EHOSTUNREACH: ErrorCode.UNREACHABLE,
    errno.ENETUNREACH: ErrorCode.UNREACHABLE,
    errno.EADDRNOTAVAIL: ErrorCode.UNREACHABLE,
    errno.ETIMEDOUT: ErrorCode.CONNECT_TIMEOUT,
}

_IN_PROGRESS = (errno.EINPROGRESS, errno.EWOULDBLOCK, errno.EINTR)
_PENDING = (*_IN_PROGRESS, errno.EALREADY)

Address = tuple[int, str]
"""An address family, and an IP address of it."""


class DialError(Exception):
    """The target was not reached; `code` says why."""

    def __init__(self, code: ErrorCode, message: str) -> None:
        super().__init__(message)
        self.code = code


def code_of(exc: OSError) -> ErrorCode:
    """Return the wire's code for an error of a socket."""
    return _CODES.get(exc.errno or 0, ErrorCode.DIAL_FAILED)


def literal(host: str) -> list[Address] | None:
    """Return the addresses of a host that needs no lookup, None for any other.

    That is an IP address, or a name of this machine (RFC 6761, section 6.3).
    """
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
    """The lookups of an agent. A `client` is any object that identifies one."""

    def __init__(self, limit: int = MAX_LOOKUPS) -> None:
        self._limit = limit
        self._known: dict[tuple[object, str], _Lookup] = {}
        self._waiting: dict[object, dict[_Lookup, None]] = {}
        self._of_client: Counter[object] = Counter()
        self._of_domain: Counter[str] = Counter()
        self.running = 0
        """Lookups whose threads have not returned, abandoned ones included."""

    async def find(self, host: str, client: object, timeout: float) -> list[Address]:
        """Return the addresses of `host`, in the order in which to try them.

        Raises:
            DialError: `host` has no address, or no answer came within `timeout` seconds.
        """
        if (found := literal(host)) is not None:
            return found
        lookup = self._known.get((client, host))
        if lookup is None:
            # The search list completes a name without a dot: its domain is not known here.
            domain = host.rstrip(".").partition(".")[2] or host
            lookup = _Lookup(host, client, domain, asyncio.get_running_loop())
            self._known[client, host] = lookup
            if self._may_start(lookup):
                self._start(lookup)
            else:
                self._waiting.setdefault(client, {})[lookup] = None
        waiter: asyncio.Future[list[Address]] = lookup.loop.create_future()
        lookup.waiters.add(waiter)
        try:
            async with asyncio.timeout(timeout):
                return await waiter
        except TimeoutError as exc:
            reason = f"resolving {host} took over {timeout:g} s"
            if not lookup.started:
                busy = self._of_client[client]
                reason += f": the agent is waiting for {busy} other names"
            raise DialError(ErrorCode.RESOLVE_TIMEOUT, reason) from exc
        finally:
            lookup.waiters.discard(waiter)
            if not lookup.waiters and not lookup.started:
                self._dequeue(lookup)
                del self._known[client, host]

    def _may_start(self, lookup: _Lookup) -> bool:
        return (
            self._of_client[lookup.client] < self._limit - self.running
            and self._of_domain[lookup.domain] < self._limit // _DOMAIN_SHARE
        )

    def _start_waiting(self) -> None:
        for client, waiting in list(self._waiting.items()):
            for lookup in list(waiting):
                if self._of_client[client] >= self._limit - self.running:
                    break
                if self._may_start(lookup):
                    self._dequeue(lookup)
                    self._start(lookup)

    def _dequeue(self, lookup: _Lookup) -> None:
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
        with suppress(RuntimeError):  # the loop may have ended
            lookup.loop.call_soon_threadsafe(self._done, lookup, outcome)

    def _done(self, lookup: _Lookup, outcome: list[Address] | DialError) -> None:
        self.running -= 1
        _decrement(self._of_client, lookup.client)
        _decrement(self._of_domain, lookup.domain)
        del self._known[lookup.client, lookup.host]
        for waiter in lookup.waiters:
            if waiter.done():
                continue
            if isinstance(outcome, DialError):
                waiter.set_exception(outcome)
            else:
                waiter.set_result(outcome)
        self._start_waiting()


def _decrement(counts: Counter[Any], key: object) -> None:
    counts[key] -= 1
    if not counts[key]:
        del counts[key]


def _resolve(host: str) -> list[Address]:
    """Resolve `host` with the system's resolver; blocks.

    Raises:
        DialError: it has no address.
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


DEFAULT_LOOKUPS = Lookups()
"""Lookups of dials that name no others."""


def check_descriptors() -> None:
    """Keep descriptors for tunnels: without one, no client could reach this agent again.

    Raises:
        DialError: the reserve is all that is left.
    """
    if not files_to_spare():
        raise DialError(ErrorCode.LIMIT, "the agent has no file descriptor to spare")


class Attempt:
    """A connection to one address that comes up; `connected` once it has."""

    def __init__(self, family: int, address: str, port: int) -> None:
        """Begin to connect.

        Raises:
            OSError: that is refused already.
        """
        self.connected = False
        self.sock = sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.setblocking(False)
            code = sock.connect_ex((address, port))
            if code in _IN_PROGRESS and sys.platform == "linux":
                # The answer of a target on the same node is there when the call returns.
                code = sock.connect_ex((address, port))
            if code in _PENDING:
                return
            if code not in (0, errno.EISCONN):
                raise OSError(code, os.strerror(code))
        except BaseException:
            sock.close()
            raise
        self.connected = True

    async def finish(self) -> socket.socket:
        """Return the connected socket. Closes it if that fails.

        Raises:
            OSError: the connection failed.
        """
        try:
            if not self.connected:
                await _writable(self.sock)
                if code := self.sock.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
                    raise OSError(code, os.strerror(code))
        except BaseException:
            self.sock.close()
            raise
        return self.sock


def begin(host: str, port: int) -> Attempt | None:
    """Begin to connect to an IP address; return None for any other host.

    Raises:
        DialError: that is refused already.
    """
    addresses = literal(host)
    if addresses is None or len(addresses) > 1:
        return None
    check_descriptors()
    family, address = addresses[0]
    try:
        return Attempt(family, address, port)
    except OSError as exc:
        raise _failure(exc, address, port) from exc


async def dial_tcp(
    host: str,
    port: int,
    timeout: float,
    protocol: Callable[[], _P],
    lookups: Lookups = DEFAULT_LOOKUPS,
    client: object = None,
    begun: Attempt | None = None,
) -> _P:
    """Connect to the first address of `host` that accepts; return the protocol of the connection.

    Lookup and connection together have `timeout` seconds. The lookup counts for `client`. `begun`
    is what `begin` returned for this host.

    Raises:
        DialError: no address accepted; it has the reason of the last.
    """
    check_descriptors()
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout
    addresses = await lookups.find(host, client, timeout)
    try:
        async with asyncio.timeout_at(deadline):
            return await _first(addresses, port, deadline, protocol, begun)
    except TimeoutError as exc:
        message = f"connecting to {host}:{port} took over {timeout:g} s"
        raise DialError(ErrorCode.CONNECT_TIMEOUT, message) from exc


async def _first(
    addresses: list[Address],
    port: int,
    deadline: float,
    protocol: Callable[[], _P],
    begun: Attempt | None,
) -> _P:
    loop = asyncio.get_running_loop()
    failure: DialError | None = None
    for left, (family, address) in zip(range(len(addresses), 0, -1), addresses, strict=True):
        try:
            # An address that drops packets must leave time for the others.
            async with asyncio.timeout((deadline - loop.time()) / left):
                attempt, begun = begun or Attempt(family, address, port), None
                sock = await attempt.finish()
                try:
                    connected = protocol()
                    SocketTransport(sock, connected)
                except BaseException:
                    sock.close()
                    raise
                return connected
        except TimeoutError:
            failure = DialError(ErrorCode.CONNECT_TIMEOUT, f"connecting to {address} timed out")
        except OSError as exc:
            failure = _failure(exc, address, port)
    raise failure or DialError(ErrorCode.NO_SUCH_HOST, "no address")


def _failure(exc: OSError, address: str, port: int) -> DialError:
    return DialError(code_of(exc), f"{address}:{port}: {exc.strerror or exc}")


async def _writable(sock: socket.socket) -> None:
    loop = asyncio.get_running_loop()
    ready = asyncio.Event()
    # By number: asyncio formats a socket, which asks the kernel for its addresses.
    number = sock.fileno()
    loop.add_writer(number, ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_writer(number)
