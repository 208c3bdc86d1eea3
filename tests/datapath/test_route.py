"""A route, and those who wait for it."""

from __future__ import annotations

import asyncio

import pytest

from krelay.datapath import route as module
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


# -- several endpoints -------------------------------------------------------------------------

THIRD = Endpoint("10.0.0.3", 80)
ALL = (OLD, NEW, THIRD)
CLUSTER_IP = Endpoint("10.96.0.1", 80)


def several(endpoint: Endpoint, *endpoints: Endpoint, affinity: bool = False) -> Resolution:
    return Resolution(Protocol.TCP, endpoint, endpoints=endpoints, affinity=affinity)


def picked(route: Route, client: str = "", refused: Endpoint | None = None) -> Endpoint | None:
    return route.pick(lambda: client, refused)


async def test_connections_take_turns_at_the_endpoints() -> None:
    route = make()
    assert picked(route) is None
    route.update(several(OLD, *ALL))
    assert {picked(route) for _ in ALL} == set(ALL)
    assert {picked(route, refused=OLD) for _ in ALL} == {NEW, THIRD}
    route.update(several(OLD, OLD))
    assert picked(route, refused=OLD) == OLD


async def test_a_client_stays_on_its_endpoint_while_that_is_there() -> None:
    route = make()
    route.update(several(OLD, *ALL, affinity=True))
    clients = [f"192.0.2.{number}" for number in range(100)]
    before = {client: picked(route, client) for client in clients}
    assert set(before.values()) == set(ALL)
    assert {client: picked(route, client) for client in clients} == before
    route.update(several(OLD, OLD, THIRD, affinity=True))
    after = {client: picked(route, client) for client in clients}
    assert set(after.values()) == {OLD, THIRD}
    moved = [client for client in clients if after[client] != before[client]]
    assert all(before[client] == NEW for client in moved)


async def test_a_cluster_ip_that_refused_gives_way_to_an_endpoint() -> None:
    route = make()
    route.update(several(CLUSTER_IP, OLD, NEW))
    assert (picked(route), route.endpoint) == (CLUSTER_IP, CLUSTER_IP)
    assert picked(route, refused=CLUSTER_IP) in (OLD, NEW)
    route.avoid(CLUSTER_IP)
    assert {picked(route) for _ in ALL} == {OLD, NEW}
    assert route.endpoint == OLD
    route.update(several(CLUSTER_IP, OLD, NEW))
    assert route.endpoint == OLD
    route.update(several(CLUSTER_IP, OLD, THIRD))
    assert picked(route) == CLUSTER_IP, "other endpoints are another chance"


async def test_a_cluster_ip_is_avoided_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "AVOIDED", 0.0)
    route = make()
    route.update(several(CLUSTER_IP, OLD))
    route.avoid(CLUSTER_IP)
    assert picked(route) == CLUSTER_IP


async def test_a_route_leads_to_each_of_its_endpoints() -> None:
    route = make()
    assert not route.leads_to(OLD)
    route.update(several(OLD, OLD, NEW))
    assert [route.leads_to(one) for one in (*ALL, CLUSTER_IP)] == [True, True, False, False]
    route.update(several(CLUSTER_IP, OLD, NEW))
    assert [route.leads_to(one) for one in (*ALL, CLUSTER_IP)] == [False, False, False, True]


# -- the fallback ------------------------------------------------------------------------------

UNREADY = Resolution(Protocol.TCP, NEW, via="pod web-1, which is not ready", unready=True)
WAITING = Resolution(Protocol.TCP, reason="pod web-1 is not ready", fallback=UNREADY)


async def test_a_route_falls_back_until_a_pod_is_ready() -> None:
    route = make()
    assert not route.fall_back()
    route.update(WAITING)
    assert (route.endpoint, route.reason) == (None, "pod web-1 is not ready")
    assert route.fall_back()
    assert (route.endpoint, route.resolution) == (NEW, UNREADY)
    assert route.given == WAITING
    route.update(to(None, "no pod"))
    assert (route.endpoint, route.fall_back()) == (None, False)
    route.update(WAITING)
    assert route.endpoint == NEW, "no pod has become ready meanwhile"
    route.update(to(OLD))
    assert (route.endpoint, route.fall_back()) == (OLD, False)
    route.update(WAITING)
    assert route.endpoint is None
