"""A storm: krelay beside a slow and failing API server, edits, lost agents, and then signals.

    python -m tests.storm.run --runs 500 --seed 7 --at-once 4 --python python3.13

Each run is a seeded random schedule for one `krelay up`. It must end after its signals, with a
documented exit code and no traceback, and every Job that it posted must be deleted, or named on
standard error as one that may be left behind.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import io
import os
import random
import signal
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

from tests.storm.kube import Fault, Kube

ROOT = Path(__file__).parents[2]
DRAIN = 1.0
HANG = 60.0
"""Seconds after its last signal in which a run must have ended: far more than any deadline."""
CODES = (0, 1, 3, 4, 130)
_SETTLE = 3.0
"""Seconds after the end in which the API server carries out what it was asked before."""


@dataclass
class Outcome:
    """What one run came to. `problems` is empty if all is well."""

    seed: int
    code: int | None = None
    took: float = 0.0
    """Seconds from the last signal to the end."""
    jobs: int = 0
    named: int = 0
    problems: list[str] = field(default_factory=list)
    log: str = ""


async def run(seed: int, folder: Path, python: str = sys.executable) -> Outcome:
    """Carry out the schedule of `seed`."""
    schedule = random.Random(seed)
    outcome = Outcome(seed)
    trouble = _Trouble(random.Random(schedule.random()))
    async with Kube(trouble.fault, trouble.pod_starts).serving() as kube:
        file = folder / "krelay.yaml"
        file.write_text(_text(schedule, 0))
        environ = {k: v for k, v in os.environ.items() if not k.startswith(("KUBE", "KRELAY"))}
        environ |= {
            "KUBECONFIG": kube.kubeconfig(folder / "kubeconfig"),
            "XDG_RUNTIME_DIR": str(folder),
            "NO_COLOR": "1",
        }
        log = folder / "log"
        with log.open("wb") as stream:
            process = await asyncio.create_subprocess_exec(
                python,
                *("-m", "krelay", "up", "-f", str(file), "--plain"),
                cwd=ROOT,
                env=environ,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
            )
            try:
                await _play(schedule, kube, trouble, file, process, outcome)
            finally:
                if process.returncode is None:
                    process.kill()
                    await process.wait()
        await asyncio.sleep(_SETTLE)
        outcome.log = log.read_text(errors="replace")
        _judge(outcome, kube)
    return outcome


class _Trouble:
    """Decides how each request fares."""

    def __init__(self, chance: random.Random) -> None:
        self._chance = chance
        self._slow = chance.choice([0.0, 0.3, 1.0])
        self._wrong = chance.choice([0.0, 0.1, 0.4])
        self._ill = chance.choice([0.0, 0.3])

    def fault(self, method: str, path: str) -> Fault:
        chance = self._chance
        delay = chance.uniform(0, 2.0) if chance.random() < self._slow else 0.0
        if chance.random() >= self._wrong:
            return Fault(delay)
        status = chance.choice([-1, -1, 500, 503, 429, 403])
        carried_out = status in (-1, 500, 503) and chance.random() < 0.5
        return Fault(delay, status, carried_out)

    def pod_starts(self) -> bool:
        return self._chance.random() >= self._ill


def _text(chance: random.Random, version: int) -> str:
    """A file: with another agent for each label, other targets, and sometimes wrong."""
    targets = "".join(
        f"  t{n}: ip/127.0.0.{n + 1} :{chance.choice([8, 9])}\n"
        for n in range(chance.randint(1, 3))
    )
    label = version if chance.random() < 0.7 else 0
    wrong = "nonsense: 1\n" if version and chance.random() < 0.1 else ""
    replicas = chance.choice([1, 1, 1, 2, 2, 6])
    return (
        f"apiVersion: krelay/v1\n{wrong}"
        f"agent: {{replicas: {replicas}, labels: {{n: 'v{label}'}}}}\n"
        f"tunnel: {{drain: {DRAIN:g}s}}\ntargets:\n{targets}"
    )


async def _play(
    chance: random.Random,
    kube: Kube,
    trouble: _Trouble,
    file: Path,
    process: asyncio.subprocess.Process,
    outcome: Outcome,
) -> None:
    """The schedule: what happens before the signals, and the signals."""
    ended = asyncio.create_task(process.wait())
    try:
        seen = asyncio.create_task(kube.seen.wait())
        await asyncio.wait({ended, seen}, return_when=asyncio.FIRST_COMPLETED)
        seen.cancel()
        for version in range(1, chance.randint(1, 6)):
            await asyncio.wait(
                {ended}, timeout=chance.choice([0.0, 0.3, 0.6, chance.uniform(0, 2)])
            )
            what = chance.random()
            if what < 0.7:
                fresh = file.with_suffix(".new")
                fresh.write_text(_text(chance, version))
                fresh.replace(file)
            elif what < 0.85:
                kube.lose_agent()
            else:
                kube.down = not kube.down
                kube.cut()
        kube.down = kube.down and chance.random() < 0.5
        await asyncio.wait({ended}, timeout=chance.uniform(0, 2))
        for number in range(chance.choice([1, 1, 2, 3])):
            if number:
                await asyncio.wait({ended}, timeout=chance.uniform(0, 2))
            with contextlib.suppress(ProcessLookupError):
                # asyncio's own call may take the exit code away from the thread that waits for it.
                os.kill(process.pid, chance.choice([signal.SIGTERM, signal.SIGINT]))
        last = time.monotonic()
        await asyncio.wait({ended}, timeout=HANG)
        outcome.took = time.monotonic() - last
    finally:
        outcome.code = process.returncode
        ended.cancel()


def _judge(outcome: Outcome, kube: Kube) -> None:
    problems, log = outcome.problems, outcome.log
    outcome.jobs = len(kube.jobs)
    if outcome.code is None or outcome.code == -signal.SIGKILL:
        problems.append(f"krelay hangs {HANG:g} s after its last signal")
    elif outcome.code not in CODES:
        problems.append(f"exit code {outcome.code}")
    if "Traceback" in log:
        problems.append("a traceback")
    for name in kube.left:
        if f"{name} may be left behind" in log:
            outcome.named += 1
        else:
            problems.append(f"the Job {name} was left and not named")


async def storm(runs: int, seed: int, at_once: int, python: str = sys.executable) -> list[Outcome]:
    """Carry out so many runs; the seed of each follows from `seed`."""
    places = asyncio.Semaphore(at_once)
    outcomes: list[Outcome] = []

    async def one(number: int) -> None:
        async with places:
            with tempfile.TemporaryDirectory(prefix="kr-") as folder:
                outcome = await run(seed + number, Path(folder), python)
        outcomes.append(outcome)
        for problem in outcome.problems:
            sys.stderr.write(f"run {outcome.seed}: {problem}\n{outcome.log}\n")

    with contextlib.redirect_stdout(io.StringIO()):  # each agent says where it listens
        async with asyncio.TaskGroup() as tasks:
            for number in range(runs):
                tasks.create_task(one(number))
    return outcomes


def table(outcomes: list[Outcome]) -> str:
    """What the runs came to, for people."""
    times = sorted(outcome.took for outcome in outcomes)
    codes = {code: sum(o.code == code for o in outcomes) for code in {o.code for o in outcomes}}
    wrong = [outcome for outcome in outcomes if outcome.problems]
    return (
        f"{len(outcomes)} runs, {sum(o.jobs for o in outcomes)} Jobs made,"
        f" {sum(o.named for o in outcomes)} named as left behind\n"
        f"exit codes: {', '.join(f'{code}: {count}' for code, count in codes.items())}\n"
        f"from the last signal to the end: median {times[len(times) // 2]:.1f} s,"
        f" longest {times[-1]:.1f} s\n"
        f"{len(wrong)} runs with a problem: {[outcome.seed for outcome in wrong]}"
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--seed", type=int, default=random.randrange(1 << 30))
    parser.add_argument("--at-once", type=int, default=4)
    parser.add_argument("--python", default=sys.executable)
    options = parser.parse_args()
    print(f"seed {options.seed}", flush=True)
    outcomes = asyncio.run(storm(options.runs, options.seed, options.at_once, options.python))
    print(table(outcomes))
    return int(any(outcome.problems for outcome in outcomes))


if __name__ == "__main__":
    sys.exit(main())
