"""`python -m fuzz [--seconds N] [--jobs N] [NAME...]`: fuzz targets, and print a table.

Findings stay in `fuzz/found/`; the exit code is 1 if there are any.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import re
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from fuzz.targets import TARGETS, Target

ROOT = Path(__file__).parents[1]
FOUND = ROOT / "fuzz" / "found"
RSS_LIMIT_MB = 512
INPUT_TIMEOUT = 20
"""Seconds for one input; the slowest takes some milliseconds; on a busy machine more."""
_GRACE = 120.0

_COVERAGE = re.compile(r"cov: (\d+) ft: \d+ corp: (\d+)/")
_STATS = re.compile(r"^stat::(\w+):\s+(\d+)", re.MULTILINE)


class Outcome(NamedTuple):
    """The result of one target. `coverage` counts edges, `corpus` the inputs that reach them."""

    name: str
    runs: int
    coverage: int
    corpus: int
    rss_mb: int
    found: list[Path]
    output: str


async def fuzz(target: Target, seconds: int) -> Outcome:
    """Fuzz a target from its seeds for `seconds`, or until it finds something."""
    FOUND.mkdir(exist_ok=True)
    before = set(FOUND.glob(f"{target.name}-*"))
    with tempfile.TemporaryDirectory() as work:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "fuzz.one", target.name),
            *(work, str(target.corpus)),
            f"-max_total_time={seconds}",
            f"-max_len={target.size}",
            f"-rss_limit_mb={RSS_LIMIT_MB}",
            f"-timeout={INPUT_TIMEOUT}",
            f"-artifact_prefix={FOUND}/{target.name}-",
            "-print_final_stats=1",
            cwd=ROOT,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, "PYTHONHASHSEED": "0"},
        )
        try:
            async with asyncio.timeout(seconds + _GRACE):
                output = (await process.communicate())[0].decode(errors="replace")
        finally:
            if process.returncode is None:
                process.kill()
                await process.wait()
    seen = _COVERAGE.findall(output)
    coverage, corpus = seen[-1] if seen else (0, 0)
    stats = dict(_STATS.findall(output))
    return Outcome(
        target.name,
        int(stats.get("number_of_executed_units", 0)),
        int(coverage),
        int(corpus),
        int(stats.get("peak_rss_mb", 0)),
        sorted(set(FOUND.glob(f"{target.name}-*")) - before),
        "" if process.returncode == 0 else output,
    )


async def main(names: list[str], seconds: int, jobs: int) -> int:
    """The exit code."""
    print(f"{'target':<14}{'runs':>12}{'edges':>8}{'corpus':>8}{'RSS':>8}  found")
    room = asyncio.Semaphore(jobs)
    failed = []

    async def one(target: Target) -> None:
        async with room:
            done = await fuzz(target, seconds)
        found = ", ".join(path.name for path in done.found) or ("?" if done.output else "-")
        print(
            f"{done.name:<14}{done.runs:>12,}{done.coverage:>8}{done.corpus:>8}"
            f"{done.rss_mb:>6} MB  {found}",
            flush=True,
        )
        if done.output:
            failed.append(done)

    async with asyncio.TaskGroup() as tasks:
        for name in names:
            tasks.create_task(one(TARGETS[name]))
    for done in failed:
        print(f"\n== {done.name}\n" + done.output[-6_000:])
    return 1 if failed else 0


if __name__ == "__main__":
    parser = argparse.ArgumentParser("python -m fuzz")
    parser.add_argument("names", nargs="*", metavar="NAME", choices=[[], *TARGETS])
    parser.add_argument("--seconds", type=int, default=600)
    parser.add_argument("--jobs", type=int, default=2)
    known = parser.parse_args()
    chosen = known.names or list(TARGETS)
    sys.exit(asyncio.run(main(chosen, known.seconds, known.jobs)))
