"""The quick start as `make up` runs it, on free ports."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tests import rig

pytestmark = pytest.mark.process

ROOT = Path(__file__).parents[1]
_FORWARD = re.compile(r"^([\w-]+): 127\.0\.0\.1:(\d+) -> ", re.MULTILINE)


@asynccontextmanager
async def quickstart(**environ: str) -> AsyncIterator[tuple[asyncio.subprocess.Process, str]]:
    """Yield the process, in a separate group as in a terminal, and its output once all three
    forwards are ready."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "examples/quickstart.py"),
        cwd=ROOT,
        env={**os.environ, "LOCAL_WEB": "0", "LOCAL_ECHO": "0", **environ},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        out = ""
        while len(_FORWARD.findall(out)) < 3:
            line = await process.stdout.readline()
            assert line, out
            out += line.decode()
        yield process, out
    finally:
        if process.returncode is None:
            os.killpg(process.pid, signal.SIGINT)
            os.killpg(process.pid, signal.SIGINT)
        await process.communicate()


async def test_it_relays_to_its_own_targets_and_ctrl_c_ends_it() -> None:
    async with quickstart() as (process, out):
        assert "curl http://127.0.0.1:" in out
        ports = {name: int(port) for name, port in _FORWARD.findall(out)}
        assert sorted(ports) == ["echo", "echo-udp", "web"]
        answer = await rig.exchange(ports["web"], b"GET / HTTP/1.0\r\n\r\n")
        assert answer.startswith(b"HTTP/1.0 200 OK\r\n")
        assert b"hello from the target" in answer
        assert await rig.exchange(ports["echo"], b"hello") == b"hello"
        async with rig.udp_socket(connect=ports["echo-udp"]) as client:
            client.send(b"hello")
            assert await rig.recv(client) == b"hello"
        os.killpg(process.pid, signal.SIGINT)
        assert await process.wait() == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
async def test_a_signal_to_it_alone_ends_krelay_too(number: signal.Signals) -> None:
    async with quickstart() as (process, out):
        process.send_signal(number)
        assert await process.wait() == 0
        ports = [int(port) for _, port in _FORWARD.findall(out)]
        for port in ports[:2]:
            with pytest.raises(ConnectionRefusedError):
                await asyncio.open_connection(rig.HOST, port)
