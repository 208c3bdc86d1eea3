"""Shared probes: who makes one, which answer counts, and what a proof says."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from krelay.datapath.pool import Pool
from krelay.datapath.probe import NoRouteError, ProbeError
from krelay.model import Check, CheckKind, Endpoint
from krelay.supervisor.shared_probe import Proof, SharedProbe, shared_probe
from tests import rig

NO = ProbeError("no")


class Probe:
    """Counts how often it is made; each waits for its answer."""

    def __init__(self) -> None:
        self.made: list[asyncio.Future[ProbeError | None]] = []

    async def __call__(self) -> ProbeError | None:
        self.made.append(asyncio.get_running_loop().create_future())
        return await self.made[-1]


def now() -> float:
    return asyncio.get_running_loop().time()


async def start(*work: Awaitable[Any]) -> list[asyncio.Task[Any]]:
    tasks = [asyncio.ensure_future(one) for one in work]
    await asyncio.sleep(0)
    return tasks


@pytest.mark.parametrize("answer", [None, NO])
async def test_concurrent_questions_share_one_probe(answer: ProbeError | None) -> None:
    shared, probe = SharedProbe(), Probe()
    asking = await start(*(shared.ask(probe, now()) for _ in range(5)))
    (only,) = probe.made
    only.set_result(answer)
    assert await asyncio.gather(*asking) == [answer] * 5
    assert await shared.ask(probe, shared.at) == answer
    assert len(probe.made) == 1


async def test_an_answer_older_than_the_question_is_not_used() -> None:
    shared, probe = SharedProbe(), Probe()
    (first,) = await start(shared.ask(probe, now()))
    (second,) = await start(shared.ask(probe, now()))
    assert len(probe.made) == 2, "a probe that began before says nothing about now"
    probe.made[1].set_result(NO)
    assert await second is NO
    probe.made[0].set_result(None)
    assert await first is NO, "the newer answer counts"


async def test_traffic_that_worked_during_a_probe_counts_more_than_its_failure() -> None:
    shared, probe = SharedProbe(), Probe()
    (asking,) = await start(shared.ask(probe, now()))
    shared.worked(now() + 1)
    probe.made[0].set_result(NO)
    assert await asking is None


@pytest.mark.parametrize(
    "end",
    [lambda probe, task: task.cancel(), lambda probe, task: probe.set_exception(NoRouteError)],
)
async def test_a_waiter_probes_itself_if_the_probe_ends_without_an_answer(
    end: Callable[[Any, Any], None],
) -> None:
    shared, probe = SharedProbe(), Probe()
    first, *others = await start(*(shared.ask(probe, now()) for _ in range(3)))
    end(probe.made[0], first)
    await rig.until(lambda: len(probe.made) == 2)
    probe.made[1].set_result(None)
    assert await asyncio.gather(*others) == [None, None]
    assert isinstance((await asyncio.gather(first, return_exceptions=True))[0], BaseException)


async def test_a_shared_probe_belongs_to_a_pool_endpoint_and_check() -> None:
    pools = [Pool("p", [rig.AgentLink(None)], rig.KEY, size=1) for _ in range(2)]
    here, there = Endpoint("h", 1), Endpoint("h", 2)
    dial, http = Check(CheckKind.DIAL), Check(CheckKind.HTTP)
    kept = shared_probe(pools[0], here, dial)
    assert shared_probe(pools[0], here, Check(CheckKind.DIAL)) is kept
    others = [
        shared_probe(pools[1], here, dial),
        shared_probe(pools[0], there, dial),
        shared_probe(pools[0], here, http),
    ]
    assert kept not in others
    kept.worked(7.0)
    del kept
    gc.collect()
    assert shared_probe(pools[0], here, dial).at < 7.0


def test_a_proof_of_another_day_has_its_date() -> None:
    now = datetime.now(UTC)
    assert str(Proof("x", now)) == f"x at {now.astimezone():%H:%M}"
    before = now - timedelta(days=2)
    assert str(Proof("x", before)) == f"x on {before.astimezone():%Y-%m-%d %H:%M}"
