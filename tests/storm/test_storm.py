"""A short storm; `make soak` has the long one."""

from __future__ import annotations

import os
import random

import pytest

from tests.storm.run import storm, table

pytestmark = pytest.mark.process

RUNS = int(os.environ.get("KRELAY_STORM_RUNS", "6"))


@pytest.mark.timeout(300)
async def test_krelay_ends_after_a_signal_and_leaves_no_job_unnamed() -> None:
    seed = int(os.environ.get("KRELAY_STORM_SEED", random.randrange(1 << 30)))
    outcomes = await storm(RUNS, seed, at_once=3)
    print(table(outcomes))
    assert [problem for outcome in outcomes for problem in outcome.problems] == []
