"""A running krelay and the commands that ask it: status, wait, logs, down; and its log in JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from tests import rig
from tests.integration.product import alive, run, up

pytestmark = pytest.mark.process


async def test_from_up_to_down(tmp_path: Path) -> None:
    file = tmp_path / "krelay.yaml"
    args = ("--log-format", "json")
    async with rig.tcp_target(rig.echo) as target:
        targets = {"web": f"ip/127.0.0.1 :{target}", "dead": f"ip/127.0.0.1 :{rig.closed_port()}"}
        async with up(file, targets, args=args) as krelay:
            done = await run("wait", "-f", str(file), "web")
            assert (done.code, done.out, done.err) == (0, "1 forward is ready\n", "")
            assert await rig.exchange(krelay.ports["web"], b"x" * 1000) == b"x" * 1000

            done = await run("wait", "-f", str(file), "--timeout", "200ms")
            assert done.code == 3
            dead, error = done.err.splitlines()
            assert dead.startswith("dead: failed: refused: ")
            assert error == "error: not ready after 0.2 s"

            done = await run("status", "-f", str(file), "--output", "json")
            assert done.code == 0
            web, _ = json.loads(done.out)["forwards"]
            assert web["state"] == "ready"
            assert web["listen"] == [f"127.0.0.1:{krelay.ports['web']}"]
            assert web["traffic"]["toRemoteBytes"] == web["traffic"]["toLocalBytes"] == 1000

            done = await run("logs", "-f", str(file), "-n", "1000")
            assert done.code == 0
            kept = [json.loads(line) for line in done.out.splitlines()]
            assert kept == [json.loads(line) for line in krelay.err.splitlines()][: len(kept)]
            events = [event for event in kept if event["message"].startswith("web: 127.0.0.1:")]
            assert [event["target"] for event in events] == ["web"]
            agent = next(e["message"] for e in kept if "embedded, process" in e["message"])

            done = await run("down", "-f", str(file))
            assert (done.code, done.out) == (0, f"krelay (pid {krelay.process.pid}) has ended\n")
            assert await krelay.process.wait() == 0
            assert not alive(int(agent.split("process ")[1].partition(",")[0]))
            assert await run("status", "-f", str(file)) == await run("down", "-f", str(file))
            assert "stop request: stopping" in krelay.err
