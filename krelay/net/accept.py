"""Accept: takes the connections of one listening socket, for forwards and for the status service.

asyncio's own server forgets those that it has accepted but not yet begun to serve when it is closed
(`Server._attach` refuses them): nothing ends them, and their clients would wait for ever. Nor does
it leave a descriptor to anything else.
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
from krelay.net.bind import BACKLOG

logger = logging.getLogger("krelay.listener")

PAUSE = 1.0
"""Seconds until the next try where none can be accepted: no memory, or the system has no more
descriptors."""
LOOK = 0.25
"""Seconds between two looks at whether there are descriptors to spare again."""
_QUIET = 60.0
"""Seconds between two warnings that connections wait."""
_FRESH = 1.0
"""Seconds for which one count of the descriptors is relied on."""
_COUNTING_SHARE = 20
"""Counting them takes at most one in so many parts of the time."""
_FEW = 4
"""Descriptors that are never taken by a connection, however few there are."""
_THIS_ONE = (errno.ECONNABORTED, errno.EPROTO, errno.EPERM)
"""It was given up before it was taken, or a firewall's rule forbids it; the next may be good."""
_RST_ON_CLOSE = struct.pack("ii", 1, 0)


class Accept:
    """From its making until `close`, each connection to `sock`, which it owns, gets a protocol of
    `factory`. What was accepted before `close` still gets one, within two turns of the loop.

    Connections wait in the listen backlog while accepting them would leave too few descriptors to
    the rest of the program (`Spare`). `make_room` is asked before: it returns whether it has closed
    a connection that may go. `control`: these connections are a part of that rest.
    """

    def __init__(
        self,
        name: str,
        sock: socket.socket,
        factory: Callable[[], asyncio.BaseProtocol],
        *,
        make_room: Callable[[], bool] | None = None,
        control: bool = False,
    ) -> None:
        self._name = name
        self._sock = sock
        self._factory = factory
        self._make_room = make_room
        self._spare = None if control else spare()
        self._loop = asyncio.get_running_loop()
        self._beginning: set[asyncio.Task[object]] = set()
        self._later: asyncio.TimerHandle | None = None
        self._told_at: float | None = None
        self.begin()

    def close(self) -> None:
        """Accept no more; the port is free at once."""
        if self._sock.fileno() < 0:
            return
        if self._later is not None:
            self._later.cancel()
        if self._spare is not None:
            self._spare.forget(self)
        self._loop.remove_reader(self._sock)
        self._sock.close()

    def begin(self) -> None:
        """Accept what is there, and what comes."""
        self._later = None
        self._loop.add_reader(self._sock, self._ready)

    def made_room(self) -> bool:
        """Whether a connection that may go is being closed for the next one; else say so."""
        if self._make_room is not None and self._make_room():
            return True
        if self._spare is not None and self._spare.is_news():
            self._say(f"{open_files()} of {file_limit()} file descriptors are in use")
        return False

    def _ready(self) -> None:
        # The socket stays readable: without a pause the loop would do nothing else.
        try:
            self._take()
        except OSError as exc:
            self._pause(os.strerror(exc.errno or 0))
        except Exception as exc:
            self._pause(repr(exc), bug=True)

    def _take(self) -> None:
        spare = self._spare
        for _ in range(BACKLOG):
            if spare is not None and not spare.enough():
                self._wait(spare)
                return
            try:
                connection, _address = self._sock.accept()
            except (BlockingIOError, InterruptedError):
                return
            except OSError as exc:
                if exc.errno in _THIS_ONE:
                    continue
                raise
            if spare is not None:
                spare.take(connection)
            self._serve(connection)
            if spare is not None and spare.wanted:
                self._wait(spare)  # behind those that waited before
                return

    def _serve(self, connection: socket.socket) -> None:
        serving = self._loop.connect_accepted_socket(self._factory, connection)
        task = self._loop.create_task(serving)
        self._beginning.add(task)

        def begun(task: asyncio.Task[object]) -> None:
            self._beginning.discard(task)
            if not task.cancelled() and (error := task.exception()) is not None:
                logger.error("%s: a connection is reset: %r", self._name, error)
                with suppress(OSError):
                    connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RST_ON_CLOSE)
                connection.close()

        task.add_done_callback(begun)

    def _wait(self, spare: Spare) -> None:
        self._loop.remove_reader(self._sock)
        spare.wait(self)

    def _pause(self, cause: str, *, bug: bool = False) -> None:
        self._say(f"none can be accepted: {cause}", bug=bug)
        self._loop.remove_reader(self._sock)
        self._later = self._loop.call_later(PAUSE, self.begin)

    def _say(self, why: str, *, bug: bool = False) -> None:
        now = self._loop.time()
        if self._told_at is None or now >= self._told_at + _QUIET:
            self._told_at = now
            logger.warning("%s: connections wait, %s", self._name, why, exc_info=bug)


