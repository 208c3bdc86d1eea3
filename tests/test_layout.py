"""The shape of the tree: what each module says of itself, and what it may import."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from krelay.wire.handshake import OPENING

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*ROOT.glob("krelay/**/*.py"), *ROOT.glob("agent/*.py")])
MOST_FILES = 16
"""Files of a folder: they fit on a screen."""

HOMES = {
    "aiofastnet": ("krelay/net/engine.py",),
    "aiohttp": ("krelay/cluster", "krelay/status"),
    "click": ("krelay/cli",),
    "h11": ("krelay/datapath/probe.py", "krelay/proxy", "krelay/transport"),
    "jsonpatch": ("krelay/cluster",),
    "jsonpointer": ("krelay/cluster",),
    "jsonschema": ("krelay/config",),
    "kubernetes_asyncio": ("krelay/cluster",),
    "mcp": ("krelay/mcp",),
    "mcp_types": ("krelay/mcp",),
    "prometheus_client": ("krelay/status",),
    "psutil": ("krelay/net", "krelay/supervisor"),
    "pydantic": ("krelay/mcp",),
    "pytest": ("krelay/pytest_plugin.py",),
    "rich": ("krelay/cli",),
    "watchfiles": ("krelay/config",),
    "websockets": ("krelay/transport",),
    "yaml": ("krelay/cluster/auth", "krelay/config"),
}
"""Each dependency, and the only places that may import it."""

# `compression` is part of the library from Python 3.14 on.
STANDARD = sys.stdlib_module_names | {"compression"}
SHIPPED = ("krelay.wire", "krelay.mux", "agent")
"""What travels to the cluster."""


def imports(path: Path) -> Iterator[str]:
    """Yield the modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def test_every_module_says_its_place() -> None:
    assert [p for p in SOURCES if not ast.get_docstring(ast.parse(p.read_text()))] == []


def test_every_folder_fits_on_a_screen() -> None:
    folders = {path.parent for path in SOURCES}
    full = {
        str(f.relative_to(ROOT)): n for f in folders if (n := len([*f.glob("*.py")])) > MOST_FILES
    }
    assert full == {}


def test_every_dependency_is_imported_at_its_home_only() -> None:
    strangers = []
    for path in SOURCES:
        place = str(path.relative_to(ROOT))
        for name in imports(path):
            package = name.partition(".")[0]
            if package in STANDARD or package in ("krelay", "agent"):
                continue
            if not place.startswith(HOMES.get(package, ())):
                strangers.append(f"{place}: {name}")
    assert strangers == []


def test_what_ships_with_the_agent_imports_the_standard_library_and_itself_only() -> None:
    strangers = []
    for path in SOURCES:
        place = str(path.relative_to(ROOT))
        if not place.startswith(("krelay/wire/", "krelay/mux/", "agent/")):
            continue
        for name in imports(path):
            known = name.partition(".")[0] in STANDARD
            if not known and not name.startswith(SHIPPED):
                strangers.append(f"{place}: {name}")
    assert strangers == []


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
