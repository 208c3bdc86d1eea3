"""Accept: take the connections of a listening socket, for forwards and for the status service.

asyncio's own server, when it is closed, forgets the connections that it has accepted but not yet
begun to serve (`Server._attach` refuses them): nothing closes them, and their clients wait for
ever. Nor does it leave any descriptors to the rest of the program.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from weakref import WeakKeyDictionary, WeakSet

from krelay.mux.descriptors import file_limit, open_files, reserve
from krelay.mux.log import about
from krelay.mux.transport import SocketTransport
from krelay.net.bind import BACKLOG

logger = logging.getLogger("krelay.listener")

RETRY_AFTER = 1.0
"""Seconds until the next attempt when accepting fails: there is no memory, or the whole system has
no descriptors left."""
RECHECK_EVERY = 0.25  # seconds between two checks for free descriptors
_WARN_EVERY = 60.0  # seconds between two warnings that connections wait
_COUNT_VALID = 1.0  # seconds for which a count of the descriptors is trusted
_COUNTING_SHARE = 20  # counting takes at most one part in so many of the time
_MINIMUM = 4  # descriptors that connections never take, however few there are
_SKIPPED = (errno.ECONNABORTED, errno.EPROTO, errno.EPERM)
"""The client gave up before its connection was accepted, or a firewall forbids it; the next
connection may be good."""
_RST_ON_CLOSE = struct.pack("ii", 1, 0)


class AcceptLoop:
    """Gives each connection to `sock`, which it owns, a protocol made by `factory`.

    It accepts from its construction until `close`. A connection accepted before `close` still gets
    its protocol, within two turns of the event loop.

    Connections stay in the listen backlog while accepting them would leave too few descriptors to
    the rest of the program (see DescriptorBudget). Before it waits, `make_room` is called: it
    returns whether it has closed a connection. `control` marks connections that belong to the rest
    of the program: they are accepted in any case. The log calls the socket `name`, and names
    its `target`.
    """

    def __init__(
        self,
        name: str,
        sock: socket.socket,
        factory: Callable[[], asyncio.BaseProtocol],
        *,
        target: str | None = None,
        make_room: Callable[[], bool] | None = None,
        control: bool = False,
    ) -> None:
        self._log = about(logger, target=target, name=name)
        self._sock = sock
        self._factory = factory
        self._make_room = make_room
        self._budget = None if control else descriptor_budget()
        self._loop = asyncio.get_running_loop()
        self._starting: set[asyncio.Task[object]] = set()
        self._retry: asyncio.TimerHandle | None = None
        self._warned_at: float | None = None
        self.resume()

    def close(self) -> None:
        """Accept no more; the port is free at once."""
        if self._sock.fileno() < 0:
            return
        if self._retry is not None:
            self._retry.cancel()
        if self._budget is not None:
            self._budget.waiters.pop(self, None)
        self._loop.remove_reader(self._sock)
        self._sock.close()

    def resume(self) -> None:
        """Accept the connections in the backlog, and those that follow."""
        self._retry = None
        self._loop.add_reader(self._sock, self._readable)

    def try_to_make_room(self) -> bool:
        """Return whether `make_room` closed a connection for the next one; warn if it did not."""
        if self._make_room is not None and self._make_room():
            return True
        if self._budget is not None and self._budget.should_warn():
            self._warn(f"{open_files()} of {file_limit()} file descriptors are in use")
        return False

    def _readable(self) -> None:
        # After a failure the socket stays readable: without a pause the loop would do nothing else.
        try:
            self._accept_pending()
        except OSError as exc:
            self._pause(os.strerror(exc.errno or 0))
        except Exception as exc:
            self._pause(repr(exc), bug=True)

    def _accept_pending(self) -> None:
        budget = self._budget
        for _ in range(BACKLOG):
            if budget is not None and not budget.has_room():
                self._wait(budget)
                return
            try:
                connection, _address = self._sock.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as exc:
                if exc.errno in _SKIPPED:
                    continue
                raise
            if budget is not None:
                budget.accepted(connection)
            self._serve(connection)
            if budget is not None and budget.waiters:
                self._wait(budget)  # behind the listeners that waited before
                return

    def _serve(self, connection: socket.socket) -> None:
        if self._budget is None:
            self._serve_control(connection)
            return
        try:
            connection.setblocking(False)
            SocketTransport(connection, self._factory())
        except Exception as exc:
            self._reset(connection, exc)

    def _serve_control(self, connection: socket.socket) -> None:
        """Give a connection to the status service one of asyncio's transports."""
        serving = self._loop.connect_accepted_socket(self._factory, connection)
        task = self._loop.create_task(serving)
        self._starting.add(task)

        def started(task: asyncio.Task[object]) -> None:
            self._starting.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                self._reset(connection, error)

        task.add_done_callback(started)

    def _reset(self, connection: socket.socket, error: BaseException) -> None:
        self._log.error("connection reset: %r", error)
        with suppress(OSError):
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST_ON_CLOSE)
        connection.close()

    def _wait(self, budget: DescriptorBudget) -> None:
        self._loop.remove_reader(self._sock)
        budget.waiters[self] = None
        budget.recheck()

    def _pause(self, cause: str, *, bug: bool = False) -> None:
        self._warn(f"none can be accepted: {cause}", bug=bug)
        self._loop.remove_reader(self._sock)
        self._retry = self._loop.call_later(RETRY_AFTER, self.resume)

    def _warn(self, why: str, *, bug: bool = False) -> None:
        now = self._loop.time()
        if self._warned_at is None or now >= self._warned_at + _WARN_EVERY:
            self._warned_at = now
            self._log.warning("connections wait, %s", why, exc_info=bug)


