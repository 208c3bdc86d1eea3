"""The resolutions of a target, on their way to the routes of its forwards."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import pytest

from krelay.datapath.pool import Pool
from krelay.datapath.route import Route
from krelay.errors import AccessDeniedError
from krelay.model import Endpoint, Kind, Port, Protocol, Resolution, Target
from krelay.supervisor import target_watcher as module
from krelay.supervisor.target_watcher import Failures, Publish, TargetWatcher
from krelay.tasks import TaskGroup
from tests import rig

TARGET = Target("web", Kind.SERVICE, "nginx", (Port(80), Port(53, protocol=Protocol.UDP)))
HERE = Resolution(Protocol.TCP, Endpoint("10.0.0.1", 80), via="clusterIP")
NOWHERE = Resolution(Protocol.TCP, None, "no ready pod")


@pytest.fixture(autouse=True)
def soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_RETRY_FIRST", 0.01)


class Source:
    """Publishes the resolutions that a test queues, or raises the error."""

    def __init__(self) -> None:
        self.answers: asyncio.Queue[tuple[Resolution, ...] | Exception] = asyncio.Queue()
        self.runs = 0

    async def follow(self, target: Target, publish: Publish) -> None:
        self.runs += 1
        while True:
            item = await self.answers.get()
            if isinstance(item, Exception):
                raise item
            publish(item)


@asynccontextmanager
async def following() -> AsyncIterator[tuple[Source, TargetWatcher, list[Route]]]:
    async with TaskGroup() as tasks:
        source = Source()
        pool = Pool("p", [rig.AgentLink(None)], rig.KEY, size=1)
        found = TargetWatcher(TARGET, source.follow, tasks)
        yield source, found, [Route(pool), Route(pool)]
        found.stop()


async def test_routes_get_the_last_answer_and_all_further_ones() -> None:
    async with following() as (source, found, routes):
        source.answers.put_nowait((HERE, NOWHERE))
        await found.answered.wait()
        assert routes[0].resolution is None
        found.update(routes)
        assert [route.resolution for route in routes] == [HERE, NOWHERE]
        source.answers.put_nowait((HERE, HERE))
        await rig.until(lambda: routes[1].endpoint)
        others = [Route(routes[0].pool), Route(routes[0].pool)]
        found.update(others)
        assert [route.endpoint for route in others] == [HERE.endpoint] * 2


async def test_a_changed_endpoint_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "krelay.supervisor")
    async with following() as (source, found, routes):
        found.update(routes)
        for answer in ((HERE, NOWHERE), (HERE, NOWHERE), (NOWHERE, NOWHERE)):
            source.answers.put_nowait(answer)
        await rig.until(lambda: routes[0].resolution == NOWHERE)
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("INFO", "web: -> 10.0.0.1:80 (clusterIP)"),
        ("WARNING", "web: no ready pod"),
        ("WARNING", "web: no ready pod"),
    ]


@pytest.mark.parametrize("update_first", [True, False])
async def test_a_failure_becomes_the_reason_of_the_routes_and_is_retried(
    update_first: bool, caplog: pytest.LogCaptureFixture
) -> None:
    async with following() as (source, found, routes):
        if update_first:
            found.update(routes)
        error = AccessDeniedError("no watching", hint="ask for it")
        reasons: list[str] = []
        routes[0].on_change = lambda: reasons.append(routes[0].reason)
        source.answers.put_nowait(error)
        await found.answered.wait()
        found.update(routes)
        assert found.failure is error
        assert reasons == ["no watching"], "a change wakes the health of the forward"
        assert {route.reason for route in routes} == {"no watching"}
        source.answers.put_nowait(AccessDeniedError("no watching"))
        await rig.until(lambda: source.runs == 3)
        source.answers.put_nowait((HERE, HERE))
        await rig.until(lambda: routes[0].endpoint)
        assert found.failure is None
        # From here on a failure leaves what was known.
        source.answers.put_nowait(error)
        await rig.until(lambda: found.failure)
        assert routes[0].endpoint == HERE.endpoint
    errors = [record.message for record in caplog.records if record.levelname == "ERROR"]
    assert errors == ["web: not followed: no watching; hint: ask for it"] * 2


async def test_targets_that_fail_together_are_logged_together(
    caplog: pytest.LogCaptureFixture,
) -> None:
    failures = Failures()
    for error in (AccessDeniedError("no", hint="ask"), AccessDeniedError("no, too")):
        for number in range(5 if error.hint else 2):
            failures.add(f"t{number}", error)
    await rig.until(lambda: len(caplog.records) == 2)
    failures.add("t9", AccessDeniedError("no"))
    await rig.until(lambda: len(caplog.records) == 3)
    assert caplog.messages == [
        "5 targets (t0, t1, t2, ...) are not followed: no; hint: ask",
        "2 targets (t0, t1) are not followed: no, too",
        "t9: not followed: no",
    ]


async def test_what_is_held_is_logged_later_but_not_what_is_told(
    caplog: pytest.LogCaptureFixture,
) -> None:
    failures = Failures()
    failures.hold()
    for name in ("a", "a", "b"):
        failures.unresolved(name, f"no {name}")
        failures.add(name, AccessDeniedError(f"denied {name}"))
    await asyncio.sleep(0)
    assert caplog.messages == []
    failures.release("no b", "denied a")
    assert caplog.messages == ["a: no a", "b: not followed: denied b"]
    failures.release()
    failures.unresolved("c", "no c")
    assert caplog.messages[2:] == ["c: no c"]


async def test_a_bug_fails_that_target_only(caplog: pytest.LogCaptureFixture) -> None:
    async with following() as (source, found, _):
        source.answers.put_nowait(ZeroDivisionError("oops"))
        await found.answered.wait()
        assert str(found.failure) == "internal error: oops"
        source.answers.put_nowait((HERE, HERE))
        await rig.until(lambda: not found.failure)
    assert "web: following failed" in caplog.text


async def test_a_watcher_of_a_constant_target_ends() -> None:
    async def follow(target: Target, publish: Callable[..., None]) -> None:
        publish((HERE, HERE))

    async with TaskGroup() as tasks:
        found = TargetWatcher(TARGET, follow, tasks)
    assert found.answered.is_set()
