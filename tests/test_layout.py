"""The shape of the tree: each module has its tests, and the agent needs nothing but Python."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from krelay.wire.handshake import OPENING

ROOT = Path(__file__).parents[1]
SOURCES = sorted([*ROOT.glob("krelay/**/*.py"), *ROOT.glob("agent/*.py")])

# Proved through another module's tests: shells without a branch of their own, or parts that only
# mean something together.
ELSEWHERE = {
    "agent/__main__.py": "tests/agent/test_server.py",
    "agent/errors.py": "tests/agent/test_dial.py",
    "krelay/__main__.py": "tests/cli",
    "krelay/block.py": "tests/test_api.py",
    "krelay/errors.py": "tests/supervisor/test_supervisor.py",
    "krelay/access.py": "tests/cluster/test_credentials.py",
    "krelay/model.py": "tests/config",
    "krelay/cli/asking.py": "tests/cli/test_main.py",
    "krelay/cli/options.py": "tests/cli/test_main.py",
    "krelay/cli/readiness.py": "tests/cli/test_wait.py",
    "krelay/cli/signals.py": "tests/cli/test_run.py",
    "krelay/cli/summary.py": "tests/cli/test_frame.py",
    "krelay/convert/kftray.py": "tests/convert/test_convert.py",
    "krelay/convert/kportal.py": "tests/convert/test_convert.py",
    "krelay/convert/targets.py": "tests/convert/test_convert.py",
    "krelay/cluster/execplugin.py": "tests/cluster/test_credentials.py",
    "krelay/cluster/http.py": "tests/cluster/test_api.py",
    "krelay/cluster/identity.py": "tests/cluster/test_credentials.py",
    "krelay/cluster/refusal.py": "tests/cluster/test_api.py",
    "krelay/cluster/socks.py": "tests/cluster/test_proxies.py",
    "krelay/cluster/startup.py": "tests/cluster/test_agent.py",
    "krelay/cluster/tls.py": "tests/cluster/test_credentials.py",
    "krelay/datapath/attach.py": "tests/datapath/test_tunnel.py",
    "krelay/datapath/plain_stream.py": "tests/datapath/test_plain.py",
    "krelay/datapath/tunnel_stats.py": "tests/datapath/test_rotation.py",
    "krelay/datapath/way.py": "tests/datapath/test_tunnel.py",
    "krelay/mux/splice.py": "tests/agent/test_plain.py",
    "krelay/status/client.py": "tests/status/test_server.py",
    "krelay/status/refusal.py": "tests/status/test_server.py",
    "krelay/supervisor/group.py": "tests/supervisor/test_supervisor.py",
    "krelay/supervisor/stage.py": "tests/supervisor/test_running.py",
    "krelay/supervisor/reporting.py": "tests/supervisor/test_control.py",
    "krelay/transport/http.py": "tests/transport/test_portforward.py",
    "krelay/transport/proxy.py": "tests/transport/test_connect.py",
    "krelay/transport/refusal.py": "tests/transport/test_portforward.py",
    "krelay/transport/upgrade.py": "tests/transport/test_portforward.py",
    "krelay/transport/websocket.py": "tests/transport/test_portforward.py",
    "krelay/wire/events.py": "tests/wire/test_session.py",
}


def modules() -> list[str]:
    return [str(path.relative_to(ROOT)) for path in SOURCES if path.name != "__init__.py"]


@pytest.mark.parametrize("module", modules())
def test_a_module_has_its_tests(module: str) -> None:
    path = Path(module)
    folder = path.parent.relative_to("krelay") if path.parts[0] == "krelay" else path.parent
    mirror = ROOT / "tests" / folder / f"test_{path.name}"
    if module in ELSEWHERE:
        assert not mirror.exists(), "no longer elsewhere"
        assert (ROOT / ELSEWHERE[module]).exists()
    else:
        assert mirror.exists(), f"no {mirror.relative_to(ROOT)}"


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_says_its_place(path: Path) -> None:
    assert ast.get_docstring(ast.parse(path.read_text())), "no docstring"


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


def test_the_agent_runs_on_the_standard_library_alone() -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", SCRIPT, str(ROOT), OPENING.hex()],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