class DescriptorBudget:
    """The descriptors that accepted connections may take, one budget for each event loop.

    Connections leave the reserve (`mux.descriptors`) free, or as many descriptors as they have
    taken if those are fewer: whatever the other parts take, some connections are served.
    """

    def __init__(self) -> None:
        self._accepted: WeakSet[socket.socket] = WeakSet()
        self.waiters: dict[AcceptLoop, None] = {}
        """The listeners that wait for descriptors, in order."""
        self._room = 0
        self._exact = False
        self._valid_until = 0.0
        self._count_at = 0.0
        self._warned_at: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    def has_room(self) -> bool:
        """Return whether one more connection may be accepted."""
        now = self._now()
        if self._room <= 0 or now >= self._valid_until:
            self._count(now)
        return self._room > 0

    def should_warn(self) -> bool:
        """Return whether no listener has warned of missing descriptors in the last minute."""
        now = self._now()
        if self._warned_at is not None and now < self._warned_at + _WARN_EVERY:
            return False
        self._warned_at = now
        return True

    def accepted(self, connection: socket.socket) -> None:
        """Count a connection that was accepted."""
        self._accepted.add(connection)
        self._room -= 1

    def closed(self) -> None:
        """Count a connection that is closed in this turn of the loop: its descriptor is free."""
        self._room += 1
        self.recheck()

    def recheck(self) -> None:
        """Look for room for the waiting listeners now."""
        if self.waiters:
            self._schedule(self._now())

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _schedule(self, when: float) -> None:
        if self._timer is not None:
            if self._timer.when() <= when:
                return
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(when, self._resume_first)

    def _resume_first(self) -> None:
        self._timer = None
        if not self.waiters:
            return
        first = next(iter(self.waiters))
        wait = 0.0
        if self.has_room():
            del self.waiters[first]
            first.resume()
        elif not self._exact and (left := self._count_at - self._now()) > 0:
            wait = left
        elif not first.try_to_make_room():
            wait = RECHECK_EVERY
        if self.waiters:
            self._schedule(self._now() + wait)

    def _count(self, now: float) -> None:
        if now < self._count_at:
            return
        start = time.thread_time()
        limit, used = file_limit(), open_files()
        if limit is None or used is None:
            room = BACKLOG
        else:
            accepted = sum(sock.fileno() >= 0 for sock in self._accepted)
            room = limit - used - min(reserve(), max(accepted, _MINIMUM))
        # Half of it: other parts take some meanwhile, and each connection needs one left for it.
        # Below zero, the descriptors that are freed next are not for connections.
        self._room = (room + 1) // 2 if room > 0 else room
        self._exact = room == self._room
        self._valid_until = now + _COUNT_VALID
        self._count_at = now + _COUNTING_SHARE * (time.thread_time() - start)


def descriptor_budget() -> DescriptorBudget:
    """Return the budget of the running loop."""
    loop = asyncio.get_running_loop()
    if (found := _budgets.get(loop)) is None:
        found = _budgets[loop] = DescriptorBudget()
    return found


_budgets: WeakKeyDictionary[asyncio.AbstractEventLoop, DescriptorBudget] = WeakKeyDictionary()
