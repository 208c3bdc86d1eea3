"""Queue: the accepted connections that wait for a stream, of all listeners of a loop.

Each of them holds a descriptor, so the end of each is to be noticed while it waits. Its first bytes
are read, and with them the end behind them. Where no more is read, since enough is kept, epoll
tells of a client that has gone (Linux).

A client that has sent its end may still wait for an answer, or may have gone: TCP does not say
which. So it is kept and served, but it is the first to go when descriptors are short.
"""

from __future__ import annotations

import asyncio
import logging
import select
from contextlib import suppress
from typing import Protocol
from weakref import WeakKeyDictionary

from krelay.net.accept import descriptor_budget
from krelay.wire.stream import INITIAL_WINDOW

logger = logging.getLogger("krelay.listener")

EARLY = INITIAL_WINDOW
"""Bytes that are read of a connection before it has a stream, about: what it may send at once
then."""
EARLY_OF_ALL = 16 << 20
"""The same of all of them together."""


class Waiter(Protocol):
    """A connection that waits for a stream."""

    transport: asyncio.Transport | None

    def drop(self, reason: str) -> None:
        """Reset it."""


class Queue:
    """`enter` and `leave` are called by the connection; the rest tells of it meanwhile."""

    def __init__(self) -> None:
        self._sizes: dict[Waiter, int] = {}
        self._total = 0
        self._half_closed: dict[Waiter, None] = {}
        self._watched: dict[int, Waiter] = {}
        self._numbers: dict[Waiter, int] = {}
        self._epoll: select.epoll | None = None

    def __len__(self) -> int:
        return len(self._sizes)

    def enter(self, waiter: Waiter, kept: int, *, half_closed: bool) -> None:
        """It waits, and has `kept` bytes of its client already; `half_closed`: and its end."""
        if waiter in self._sizes or waiter.transport is None:
            return
        self._sizes[waiter] = kept
        self._total += kept
        if half_closed:
            self.ended(waiter)
        elif kept < EARLY and self._total < EARLY_OF_ALL:
            waiter.transport.resume_reading()
        else:
            self._stop(waiter)

    def leave(self, waiter: Waiter) -> None:
        """It waits no more: it has a stream, or is gone."""
        if waiter not in self._sizes:
            return
        self._total -= self._sizes.pop(waiter)
        self._half_closed.pop(waiter, None)
        self._unwatch(waiter)

    def received(self, waiter: Waiter, size: int) -> None:
        """`size` more bytes of its client are kept."""
        if waiter not in self._sizes:
            return
        self._sizes[waiter] += size
        self._total += size
        if self._total >= EARLY_OF_ALL:
            for each in self._sizes:
                self._stop(each)
        elif self._sizes[waiter] >= EARLY:
            self._stop(waiter)

    def ended(self, waiter: Waiter) -> None:
        """Its client sends no more."""
        if waiter in self._sizes:
            self._half_closed.setdefault(waiter)
            self._watch(waiter)
            descriptor_budget().recheck()

    def make_room(self) -> bool:
        """Drop the connection that has waited the longest since its client sent its end; whether
        there was one."""
        waiter = next(iter(self._half_closed), None)
        if waiter is None:
            return False
        self.leave(waiter)
        waiter.drop("descriptors are short, and its client has sent its end")
        return True

    def _stop(self, waiter: Waiter) -> None:
        if waiter not in self._half_closed and waiter.transport is not None:
            waiter.transport.pause_reading()
            self._watch(waiter)

    # -- what is not read ----------------------------------------------------------------------

    def _watch(self, waiter: Waiter) -> None:
        sock = waiter.transport.get_extra_info("socket") if waiter.transport is not None else None
        if sock is None or waiter in self._numbers or not hasattr(select, "epoll"):
            return
        try:
            if self._epoll is None:
                self._epoll = select.epoll()
                asyncio.get_running_loop().add_reader(self._epoll.fileno(), self._hear)
            # A reset is told unasked.
            self._epoll.register(sock.fileno(), select.EPOLLRDHUP | select.EPOLLET)
        except (OSError, ValueError) as exc:
            logger.debug("the end of a connection that waits is not told: %s", exc)
        else:
            self._watched[sock.fileno()] = waiter
            self._numbers[waiter] = sock.fileno()

    def _unwatch(self, waiter: Waiter) -> None:
        number = self._numbers.pop(waiter, None)
        if number is None or self._epoll is None:
            return
        del self._watched[number]
        with suppress(OSError):  # it is closed, which is the same
            self._epoll.unregister(number)
        if not self._watched:
            asyncio.get_running_loop().remove_reader(self._epoll.fileno())
            self._epoll.close()
            self._epoll = None

    def _hear(self) -> None:
        assert self._epoll is not None
        for number, event in self._epoll.poll(0):
            waiter = self._watched.get(number)
            if waiter is None:
                continue
            if event & (select.EPOLLHUP | select.EPOLLERR):
                self.leave(waiter)
                if waiter.transport is not None:
                    waiter.transport.abort()
            elif event & select.EPOLLRDHUP:
                self._half_closed.setdefault(waiter)
                descriptor_budget().recheck()


def queue() -> Queue:
    """That of the running loop."""
    loop = asyncio.get_running_loop()
    if (found := _queues.get(loop)) is None:
        found = _queues[loop] = Queue()
    return found


_queues: WeakKeyDictionary[asyncio.AbstractEventLoop, Queue] = WeakKeyDictionary()
