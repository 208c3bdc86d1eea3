"""A run: the load and a random schedule of faults on the real cluster, then the invariants.

`python -m tests.chaos.run` (make soak) prints the report and ends with 1 where one does not hold.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import secrets
import subprocess
import sys
import tempfile
from pathlib import Path

import psutil

from tests.chaos.account import Account, now
from tests.chaos.clients import Clients
from tests.chaos.faults import WEIGHTS, Fault, name
from tests.chaos.proxy import Proxy
from tests.chaos.report import Ends, Report
from tests.chaos.world import SIDES, World, cluster, later, serves, settle, upstream
from tests.e2e import kit
from tests.e2e.conftest import find_cluster
from tests.signals import unignore

TRANSFERS, FAST, ASKERS, FLOWS = 46, 4, 20, 5
GRACE = 120.0
# The client forgets a flow after 110 s, the agent after 150 s.
_FLOWS_END = 170.0


def schedule(chance: random.Random, *, short: bool) -> list[Fault]:
    """The next faults: in a short run each once, in any order; else by their weight."""
    if short:
        return chance.sample(list(WEIGHTS), len(WEIGHTS))
    return chance.choices(list(WEIGHTS), list(WEIGHTS.values()), k=20)


async def harm(world: World, seconds: float, *, short: bool) -> None:
    """Faults, one after the other, each undone before the next, until `seconds` are over; a short
    run ends with the last of its schedule, too."""
    chance = world.chance
    process = psutil.Process(world.krelay.process.pid)
    end = now() + seconds
    while now() < end:
        for fault in schedule(chance, short=short):
            await asyncio.sleep(chance.uniform(0.5, 4))
            if now() >= end:
                return
            kind = name(fault)
            live, memory = len(world.account.live), process.memory_info().rss >> 20
            say(f"{end - now():5.0f} s left, {live} transfers, krelay {memory} MiB: {kind}")
            world.account.fault(kind)
            try:
                await fault(world)
            finally:
                await world.proxy.heal()
            world.account.healed(kind)
        if short:
            return


def say(text: str) -> None:
    """Print progress on stderr."""
    print(text, file=sys.stderr, flush=True)


async def at_rest(world: World) -> Ends:
    """Both programs' counts."""
    krelay = psutil.Process(world.krelay.process.pid)
    status = await later(world.status)
    descriptors, memory = await later(world.in_agent)
    return Ends(
        descriptors=krelay.num_fds(),
        memory=krelay.memory_info().rss >> 20,
        tasks=status.get("tasks", 0),
        streams=await later(world.streams),
        agent_descriptors=descriptors,
        agent_memory=memory,
    )


async def came_back(world: World, before: Ends) -> Ends:
    """Their counts once they are as they were, or when it is clear that they never will be."""
    deadline = now() + _FLOWS_END
    while True:
        after = await at_rest(world)
        if now() > deadline or (
            not after.streams
            and after.descriptors <= before.descriptors
            and after.tasks <= before.tasks
            and after.agent_descriptors <= before.agent_descriptors
            and after.memory <= 2 * before.memory + 64
        ):
            return after
        await asyncio.sleep(2.0)


async def in_step(world: World) -> str:
    """What the file says and krelay does not do, after some time to come to it."""
    wrong = ""

    def true() -> bool:
        nonlocal wrong
        try:
            wrong = world.is_as_the_file_says()
        except AssertionError as exc:
            wrong = str(exc).partition("\n")[0]
        return not wrong

    await later(settle, true, 60.0)
    return wrong


async def under_load(
    world: World, theirs: random.Random, seconds: float, *, short: bool
) -> tuple[float, str]:
    """All the clients, all the faults; how long it took, and what is not as the file says."""
    sizes = (128 << 10, 1 << 20) if short else (512 << 10, 6 << 20)
    clients = Clients(world.account, theirs, hang=GRACE + 30, sizes=sizes)
    tcp = [world.address(target) for target in ("svc", "deploy", "other", "moving")]
    udp = world.address("svc", "udp")
    began = now()
    async with asyncio.TaskGroup() as tasks:
        for number in range(TRANSFERS):
            tasks.create_task(clients.transfers(tcp[number % len(tcp)]))
        for number in range(FAST):
            tasks.create_task(clients.transfers(tcp[number % len(tcp)], rate=512 << 10))
        for number in range(ASKERS):
            tasks.create_task(clients.questions(tcp[number % len(tcp)], number))
        for number in range(FLOWS):
            tasks.create_task(clients.datagrams(udp, number))
        try:
            await asyncio.sleep(5)
            await harm(world, seconds, short=short)
            say("the last faults are undone; what lives goes on to its end")
            wrong = await in_step(world)
        finally:
            clients.stop()
    return now() - began, wrong


