"""`krelay.relay` on the real cluster; test_shop.py has the pytest plugin."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import krelay as package
from tests.e2e import kit


async def test_forwards_for_a_block_and_no_agent_after_it(
    namespace: Callable[..., str], world: str
) -> None:
    place = await asyncio.to_thread(namespace)
    line = f"svc/web :80 -n {world}"
    async with package.relay(line, dns="-n kube-system svc/kube-dns :53/udp", namespace=place) as f:
        reader, writer = await asyncio.open_connection(f[line].host, f[line].port)
        writer.write(b"GET / HTTP/1.0\r\n\r\n")
        assert b" 200 " in await reader.readline()
        writer.close()
        assert f["dns"].protocol == "udp"
        assert await asyncio.to_thread(kit.agents, place) != []
    await asyncio.to_thread(kit.assert_no_agents, place)
