"""News: what becomes of an agent and the tunnels to it, for the bus."""

from __future__ import annotations

from typing import Any

from krelay.agents.group import AgentGroup
from krelay.state.events import EventBus


async def tell_of(group: AgentGroup, bus: EventBus) -> None:
    """Tell of each tunnel that comes up or goes down, and of each agent; lasts until cancelled."""
    pool, context = group.pool, group.spec.context
    up: set[str] = set()
    where = ["" for _ in group.reaches]
    while True:
        for index, reach in enumerate(group.reaches):
            now, before = reach.where, where[index]
            if now == before:
                continue
            common: dict[str, Any] = {"context": context, "where": before}
            if before and reach.lost:
                bus.tell("agent", f"agent lost: {reach.lost}", **common)
            if now:
                bus.tell("agent", f"agent runs: {now}", **{**common, "where": now})
            where[index] = now
        for tunnel in pool.tunnels:
            if tunnel.up == (tunnel.name in up):
                continue
            common = {"context": context, "tunnel": tunnel.name, "up": tunnel.up}
            if tunnel.up:
                up.add(tunnel.name)
                bus.tell("tunnel", f"{tunnel.name}: up", **common)
            else:
                up.discard(tunnel.name)
                why = f": {tunnel.failure}" if tunnel.failure else ""
                bus.tell("tunnel", f"{tunnel.name}: lost{why}", **common)
        await pool.wait_change()
