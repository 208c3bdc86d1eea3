"""kubectl gives the answers that the table of odd kubeconfigs has of it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.cluster.auth.odd_kubeconfigs import Odd, table
from tests.cluster.auth.recorder import Recorder

AT_ONCE = 4


@pytest.fixture
def recorders() -> Iterator[list[Recorder]]:
    """A recorder for each kubectl that runs at once."""
    with ExitStack() as stack:
        yield [stack.enter_context(Recorder().serve()) for _ in range(AT_ONCE)]


def find_kubectl() -> str:
    """Return the cluster's own kubectl, whose version is the table's, else the one in PATH."""
    own = Path(os.path.expanduser("~/.cache/krelay-cluster/bin/kubectl"))
    return str(own) if own.exists() else shutil.which("kubectl") or "kubectl"


def problem(kubectl: str, odd: Odd, recorder: Recorder, folder: Path) -> str:
    """Run kubectl; return how its answer differs from the table's."""
    recorder.clear()
    folder.mkdir()
    environ = odd.lay_out(folder, recorder.ports)
    words = [kubectl, "version", "--request-timeout=10s"]
    if odd.explicit:
        words.append(f"--kubeconfig={environ.pop('KUBECONFIG')}")
    done = subprocess.run(
        words,
        env=environ,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    expected = odd.expected(odd.kubectl, folder, recorder.ports)
    if isinstance(expected, str):
        said = done.stdout + done.stderr  # it asks for a user name on standard output
        return "" if done.returncode and re.search(expected, said) else said
    if recorder.seen and recorder.seen[-1] == expected and done.returncode == 0:
        return ""
    return f"{recorder.seen} {done.stderr}"


def test_kubectl_answers_as_the_table_says(tmp_path: Path, recorders: list[Recorder]) -> None:
    kubectl, cases = find_kubectl(), list(table().items())

    def run(worker: int) -> dict[str, str]:
        mine = cases[worker::AT_ONCE]
        return {
            name: problem(kubectl, odd, recorders[worker], tmp_path / f"{worker}-{index}")
            for index, (name, odd) in enumerate(mine)
            if "@https6@" not in str(odd.config) or "https6" in recorders[worker].ports
        }

    with ThreadPoolExecutor(AT_ONCE) as pool:
        found = {
            name: said for part in pool.map(run, range(AT_ONCE)) for name, said in part.items()
        }
    assert {name: said for name, said in found.items() if said} == {}
