"""The bus: everybody who listens hears everything, but for what they are too slow for."""

from __future__ import annotations

import asyncio
import json
from contextlib import AsyncExitStack
from datetime import datetime
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from krelay.state.events import BACKLOG, HISTORY, EventBus


async def test_who_listens_hears_what_is_told_from_then_on() -> None:
    bus = EventBus()
    bus.tell("reload", "before")
    async with bus.listen() as one, bus.listen() as two:
        waiting = asyncio.get_running_loop().create_future()

        async def hear() -> None:
            waiting.set_result(await one.next())

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(hear())
            await asyncio.sleep(0)
            assert not waiting.done()
            bus.tell("state", "web: ready", target="web", **{"from": "pending", "to": "ready"})
        event = waiting.result()
        assert await two.next() == event
        assert (event.number, event.kind, event.target) == (2, "state", "web")
        assert event.details == {"from": "pending", "to": "ready"}
    bus.tell("state", "unheard")
    assert (one.dropped, two.dropped) == (0, 0)


async def test_who_comes_late_hears_what_is_kept_after_what_they_know() -> None:
    bus = EventBus()
    for number in range(5):
        bus.tell("state", str(number))
    async with bus.listen(after=2) as listener:
        bus.tell("state", "5")
        assert [(await listener.next()).text for _ in range(4)] == ["2", "3", "4", "5"]
    async with bus.listen(after=100) as listener:
        bus.tell("state", "6")
        assert (await listener.next()).text == "6"


async def test_what_is_kept_is_bounded_and_who_is_slow_loses_the_oldest() -> None:
    bus = EventBus()
    async with bus.listen() as slow:
        for number in range(BACKLOG + 3):
            bus.tell("state", str(number))
        assert slow.dropped == 3
        assert (await slow.next()).text == "3"
    assert len(bus.history) == HISTORY
    assert bus.history[-1].number == BACKLOG + 3


def test_an_event_as_json() -> None:
    bus = EventBus()
    bus.tell("tunnel", "p1t1: up", up=True)
    found = json.loads(json.dumps(bus.history[0].as_json()))
    assert datetime.fromisoformat(found.pop("time")).tzinfo is not None
    assert found == {
        "number": 1,
        "kind": "tunnel",
        "target": None,
        "text": "p1t1: up",
        "details": {"up": True},
    }


@given(st.lists(st.sampled_from(["tell", "listen", "leave", "hear"]), max_size=80))
async def test_numbers_have_no_gaps_for_anybody(steps: list[str]) -> None:
    bus, told = EventBus(), 0
    async with AsyncExitStack() as stack:
        listeners: list[list[Any]] = []
        for step in steps:
            if step == "tell":
                told += 1
                bus.tell("state", str(told))
            elif step == "listen":
                listeners.append([await stack.enter_async_context(bus.listen()), told])
            elif step == "leave" and listeners:
                listeners.pop()
            elif step == "hear":
                for pair in listeners:
                    if pair[1] < told:
                        pair[1] += 1
                        assert (await pair[0].next()).number == pair[1]


def test_what_others_wrote_is_made_fit_to_be_shown() -> None:
    bus = EventBus()
    evil = "\x1b]0;owned\x07no\nlines\u202e"
    bus.tell("state", evil, reason=evil, error={"problems": [{"message": evil}]}, index=1)
    event = bus.history[0].as_json()
    assert event["text"] == "no lines"
    assert event["details"] == {
        "reason": "no lines",
        "error": {"problems": [{"message": "no lines"}]},
        "index": 1,
    }
