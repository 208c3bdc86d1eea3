"""Fake agents: they run in the test's own process, in place of embedded ones."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from agent.server import Server
from agent.settings import Settings
from krelay.agents.base import AgentEvents
from krelay.model import GroupSpec
from krelay.state.bus import EventBus
from krelay.supervisor import warming as module


class FakeAgent:
    """An agent in this process; a test may replace each of its steps."""

    made: list[FakeAgent]
    tasks: asyncio.TaskGroup
    name = "tcp"
    private = False
    expires = math.inf
    shortcut = None
    shortcut_only = False
    starting = None
    where = "in this process"

    def __init__(self, spec: GroupSpec, key: bytes, bus: EventBus) -> None:
        self.lost = ""
        self.on_delay: Callable[[str], None] = lambda delay: None
        self.events = AgentEvents(bus, spec.context)
        self.stopped = False
        self.server = Server(Settings(port=0, key=key))
        self.made.append(self)

    async def start(self) -> None:
        self.tasks.create_task(self.server.run())
        await self.server.listening.wait()
        self.events.started(self.where, "in this process")

    async def dial(self, protocol: asyncio.Protocol) -> asyncio.Transport:
        loop = asyncio.get_running_loop()
        return (await loop.create_connection(lambda: protocol, *self.server.address))[0]

    def reached(self) -> None:
        """Nothing waits for it."""

    async def reachable_again(self) -> None:
        await asyncio.get_running_loop().create_future()

    async def abandon(self, reason: str) -> None:
        self.server.stop(reason)

    def access_changed(self) -> None:
        """It has no credentials."""

    async def gone(self) -> str:
        return ""

    async def stop(self) -> None:
        self.stopped = True
        self.server.stop("test")


@asynccontextmanager
async def fake_agents(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[list[FakeAgent]]:
    """Agents come from here; all of them must have been stopped at the end."""
    async with asyncio.TaskGroup() as tasks:
        FakeAgent.made = []
        FakeAgent.tasks = tasks
        monkeypatch.setattr(module, "SubprocessAgent", FakeAgent)
        try:
            yield FakeAgent.made
        finally:
            for agent in FakeAgent.made:
                agent.server.stop("test")
    assert all(agent.stopped for agent in FakeAgent.made)
