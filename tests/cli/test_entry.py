"""Ctrl-C before a command has been imported, and what a command imports."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from krelay.cli import entry

pytestmark = pytest.mark.process

SCRIPT = """
import signal, sys

class Interrupting:
    def find_spec(self, name, path=None, target=None):
        if name == "click":
            signal.raise_signal(signal.SIGINT)

sys.meta_path.insert(0, Interrupting())
from krelay.cli import entry
sys.exit(getattr(entry, sys.argv[1])())
"""


@pytest.mark.parametrize("program", ["krelay", "kubectl_relay"])
def test_ctrl_c_during_the_imports_exits_with_130_in_silence(program: str) -> None:
    assert callable(getattr(entry, program))
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, program], capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


WITHIN = """
import signal, sys, weakref
from krelay.cli.command_line import preload

class Lock:
    pass

preload()
lock = Lock()
found = weakref.ref(lock, lambda _: signal.raise_signal(signal.SIGINT))
del lock
sys.exit(1)
"""


def test_ctrl_c_within_the_import_system_is_not_lost() -> None:
    """It may come in the callback of a weak reference, which ignores exceptions."""
    done = subprocess.run(
        [sys.executable, "-c", WITHIN], capture_output=True, text=True, timeout=30
    )
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "")


LOADED = """
import sys
from krelay.cli.main import main
sys.argv = ["krelay", *sys.argv[1:]]
main()
names = {name for name in sys.modules if name.partition(".")[0] == "krelay"}
foreign = {name.partition(".")[0] for name in sys.modules} - set(sys.stdlib_module_names)
slow = {"asyncio", "concurrent.futures", "http.client", "ssl"} & set(sys.modules)
print(sorted(names), sorted(foreign - {"__main__", "krelay"}), sorted(slow), sep="\\n")
"""


def loaded(*args: str) -> list[list[str]]:
    """Return what a command imports: krelay's modules, other packages, slow standard modules."""
    done = subprocess.run(
        [sys.executable, "-S", "-c", "import sys; sys.path += eval(sys.argv.pop(1))\n" + LOADED]
        + [repr([*sys.path]), *args],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    return [ast.literal_eval(line) for line in done.stdout.splitlines()[-3:]]


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_help_imports_little(option: str) -> None:
    ours, others, slow = loaded(option)
    assert ours == [
        "krelay",
        "krelay.cli",
        "krelay.cli.command_line",
        "krelay.cli.commands",
        "krelay.cli.commands.editing",
        "krelay.cli.commands.files",
        "krelay.cli.commands.relaying",
        "krelay.cli.commands.running",
        "krelay.cli.commands.tools",
        "krelay.cli.flags",
        "krelay.cli.flags.compose",
        "krelay.cli.flags.connection",
        "krelay.cli.flags.values",
        "krelay.cli.log_repeats",
        "krelay.cli.main",
        "krelay.cli.options",
        "krelay.cli.output",
        "krelay.errors",
        "krelay.mux",
        "krelay.mux.log",
        "krelay.mux.trace",
        "krelay.state",
        "krelay.state.log_tail",
        "krelay.text",
        "krelay.wire",
        "krelay.wire.errors",
        "krelay.wire.frames",
    ]
    assert (others, slow) == (["click"], [])


def test_check_imports_nothing_of_a_cluster_or_of_an_event_loop(tmp_path: Path) -> None:
    file = tmp_path / "krelay.yaml"
    file.write_text("apiVersion: krelay/v1\ntargets:\n  web: svc/web 8080:80\n")
    ours, others, slow = loaded("check", str(file))
    areas = {name.split(".")[1] for name in ours if "." in name}
    known = {"cli", "config", "errors", "model", "mux", "platforms", "state", "text", "wire"}
    assert areas <= known
    unused = {"aiohttp", "h11", "jsonschema", "prometheus_client", "psutil", "rich", "websockets"}
    assert not unused & {*others}
    assert slow == ["concurrent.futures"]
