"""A restart of targets, or of everything: what is reset, what stays, and what it meets."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from krelay.errors import KrelayError, UsageError
from krelay.supervisor.transitions.restarts import Restarted
from tests import rig
from tests.supervisor.agents import FakeAgent
from tests.supervisor.test_control import asked, controlled
from tests.supervisor.world import Talk, named, text, world

HOST = "ip/127.0.0.1"


async def test_a_restart_resets_the_connections_of_its_targets_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with named(b"a") as a:
        lines = f"one: {HOST} :{a}", f"two: {HOST} :{a}"
        async with controlled(monkeypatch, tmp_path, text(*lines)) as w:
            before = w.listening
            watchers = dict(w.supervisor.active.watchers)
            one, two = [await Talk.to(w.port(name)) for name in ("one", "two")]
            done = await asked(w, "POST", "/v1/restart", targets=["one"])
            assert done == {"targets": ["one"], "connections": 1, "agents": 0}
            await one.cut()
            assert await two.alive()
            assert w.listening == before
            assert len(w.agents) == 1
            active = w.supervisor.active
            assert active.watchers["one"] is not watchers["one"]
            assert active.watchers["two"] is watchers["two"]
            again = await Talk.to(w.port("one"))
            assert await again.alive()
            await w.supervisor.wait_ready(30.0)
            for talk in (two, again):
                await talk.close()


async def test_a_restart_of_everything_replaces_the_agent_too(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with named(b"a") as a, world(monkeypatch, tmp_path, text(f"one: {HOST} :{a}")) as w:
        before = w.listening
        talk = await Talk.to(w.port("one"))
        assert await w.supervisor.restart() == Restarted(("one",), 1, 1)
        await talk.cut()
        await rig.until(lambda: w.agents[0].stopped)
        assert len(w.agents) == 2
        assert w.listening == before
        again = await Talk.to(w.port("one"))
        assert await again.alive()
        await again.close()


async def test_a_restart_frees_udp_flows_and_keeps_the_socket(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with rig.udp_echo() as echo:
        lines = (f"one: {HOST} :{echo}/udp",)
        async with world(monkeypatch, tmp_path, text(*lines)) as w:
            port = w.port("one")
            async with rig.udp_socket(connect=port) as sock:
                sock.send(b"?")
                assert await rig.recv(sock) == b"?"
                assert (await w.supervisor.restart(["one"])).connections == 1
                assert w.port("one") == port
                sock.send(b"!")
                assert await rig.recv(sock) == b"!"


async def test_a_restart_tries_again_to_bind(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with named(b"a") as a:
        async with rig.tcp_target(rig.echo) as taken:
            lines = f"one: {HOST} {taken}:{a}", f"two: {HOST} :{a}"
            async with world(monkeypatch, tmp_path, text(*lines)) as w:
                assert w.listening["one"] == set()
                forward = w.supervisor.active.forwards["one", 0]
                failed = forward.failure
                await w.supervisor.restart(["one"])
                await forward.settled.wait()
                assert forward.failure is not failed  # it tried again


async def test_an_agent_that_cannot_start_leaves_everything_as_it_was(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with named(b"a") as a, world(monkeypatch, tmp_path, text(f"one: {HOST} :{a}")) as w:
        talk = await Talk.to(w.port("one"))

        async def fail(agent: FakeAgent) -> None:
            raise KrelayError("no agent today")

        with monkeypatch.context() as patch:
            patch.setattr(FakeAgent, "start", fail)
            with pytest.raises(KrelayError, match="no agent today"):
                await w.supervisor.restart()
        assert await talk.alive()
        assert not w.agents[0].stopped
        await talk.close()


async def test_an_edit_goes_before_a_restart_that_waits_for_its_agent(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with named(b"a") as a, world(monkeypatch, tmp_path, text(f"one: {HOST} :{a}")) as w:
        started, real = 0, FakeAgent.start
        starting = asyncio.Event()

        async def start(agent: FakeAgent) -> None:
            nonlocal started
            started += 1
            if started == 1:
                starting.set()
                await asyncio.get_running_loop().create_future()
            await real(agent)

        monkeypatch.setattr(FakeAgent, "start", start)
        async with asyncio.TaskGroup() as tasks:
            restarting = tasks.create_task(w.supervisor.restart())
            await starting.wait()
            assert len(await w.edit(text(f"one: {HOST} :{a}", f"two: {HOST} :{a}"))) == 1
            assert await restarting == Restarted(("one", "two"), 0, 1)
        assert started == 2


async def test_unknown_targets_and_malformed_requests_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with controlled(monkeypatch, tmp_path, text(f"one: {HOST} :1")) as w:
        with pytest.raises(UsageError, match="no target `two` is relayed"):
            await w.supervisor.restart(["one", "two"])
        for wrong in ("one", [1]):
            with pytest.raises(KrelayError, match="`targets` is a list of names"):
                await asked(w, "POST", "/v1/restart", targets=wrong)
        assert (await asked(w, "POST", "/v1/restart"))["agents"] == 1


async def test_a_bug_in_a_restart_costs_that_restart_only(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with world(monkeypatch, tmp_path, text(f"one: {HOST} :1")) as w:
        with monkeypatch.context() as patch:
            patch.setattr(w.supervisor.active, "commit", lambda warm: 1 / 0)
            with pytest.raises(KrelayError, match="internal error: ZeroDivisionError"):
                await w.supervisor.restart(["one"])
        assert "not restarted" in caplog.text
        caplog.clear()
        assert (await w.supervisor.restart(["one"])).targets == ("one",)


async def test_a_restart_at_the_wrong_time_is_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hang = asyncio.Event()

    async def start(agent: FakeAgent) -> None:
        hang.set()
        await asyncio.get_running_loop().create_future()

    async with asyncio.TaskGroup() as tasks:
        async with world(monkeypatch, tmp_path, text(f"one: {HOST} :1")) as w:
            supervisor = w.supervisor
            supervisor.started.clear()
            with pytest.raises(KrelayError, match="krelay is starting"):
                await supervisor.restart()
            supervisor.started.set()
            monkeypatch.setattr(FakeAgent, "start", start)
            waiting = [tasks.create_task(refused(supervisor.restart())) for _ in range(2)]
            await hang.wait()
        for one in waiting:
            assert await one == "krelay is stopping"
        assert await refused(supervisor.restart()) == "krelay is stopping"


async def refused(restart: object) -> str:
    with pytest.raises(KrelayError) as caught:
        await restart  # type: ignore[misc]
    return caught.value.message
