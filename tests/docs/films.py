"""Record the films of the README from krelay on a real cluster: `make films`.

    python -m tests.docs.films live       # docs/live.svg: an edit while a download goes on
    python -m tests.docs.films restart    # docs/restart.svg: the API server restarts

Both need kubectl, curl, and a cluster with the images of `tests/e2e`: KUBECONFIG, or that of the
starter. The second one stops its API server, by the starter. They make a namespace, and delete it.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from tests.docs.film import Pane, draw, record
from tests.e2e.conftest import STARTER, find_cluster

ROOT = Path(__file__).parents[2]
NAMESPACE = "krelay-films"
COLUMNS = 92
FILE = """\
apiVersion: krelay/v1
targets:
  web: svc/web 8090:80
  db: svc/postgres 15432:5432
"""
MEBIBYTES = 96
RATE = "6m"

CONFIG = f"""
events {{}}
http {{ server {{ listen 80; location / {{ root /srv; limit_rate {RATE}; }} }} }}
"""
SERVE = f"""
mkdir -p /srv; head -c {MEBIBYTES << 20} /dev/urandom > /srv/backup.tar
echo '{CONFIG}' > /tmp/nginx.conf; exec nginx -c /tmp/nginx.conf -g 'daemon off;'
"""


def objects() -> list[dict[str, Any]]:
    """Return a pod that serves a file, a database and a cache, and their Services."""
    image = {"image": "krelay.test/tools:1", "imagePullPolicy": "IfNotPresent"}
    listening = ["socat", "TCP-LISTEN:5432,fork,reuseaddr", "EXEC:cat"]
    cache = ["redis-server", "--protected-mode", "no"]
    probe = {"tcpSocket": {"port": 80}, "periodSeconds": 1}
    containers = [
        {"name": "web", "command": ["sh", "-c", SERVE], "readinessProbe": probe, **image},
        {"name": "db", "command": listening, **image},
        {"name": "cache", "command": cache, **image},
    ]
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": "shop", "labels": {"app": "shop"}},
        "spec": {"containers": containers, "terminationGracePeriodSeconds": 1},
    }
    services = [
        {
            "apiVersion": "v1",
            "kind": "Service",
            "metadata": {"name": name},
            "spec": {"selector": {"app": "shop"}, "ports": [{"port": port}]},
        }
        for name, port in {"web": 80, "postgres": 5432, "redis": 6379}.items()
    ]
    return [pod, *services]


def kubectl(*args: str, stdin: str | None = None) -> str:
    """Run kubectl, and return what it prints."""
    command = ["kubectl", "-n", NAMESPACE, *args]
    return subprocess.run(
        command, input=stdin, check=True, text=True, stdout=subprocess.PIPE, timeout=150
    ).stdout


class Stage:
    """krelay in a terminal, and shells beside it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        (folder / "krelay.yaml").write_text(FILE)
        config = json.loads(kubectl("config", "view", "--raw", "--flatten", "-o", "json"))
        for each in config["contexts"]:
            each["context"]["namespace"] = NAMESPACE
        (folder / "config").write_text(json.dumps(config))
        folders = Path(sys.executable).parent, (ROOT / STARTER).resolve().parent
        self._environ = {
            "HOME": os.environ.get("HOME", "/"),  # where the starter keeps its cluster
            "KUBECONFIG": str(folder / "config"),
            "LANG": "C.UTF-8",
            "PATH": ":".join(map(str, (*folders, os.environ["PATH"]))),
            "PS1": "$ ",
            "TERM": "xterm-256color",
        }
        self.panes: list[Pane] = []
        self._processes: list[asyncio.subprocess.Process] = []

    async def pane(self, title: str, rows: int, *command: str) -> Pane:
        """Start a program, by default a shell, in a terminal below the others."""
        found = Pane(title, COLUMNS, rows)
        command = command or ("bash", "--noprofile", "--norc", "--noediting")
        self._processes.append(
            await found.run(*command, environ=self._environ, cwd=str(self._folder))
        )
        self.panes.append(found)
        return found

    async def close(self) -> None:
        """End all programs."""
        for process in reversed(self._processes):
            if process.returncode is None:
                process.terminate() if process is self._processes[0] else process.kill()
            await process.wait()
        for pane in self.panes:
            pane.close()


