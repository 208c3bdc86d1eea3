"""Agents in the test's own process, in the place of embedded ones."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest

from agent.server import Server
from agent.settings import Settings
from krelay.model import GroupSpec
from krelay.supervisor import warming as module


class FakeReach:
    """An agent in this process; a test may replace each of its steps."""

    made: list[FakeReach]
    tasks: asyncio.TaskGroup
    private = False
    expires = math.inf
    where = "in this process"

    def __init__(self, spec: GroupSpec, key: bytes) -> None:
        self.lost = ""
        self.stopped = False
        self.server = Server(Settings(port=0, key=key))
        self.made.append(self)

    async def start(self) -> None:
        self.tasks.create_task(self.server.run())
        await self.server.listening.wait()

    async def dial(self, protocol: asyncio.Protocol) -> asyncio.Transport:
        loop = asyncio.get_running_loop()
        return (await loop.create_connection(lambda: protocol, *self.server.address))[0]

    async def reachable_again(self) -> None:
        await asyncio.get_running_loop().create_future()

    async def abandon(self, reason: str) -> None:
        self.server.stop(reason)

    async def stop(self) -> None:
        self.stopped = True
        self.server.stop("test")


@asynccontextmanager
async def reaches(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[FakeReach]]:
    """Agents come from here; all of them must have been stopped at the end."""
    async with asyncio.TaskGroup() as tasks:
        FakeReach.made = []
        FakeReach.tasks = tasks
        monkeypatch.setattr(module, "SubprocessAgent", FakeReach)
        try:
            yield FakeReach.made
        finally:
            for reach in FakeReach.made:
                reach.server.stop("test")
    assert all(reach.stopped for reach in FakeReach.made)
