"""Completion in real shells: what the key Tab makes of a line."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.cli import shells
from tests.cli.test_completion import kubeconfig

pytestmark = pytest.mark.process

FILE = "apiVersion: krelay/v1\ntargets:\n  web: svc/a 1\n  db: svc/c 3\ntunnel: {park: 1s}\n"
KRELAY = [
    ("krelay relo", "krelay reload"),
    ("krelay up we", "krelay up web"),
    ("krelay up -f notes.yaml sto", "krelay up -f notes.yaml store"),
    ("krelay up -f not", "krelay up -f notes.yaml"),
    ("krelay up --file=not", "krelay up --file=notes.yaml"),
    ("krelay run -- not", "krelay run -- notes.yaml"),
    ("krelay proxy --context arn:aw", "krelay proxy --context arn:aws:one"),
    ("krelay proxy --context=arn:aw", "krelay proxy --context=arn:aws:one"),
]
KUBECTL = [
    ("kubectl relay -f not", "kubectl relay -f notes.yaml"),
    ("kubectl relay --patch-file=not", "kubectl relay --patch-file=notes.yaml"),
    ("kubectl relay --context ar", "kubectl relay --context arn:aws:one"),
    ("kubectl relay --user=ar", "kubectl relay --user=arn:aws:one"),
    ("kubectl relay -n x --cluster arn:aw", "kubectl relay -n x --cluster arn:aws:one"),
    ("kubectl relay sv", "kubectl relay svc/"),
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with two files of targets, and a kubeconfig whose cluster is out of reach."""
    (tmp_path / "krelay.yaml").write_text(FILE)
    (tmp_path / "notes.yaml").write_text("apiVersion: krelay/v1\ntargets: {store: svc/a 1}\n")
    kubeconfig(tmp_path / "config", "http://127.0.0.1:1", name="arn:aws:one")
    return tmp_path


@pytest.mark.parametrize("shell", shells.SHELLS)
async def test_krelay_completes_in_a_shell(shell: str, folder: Path) -> None:
    shells.needs(shell)
    await shells.complete(shell, folder, KRELAY, "config")


@pytest.mark.parametrize("shell", shells.SHELLS)
async def test_kubectl_relay_completes_in_a_shell(shell: str, folder: Path) -> None:
    shells.needs(shell, "kubectl")
    await shells.complete(shell, folder, KUBECTL, "config")


def test_a_completion_writes_nothing_but_words(folder: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "krelay", "__complete", "words", "up", ""],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert done.stdout == "web\tsvc/a\ndb\tsvc/c\n:4\n"
    assert done.stderr == ""  # an old key is warned about elsewhere


def test_a_plugin_for_credentials_stays_silent_during_a_completion(folder: Path) -> None:
    plugin = folder / "plugin"
    plugin.write_text("#!/bin/sh\nread answer; echo question >&2; exit 1\n")
    plugin.chmod(0o755)
    text = (folder / "config").read_text()
    exec_ = '{"exec": {"apiVersion": "client.authentication.k8s.io/v1", "command": "./plugin"}}'
    (folder / "config").write_text(text.replace('"user": {}', f'"user": {exec_}'))
    done = subprocess.run(
        [Path(sys.executable).with_name("kubectl_complete-relay"), "svc/"],
        env={**os.environ, "KUBECONFIG": "config"},
        cwd=folder,
        input="",
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )
    assert (done.stdout, done.stderr) == (":4\n", "")
