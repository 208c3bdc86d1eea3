"""Recent connections: the open and the last connections of a forward, with their programs."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import math
import time
from collections import deque
from collections.abc import Iterable
from functools import partial
from typing import Any

from krelay.datapath.metrics import RECENT, ForwardMetrics, Record, StreamMetrics
from krelay.net.clients import Client, owners, program
from krelay.state.states import json_form
from krelay.supervisor.forward import Forward
from krelay.threads import in_thread_or_here

PAUSE = 1.0
"""Seconds for which one look at the system's tables, which costs milliseconds, serves all."""
WATCHED = 5.0
"""Seconds after a look at the connections of a forward for which someone seems to read them."""
_MOST_NEW = 64


class Programs:
    """Finds the local programs behind open connections, and leaves their names with them.

    The system knows a program only while its connection is open. So the programs of new connections
    are looked for at once while someone reads, and not at all otherwise.
    """

    def __init__(self) -> None:
        self._looking = asyncio.Lock()
        self._owners: dict[Client, int] = {}
        self._looked_at = -math.inf
        self._watched: dict[ForwardMetrics, asyncio.TimerHandle] = {}
        self._new: deque[StreamMetrics] = deque(maxlen=_MOST_NEW)
        self._timer: asyncio.TimerHandle | None = None

    async def find(self, streams: Iterable[StreamMetrics]) -> None:
        """Name the programs of those streams that have none."""
        nameless = [stream for stream in streams if not stream.program]
        if nameless:
            async with self._looking:
                await in_thread_or_here(partial(self._look, nameless))

    def watch(self, metrics: ForwardMetrics) -> None:
        """Look for the programs of new connections at once, for a while."""
        if (former := self._watched.pop(metrics, None)) is not None:
            former.cancel()
        metrics.on_stream = self._began
        loop = asyncio.get_running_loop()
        self._watched[metrics] = loop.call_later(WATCHED, self._unwatch, metrics)

    def _unwatch(self, metrics: ForwardMetrics) -> None:
        del self._watched[metrics]
        metrics.on_stream = None

    def _began(self, stream: StreamMetrics) -> None:
        self._new.append(stream)
        if self._timer is None:
            loop = asyncio.get_running_loop()
            due = self._looked_at + PAUSE - time.monotonic()
            self._timer = loop.call_later(max(0.0, due), self._look_at_new)

    def _look_at_new(self) -> None:
        self._timer = None
        new = list(self._new)
        self._new.clear()
        with contextlib.suppress(RuntimeError, MemoryError):  # no thread is available
            asyncio.get_running_loop().run_in_executor(None, self._look, new)

    def _look(self, streams: Iterable[StreamMetrics]) -> None:
        """Ask the system, unless it was asked a moment ago. Blocks."""
        if time.monotonic() >= self._looked_at + PAUSE:
            self._owners = owners()
            self._looked_at = time.monotonic()
        for stream in streams:
            if stream.peer:
                client = stream.protocol, str(stream.peer[0]), int(stream.peer[1])
                stream.program = program(client, self._owners)


def records(forward: Forward) -> list[Record]:
    """Return the newest open connections, then those that ended, newest first."""
    metrics = forward.metrics
    open_now = heapq.nlargest(RECENT, metrics.streams, key=lambda stream: stream.began)
    return [*(stream.record() for stream in open_now), *reversed(metrics.recent)]


def connections_of(forward: Forward, found: Iterable[Record]) -> dict[str, Any]:
    """Return the JSON form of the records of a forward.

    It takes 30 µs a record: for all of a large file it is made in a thread.
    """
    return {
        "target": forward.spec.target.name,
        "index": forward.spec.index,
        "name": forward.name,
        "open": len(forward.metrics.streams),
        "connections": json_form([record.state for record in found]),
    }
