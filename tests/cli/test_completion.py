"""Shell completion."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from krelay.cli import kubectl
from krelay.cli import main as main_module
from krelay.cli.flags import completion as module

SERVICE = {
    "metadata": {"name": "web"},
    "spec": {
        "ports": [
            {"name": "http", "port": 80},
            {"port": 53, "protocol": "UDP"},
        ]
    },
}
CONTAINERS = [{"ports": [{"containerPort": 8000, "name": "http"}]}, {}]
POD = {"metadata": {"name": "solo"}, "spec": {"containers": CONTAINERS}}
DEPLOYMENT = {
    "metadata": {"name": "web"},
    "spec": {"template": {"spec": {"containers": CONTAINERS}}},
}
CLUSTER = {"services": [SERVICE], "pods": [POD], "deployments": [DEPLOYMENT]}

Complete = Callable[..., tuple[list[str], int]]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """The requests to the cluster."""
    calls: list[tuple[Any, ...]] = []

    def ask(options: Any, version: str, resource: str, **query: str) -> list[Any]:
        calls.append((options.get("namespace"), version, resource, query))
        return CLUSTER[resource]

    monkeypatch.setattr(module, "_list", ask)
    return calls


@pytest.fixture
def complete(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Complete:
    """Complete `kubectl relay WORDS`; return the words and cobra's directive."""
    monkeypatch.setattr(kubectl, "_limit_time", lambda: None)

    def run(*words: str) -> tuple[list[str], int]:
        monkeypatch.setattr(sys, "argv", ["kubectl_complete-relay", *words])
        assert kubectl.complete() == 0
        *found, directive = capsys.readouterr().out.splitlines()
        return found, int(directive.removeprefix(":"))

    return run


def test_types_complete_without_a_space(complete: Complete, asked: list[Any]) -> None:
    found, directive = complete("")
    assert "svc/" in found
    assert "host/" in found
    assert directive == 6
    assert complete("d") == (["deploy/", "ds/"], 6)
    assert not asked


def test_names_complete_with_the_type_as_written(complete: Complete, asked: list[Any]) -> None:
    assert complete("-n", "shop", "service/") == (["service/web"], 4)
    assert complete("deployments.apps/w") == (["deployments.apps/web"], 4)
    assert complete("host/") == ([], 4)
    assert complete("nonsense/") == ([], 4)
    assert [(call[0], call[2]) for call in asked] == [("shop", "services"), (None, "deployments")]


@pytest.mark.parametrize(
    ("target", "ports"),
    [
        ("svc/web", ["80", ":http", "53@udp"]),
        ("deploy/web", ["8000", ":http"]),
        ("solo", ["8000", ":http"]),
        ("ip/10.0.0.1", []),
        ("svc/", []),
    ],
)
def test_ports_of_a_target_complete(
    target: str, ports: list[str], complete: Complete, asked: list[Any]
) -> None:
    assert complete(target, "")[0] == ports


def test_ports_given_already_are_left_out(complete: Complete, asked: list[Any]) -> None:
    assert complete("svc/web", "80", "")[0] == [":http", "53@udp"]
    assert asked[0][3] == {"fieldSelector": "metadata.name=web"}


def test_options_complete(complete: Complete) -> None:
    assert complete("--patch-")[0] == ["--patch-file", "--patch-type"]


def kubeconfig(path: Path, server: str) -> str:
    path.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": "x",
                "clusters": [{"name": "x", "cluster": {"server": server}}],
                "users": [{"name": "x", "user": {}}],
                "contexts": [{"name": "x", "context": {"cluster": "x", "user": "x"}}],
            }
        )
    )
    return str(path)


def test_a_silent_cluster_completes_nothing(
    complete: Complete, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(module, "_DEADLINE", 0.1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        config = kubeconfig(tmp_path / "k", f"http://127.0.0.1:{silent.getsockname()[1]}")
        assert complete("--kubeconfig", config, "svc/") == ([], 4)
    assert complete("--kubeconfig", config, "svc/") == ([], 4)
    assert complete("--kubeconfig", "missing", "svc/") == ([], 4)


@pytest.mark.process
def test_a_hanging_completion_ends_in_time() -> None:
    """The alarm ends the whole process."""
    text = (
        "import threading\nfrom krelay.cli import kubectl as k\n"
        "k._COMPLETION_DEADLINE = 0.02\nk._limit_time()\nthreading.Event().wait()\n"
    )
    done = subprocess.run([sys.executable, "-c", text], timeout=30, check=False)
    assert done.returncode == 0


def test_the_time_limit_sets_an_alarm(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    before = signal.getsignal(signal.SIGALRM)
    try:
        kubectl._limit_time(ended.append)
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
        signal.raise_signal(signal.SIGALRM)
        assert ended == [0]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


# -- krelay's own commands ---------------------------------------------------------------------


@pytest.mark.process
def test_names_of_the_file_s_targets_complete(tmp_path: Path) -> None:
    file = tmp_path / "krelay.yaml"
    file.write_text(
        "apiVersion: krelay/v1\ntargets:\n  web: svc/a 1\n  wiki: svc/b 2\n  db: svc/c 3\n"
        "tunnel: {park: 1s}\n"
    )

    def told(*words: str) -> list[str]:
        done = subprocess.run(
            [sys.executable, "-m", "krelay"],
            env={
                **os.environ,
                "_KRELAY_COMPLETE": "bash_complete",
                "COMP_WORDS": " ".join(["krelay", *words]),
                "COMP_CWORD": str(len(words)),
            },
            capture_output=True,
            text=True,
            check=True,
            timeout=30,
        )
        assert done.stderr == ""  # an old key is warned about elsewhere
        return [line.partition(",")[2] for line in done.stdout.splitlines() if line]

    assert told("up", "-f", str(file), "w") == ["web", "wiki"]
    assert told("up", "-f", str(file), "web", "w") == ["wiki"]
    assert told("up", "-f", "missing", "w") == []
    assert "reload" in told("re")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_has_a_script(
    shell: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["krelay", "completion", shell])
    assert main_module.main() == 0
    assert "_KRELAY_COMPLETE" in capsys.readouterr().out
