"""Shell completion."""

from __future__ import annotations

import json
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from krelay.cli import kubectl
from krelay.cli.flags import completion as module
from krelay.cli.main import cli

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
NAMESPACE = {"metadata": {"name": "shop"}}
CLUSTER: dict[str, list[Any]] = {
    "namespaces": [NAMESPACE],
    "services": [SERVICE],
    "pods": [POD],
    "deployments": [DEPLOYMENT],
}

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
def complete() -> Complete:
    """Complete `kubectl relay WORDS`; return the words and cobra's directive."""

    def run(*words: str) -> tuple[list[str], int]:
        *found, directive = module.answer(kubectl.relay, "kubectl relay", words).splitlines()
        return [line.partition("\t")[0] for line in found], int(directive.removeprefix(":"))

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


@pytest.mark.parametrize(
    "words",
    [
        *(["-f", ""], ["-f="], ["--file=x"], ["svc/web", "--patch-file", "x"]),
        *(["--kubeconfig", ""], ["--client-key="], ["-n", "x", "--cache-dir", "/t"]),
    ],
)
def test_file_names_are_left_to_the_shell(complete: Complete, words: list[str]) -> None:
    assert complete(*words) == ([], 0)


def test_namespaces_complete(complete: Complete, asked: list[Any]) -> None:
    for words in (["-n", ""], ["-n="], ["--namespace", "sh"], ["svc/web", "--namespace=sho"]):
        assert complete("--context", "c", "-nother", *words) == (["shop"], 4)
    for command in ("up", "run", "check", "plan", "rbac", "init", "add"):
        assert module.answer(cli, "krelay", [command, "-n", "s"]) == "shop\n:4\n"
    assert {call[:3] for call in asked} == {(None, "v1", "namespaces")}


def test_words_of_added_and_removed_targets_complete(
    asked: list[Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "krelay.yaml").write_text("apiVersion: krelay/v1\ntargets: {web: svc/web 80}\n")
    monkeypatch.chdir(tmp_path)
    assert module.answer(cli, "krelay", ["add", "svc/w"]) == "svc/web\n:4\n"
    assert module.answer(cli, "krelay", ["add", "svc/web", ":"]) == ":http\n:4\n"
    assert module.answer(cli, "krelay", ["remove", ""]) == "web\tsvc/web\n:4\n"


def test_names_of_kubeconfig_complete(
    complete: Complete, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = kubeconfig(tmp_path / "k", "http://127.0.0.1:1")
    assert complete("--kubeconfig", config, "--context", "") == (["x"], 4)
    assert complete("--kubeconfig", "missing", "--context", "") == ([], 4)
    for command in (["up"], ["run"], ["check"], ["plan"], ["rbac"], ["init"]):
        words = [*command, "--kubeconfig", config, "--context", ""]
        assert module.answer(cli, "krelay", words) == "x\n:4\n"
    monkeypatch.setenv("KUBECONFIG", config)
    for flag in ("--context", "--cluster", "--user"):
        assert complete(f"{flag}=") == (["x"], 4)
        assert complete(flag, "y") == ([], 4)


def test_a_bare_name_completes_as_a_pod(complete: Complete, asked: list[Any]) -> None:
    assert complete("so") == (["solo"], 4)
    assert complete("s") == (["svc/", "sts/"], 6)


def test_rbac_completes_names_of_the_file_and_words_of_a_target(
    asked: list[Any], tmp_path: Path
) -> None:
    file = tmp_path / "krelay.yaml"
    file.write_text("apiVersion: krelay/v1\ntargets: {s1: svc/a 1, s2: svc/b 2}\n")

    def found(*words: str) -> list[str]:
        lines = module.answer(cli, "krelay", ["rbac", "-f", str(file), *words]).splitlines()
        return [line.partition("\t")[0] for line in lines]

    assert found("s") == ["s1", "s2", "svc/", "sts/", ":6"]
    assert found("s1", "") == ["s2", ":4"]
    assert found("svc/") == ["svc/web", ":4"]
    assert found("svc/web", ":h") == [":http", ":4"]
    assert found("-n", "") == ["shop", ":4"]
    assert found("--agent-namespace=") == ["shop", ":4"]


def test_port_completes_targets_and_the_remote_ports_of_one(tmp_path: Path) -> None:
    file = tmp_path / "krelay.yaml"
    file.write_text(
        "apiVersion: krelay/v1\ntargets:\n  web: svc/web 8080:http\n"
        "  dns: {target: svc/dns, ports: [5353:53/udp, metrics]}\n"
    )

    def completed(command: str, *words: str) -> list[str]:
        found = module.answer(cli, "krelay", (command, "-f", str(file), *words))
        return [line.partition("\t")[0] for line in found.splitlines()[:-1]]

    assert completed("port", "") == ["web", "dns"]
    assert completed("port", "dns", "") == ["53", "metrics"]
    assert completed("port", "none", "") == []
    assert completed("logs", "web", "") == ["dns"]
    file.write_text("nonsense")
    assert completed("port", "dns", "") == []


def test_a_completion_that_fails_leaves_the_word_to_the_shell(
    complete: Complete, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*args: Any) -> Any:
        raise RuntimeError

    monkeypatch.setattr(module, "_targets", fail)
    assert complete("svc/") == ([], 0)


def test_a_line_splits_at_its_last_word() -> None:
    assert module.split_line("krelay up -f ") == ["up", "-f", ""]
    assert module.split_line("krelay up -f 'my fi") == ["up", "-f", "my fi"]
    assert module.split_line("krelay up --file=x") == ["up", "--file=x"]
    assert module.split_line("krelay ") == [""]


def test_options_complete(complete: Complete) -> None:
    assert complete("--patch-")[0] == ["--patch-file", "--patch-type"]


def kubeconfig(path: Path, server: str, name: str = "x") -> str:
    """Write a kubeconfig whose entries all have this name."""
    path.write_text(
        json.dumps(
            {
                "apiVersion": "v1",
                "kind": "Config",
                "current-context": name,
                "clusters": [{"name": name, "cluster": {"server": server}}],
                "users": [{"name": name, "user": {}}],
                "contexts": [{"name": name, "context": {"cluster": name, "user": name}}],
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
        "import threading\nfrom krelay.cli.flags import completion as c\n"
        "c._PROCESS_DEADLINE = 0.02\nc.limit_time()\nthreading.Event().wait()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", text], timeout=30, check=False, capture_output=True
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, b":4\n", b"")


def test_the_time_limit_sets_an_alarm(capfd: pytest.CaptureFixture[str]) -> None:
    ended: list[int] = []
    before = signal.getsignal(signal.SIGALRM)
    try:
        module.limit_time(ended.append)
        assert signal.getitimer(signal.ITIMER_REAL)[0] > 0
        signal.raise_signal(signal.SIGALRM)
        assert ended == [0]
        assert capfd.readouterr().out == ":4\n"
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
