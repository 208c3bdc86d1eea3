"""A supervisor on a real file, with agents in the test's own process and targets that send their
name."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from krelay.config.sources import Selection
from krelay.state.events import ForwardBound
from krelay.supervisor.reload import Reloader
from krelay.supervisor.supervisor import Supervisor
from tests import rig
from tests.supervisor.agents import FakeAgent, fake_agents

HEAD = "apiVersion: krelay/v1\nagent: {embedded: true}\ntunnel: {sessions: 1, drain: 0.05}\n"


def text(*lines: str, head: str = HEAD) -> str:
    """A file with targets, each in a line: `web: ip/127.0.0.1 :80`."""
    return head + "targets:\n" + "".join(f"  {line}\n" for line in lines)


class World:
    """What a test has of a run."""

    def __init__(self, file: Path, selection: Selection, agents: list[FakeAgent]) -> None:
        self.file = file
        self.agents = agents
        self.lines: list[str] = []
        config = selection.load()
        self.supervisor = Supervisor(config)
        self.supervisor.bus.on(
            ForwardBound, lambda event: self.lines.extend(event.forward.routes())
        )
        self.reloader = Reloader(selection, self.supervisor)

    async def edit(self, new: str) -> list[str]:
        """Save the file, and have it carried out; what changed."""
        await asyncio.to_thread(self.file.write_text, new)
        return [str(change) for change in await self.reloader.reload("an edit")]

    @property
    def listening(self) -> dict[str, set[int]]:
        """The local ports of each target."""
        found: dict[str, set[int]] = {}
        for forward in self.supervisor.active.forwards.values():
            ports = {int(address.rpartition(":")[2]) for address in forward.addresses}
            found.setdefault(forward.spec.target.name, set()).update(ports)
        return found

    def port(self, name: str) -> int:
        """The one local port of a target."""
        (port,) = self.listening[name]
        return port


@asynccontextmanager
async def world(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, content: str
) -> AsyncIterator[World]:
    """A run of a file, from when it relays; stopped at the end."""
    file = tmp_path / "krelay.yaml"
    await asyncio.to_thread(file.write_text, content)
    async with fake_agents(monkeypatch) as agents:
        made = await asyncio.to_thread(World, file, Selection(str(file)), agents)
        stop = asyncio.Event()
        async with asyncio.TaskGroup() as tasks:
            running = tasks.create_task(made.supervisor.run(stop))
            await rig.until(lambda: running.done() or made.supervisor.edits.request.done.is_set())
            try:
                yield made
            finally:
                stop.set()


@asynccontextmanager
async def named(name: bytes) -> AsyncIterator[int]:
    """A target that says its name first, then echoes; yields its port."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(name)
        await rig.echo(reader, writer)

    async with rig.tcp_target(serve) as port:
        yield port


class Talk:
    """A connection to a forward, held open over edits."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer
        self.name = b""

    @classmethod
    async def to(cls, port: int, size: int = 1) -> Talk:
        """Connect; `name` is what the target says it is, in `size` bytes."""
        talk = cls(*await asyncio.open_connection(rig.HOST, port))
        talk.name = await talk._reader.readexactly(size)
        return talk

    async def alive(self) -> bool:
        """Whether a byte comes back."""
        try:
            self._writer.write(b"?")
            await self._writer.drain()
            return await self._reader.readexactly(1) == b"?"
        except (ConnectionError, asyncio.IncompleteReadError):
            return False

    async def cut(self) -> None:
        """Return when it is reset."""
        with pytest.raises(ConnectionResetError):
            await self._reader.read()

    async def close(self) -> None:
        self._writer.transport.abort()
        await asyncio.sleep(0)
