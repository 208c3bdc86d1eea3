"""Short runs on the real cluster, of a fixed seed and of a new one; `make soak` is the long one."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.run import run, seed_of
from tests.e2e.conftest import find_cluster

SECONDS = 50.0


@pytest.mark.e2e
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seed", [7, None], ids=["fixed", "random"])
async def test_nothing_is_lost(seed: int | None, tmp_path: Path) -> None:
    find_cluster()
    seed = seed_of("CHAOS_SEED") if seed is None else seed
    print(f"CHAOS_SEED={seed}")
    report = await run(seed, SECONDS, tmp_path, short=True, tunnel="{}")
    print(report.table())
    assert report.violations() == []
