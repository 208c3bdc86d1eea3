"""A route, and those who wait for it."""

from __future__ import annotations

import asyncio

import pytest

from krelay.datapath.pool import Pool
from krelay.datapath.route import Route
from krelay.model import Endpoint, Protocol, Resolution
from tests import rig

OLD, NEW = Endpoint("10.0.0.1", 80), Endpoint("10.0.0.2", 80)


def make() -> Route:
    return Route(Pool("p", [rig.AgentLink(None)], rig.KEY, size=1))


def to(endpoint: Endpoint | None, reason: str = "") -> Resolution:
    return Resolution(Protocol.TCP, endpoint, reason)


async def test_a_new_route_leads_nowhere_and_says_so() -> None:
    route = make()
    assert route.endpoint is None
    assert route.reason == "not resolved yet"


async def test_waiters_get_the_first_answer_and_the_first_endpoint() -> None:
    route = make()
    async with asyncio.TaskGroup() as tasks:
        answer = tasks.create_task(route.resolved())
        endpoint = tasks.create_task(route.wait_endpoint())
        await asyncio.sleep(0)
        route.update(to(None, "no ready pod"))
        assert await answer == to(None, "no ready pod")
        assert route.reason == "no ready pod"
        assert not endpoint.done()
        route.update(to(OLD))
    assert endpoint.result() == OLD
    assert await route.resolved() == to(OLD)
    assert route.endpoint == OLD


async def test_waiting_for_another_endpoint_ends_with_it() -> None:
    route = make()
    route.update(to(OLD))
    async with asyncio.TaskGroup() as tasks:
        other = tasks.create_task(route.wait_other(OLD, 3600.0))
        await asyncio.sleep(0)
        route.update(to(OLD, "again"))
        await asyncio.sleep(0)
        assert not other.done()
        route.update(to(NEW))
    assert other.done()
    await route.wait_other(OLD, 3600.0)


async def test_waiting_for_another_endpoint_ends_in_time() -> None:
    route = make()
    route.update(to(OLD))
    await route.wait_other(OLD, 0.01)
    assert route.endpoint == OLD


async def test_a_bug_in_a_callback_does_not_stop_the_waiters(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fail() -> None:
        raise ZeroDivisionError

    route = make()
    route.on_change = fail
    async with asyncio.TaskGroup() as tasks:
        answer = tasks.create_task(route.resolved())
        await asyncio.sleep(0)
        route.update(to(OLD))
    assert answer.result() == to(OLD)
    assert "ZeroDivisionError" in caplog.text