async def run(seed: int, seconds: float, directory: Path, *, short: bool, tunnel: str) -> Report:
    """All of it; the cluster is well again afterwards."""
    # Two, so that the clients' numbers do not depend on the schedule's, nor it on their pace.
    chance, theirs = random.Random(seed), random.Random(seed)
    account = Account()
    await later(serves)
    with kit.namespaces() as make:
        namespace = await later(make)
        await later(lay_out, namespace)
        async with asyncio.TaskGroup() as tasks:
            proxy = Proxy(await later(upstream), tasks)
            await proxy.open()
            world = World(namespace, directory, proxy, account, chance, tunnel)
            try:
                await later(world.krelay.wait_lines, 7)
                before = await at_rest(world)
                took, wrong = await under_load(world, theirs, seconds, short=short)
                await later(world.tidy, short)
                after = await came_back(world, before)
                for side in SIDES:
                    world.collect(await later(world.pods, side))
                complaints = [f"not as the file says: {wrong}"] if wrong else []
                complaints += await later(ended, world)
            finally:
                await later(mend)
                proxy.close()
                if world.krelay.process.poll() is None:
                    world.krelay.process.kill()
                    await later(world.krelay.finish)
                (directory / "krelay.log").write_text(world.krelay.told())
    outcomes = [line for line in world.removed if not line.startswith("0 ")]
    agents = world.agents_started(), world.agents_deleted + 1
    return Report(
        seed, took, account, outcomes, before, after, agents, complaints, world.krelay.log
    )


def ended(world: World) -> list[str]:
    """Ctrl-C: what is wrong with how krelay ends."""
    world.krelay.interrupt()
    try:
        code = world.krelay.finish(60.0)
    except subprocess.TimeoutExpired:
        return ["krelay has not ended within 60 s"]
    found = [f"krelay ended with {code}"] if code else []
    try:
        kit.assert_no_agents(world.namespace)
    except AssertionError as exc:
        found.append(f"left behind: {exc}")
    return found


def mend() -> None:
    """Whatever happened, the cluster is well again."""
    for program in ("containerd", "kube-apiserver", "kubelet"):
        cluster("start", program)
        cluster("thaw", program)
    cluster("mend")
    serves()


def lay_out(namespace: str) -> None:
    """The targets."""
    parts = [kit.program()]
    for side in SIDES:
        parts += [kit.workload("Deployment", side, 2), kit.service(side, side)]
    kit.apply(namespace, *parts)
    for side in SIDES:
        kit.kubectl("-n", namespace, "rollout", "status", f"deploy/{side}", "--timeout=170s")


def seed_of(environ: str) -> int:
    """The seed that was asked for, or a new one."""
    return int(os.environ.get(environ) or secrets.randbits(32))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--chaos-seed", type=int, default=seed_of("CHAOS_SEED"))
    parser.add_argument(
        "--seconds", type=float, default=float(os.environ.get("SOAK_SECONDS", 1800))
    )
    parser.add_argument("--short", action="store_true", help="each fault once, in any order")
    parser.add_argument("--tunnel", default="{}", help="the file's `tunnel` as YAML")
    parser.add_argument("--json", type=Path, help="write the report there, too")
    parser.add_argument("--keep", type=Path, help="a directory for krelay's file and log")
    given = parser.parse_args()
    unignore()
    find_cluster()
    say(f"seed {given.chaos_seed}: --chaos-seed or CHAOS_SEED repeats it")
    with tempfile.TemporaryDirectory() as scratch:
        directory = given.keep or Path(scratch)
        directory.mkdir(parents=True, exist_ok=True)
        report = asyncio.run(
            run(given.chaos_seed, given.seconds, directory, short=given.short, tunnel=given.tunnel)
        )
    print(report.table())
    violations = report.violations()
    for violation in violations:
        print(f"VIOLATION: {violation}")
    if given.json:
        given.json.write_text(json.dumps(report.as_json(), indent=2) + "\n")
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
