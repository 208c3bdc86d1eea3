"""Dials that are begun anew, and those that must not be."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

import pytest

from krelay.datapath import tunnel as module
from krelay.datapath.tunnel import Reconnector
from krelay.errors import TunnelError, UnreachableError
from krelay.mux.log import about
from krelay.retry import Backoff
from tests import rig


def made(link: rig.AgentLink, wanted: Callable[[], bool] = lambda: False) -> Reconnector:
    return Reconnector(about(logging.getLogger("test"), tunnel="t"), link, wanted)


async def test_a_dial_starts_again_at_each_restart() -> None:
    reconnector, dials = made(rig.AgentLink(None)), 0

    async def dial() -> None:
        nonlocal dials
        dials += 1
        if dials < 3:
            asyncio.get_running_loop().call_soon(reconnector.restart)
            await asyncio.get_running_loop().create_future()

    await reconnector.connect(dial)
    assert dials == 3
    reconnector.restart()  # nothing is under way


async def test_a_dial_that_is_slow_to_cancel_starts_again_once() -> None:
    reconnector, dials = made(rig.AgentLink(None)), 0

    async def dial() -> None:
        nonlocal dials
        dials += 1
        if dials > 1:
            return
        reconnector.restart()
        try:
            await asyncio.get_running_loop().create_future()
        finally:
            reconnector.restart()
            await asyncio.sleep(0)

    await reconnector.connect(dial)
    assert dials == 2


@pytest.mark.parametrize("error", [TimeoutError("its own"), TunnelError("no")])
async def test_an_error_of_a_dial_is_raised(error: Exception) -> None:
    async def dial() -> None:
        raise error

    with pytest.raises(type(error), match=str(error)):
        await made(rig.AgentLink(None)).connect(dial)


async def test_a_cancelled_dial_ends_even_after_a_restart() -> None:
    reconnector = made(rig.AgentLink(None))

    async def dial() -> None:
        await asyncio.get_running_loop().create_future()

    async with asyncio.TaskGroup() as tasks:
        task = tasks.create_task(reconnector.connect(dial))
        await asyncio.sleep(0)
        reconnector.restart()
        task.cancel()
    assert task.cancelled()


@pytest.mark.parametrize("failure", [None, TunnelError("no"), UnreachableError("shut")])
async def test_a_pause_ends_on_a_hint(
    failure: Exception | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only where the way was shut is it looked at."""
    monkeypatch.setattr(Backoff, "delay", lambda _: 3600.0)
    link = rig.AgentLink(None)
    reconnector = made(link)
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(reconnector.pause(failure))
        await asyncio.sleep(0)
        link.opened.set()
        if not isinstance(failure, UnreachableError):
            reconnector.hint.set()


async def test_a_probe_of_the_api_server_that_fails_leaves_the_pause(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(Backoff, "delay", lambda _: 3600.0)
    link = rig.AgentLink(None)
    reconnector = made(link)

    async def fail() -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(link, "reachable_again", fail)
    async with asyncio.TaskGroup() as tasks:
        pausing = tasks.create_task(reconnector.pause(UnreachableError("shut")))
        await rig.until(lambda: caplog.messages)
        assert not pausing.done()
        reconnector.hint.set()


@pytest.mark.parametrize("before", [True, False])
async def test_a_pause_is_short_while_a_connection_waits(
    before: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether it came before the pause began, or comes in it; and not shorter for many."""
    monkeypatch.setattr(module, "HASTE", 0.1)
    monkeypatch.setattr(Backoff, "delay", lambda _: 3600.0)
    reconnector = made(rig.AgentLink(None), lambda: before)
    loop = asyncio.get_running_loop()
    begun = loop.time()
    async with asyncio.TaskGroup() as tasks:
        pausing = tasks.create_task(reconnector.pause(None))
        await asyncio.sleep(0)
        for _ in range(0 if before else 100):
            reconnector.dial_soon()
        await pausing
    assert loop.time() >= begun + 0.049
