"""`krelay mcp` as a client starts it: the protocol, its end, signals, wrong command lines."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from mcp import Client, StdioServerParameters

from krelay.cli.commands.tools import mcp_
from tests import rig
from tests.cli.emulator import terminal
from tests.integration.product import ROOT, alive, command, document, environment, run, up

pytestmark = pytest.mark.process

INITIALIZE = {
    "jsonrpc": "2.0",
    "id": 1,
    "method": "initialize",
    "params": {
        "protocolVersion": "2025-06-18",
        "capabilities": {},
        "clientInfo": {"name": "test", "version": "1"},
    },
}
INITIALIZED = {"jsonrpc": "2.0", "method": "notifications/initialized"}


class Server:
    """A `krelay mcp`, without the SDK's client in between."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process

    def send(self, *messages: dict[str, Any]) -> None:
        assert self.process.stdin is not None
        for message in messages:
            self.process.stdin.write(json.dumps(message).encode() + b"\n")

    async def answer(self) -> dict[str, Any]:
        """Return the next line of stdout; each is a message."""
        assert self.process.stdout is not None
        found: dict[str, Any] = json.loads(await self.process.stdout.readline())
        assert found["jsonrpc"] == "2.0"
        return found

    def call(self, number: int, tool: str, **arguments: Any) -> None:
        params = {"name": tool, "arguments": arguments}
        self.send({"jsonrpc": "2.0", "id": number, "method": "tools/call", "params": params})

    async def end(self) -> tuple[int, str]:
        """End stdin; return the exit code, and what stdout and stderr had left."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        out, err = await self.process.communicate()
        assert self.process.returncode is not None
        return self.process.returncode, out.decode() + err.decode()


@asynccontextmanager
async def server(file: Path, *args: str) -> AsyncIterator[Server]:
    """A server that has answered its first request."""
    process = await asyncio.create_subprocess_exec(
        *command("mcp", "-f", str(file), *args),
        env=environment(PYTHONPATH=str(ROOT)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    made = Server(process)
    try:
        made.send(INITIALIZE)
        assert (await made.answer())["result"]["serverInfo"]["name"] == "krelay"
        made.send(INITIALIZED)
        yield made
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "krelay.yaml"


@pytest.mark.parametrize("mode", ["auto", "legacy"])
async def test_the_client_of_the_sdk_finds_a_target_and_connects(
    file: Path, mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mcp.client.session.DISCOVER_TIMEOUT_SECONDS", 100.0)  # on a busy machine
    name, *args = command("mcp", "-f", str(file))
    server = StdioServerParameters(command=name, args=args, env=environment(PYTHONPATH=str(ROOT)))
    async with rig.tcp_target(rig.echo) as port:
        async with up(file, {"web": f"ip/127.0.0.1 :{port}"}) as running:
            await running.said("web: ready")
            async with Client(server, mode=mode) as client:
                result = await client.call_tool("targets", {})
                found: Any = result.structured_content
                host, _, local = found["targets"][0]["ports"][0]["local"][0].rpartition(":")
                assert await rig.exchange(int(local), b"hello", host) == b"hello"


async def test_the_end_of_stdin_ends_the_server_and_its_command(file: Path) -> None:
    file.write_text(document({}))
    pids = file.parent / "pids"
    async with server(file, "--allow", "run") as made:
        async with rig.tcp_target(rig.echo) as port:
            file.write_text(document({"web": f"ip/127.0.0.1 :{port}"}))
            script = f"echo $PPID $$ > {pids}.new; mv {pids}.new {pids}; exec sleep 1000"
            made.call(2, "run", command=["sh", "-c", script])
            await rig.until(pids.exists)
            code, rest = await made.end()
            assert code == 0, rest
            assert "Traceback" not in rest
            await rig.until(lambda: not any(alive(int(pid)) for pid in pids.read_text().split()))


async def test_an_early_end_of_stdin_is_no_error(file: Path) -> None:
    done = await run("mcp", "-f", str(file), stdin=b"")
    assert (done.code, done.out, done.err) == (0, "", "")


async def test_what_is_no_message_is_survived(file: Path) -> None:
    async with server(file) as made:
        assert made.process.stdin is not None
        made.process.stdin.write(b"\xff\x00 not json\n\n[1]\n")
        made.call(2, "targets")
        assert (await made.answer())["result"]["isError"]
        code, rest = await made.end()
        assert (code, rest) == (0, "")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
async def test_a_signal_ends_the_command_then_the_server(
    file: Path, number: signal.Signals
) -> None:
    async with rig.tcp_target(rig.echo) as port:
        async with up(file, {"web": f"ip/127.0.0.1 :{port}"}) as running:
            await running.said("web: ready")
            async with server(file, "--allow", "run") as made:
                pid = file.parent / "pid"
                script = f"echo $$ > {pid}.new; mv {pid}.new {pid}; exec sleep 1000"
                made.call(2, "run", command=["sh", "-c", script])
                await rig.until(pid.exists)
                made.process.send_signal(number)
                assert await made.process.wait() == -number
                await rig.until(lambda: not alive(int(pid.read_text())))


async def test_a_client_that_no_longer_reads_ends_the_server(file: Path) -> None:
    reading, writing = os.pipe()
    process = await asyncio.create_subprocess_exec(
        *command("mcp", "-f", str(file)),
        env=environment(PYTHONPATH=str(ROOT)),
        stdin=asyncio.subprocess.PIPE,
        stdout=writing,
        stderr=asyncio.subprocess.PIPE,
    )
    os.close(writing)
    os.close(reading)
    _, err = await process.communicate(json.dumps(INITIALIZE).encode() + b"\n")
    assert (process.returncode, err) == (0, b"")


async def test_at_a_terminal_it_says_what_it_waits_for(file: Path) -> None:
    async with terminal("mcp", "-f", str(file), cwd=file.parent) as shown:
        await shown.shows("serving MCP over stdin and stdout")
        shown.type("\x03")
        # A shell has the same code for both; the first is that of a key during the imports.
        assert await shown.process.wait() in (128 + signal.SIGINT, -signal.SIGINT)


@pytest.mark.parametrize(
    ("args", "error"),
    [
        (["--allow", "plan,delete"], "delete: choose from plan, reload, run"),
        (["-f", "-"], "`-f` names the file that krelay runs"),
    ],
)
async def test_a_bad_command_line_is_an_error(args: list[str], error: str) -> None:
    done = await run("mcp", *args, stdin=b"")
    assert done.code == 2
    assert error in done.err
    assert "Traceback" not in done.err


@pytest.mark.parametrize(
    "args", [["--allow", "plan,run"], ["--allow=plan", "--allow=run"], ["--allow", "plan run"]]
)
def test_every_allowed_tool_counts(args: list[str]) -> None:
    assert mcp_.make_context("mcp", args).params["allow"] == {"plan", "run"}


def test_no_tool_that_acts_is_allowed_by_default() -> None:
    assert mcp_.make_context("mcp", []).params["allow"] == frozenset()


@pytest.mark.parametrize("package", ["mcp", "mcp_types"])
async def test_without_the_extra_an_error_says_how_to_install_it(package: str) -> None:
    script = (
        f"import sys; sys.modules[{package!r}] = None; sys.argv = ['krelay', 'mcp']\n"
        "from krelay.cli.main import main; sys.exit(main())"
    )
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", script),
        env=environment(PYTHONPATH=str(ROOT)),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    out, _ = await process.communicate()
    assert process.returncode == 2
    assert out.decode().splitlines() == [
        "error: `krelay mcp` needs the SDK of the protocol",
        "  hint: install it with `pip install 'krelay[mcp]'`",
    ]
