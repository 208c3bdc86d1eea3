"""What the bus hears of agents and tunnels, and of edits."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from krelay.errors import ConfigError
from tests import rig
from tests.supervisor.world import World, named, text, world

HOST = "ip/127.0.0.1"


def told(w: World, kind: str) -> list[str]:
    return [event.text for event in w.supervisor.bus.history if event.kind == kind]


async def test_agents_and_tunnels(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    async with named(b"a") as a, world(monkeypatch, tmp_path, text(f"one: {HOST} :{a}")) as w:
        await rig.until(lambda: len(told(w, "tunnel")) == 1)
        assert told(w, "agent") == ["agent runs: in this process"]
        (group,) = w.supervisor.running.groups.values()
        (tunnel,) = group.pool.tunnels
        assert told(w, "tunnel") == [f"{tunnel.name}: up"]
        (reach,) = w.agents
        monkeypatch.setattr(reach, "where", "elsewhere")
        monkeypatch.setattr(reach, "lost", "it was evicted")
        transport = rig.connection(tunnel)._transport
        assert transport is not None
        transport.abort()
        await rig.until(lambda: len(told(w, "tunnel")) == 3)
        assert told(w, "tunnel")[1].startswith(f"{tunnel.name}: lost: ")
        assert told(w, "tunnel")[2] == f"{tunnel.name}: up"
        assert told(w, "agent")[1:] == ["agent lost: it was evicted", "agent runs: elsewhere"]
        lost = next(e for e in w.supervisor.bus.history if e.text.startswith("agent lost"))
        assert lost.details == {"context": None, "where": "in this process"}


async def test_a_group_that_is_replaced_is_heard_of_no_more(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lines = text(f"one: {HOST} :1")
    async with world(monkeypatch, tmp_path, lines) as w:
        await w.edit(lines.replace("sessions: 1", "sessions: 2"))
        await rig.until(lambda: len(told(w, "tunnel")) == 3)
        names = [task.get_name() for task in asyncio.all_tasks()]
        assert len([name for name in names if name.startswith("news of ")]) == 1


async def test_edits_carried_out_and_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with world(monkeypatch, tmp_path, text(f"one: {HOST} :1")) as w:
        assert (w.supervisor.generation, w.supervisor.carried_out, w.reloader.failed) == (1, 0, 0)
        await w.edit(text(f"one: {HOST} :1", f"two: {HOST} :2"))
        for _ in range(2):
            with pytest.raises(ConfigError):
                await w.edit(text(f"one: {HOST} :x"))
        await w.edit(text(f"two: {HOST} :2"))
        applied, refused, last = told(w, "reload")
        assert applied == f"applied (an edit): two: added 127.0.0.1:<free> -> {HOST}:2"
        assert refused.startswith("refused: ")
        assert last.startswith("applied (an edit): one: removed ")
        first, error, _ = (e for e in w.supervisor.bus.history if e.kind == "reload")
        assert first.details["generation"] == 2
        assert error.details["error"]["problems"]
        assert (w.supervisor.generation, w.supervisor.carried_out, w.reloader.failed) == (3, 2, 2)


async def test_a_check_is_changed_under_a_live_connection(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def lines(check: str) -> str:
        return text(f"one: {{target: {HOST}, port: ':{a}', check: {check}}}")

    async with named(b"a") as a, world(monkeypatch, tmp_path, lines("dial")) as w:
        async with rig.connect(w.port("one")) as (reader, writer):
            assert await reader.readexactly(1) == b"a"
            assert await w.edit(lines("none")) == ["one.check: set dial -> none"]
            (forward,) = w.supervisor.running.forwards.values()
            assert str(forward.health.check) == "none"
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
