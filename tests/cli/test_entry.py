"""Ctrl-C before a command has been imported."""

from __future__ import annotations

import subprocess
import sys

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
