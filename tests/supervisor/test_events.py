"""Events of agents, tunnels and edits, as their producers publish them."""

from __future__ import annotations

from pathlib import Path

import pytest

from krelay.errors import ConfigError
from krelay.state.events import ReloadEnded, ReloadStarted
from tests import rig
from tests.supervisor.world import World, named, text, world

HOST = "ip/127.0.0.1"


def texts(w: World, kind: str) -> list[str]:
    return [event.text for event in w.supervisor.bus.history if event.kind == kind]


async def test_agents_and_tunnels_are_published_when_they_come_and_go(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with named(b"a") as a, world(monkeypatch, tmp_path, text(f"one: {HOST} :{a}")) as w:
        assert texts(w, "agent") == ["agent runs: in this process"]
        (group,) = w.supervisor.active.groups.values()
        (tunnel,) = group.pool.tunnels
        assert texts(w, "tunnel") == [f"{tunnel.name}: up"]
        transport = rig.connection(tunnel)._transport
        assert transport is not None
        transport.abort()
        await rig.until(lambda: len(texts(w, "tunnel")) == 3)
        assert texts(w, "tunnel")[1].startswith(f"{tunnel.name}: lost: ")
        assert texts(w, "tunnel")[2] == f"{tunnel.name}: up"


async def test_the_tunnels_of_a_group_that_was_removed_are_not_published_as_lost(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    lines = text(f"one: {HOST} :1")
    async with world(monkeypatch, tmp_path, lines) as w:
        await w.edit(lines.replace("sessions: 1", "sessions: 2"))
        await rig.until(lambda: not w.supervisor.active.draining_groups)
        found = texts(w, "tunnel")
        assert [line.rpartition(": ")[2] for line in found] == ["up"] * 3


def counts(w: World) -> tuple[int, int, int]:
    file = w.supervisor.snapshot().file
    return file.generation, file.reloads, file.failed_reloads


async def test_edits_are_published_as_applied_and_once_as_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with world(monkeypatch, tmp_path, text(f"one: {HOST} :1")) as w:
        assert counts(w) == (1, 0, 0)
        await w.edit(text(f"one: {HOST} :1", f"two: {HOST} :2"))
        for _ in range(2):
            with pytest.raises(ConfigError):
                await w.edit(text(f"one: {HOST} :x"))
        await w.edit(text(f"two: {HOST} :2"))
        applied, refused, last = texts(w, "reload")
        assert applied == f"applied (an edit): two: added 127.0.0.1:<free> -> {HOST}:2"
        assert refused.startswith("refused: ")
        assert last.startswith("applied (an edit): one: removed ")
        first, error, _ = (e for e in w.supervisor.bus.history if e.kind == "reload")
        assert first.details["generation"] == 2
        assert error.details["error"]["problems"]
        assert counts(w) == (3, 2, 2)


async def test_every_reload_is_published_with_its_beginning_and_its_end(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with world(monkeypatch, tmp_path, text(f"one: {HOST} :1")) as w:
        with w.supervisor.bus.subscribe(ReloadStarted, ReloadEnded) as events:
            await w.edit(text(f"two: {HOST} :1"))
            with pytest.raises(ConfigError):
                await w.edit("nonsense")
            found = list(events._events)
        assert found == [ReloadStarted(1), ReloadEnded(1), ReloadStarted(2), ReloadEnded(2)]


async def test_a_check_is_changed_under_a_live_connection(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def lines(check: str) -> str:
        return text(f"one: {{target: {HOST}, port: ':{a}', check: {check}}}")

    async with named(b"a") as a, world(monkeypatch, tmp_path, lines("dial")) as w:
        async with rig.connect(w.port("one")) as (reader, writer):
            assert await reader.readexactly(1) == b"a"
            assert await w.edit(lines("none")) == ["one.check: set dial -> none"]
            (forward,) = w.supervisor.active.forwards.values()
            assert str(forward.health.check) == "none"
            writer.write(b"x")
            assert await reader.readexactly(1) == b"x"
