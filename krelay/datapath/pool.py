"""Pool: third stage of the data path; picks the tunnel that a new stream rides on."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from typing import TYPE_CHECKING
from weakref import WeakSet

from krelay.datapath.tunnel import Carrier, Dial, Tunnel

if TYPE_CHECKING:
    from krelay.datapath.route import Route

logger = logging.getLogger("krelay.tunnel")


def least_loaded(tunnels: Iterable[Tunnel]) -> Tunnel | None:
    """The tunnel that is up and has the least queued; the first among equals."""
    return min((tunnel for tunnel in tunnels if tunnel.up), key=lambda t: t.load, default=None)


class Pool:
    """The sessions to one agent, shared by all of its targets. `run` lasts until cancelled."""

    def __init__(self, name: str, dial: Dial, key: bytes, *, size: int, private: bool) -> None:
        """`private`: the way to the agent is encrypted end to end."""
        self.name = name
        self.routes: WeakSet[Route] = WeakSet()
        """Those that lead through it; they are told of every change."""
        self._plain = False
        self._changed = asyncio.Event()
        self.tunnels = [
            Tunnel(f"{name}t{n}", dial, key, private=private, on_change=self._on_change)
            for n in range(1, size + 1)
        ]

    def pick(self) -> Carrier | None:
        """The session for a new stream; None while no tunnel is up."""
        tunnel = least_loaded(self.tunnels)
        return tunnel.driver if tunnel else None

    async def wait_change(self) -> None:
        """Return when a tunnel came up, went down or failed to come up."""
        await self._changed.wait()

    @property
    def streams(self) -> int:
        """How many streams live on it."""
        return sum(tunnel.streams for tunnel in self.tunnels)

    @property
    def failure(self) -> Exception | None:
        """Why the last tunnel that tried did not come up."""
        return next((tunnel.failure for tunnel in self.tunnels if tunnel.failure), None)

    async def run(self) -> None:
        """Keep every tunnel up; ends with a good-bye to the agent."""
        try:
            async with asyncio.TaskGroup() as tasks:
                for tunnel in self.tunnels:
                    tasks.create_task(tunnel.run(), name=tunnel.name)
        finally:
            for tunnel in self.tunnels:
                tunnel.close()

    def _on_change(self) -> None:
        if not self._plain and any(tunnel.plain for tunnel in self.tunnels):
            self._plain = True
            logger.warning(
                "the agent knows no sessions (it is not krelay's own): each connection has a"
                " tunnel of its own, and none is resumed"
            )
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        for route in list(self.routes):
            route.wake()
