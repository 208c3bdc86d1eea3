"""Waiting until all forwards of a config work."""

from __future__ import annotations

import asyncio

import pytest

from krelay.errors import KrelayError, NotReadyError
from krelay.model import Config, Port
from krelay.state.snapshot import ForwardState, State
from krelay.supervisor.ready import wait_ready
from krelay.supervisor.supervisor import Supervisor
from tests import rig
from tests.supervisor.agents import reaches
from tests.supervisor.test_supervisor import config, target


async def waited(supervised: Config, timeout: float, **words: str) -> tuple[ForwardState, ...]:
    """What it gives, as it is used: beside the supervisor's run."""
    supervisor = Supervisor(supervised, lambda forward: None, strict=True)
    stop = asyncio.Event()
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(supervisor.run(stop))
        found = await wait_ready(supervisor, supervised, timeout, **words)
        stop.set()
    return found


async def test_all_are_ready_in_the_order_of_the_file(monkeypatch: pytest.MonkeyPatch) -> None:
    async with reaches(monkeypatch), rig.tcp_target(rig.echo) as tcp:
        two = (Port(tcp, 0), Port(tcp, 0))
        found = await waited(config(target("b", *two), target("a", two[0])), 5.0)
    assert [(f.target, f.index, f.state) for f in found] == [
        ("b", 0, State.READY),
        ("b", 1, State.READY),
        ("a", 0, State.READY),
    ]
    assert all(f.listen for f in found)


async def test_what_is_not_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    dead = rig.closed_port()
    async with reaches(monkeypatch), rig.tcp_target(rig.echo) as tcp:
        supervised = config(target("web", Port(tcp, 0)), target("db", Port(dead, 0)))
        with pytest.raises(ExceptionGroup) as caught:
            await waited(supervised, 1.5, then="nothing was done", hint="wait")
    (error,) = caught.value.exceptions
    assert isinstance(error, KrelayError)
    told, message, hint = error.report()
    assert told.startswith("db: failed: refused: ")
    assert (message, hint) == ("not ready after 1.5 s; nothing was done", "  hint: wait")


async def test_before_it_has_begun(monkeypatch: pytest.MonkeyPatch) -> None:
    async with reaches(monkeypatch), rig.tcp_target(rig.echo) as tcp:
        with pytest.raises(ExceptionGroup) as caught:
            await waited(config(target("web", Port(tcp, 0))), 0.0)
    (error,) = caught.value.exceptions
    assert isinstance(error, NotReadyError)
    assert error.unready == ("krelay is starting",)
