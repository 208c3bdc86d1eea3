"""Recent connections: the open and the last connections of a forward, with their programs."""

from __future__ import annotations

import asyncio
import heapq
from collections.abc import Iterable
from typing import Any

from krelay.datapath.metrics import RECENT, StreamMetrics
from krelay.net.clients import programs
from krelay.state.states import json_form
from krelay.supervisor.forward import Forward
from krelay.threads import in_thread_or_here

PAUSE = 1.0
"""Least seconds between two looks at the system's tables, which cost it milliseconds."""


class Programs:
    """Finds the local programs behind open connections, and leaves their names with them."""

    def __init__(self) -> None:
        self._looking = asyncio.Lock()
        self._due = 0.0

    async def find(self, streams: Iterable[StreamMetrics]) -> None:
        """Ask the system for the programs of those streams that have none, unless it was asked a
        moment ago."""
        clients = {
            (stream.protocol, str(stream.peer[0]), int(stream.peer[1])): stream
            for stream in streams
            if stream.peer and not stream.program
        }
        clock = asyncio.get_running_loop().time
        if not clients or self._looking.locked() or clock() < self._due:
            return
        async with self._looking:
            found = await in_thread_or_here(lambda: programs(list(clients)))
            for client, program in found.items():
                clients[client].program = program
            self._due = clock() + PAUSE


def connections_of(forward: Forward) -> dict[str, Any]:
    """Return the JSON form: the newest open connections, then those that ended, newest first."""
    metrics = forward.metrics
    open_now = heapq.nlargest(RECENT, metrics.streams, key=lambda stream: stream.began)
    found = [stream.record() for stream in open_now]
    return {
        "target": forward.spec.target.name,
        "index": forward.spec.index,
        "name": forward.name,
        "open": len(metrics.streams),
        "connections": json_form([*found, *reversed(metrics.recent)]),
    }
