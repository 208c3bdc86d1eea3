"""What is done to a run, each fault with its own undoing."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractContextManager, asynccontextmanager

from tests.chaos import door
from tests.chaos.account import now
from tests.chaos.hostile import hostile
from tests.chaos.world import SIDES, World, cluster, later, serves
from tests.e2e import kit

Fault = Callable[[World], Awaitable[None]]


@asynccontextmanager
async def harmed(program: str, verb: str, undo: str) -> AsyncIterator[None]:
    """One of the cluster's programs, stopped or frozen for the time of the block."""
    await later(cluster, verb, program)
    try:
        yield
    finally:
        await later(cluster, undo, program)


# -- the way: the proxy before the API server ----------------------------------------------------


async def cut(world: World) -> None:
    """Every connection is reset in the middle of what it carries."""
    world.proxy.cut()


async def cut_one(world: World) -> None:
    """One connection is."""
    if world.proxy.connections:
        world.proxy.cut([world.chance.choice(list(world.proxy.connections))])


async def storm(world: World) -> None:
    """Again and again, also while a tunnel is coming up."""
    for _ in range(world.chance.randint(4, 12)):
        world.proxy.cut()
        await asyncio.sleep(world.chance.uniform(0.02, 0.5))


async def truncate(world: World) -> None:
    """Every connection loses the end of a piece and then ends in good order."""
    for one in list(world.proxy.connections):
        one.truncate(world.chance.randint(1, 2_000))
    await asyncio.sleep(1.0)


async def hole(world: World) -> None:
    """Drop everything silently."""
    world.proxy.faults.hole = True
    await asyncio.sleep(world.chance.uniform(5, 15))
    await world.proxy.heal()


async def hole_of_one(world: World) -> None:
    """The same on the connections that live; new ones pass."""
    for one in world.proxy.connections:
        one.faults.hole = True
    await asyncio.sleep(world.chance.uniform(5, 15))
    await world.proxy.heal()


async def throttle(world: World) -> None:
    """A slow line."""
    world.proxy.faults.rate = world.chance.choice([64 << 10, 256 << 10])
    await asyncio.sleep(world.chance.uniform(5, 10))
    await world.proxy.heal()


async def delay(world: World) -> None:
    """A long one."""
    world.proxy.faults.delay = 0.2
    await asyncio.sleep(world.chance.uniform(5, 10))
    await world.proxy.heal()


async def refuse(world: World) -> None:
    """The API server's address refuses, as one that restarts does."""
    world.proxy.refuse()
    world.proxy.cut()
    await asyncio.sleep(world.chance.uniform(1, 5))
    await world.proxy.heal()


async def hostile_api_server(world: World) -> None:
    """Something else answers in the API server's place, and krelay trusts its certificate."""
    before = world.proxy.upstream
    async with hostile(world.chance) as world.proxy.upstream:
        world.proxy.cut()
        await asyncio.sleep(world.chance.uniform(4, 8))
        world.proxy.upstream = before
    world.proxy.cut()


# -- the cluster -----------------------------------------------------------------------------------


async def restart_api_server(world: World) -> None:
    async with harmed("kube-apiserver", "stop", "start"):
        pass
    await later(serves)


async def freeze_api_server(world: World) -> None:
    async with harmed("kube-apiserver", "freeze", "thaw"):
        await asyncio.sleep(world.chance.uniform(4, 14))


async def restart_kubelet(world: World) -> None:
    async with harmed("kubelet", "stop", "start"):
        await asyncio.sleep(world.chance.uniform(0, 3))


async def freeze_kubelet(world: World) -> None:
    async with harmed("kubelet", "freeze", "thaw"):
        await asyncio.sleep(world.chance.uniform(4, 14))


async def freeze_containerd(world: World) -> None:
    async with harmed("containerd", "freeze", "thaw"):
        await asyncio.sleep(world.chance.uniform(4, 14))


async def stop_node(world: World) -> None:
    """Kubelet and container runtime stop, and a while later the API server restarts."""
    async with harmed("kubelet", "stop", "start"), harmed("containerd", "stop", "start"):
        await asyncio.sleep(world.chance.uniform(1, 5))
        async with harmed("kube-apiserver", "stop", "start"):
            pass
        await asyncio.sleep(world.chance.uniform(1, 5))
    await later(serves)


@asynccontextmanager
async def at_door(
    fault: Callable[..., AbstractContextManager[None]], *args: str
) -> AsyncIterator[None]:
    """One of the faults of a door for the time of the block."""
    held = fault(*args)
    await later(held.__enter__)
    try:
        yield
    finally:
        await later(held.__exit__, None, None, None)


async def drop_door(world: World) -> None:
    """Packets to the agent's door vanish, as if a policy forbade them."""
    async with at_door(door.dropped, await later(world.agent_ip)):
        await asyncio.sleep(world.chance.uniform(5, 15))


async def flood_door(world: World) -> None:
    """A stranger opens hundreds of connections to it."""
    address = await later(world.agent_ip)
    async with at_door(door.flooded, world.namespace, address):
        world.proxy.cut()
        await asyncio.sleep(world.chance.uniform(5, 10))
        world.proxy.cut()


async def lose_packets(world: World) -> None:
    """Every packet between here and the cluster vanishes."""
    await later(cluster, "cut")
    try:
        await asyncio.sleep(world.chance.uniform(3, 20))
    finally:
        await later(cluster, "mend")


async def delete_agent(world: World) -> None:
    """With notice or without."""
    pod = await later(world.agent)
    force = world.chance.random() < 0.5
    how = ["--grace-period=0", "--force"] if force else ["--wait=false"]
    killer = world.account.kill("the agent was deleted")
    world.agents_deleted += 1
    await later(kit.kubectl, "delete", "pod", "-n", world.namespace, pod, *how)
    await later(world.wait_agent, pod)
    killer.done = now()


async def delete_targets(world: World) -> None:
    """A workload's pods are replaced, one after the other."""
    side = world.chance.choice(SIDES)
    pods = await later(world.pods, side)
    await later(world.collect, pods)
    world.account.kill("the target was deleted", frozenset(pods))
    await later(kit.kubectl, "-n", world.namespace, "rollout", "restart", f"deploy/{side}")
    await later(world.rolled_out)


# -- this machine ----------------------------------------------------------------------------------


async def sleep(world: World) -> None:
    """krelay stands still, as a laptop that sleeps."""
    world.krelay.process.send_signal(signal.SIGSTOP)
    try:
        await asyncio.sleep(world.chance.uniform(3, 20))
    finally:
        world.krelay.process.send_signal(signal.SIGCONT)


async def edit(world: World) -> None:
    """The file changes, several times in a row."""
    for _ in range(world.chance.randint(1, 4)):
        world.edit()
        await asyncio.sleep(world.chance.choice([0.0, 0.1, 1.0]))


WEIGHTS: dict[Fault, int] = {
    cut: 4,
    cut_one: 2,
    storm: 2,
    truncate: 3,
    hole: 3,
    hole_of_one: 3,
    throttle: 2,
    delay: 2,
    refuse: 2,
    hostile_api_server: 3,
    restart_api_server: 2,
    freeze_api_server: 2,
    restart_kubelet: 2,
    freeze_kubelet: 1,
    freeze_containerd: 1,
    stop_node: 1,
    drop_door: 2,
    flood_door: 1,
    lose_packets: 3,
    delete_agent: 2,
    delete_targets: 2,
    sleep: 3,
    edit: 5,
}


def name(fault: Fault) -> str:
    """Its name for people."""
    return fault.__name__.replace("_", " ")
