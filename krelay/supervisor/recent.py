"""Recent connections: the open and the last connections of a forward, with their programs."""

from __future__ import annotations

import asyncio
import heapq
import math
from collections.abc import Iterable
from typing import Any

from krelay.datapath.metrics import RECENT, StreamMetrics
from krelay.net.clients import Client, owners, program
from krelay.state.states import json_form
from krelay.supervisor.forward import Forward
from krelay.threads import in_thread_or_here

PAUSE = 1.0
"""Seconds for which one look at the system's tables, which costs milliseconds, serves all."""


class Programs:
    """Finds the local programs behind open connections, and leaves their names with them."""

    def __init__(self) -> None:
        self._looking = asyncio.Lock()
        self._owners: dict[Client, int] = {}
        self._looked_at = -math.inf

    async def find(self, streams: Iterable[StreamMetrics]) -> None:
        """Name the programs of those streams that have none."""
        nameless = [
            (stream, (stream.protocol, str(stream.peer[0]), int(stream.peer[1])))
            for stream in streams
            if stream.peer and not stream.program
        ]
        if not nameless:
            return
        clock = asyncio.get_running_loop().time
        async with self._looking:
            if clock() >= self._looked_at + PAUSE:
                self._owners = await in_thread_or_here(owners)
                self._looked_at = clock()
            names = await in_thread_or_here(
                lambda: [program(client, self._owners) for _, client in nameless]
            )
        for (stream, _), name in zip(nameless, names, strict=True):
            stream.program = name


def connections_of(forward: Forward) -> dict[str, Any]:
    """Return the JSON form: the newest open connections, then those that ended, newest first."""
    metrics = forward.metrics
    open_now = heapq.nlargest(RECENT, metrics.streams, key=lambda stream: stream.began)
    found = [stream.state for stream in open_now]
    found += [record.state for record in reversed(metrics.recent)]
    return {
        "target": forward.spec.target.name,
        "index": forward.spec.index,
        "name": forward.name,
        "open": len(metrics.streams),
        "connections": json_form(found),
    }
