"""The files of examples/ for service managers; systemd's unit under a systemd of the test's own."""

from __future__ import annotations

import asyncio
import os
import plistlib
import shutil
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from tests import rig
from tests.integration.product import ROOT, document, environment

UNIT = ROOT / "examples" / "krelay.service"
SYSTEMD = Path("/lib/systemd/systemd")
_GROUP = f"krelay-test-systemd-{os.getpid()}"

# A separate group for what it starts, where this machine's systemd (if any) does not look.
_START = f"""
for tree in /sys/fs/cgroup /sys/fs/cgroup/*/; do
  test -f $tree/cgroup.procs || continue
  mkdir -p $tree/{_GROUP}
  echo $$ > $tree/{_GROUP}/cgroup.procs || rmdir $tree/{_GROUP}
done
exec unshare --mount --pid --fork --kill-child --mount-proc sh -euc '
  mount -t tmpfs tmpfs /run
  mkdir -p /run/systemd/system
  {SYSTEMD} --user --log-target=console
'
"""


def lacking() -> list[str]:
    programs = [name for name in ("systemctl", "systemd-analyze") if not shutil.which(name)]
    return programs if os.geteuid() == 0 else ["root's rights", *programs]


@pytest.fixture
def home() -> Iterator[Path]:
    """A user's home with krelay and its unit in it; short, for the sockets' sake."""
    if lacks := lacking():
        assert not os.environ.get("KRELAY_TEST_ALL"), f"this machine lacks {', '.join(lacks)}"
        pytest.skip(f"this machine lacks {', '.join(lacks)}")
    with tempfile.TemporaryDirectory(prefix="kr-") as name:
        folder = Path(name)
        for path in (".local/bin", ".config/krelay", ".config/systemd/user", "run"):
            (folder / path).mkdir(parents=True)
        (folder / "run").chmod(0o700)
        program = folder / ".local/bin/krelay"
        program.write_text(f'#!/bin/sh\nexec {sys.executable} -m krelay "$@"\n')
        program.chmod(0o755)
        shutil.copy(UNIT, folder / ".config/systemd/user")
        yield folder


def variables(home: Path) -> dict[str, str]:
    return environment(HOME=str(home), XDG_RUNTIME_DIR=str(home / "run"))


def test_the_unit_is_understood(home: Path) -> None:
    done = subprocess.run(
        ["systemd-analyze", "--user", "verify", home / ".config/systemd/user/krelay.service"],
        env=variables(home),
        capture_output=True,
        text=True,
        check=False,
    )
    # It warns of what it ignores, and succeeds.
    assert (done.returncode, done.stderr) == (0, "")


class Systemd:
    """A user's systemd, and its commands."""

    def __init__(self, home: Path, pid: int) -> None:
        self._home = home
        self._inside = ("nsenter", f"--target={pid}", "--mount", "--pid")

    async def __call__(self, *args: str) -> tuple[int | None, str]:
        """The code of a systemctl command, and what it printed."""
        process = await asyncio.create_subprocess_exec(
            *(*self._inside, "systemctl", "--user", *args),
            env=variables(self._home),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        out, _ = await process.communicate()
        return process.returncode, out.decode()

    async def shows(self, **properties: str) -> None:
        """Wait until krelay's unit has these properties."""
        names = ",".join(properties)
        while True:
            _, out = await self("show", "krelay", "-p", names)
            if dict(line.split("=", 1) for line in out.splitlines()) == properties:
                return
            await asyncio.sleep(0.1)


@pytest.fixture
async def systemd(home: Path) -> AsyncIterator[Systemd]:
    """Run systemd in its own namespaces, with a short watchdog."""
    more = home / ".config/systemd/user/krelay.service.d/test.conf"
    more.parent.mkdir()
    more.write_text(f"[Service]\nWatchdogSec=3s\nRestartSec=0\nEnvironment=PYTHONPATH={ROOT}\n")
    with (home / "log").open("wb") as log:
        # It dies with us, and with it all that it started, should we be killed.
        process = await asyncio.create_subprocess_exec(
            *("setpriv", "--pdeathsig", "KILL", "sh", "-euc", _START),
            env=variables(home),
            stdout=log,
            stderr=log,
        )
    try:
        socket = home / "run/systemd/private"
        await rig.until(lambda: socket.exists() or process.returncode is not None)
        assert process.returncode is None, (home / "log").read_text()
        (init,) = psutil.Process(process.pid).children()
        yield Systemd(home, init.pid)
    finally:
        inside = []
        with suppress(psutil.NoSuchProcess, ProcessLookupError):
            inside = psutil.Process(process.pid).children(recursive=True)
            process.kill()
        await process.wait()
        await asyncio.to_thread(psutil.wait_procs, inside, 10)
        root = Path("/sys/fs/cgroup")
        trees = [root, *(tree for tree in root.iterdir() if tree.is_dir())]
        for group in [tree / _GROUP for tree in trees]:
            for path in [*sorted(group.rglob("*/"), reverse=True), group]:
                with suppress(FileNotFoundError):
                    path.rmdir()


@pytest.mark.process
async def test_a_life_under_systemd(home: Path, systemd: Systemd) -> None:
    file = home / ".config/krelay/krelay.yaml"
    async with rig.tcp_target(rig.echo) as target:
        line = f"ip/127.0.0.1 :{target}"
        await asyncio.to_thread(file.write_text, document({"web": line}))
        code, out = await systemd("start", "krelay")
        assert code == 0, out + (home / "log").read_text()
        await systemd.shows(
            ActiveState="active", StatusText="1 of 1 forwards ready", WatchdogUSec="3s"
        )
        await asyncio.to_thread(file.write_text, document({"web": line, "more": line}))
        assert await systemd("reload", "krelay") == (0, "")
        await systemd.shows(ActiveState="active", StatusText="2 of 2 forwards ready")

        await systemd("kill", "--kill-who=main", "--signal=STOP", "krelay")
        await systemd.shows(ActiveState="active", NRestarts="1", StatusText="2 of 2 forwards ready")
        assert await systemd("stop", "krelay") == (0, "")
        await systemd.shows(ActiveState="inactive", Result="success", ExecMainStatus="0")

    await asyncio.to_thread(file.write_text, "targets: [\n")
    assert (await systemd("start", "krelay"))[0] == 1
    await systemd.shows(ActiveState="failed", ExecMainStatus="2", Result="exit-code")


def test_the_plist_is_understood() -> None:
    job = plistlib.loads((ROOT / "examples" / "krelay.plist").read_bytes())
    assert job["ProgramArguments"][1:3] == ["up", "--file"]
    assert job["KeepAlive"] == {"SuccessfulExit": False}
    assert job["ExitTimeOut"] > 30  # tunnel.drain
