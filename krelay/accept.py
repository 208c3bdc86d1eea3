"""Accept: takes the connections of one listening socket, for forwards and for the status service.

asyncio's own server forgets those that it has accepted but not yet begun to serve when it is closed
(`Server._attach` refuses them): nothing ends them, and their clients would wait for ever.
"""

from __future__ import annotations

import asyncio
import errno
import logging
import os
import socket
from collections.abc import Callable

from krelay.bind import BACKLOG

logger = logging.getLogger("krelay.listener")

PAUSE = 1.0
"""Seconds until the next try where none can be accepted: no file descriptors, no memory."""
_THIS_ONE = (errno.ECONNABORTED, errno.EPROTO, errno.EPERM)
"""It was given up before it was taken, or a firewall's rule forbids it; the next may be good."""


class Accept:
    """From its making until `close`, each connection to `sock`, which it owns, gets a protocol of
    `factory`. What was accepted before `close` still gets one, within two turns of the loop."""

    def __init__(
        self, name: str, sock: socket.socket, factory: Callable[[], asyncio.BaseProtocol]
    ) -> None:
        self._name = name
        self._sock = sock
        self._factory = factory
        self._loop = asyncio.get_running_loop()
        self._beginning: set[asyncio.Task[object]] = set()
        self._later: asyncio.TimerHandle | None = None
        self._told = False
        self._begin()

    def close(self) -> None:
        """Accept no more; the port is free at once."""
        if self._sock.fileno() < 0:
            return
        if self._later is not None:
            self._later.cancel()
        self._loop.remove_reader(self._sock)
        self._sock.close()

    def _begin(self) -> None:
        self._later = None
        self._loop.add_reader(self._sock, self._ready)

    def _ready(self) -> None:
        for _ in range(BACKLOG):
            try:
                connection, _address = self._sock.accept()
            except (BlockingIOError, InterruptedError):
                break
            except OSError as exc:
                if exc.errno in _THIS_ONE:
                    continue
                self._pause(exc)
                return
            task = self._loop.create_task(
                self._loop.connect_accepted_socket(self._factory, connection)
            )
            self._beginning.add(task)
            task.add_done_callback(self._beginning.discard)
        self._told = False

    def _pause(self, exc: OSError) -> None:
        """The socket stays readable: without a pause the loop would do nothing else."""
        if not self._told:
            cause = os.strerror(exc.errno or 0)
            logger.warning("%s: connections wait, none can be accepted: %s", self._name, cause)
            self._told = True
        self._loop.remove_reader(self._sock)
        self._later = self._loop.call_later(PAUSE, self._begin)
