"""`krelay.relay` and the pytest plugin, on the real cluster."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import krelay as package
from tests.e2e import kit

TEST = """
import urllib.request

def test_page(krelay):
    web = krelay(web="svc/web :80 -n {world}", timeout=90)["web"]
    assert urllib.request.urlopen(web.url(), timeout=30).status == 200
"""


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
    assert await asyncio.to_thread(kit.agents, place) == []


def test_the_fixture_relays_and_leaves_no_agent(
    namespace: Callable[..., str], world: str, tmp_path: Path
) -> None:
    place = namespace()
    (tmp_path / "test_it.py").write_text(TEST.format(world=world))
    done = subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"),
            *("--krelay-namespace", place, "--krelay-required"),
        ],
        cwd=tmp_path,
        env={**os.environ, "PYTEST_ADDOPTS": ""},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "1 passed" in done.stdout, done.stdout + done.stderr
    assert kit.agents(place) == []
