"""Reloads: whatever is saved, the last valid file is the one that listens."""

from __future__ import annotations

import asyncio
import gc
import os
import threading
from pathlib import Path
from typing import Any

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from krelay.config.sources import Selection
from krelay.config.watch import Mode
from krelay.errors import ConfigError, KrelayError, UsageError
from krelay.supervisor import reload as module_of_reload
from krelay.supervisor.reload import Reloader
from krelay.supervisor.supervisor import Supervisor
from krelay.supervisor.transitions import edits as module
from tests import rig
from tests.supervisor.world import HEAD, Talk, World, named, text, world

HOST = "ip/127.0.0.1"
EDITS = int(os.environ.get("KRELAY_EDITS", "300"))


async def test_an_invalid_file_is_logged_once_and_changes_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with named(b"a") as a, world(monkeypatch, tmp_path, text(f"one: {HOST} :{a}")) as w:
        before = w.port("one")
        for wrong in ("", "targets: {", HEAD, HEAD + "targets: {}\n", "nonsense"):
            caplog.clear()
            for _ in range(2):
                with pytest.raises(ConfigError):
                    await w.edit(wrong)
            (record,) = caplog.records
            assert str(w.file) in record.message
            assert record.message.endswith("problem\nthe active config stays")
            assert w.port("one") == before
        caplog.clear()
        w.file.unlink()
        with pytest.raises(UsageError, match="cannot read"):
            await w.reloader.reload("it is gone")
        assert "the active config stays" in caplog.text
        assert w.port("one") == before
        await w.edit(text(f"one: {HOST} :{a}"))
        assert w.supervisor.out_of_sync is None
        assert w.port("one") == before


async def test_a_reload_during_the_start_is_not_out_of_sync(tmp_path: Path) -> None:
    """A file is looked at a second time once it is watched, which may be during the start."""
    file = tmp_path / "krelay.yaml"
    file.write_text(text(f"one: {HOST} :1"))
    source = Selection(str(file), environ={})
    config = await asyncio.to_thread(source.load)
    supervisor = Supervisor(config)
    reloader = Reloader(source, supervisor)
    await reloader.load("a second look")
    assert supervisor.out_of_sync is None
    supervisor.started.set()
    assert supervisor.out_of_sync is not None


