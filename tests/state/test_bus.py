"""The bus: each subscriber gets all events, except those that it was too slow for."""

from __future__ import annotations

import asyncio
import json
from contextlib import ExitStack
from datetime import datetime
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krelay.state.bus import BACKLOG, HISTORY, EventBus
from krelay.state.events import ForwardChanged, PublicEvent, Started
from krelay.state.snapshot import Snapshot
from krelay.state.states import State
from tests.state.said import said
from tests.status.reports import forward, report


async def test_a_subscriber_gets_all_events_from_then_on() -> None:
    bus = EventBus()
    bus.publish(said("reload", "before"))
    with bus.subscribe() as one, bus.subscribe() as two:
        waiting = asyncio.get_running_loop().create_future()

        async def read() -> None:
            waiting.set_result(await one.next())

        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(read())
            await asyncio.sleep(0)
            assert not waiting.done()
            bus.publish(
                said("state", "web: ready", target="web", **{"from": "pending", "to": "ready"})
            )
        event = waiting.result()
        assert await two.next() == event
        assert (event.number, event.kind, event.target) == (2, "state", "web")
        assert event.details == {"from": "pending", "to": "ready"}
    bus.publish(said("state", "unheard"))
    assert (one.dropped, two.dropped) == (0, 0)


async def test_a_late_subscriber_gets_kept_events_after_its_number() -> None:
    bus = EventBus()
    for number in range(5):
        bus.publish(said("state", str(number)))
    with bus.subscribe(after=2) as listener:
        bus.publish(said("state", "5"))
        assert [(await listener.next()).text for _ in range(4)] == ["2", "3", "4", "5"]
    with bus.subscribe(after=100) as listener:
        bus.publish(said("state", "6"))
        assert (await listener.next()).text == "6"


async def test_history_and_queues_are_bounded_and_drop_the_oldest() -> None:
    bus = EventBus()
    with bus.subscribe() as slow:
        for number in range(BACKLOG + 3):
            bus.publish(said("state", str(number)))
        assert slow.dropped == 3
        assert (await slow.next()).text == "3"
    assert len(bus.history) == HISTORY
    assert bus.history[-1].number == BACKLOG + 3


def test_a_published_event_has_a_number_and_a_time() -> None:
    bus = EventBus()
    bus.publish(said("tunnel", "p1t1: up", up=True))
    found = json.loads(json.dumps(bus.history[0].as_json()))
    assert datetime.fromisoformat(found.pop("time")).tzinfo is not None
    assert found == {
        "number": 1,
        "kind": "tunnel",
        "target": None,
        "text": "p1t1: up",
        "details": {"up": True},
    }


@given(st.lists(st.sampled_from(["publish", "subscribe", "leave", "read"]), max_size=80))
async def test_subscribers_see_numbers_without_gaps(steps: list[str]) -> None:
    bus, published = EventBus(), 0
    with ExitStack() as stack:
        subscriptions: list[list[Any]] = []
        for step in steps:
            if step == "publish":
                published += 1
                bus.publish(said("state", str(published)))
            elif step == "subscribe":
                subscriptions.append([stack.enter_context(bus.subscribe()), published])
            elif step == "leave" and subscriptions:
                subscriptions.pop()
            elif step == "read":
                for pair in subscriptions:
                    if pair[1] < published:
                        pair[1] += 1
                        assert (await pair[0].next()).number == pair[1]


def test_texts_of_others_are_cleaned_in_the_json_form() -> None:
    bus = EventBus()
    evil = "\x1b]0;owned\x07no\nlines\u202e"
    bus.publish(said("state", evil, reason=evil, error={"problems": [{"message": evil}]}, index=1))
    event = bus.history[0].as_json()
    assert event["text"] == "no lines"
    assert event["details"] == {
        "reason": "no lines",
        "error": {"problems": [{"message": "no lines"}]},
        "index": 1,
    }


# -- in this process -------------------------------------------------------------------------------


def changed(state: State) -> ForwardChanged:
    return ForwardChanged("web", "web", 0, State.PENDING, state)


async def test_a_subscription_gets_the_kinds_that_it_asked_for() -> None:
    bus = EventBus()
    with bus.subscribe(Started) as starts, bus.subscribe(PublicEvent) as public:
        bus.publish(Started())
        bus.publish(changed(State.READY))
        bus.publish(changed(State.FAILED))
        assert await starts.next() == Started()
        found = [await public.next() for _ in range(2)]
        assert [event.text for event in found] == ["web: ready", "web: failed"]
    assert [event.number for event in bus.history] == [1, 2], "only public events count"


def test_a_handler_that_fails_disturbs_neither_the_producer_nor_other_handlers(
    caplog: pytest.LogCaptureFixture,
) -> None:
    bus, seen = EventBus(), list[ForwardChanged]()

    def fail(event: ForwardChanged) -> None:
        raise ZeroDivisionError

    bus.on(ForwardChanged, fail)
    bus.on(ForwardChanged, seen.append)
    bus.publish(Started())
    bus.publish(changed(State.READY))
    assert [event.state for event in seen] == [State.READY]
    assert "ZeroDivisionError" in caplog.text


async def test_waiting_ends_with_the_first_snapshot_that_satisfies_it() -> None:
    states, taken = [State.PENDING], 0

    def snapshot() -> Snapshot:
        nonlocal taken
        taken += 1
        return report(forward("web", states[-1]))

    bus = EventBus(snapshot)
    async with asyncio.TaskGroup() as tasks:
        waiting = tasks.create_task(bus.wait_for(lambda found: found.ready))
        await asyncio.sleep(0)
        for state in (State.FAILED, State.DEGRADED):
            states.append(state)
            bus.publish(changed(state))
        await asyncio.sleep(0.01)
        assert (waiting.done(), taken) == (False, 2), "once for the events of one turn"
        states.append(State.READY)
        bus.publish(changed(State.READY))
    assert waiting.result().ready
    assert (await bus.wait_for(lambda found: found.ready)).ready
    assert not bus._waiting


async def test_waiting_that_is_cancelled_leaves_nothing() -> None:
    bus = EventBus(lambda: report(forward("web", State.FAILED)))
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.01):
            await bus.wait_for(lambda found: found.ready)
    assert not bus._waiting
