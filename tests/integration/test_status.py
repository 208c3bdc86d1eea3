"""The status service of a real `krelay up`: found over TCP, true, moved by an edit, and its end."""

from __future__ import annotations

import asyncio
import re
import signal
import sys
from pathlib import Path

import pytest
from aiohttp import ClientConnectionError, ClientSession
from prometheus_client import parser

from krelay.errors import KrelayError
from krelay.status.client import ask
from tests import rig
from tests.integration import product
from tests.integration.product import Up, document, up
from tests.status.reports import report
from tests.status.test_metrics import samples

pytestmark = pytest.mark.process

TOKEN = "0123456789abcdef"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "krelay.yaml"


async def served(krelay: Up, times: int = 1) -> str:
    """Where it is, once it has said so that often."""
    found: list[str] = []

    def there() -> bool:
        found[:] = re.findall(r"status: (http://\S+)/\n", krelay.err)
        return len(found) >= times

    await rig.until(there)
    return found[-1]


async def get(url: str, token: str | None = None) -> tuple[int, str]:
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    async with ClientSession() as session, session.get(url, headers=headers) as response:
        return response.status, await response.text()


async def test_it_is_true_and_follows_the_file(file: Path) -> None:
    async with rig.tcp_target(rig.echo) as target:
        targets = {"web": f"ip/127.0.0.1 :{target}"}
        async with up(file, targets, "status: {listen: 0}") as krelay:
            url = await served(krelay)
            assert await get(f"{url}/healthz") == (200, "ok\n")
            while (await get(f"{url}/readyz?target=web"))[0] != 200:
                pass  # it is probed
            assert (await get(f"{url}/readyz?target=nope"))[0] == 404
            for _ in range(3):
                assert await rig.exchange(krelay.ports["web"], b"x" * 1000) == b"x" * 1000
            _, text = await get(f"{url}/metrics")
            scraped = {
                sample.name: sample
                for family in parser.text_string_to_metric_families(text)
                for sample in family.samples
                if sample.labels.get("direction", "to_local") == "to_local"
            }
            labels = {"target": "web", "forward": "web", "direction": "to_local"}
            assert scraped["krelay_forward_bytes_total"].labels == labels
            assert scraped["krelay_forward_bytes_total"].value == 3000
            assert scraped["krelay_forward_opened_streams_total"].value >= 3
            assert scraped["krelay_tunnel_rtt_seconds"].value > 0
            assert scraped["krelay_process_open_fds"].value > 5
            # what the examples' test takes for a scrape has the names that a real one has
            there = {name for name, _ in samples(report())}
            lost = {"forward_dropped_datagrams_total", "tunnel_lost_datagrams_total"}
            assert there - scraped.keys() <= {f"krelay_{name}" for name in lost}

            other = f"status: {{listen: 0, token: {TOKEN}}}"
            await asyncio.to_thread(file.write_text, document(targets, other))
            moved = await served(krelay, 2)
            assert (await get(f"{moved}/v1/status"))[0] == 401
            status, text = await get(f"{moved}/v1/status", TOKEN)
            assert (status, '"generation": 2' in text) == (200, True)
            with pytest.raises(ClientConnectionError):
                await get(f"{url}/healthz")
            await asyncio.to_thread(file.write_text, document(targets))
            await krelay.said("status.listen: set 127.0.0.1:0 -> nowhere")
            assert await rig.exchange(krelay.ports["web"], b"on") == b"on"
            assert TOKEN not in krelay.err


@pytest.mark.parametrize(("now", "code"), [(False, 0), (True, 130)])
async def test_asked_to_stop_it_stops(now: bool, code: int, file: Path) -> None:
    async with rig.tcp_target(rig.echo) as target:
        async with up(file, {"web": f"ip/127.0.0.1 :{target}"}) as krelay:
            async with rig.connect(krelay.ports["web"]) as (reader, writer):
                writer.write(b"a")
                assert await reader.readexactly(1) == b"a"
                with pytest.raises(KrelayError, match="`now` is true or false"):
                    await asyncio.to_thread(
                        ask, str(file), "POST", "/v1/stop", {"now": "no"}, timeout=5.0
                    )
                said = await asyncio.to_thread(
                    ask, str(file), "POST", "/v1/stop", {"now": now}, timeout=5.0
                )
                assert said == {
                    "pid": krelay.process.pid,
                    "stopping": True,
                    "live": 1,
                    "drain": 30.0,
                }
                if not now:
                    await krelay.said("draining 1 connection ")
                    writer.write(b"b")
                    assert await reader.readexactly(1) == b"b"
                    writer.close()
                assert await krelay.process.wait() == code


async def test_a_port_in_use_stops_nobody(file: Path) -> None:
    async with rig.tcp_target(rig.echo) as target:
        status = f"status: {{listen: {target}}}"
        async with up(file, {"web": f"ip/127.0.0.1 :{target}"}, status) as krelay:
            await krelay.said(f"status is not served on 127.0.0.1:{target}")
            assert await rig.exchange(krelay.ports["web"], b"x") == b"x"


THREADLESS = """
import os, sys, threading
from krelay.cli.main import main

start = threading.Thread.start

def perhaps(thread):
    if os.path.exists(os.environ["NO_THREADS"]):
        raise RuntimeError("can't start new thread")
    start(thread)

threading.Thread.start = perhaps
sys.argv[0] = "krelay"
sys.exit(main())
"""


async def test_where_no_thread_can_be_had_it_answers_and_ends(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    none = file.with_name("none")
    monkeypatch.setenv("NO_THREADS", str(none))
    monkeypatch.setattr(product, "command", lambda *args: [sys.executable, "-c", THREADLESS, *args])
    async with rig.tcp_target(rig.echo) as target:
        targets = {"web": f"ip/127.0.0.1 :{target}"}
        async with up(file, targets, "status: {listen: 0}") as krelay:
            url = await served(krelay)
            while (await get(f"{url}/readyz"))[0] != 200:
                pass  # it is probed
            none.touch()
            for resource in ("/readyz", "/v1/status", "/metrics", "/"):
                status, text = await get(url + resource)
                assert status == 200, text
            assert await krelay.stop(signal.SIGTERM) == 0
    with pytest.raises(KrelayError, match="krelay is not running"):
        await asyncio.to_thread(ask, str(file), "GET", "/v1/status", timeout=5.0)