async def test_every_problem_is_logged_with_its_position(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with world(monkeypatch, tmp_path, text(f"one: {HOST} :1")) as w:
        with pytest.raises(ConfigError):
            await w.edit(text(f"one: {HOST} :x", f"two: {HOST} 99999"))
        assert f"{w.file}:5:21: `x` is a port's name, and `ip/` has none" in caplog.text
        assert f"{w.file}:6:21: port 99999 is out of range" in caplog.text


async def test_included_files_are_watched_also_while_they_are_invalid(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    team = tmp_path / "team.txt"
    await asyncio.to_thread(team.write_text, f"{HOST} :2\n")
    main = HEAD + f"include: [team.txt]\ntargets: {{one: {HOST} :1}}\n"
    async with world(monkeypatch, tmp_path, main) as w, asyncio.TaskGroup() as tasks:
        watching = tasks.create_task(w.reloader.watch(Mode.AUTO))
        second = f"{HOST} :2"
        assert set(w.listening) == {"one", second}
        for new, problem in ((f"{HOST} :3\n", False), ("oh/no 1\n", True), (f"{HOST} :4\n", False)):
            await asyncio.to_thread(team.write_text, new)
            await rig.until(lambda problem=problem: bool(w.supervisor.out_of_sync) == problem)
            if not problem:
                await rig.until(lambda new=new: set(w.listening) == {"one", new.strip()})
        await asyncio.to_thread(team.unlink)
        await rig.until(lambda: w.supervisor.out_of_sync)
        assert str(team) in w.supervisor.files
        await asyncio.to_thread(team.write_text, f"{HOST} :5\n")
        await rig.until(lambda: set(w.listening) == {"one", f"{HOST} :5"})
        watching.cancel()


async def test_targets_of_a_targets_txt_are_identified_by_their_lines(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with named(b"a") as a, world(monkeypatch, tmp_path, text(f"one: {HOST} :{a}")) as w:
        agent = w.supervisor.active.groups[None]
        # The same agent: a targets.txt cannot say that it is embedded.
        real = w.reloader.source
        monkeypatch.setattr(w.reloader, "source", Embedded(real))
        one, two = f"{HOST} :{a}", f"{HOST} :{a} -l ::1"
        await w.edit(f"{one}\n")
        assert w.supervisor.active.groups[None] is not agent  # other tunnel settings
        talk = await Talk.to(w.port(one))
        await w.edit(f"# a comment\n{two}\n{one}  // another\n")
        assert set(w.listening) == {one, two}
        assert await talk.alive()
        await talk.close()
        await w.edit(f"{two}\n")
        assert set(w.listening) == {two}


async def test_a_pipe_in_the_place_of_a_file_is_an_error(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    os.mkfifo(tmp_path / "fifo")
    async with world(monkeypatch, tmp_path, text(f"one: {HOST} :1")) as w:
        with pytest.raises(ConfigError) as caught:
            await w.edit(HEAD + f"include: [fifo]\ntargets: {{one: {HOST} :1}}\n")
        assert "not a regular file" in caught.value.problems[0].message
        for path in (tmp_path / "fifo", "/dev/zero", "/dev/stdin/"):
            with pytest.raises(UsageError, match="cannot read"):
                await w.reloader.plan(Selection(str(path)))
        w.file.unlink()
        os.mkfifo(w.file)
        with pytest.raises(UsageError, match="not a regular file"):
            await w.reloader.reload("it is a pipe")


async def test_a_file_that_hangs_delays_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module_of_reload, "DEADLINE", 0.05)
    answers = threading.Event()

    class Hanging:
        def load(self) -> Any:
            answers.wait()
            raise AssertionError

    async with named(b"a") as a, world(monkeypatch, tmp_path, text(f"one: {HOST} :{a}")) as w:
        real = w.reloader.source
        try:
            w.reloader.source = Hanging()
            for _ in range(2):
                with pytest.raises(KrelayError, match="reading the file takes more than"):
                    await w.reloader.load("it hangs")
                with pytest.raises(KrelayError, match="plan takes more than"):
                    await w.reloader.plan()
            assert w.supervisor.out_of_sync is not None
            talk = await Talk.to(w.port("one"))
            assert await talk.alive()
            await talk.close()
            w.reloader.source = real
            w.reloader._reads._within = 60.0
            await w.edit(text(f"two: {HOST} :{a}"))
            assert set(w.listening) == {"two"}
        finally:
            answers.set()


async def test_connections_work_while_a_large_file_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    many = "".join(f"  a{n}: ip/127.0.0.1 :1\n" for n in range(12_000))
    async with named(b"a") as a, world(monkeypatch, tmp_path, text(f"one: {HOST} :{a}")) as w:
        talk = await Talk.to(w.port("one"))
        source = Selection("-", text=(HEAD + "targets:\n" + many).encode())
        planning = asyncio.create_task(w.reloader.plan(source))
        trips = 0
        while not planning.done():
            assert await talk.alive()
            trips += 1
        with pytest.raises(ConfigError, match="1 problem"):
            planning.result()
        assert trips > 10
        await talk.close()


class Embedded:
    """A selection with an agent in this process."""

    def __init__(self, selection: Any) -> None:
        self._selection = selection

    def load(self) -> Any:
        import dataclasses

        return dataclasses.replace(self._selection, embedded=True).load()


async def test_a_bug_in_reading_or_applying_a_file_ends_nothing(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with named(b"a") as a, world(monkeypatch, tmp_path, text(f"one: {HOST} :{a}")) as w:
        for place, name in ((module, "diff"), (w.reloader.source.__class__, "load")):
            with monkeypatch.context() as patch:

                def fail(*_: object) -> None:
                    raise ZeroDivisionError("oops")

                patch.setattr(place, name, fail)
                with pytest.raises(KrelayError, match="internal error: ZeroDivisionError$"):
                    await w.edit(text(f"one: {HOST} :{a}", f"{name}: {HOST} :{a}"))
            assert w.supervisor.out_of_sync is not None
            assert set(w.listening) == {"one"}
            await w.edit(text(f"one: {HOST} :{a}"))
            assert w.supervisor.out_of_sync is None
    assert caplog.text.count("ZeroDivisionError: oops") == 1  # the file may hold a secret
    assert "reading the file failed: ZeroDivisionError" in caplog.text


# -- any sequence of files ---------------------------------------------------------------------

NAMES = "abc"
STEP = st.one_of(
    st.sampled_from(["", "targets: {", "apiVersion: krelay/v1\n"]),
    st.dictionaries(
        st.sampled_from(NAMES),
        st.tuples(st.integers(0, 2), st.integers(0, 1)),
        min_size=1,
    ),
)


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(steps=st.lists(STEP, min_size=1, max_size=8))
def test_after_any_sequence_of_files_the_last_valid_one_listens(
    steps: list[Any], tmp_path: Path
) -> None:
    """Each step is a file: text that is wrong, or local ports and targets by name. Connections
    that were opened on the way live as long as their forward stays, wherever that leads."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        asyncio.run(_machine(steps, monkeypatch, tmp_path))


async def _machine(steps: list[Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ports = [rig.closed_port() for _ in range(3)]
    async with named(b"0") as zero, named(b"1") as one:
        remotes = [zero, one]

        def content(state: dict[str, tuple[int, int]]) -> str:
            lines = [
                f"{name}: {HOST} {ports[local]}:{remotes[remote]}"
                for name, (local, remote) in state.items()
            ]
            return text(*lines)

        state: dict[str, tuple[int, int]] = {"a": (0, 0)}
        talks: dict[str, list[Talk]] = {name: [] for name in NAMES}
        async with world(monkeypatch, tmp_path, content(state)) as w:
            for step in steps:
                taken = [local for local, _ in step.values()] if isinstance(step, dict) else []
                valid = isinstance(step, dict) and len(set(taken)) == len(taken)
                try:
                    await w.edit(content(step) if isinstance(step, dict) else step)
                except KrelayError:
                    assert not valid
                else:
                    assert valid
                if valid:
                    for name in set(state) - set(step):
                        for talk in talks[name]:
                            await talk.cut()
                            await talk.close()
                        talks[name] = []
                    state = step
                await _holds(w, state, ports, talks)
            for talk in (talk for held in talks.values() for talk in held):
                await talk.close()


async def _holds(
    w: World, state: dict[str, tuple[int, int]], ports: list[int], talks: dict[str, list[Talk]]
) -> None:
    assert w.listening == {name: {ports[local]} for name, (local, _) in state.items()}
    for held in talks.values():
        for talk in held:
            assert await talk.alive()
    for name, (local, remote) in state.items():
        talk = await Talk.to(ports[local])
        assert talk.name == str(remote).encode()
        talks[name].append(talk)
    free = set(ports) - {ports[local] for local, _ in state.values()}
    for port in free:
        with pytest.raises(ConnectionRefusedError):
            await Talk.to(port)


# -- leaks -------------------------------------------------------------------------------------


@pytest.mark.timeout(120)
async def test_many_edits_leak_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    process = psutil.Process()
    async with named(b"a") as a, named(b"b") as b:

        def content(number: int) -> str:
            lines = [
                f"stays: {HOST} :{a}",
                f"moves: {HOST} :{(a, b)[number % 2]}",
                f"{'xyz'[number % 3]}: {HOST} :{a}",
                f"flow: {HOST} :{(a, b)[number % 2]}/udp",
            ]
            # Now and then another agent.
            head = HEAD.replace("sessions: 1", f"sessions: {1 + number // 100 % 2}")
            return text(*lines, head=head)

        async with world(monkeypatch, tmp_path, content(0)) as w:

            async def edits(begin: int, end: int) -> tuple[int, int, int]:
                for number in range(begin, end):
                    await w.edit(content(number))
                    if number % 10 == 0:
                        other = await Talk.to(w.port("moves"))
                        await other.close()
                await rig.until(
                    lambda: (
                        not (
                            w.supervisor.active.draining_forwards
                            or w.supervisor.active.draining_groups
                        )
                    )
                )
                gc.collect()
                tasks = len(asyncio.all_tasks())
                return process.num_fds(), tasks, process.memory_info().rss

            first = await edits(1, 101)
            last = await edits(101, 101 + EDITS)
        assert last[0] <= first[0]
        assert last[1] <= first[1]
        assert last[2] - first[2] < (2 << 20) + EDITS * 6_000