@asynccontextmanager
async def stage() -> AsyncIterator[Stage]:
    """A stage with the pod in the cluster."""
    with tempfile.TemporaryDirectory() as folder:
        found = Stage(Path(folder))
        try:
            yield found
        finally:
            await found.close()


async def live(stage: Stage) -> None:
    """Add a target and remove another, while a download goes on."""
    up = await stage.pane("krelay up", 11, "krelay", "up")
    editor = await stage.pane("an edit", 5)
    download = await stage.pane("a download through web", 3)
    await up.shows("2 of 2 ready")
    async with recording(stage, ROOT / "docs" / "live.svg", "krelay up follows edits of its file"):
        await asyncio.sleep(1)
        await download.type("curl -# -o backup.tar localhost:8090/backup.tar")
        await up.shows("MB/s")
        await asyncio.sleep(2)
        await editor.type("echo '  cache: svc/redis 16379:6379' >> krelay.yaml")
        await up.shows("3 of 3 ready")
        await asyncio.sleep(2.5)
        await editor.type("sed -i '/db:/d' krelay.yaml")
        await up.shows("2 of 2 ready")
        await asyncio.sleep(2)
        await editor.type("krelay port cache")
        await download.shows("100.0%")
        await asyncio.sleep(0.5)


async def restart(stage: Stage) -> None:
    """Stop the API server and start it again, while a download goes on."""
    up = await stage.pane("krelay up", 11, "krelay", "up")
    operator = await stage.pane("the cluster (at 1.5 times the speed)", 3)
    download = await stage.pane("a download through web", 3)
    await up.shows("2 of 2 ready")
    about = "a download lives through a restart of the API server"
    async with recording(stage, ROOT / "docs" / "restart.svg", about, speed=1.5):
        await asyncio.sleep(1)
        await download.type("curl -# -o backup.tar localhost:8090/backup.tar && ls -sh backup.tar")
        await up.shows("MB/s")
        await asyncio.sleep(2)
        try:
            await operator.type("cluster stop kube-apiserver")
            await up.shows("no tunnel")
            await asyncio.sleep(2)
            await operator.type("cluster start kube-apiserver")
            await up.hides("no tunnel")
        finally:
            await asyncio.to_thread(starter, "up")
        await download.shows("100.0%")
        await asyncio.sleep(1)


@asynccontextmanager
async def recording(stage: Stage, to: Path, title: str, speed: float = 1.0) -> AsyncIterator[None]:
    """Record what the panes show meanwhile."""
    ended = asyncio.Event()
    recorder = asyncio.get_running_loop().create_task(record(stage.panes, ended))
    try:
        yield
    finally:
        ended.set()
        seconds = await recorder
    to.write_text(draw(stage.panes, seconds, title, speed), encoding="utf-8")
    print(f"{to.relative_to(ROOT)}: {seconds:.0f} s, {to.stat().st_size / 1000:.0f} kB")  # noqa: T201


def starter(*args: str) -> None:
    """Have the cluster's starter do something."""
    subprocess.run([(ROOT / STARTER).resolve(), *args], check=True, timeout=120)


async def take(scene: Callable[[Stage], Coroutine[Any, Any, None]]) -> None:
    """Take a film."""
    async with stage() as found, asyncio.timeout(240):
        await scene(found)


def main() -> None:
    """Take the films that the command line names, or all."""
    scenes = {"live": live, "restart": restart}
    names = sys.argv[1:] or list(scenes)
    find_cluster()
    kubectl("create", "namespace", NAMESPACE)
    try:
        kubectl(
            "apply",
            "-f",
            "-",
            stdin=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects()}),
        )
        kubectl("wait", "--for=condition=Ready", "pod/shop", "--timeout=120s")
        for name in names:
            asyncio.run(take(scenes[name]))
    finally:
        kubectl("delete", "namespace", NAMESPACE, "--wait=false")


if __name__ == "__main__":
    main()