class Spare:
    """The descriptors of this process that accepted connections may take; one for each loop.

    What they leave is the reserve (`mux.files`), or as many as they have themselves where those are
    fewer: a program whose other parts take nearly all still serves some.
    """

    def __init__(self) -> None:
        self._accepted: WeakSet[socket.socket] = WeakSet()
        self._waiting: dict[Accept, None] = {}
        self._credit = 0
        self._exact = False
        self._valid_until = 0.0
        self._count_at = 0.0
        self._told_at: float | None = None
        self._timer: asyncio.TimerHandle | None = None

    @property
    def wanted(self) -> bool:
        """Whether a listener waits for one."""
        return bool(self._waiting)

    def enough(self) -> bool:
        """Whether one more connection may be accepted."""
        now = self._now()
        if self._credit <= 0 or now >= self._valid_until:
            self._count(now)
        return self._credit > 0

    def is_news(self) -> bool:
        """Whether it was not said a moment ago that there are none, for any listener."""
        now = self._now()
        if self._told_at is not None and now < self._told_at + _QUIET:
            return False
        self._told_at = now
        return True

    def take(self, connection: socket.socket) -> None:
        """This one was accepted."""
        self._accepted.add(connection)
        self._credit -= 1

    def closed(self) -> None:
        """A connection is closed in this turn of the loop: another may have its descriptor."""
        self._credit += 1
        self.changed()

    def changed(self) -> None:
        """There may be room that there was not."""
        if self._waiting:
            self._look_at(self._now())

    def wait(self, accept: Accept) -> None:
        """Have `accept` begin again when there is one for it."""
        self._waiting[accept] = None
        self._look_at(self._now())

    def forget(self, accept: Accept) -> None:
        """It waits no more."""
        self._waiting.pop(accept, None)

    def _now(self) -> float:
        return asyncio.get_running_loop().time()

    def _look_at(self, when: float) -> None:
        if self._timer is not None:
            if self._timer.when() <= when:
                return
            self._timer.cancel()
        self._timer = asyncio.get_running_loop().call_at(when, self._look)

    def _look(self) -> None:
        self._timer = None
        if not self._waiting:
            return
        first = next(iter(self._waiting))
        wait = 0.0
        if self.enough():
            del self._waiting[first]
            first.begin()
        elif not self._exact and (left := self._count_at - self._now()) > 0:
            wait = left
        elif not first.made_room():
            wait = LOOK
        if self._waiting:
            self._look_at(self._now() + wait)

    def _count(self, now: float) -> None:
        if now < self._count_at:
            return
        begun = time.thread_time()
        limit, used = file_limit(), open_files()
        if limit is None or used is None:
            room = BACKLOG
        else:
            accepted = sum(sock.fileno() >= 0 for sock in self._accepted)
            room = limit - used - min(reserve(), max(accepted, _FEW))
        # Half of it: other parts take some meanwhile, and each connection needs one left for it.
        # Below zero, what is freed next is not for connections.
        self._credit = (room + 1) // 2 if room > 0 else room
        self._exact = room == self._credit
        self._valid_until = now + _FRESH
        self._count_at = now + _COUNTING_SHARE * (time.thread_time() - begun)


def spare() -> Spare:
    """That of the running loop."""
    loop = asyncio.get_running_loop()
    if (found := _spares.get(loop)) is None:
        found = _spares[loop] = Spare()
    return found


_spares: WeakKeyDictionary[asyncio.AbstractEventLoop, Spare] = WeakKeyDictionary()
