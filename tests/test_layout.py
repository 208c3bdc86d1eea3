"""The shape of the tree: each module says its place, and the agent needs nothing but Python."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from krelay.wire.handshake import OPENING

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*ROOT.glob("krelay/**/*.py"), *ROOT.glob("agent/*.py")])


def test_every_module_says_its_place() -> None:
    silent = [path for path in SOURCES if not ast.get_docstring(ast.parse(path.read_text()))]
    assert not silent


SCRIPT = """
import asyncio, sys
sys.path.insert(0, sys.argv[1])
from agent.server import Server
from agent.settings import Settings

async def main():
    server = Server(Settings(port=0))
    async with asyncio.TaskGroup() as tasks:
        tasks.create_task(server.run())
        await server.listening.wait()
        reader, writer = await asyncio.open_connection(*server.address)
        writer.write(bytes.fromhex(sys.argv[2]))
        assert (await reader.readexactly(1)) == b"\\x01"
        writer.close()
        server.stop("done")

asyncio.run(main())
foreign = {name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names)
print(sorted(foreign - {"agent", "krelay", "__main__", "__mp_main__"}))
"""


@pytest.mark.process
def test_the_agent_runs_on_the_standard_library_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", SCRIPT, str(ROOT), OPENING.hex()],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
