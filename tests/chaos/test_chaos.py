"""Short runs on the real cluster: every fault once in the order of a fixed seed, and some in that
of a new one; `make soak` is the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.faults import WEIGHTS, name
from tests.chaos.run import run, seed_of
from tests.e2e.conftest import find_cluster

EVERY = 600.0
"""Seconds in which even a slow machine is through with every fault."""
SOME = 50.0


@pytest.mark.e2e
@pytest.mark.timeout(1200)
@pytest.mark.parametrize(("seed", "seconds"), [(7, EVERY), (None, SOME)], ids=["fixed", "random"])
async def test_nothing_is_lost(seed: int | None, seconds: float, tmp_path: Path) -> None:
    find_cluster()
    seed = seed_of("CHAOS_SEED") if seed is None else seed
    print(f"CHAOS_SEED={seed}")
    report = await run(seed, seconds, tmp_path, short=True, tunnel="{}")
    print(report.table())
    assert report.violations() == []
    if seconds == EVERY:
        assert set(report.account.faults) == {name(fault) for fault in WEIGHTS}
