"""krelay on other systems, as far as a system without their names can tell."""

from __future__ import annotations

import asyncio
import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from krelay import platforms
from krelay.errors import KrelayError
from tests import rig
from tests.integration.product import document, environment, relays_to_echo

ROOT = Path(__file__).parents[1]
REFUSED = (
    "error: krelay cannot relay on Windows itself\n"
    "  hint: run it in WSL: programs on Windows reach its TCP ports at localhost\n"
)


def start(system: str, *args: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "tests.platforms", system, *args],
        cwd=cwd,
        env=environment(PYTHONPATH=str(ROOT)),
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.process
@pytest.mark.parametrize("system", ["win32", "darwin"])
def test_every_module_can_be_imported(system: str) -> None:
    done = start(system)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


@pytest.mark.process
def test_on_windows_the_commands_about_files_work(tmp_path: Path) -> None:
    (tmp_path / "krelay.yaml").write_text(
        "apiVersion: krelay/v1\nnamespace: shop\ntargets: {web: svc/web 80}\n"
    )
    commands = [["check"], ["rbac", "--user", "jane"], ["__complete", "words", "up", "w"]]
    done = start("win32", "--each", json.dumps(commands), cwd=tmp_path)
    assert done.stderr == ""
    assert done.stdout.count("exit code 0") == len(commands)
    assert done.stdout.startswith("krelay.yaml: ok, 1 target\n")
    assert "web\tsvc/web\n:4\n" in done.stdout


@pytest.mark.process
def test_on_windows_what_relays_says_where_it_can(tmp_path: Path) -> None:
    file = tmp_path / "krelay.yaml"
    file.write_text(document({"web": "ip/127.0.0.1 :80"}))
    commands = [["up"], ["status"], ["logs"], ["down"], ["proxy"], ["doctor"], ["mcp"]]
    done = start("win32", "--each", json.dumps(commands), cwd=tmp_path)
    assert done.stderr == REFUSED * len(commands)
    assert done.stdout == "exit code 1\n" * len(commands)


@pytest.mark.process
async def test_on_macos_it_relays(tmp_path: Path) -> None:
    async with rig.tcp_target(rig.echo) as target:
        file = tmp_path / "krelay.yaml"
        await asyncio.to_thread(file.write_text, document({"web": f"ip/127.0.0.1 :{target}"}))
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "tests.platforms", "darwin", "up", "-f", str(file)),
            cwd=ROOT,
            env=environment(XDG_RUNTIME_DIR=str(tmp_path)),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        await relays_to_echo(process, signal.SIGINT)


def test_only_windows_cannot_relay(monkeypatch: pytest.MonkeyPatch) -> None:
    for system in ("linux", "darwin", "freebsd14"):
        monkeypatch.setattr(sys, "platform", system)
        platforms.require_posix()
    monkeypatch.setattr(sys, "platform", "win32")
    with pytest.raises(KrelayError, match="cannot relay on Windows itself"):
        platforms.require_posix()


def test_signals_that_a_system_lacks_are_left_out() -> None:
    found = platforms.signals("SIGINT", "SIGNONE", "SIGTERM")
    assert found == (signal.SIGINT, signal.SIGTERM)
