"""The tests' Docker daemon, in its own namespaces (network, mounts, processes): its bridges,
firewall rules and mounts are invisible outside, and vanish however it ends. Its containers reach
one address beyond: the API server, through a relay at `API`."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil

from tests.e2e import kit

API = ("198.51.100.1", 6443)
"""Where containers find the API server: an unassigned address, local in the namespace."""

_CGROUP = f"krelay-test-docker-{os.getpid()}"

# /run, too, is its own: where the daemon and what it starts leave their sockets and handles.
_START = f"""
mount -t proc proc /proc
mount -t tmpfs tmpfs /run
ip link set lo up
ip address add {API[0]}/32 dev lo
exec docker-init -s -- dockerd --data-root "$1/data" --exec-root /run/docker \
  --pidfile /run/docker.pid --host "unix://$1/docker.sock" --cgroup-parent /{_CGROUP}
"""

# Passes a socket that listens in the namespace where this runs.
_LISTEN = """
import socket, sys
listener = socket.create_server((sys.argv[1], int(sys.argv[2])))
socket.send_fds(socket.socket(fileno=int(sys.argv[3])), [b"x"], [listener.fileno()])
"""


def missing() -> list[str]:
    """What this machine lacks for it."""
    wanted = ("dockerd", "docker", "docker-init", "docker-compose", "setpriv", "unshare", "nsenter")
    found = [program for program in wanted if not shutil.which(program)]
    return found if os.geteuid() == 0 else ["root's rights", *found]


class Docker:
    """A daemon that runs, and the commands for it."""

    def __init__(self, folder: Path) -> None:
        self._env = {
            **os.environ,
            "DOCKER_HOST": f"unix://{folder}/docker.sock",
            # The builder of the Docker that Debian has; neither needs a plugin.
            "DOCKER_BUILDKIT": "0",
            "COMPOSE_DOCKER_CLI_BUILD": "0",
        }

    def run(
        self,
        *args: str | Path,
        cwd: Path | None = None,
        check: bool = True,
        timeout: float = 120.0,
        **environ: str,
    ) -> subprocess.CompletedProcess[str]:
        """A command that talks to the daemon."""
        done = subprocess.run(
            args,
            cwd=cwd,
            env={**self._env, **environ},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        if check and done.returncode:
            told = f"{done.stdout}\n{done.stderr}"
            raise AssertionError(f"{' '.join(map(str, args))}: {done.returncode}\n{told}")
        return done

    def inspect(self, name: str) -> Any:
        """What is known of a container or an image."""
        return json.loads(self.run("docker", "inspect", name).stdout)[0]

    def load(self, images: Path, name: str) -> None:
        """Load an image from a folder of archives."""
        for path in sorted(images.glob("*.tar")):
            with tarfile.open(path) as archive:
                manifest = archive.extractfile("manifest.json")
                assert manifest is not None
                tags = [tag for entry in json.load(manifest) for tag in entry["RepoTags"]]
            if name not in (tag.removeprefix("docker.io/library/") for tag in tags):
                continue
            self.run("docker", "load", "--input", path)
            return
        raise AssertionError(f"no archive in {images} has {name}")


@contextlib.contextmanager
def daemon(folder: Path) -> Iterator[Docker]:
    """A daemon that keeps its things in `folder`, whose path is a short one. Nothing of it is left
    afterwards."""
    log = folder / "log"
    with log.open("wb") as out:
        process = subprocess.Popen(
            # It dies with us, and with it all that it started, should we be killed.
            ["setpriv", "--pdeathsig", "KILL"]
            + ["unshare", "--mount", "--net", "--pid", "--fork", "--kill-child"]
            + ["sh", "-euc", _START, "sh", folder],
            stdin=subprocess.DEVNULL,
            stdout=out,
            stderr=out,
            start_new_session=True,
        )
    try:
        docker = Docker(folder)

        def answers() -> bool:
            assert process.poll() is None, log.read_text()
            return not docker.run("docker", "info", check=False).returncode

        kit.eventually(answers, f"dockerd answers; see {log}")
        (init,) = psutil.Process(process.pid).children()
        with _relayed(init.pid):
            yield docker
            init.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
    finally:
        # Its child is killed with it, and with that one every process of the namespace.
        children = psutil.Process(process.pid).children() if process.poll() is None else []
        process.kill()
        process.wait()
        psutil.wait_procs(children, timeout=30)
        for group in Path("/sys/fs/cgroup").glob(f"**/{_CGROUP}"):
            for path in [*sorted(group.rglob("*/"), reverse=True), group]:
                path.rmdir()
        shutil.rmtree(folder / "data", ignore_errors=True)


def kubeconfig(path: Path) -> None:
    """The kubeconfig for containers: it names no file, and the relay in the API server's place."""
    view = kit.kubectl("config", "view", "--raw", "--flatten", "--minify", "-o", "json")
    found = json.loads(view)
    cluster = found["clusters"][0]["cluster"]
    cluster.setdefault("tls-server-name", urlsplit(cluster["server"]).hostname)
    cluster["server"] = f"https://{API[0]}:{API[1]}"
    path.write_text(json.dumps(found))
    path.chmod(0o600)


def _server() -> tuple[str, int]:
    view = kit.kubectl("config", "view", "--minify", "-o", "jsonpath={.clusters[0].cluster.server}")
    url = urlsplit(view)
    assert url.hostname
    return url.hostname, url.port or 443


@contextlib.contextmanager
def _relayed(pid: int) -> Iterator[None]:
    """Connections to `API`, in the network namespace of a process, go to the API server."""
    server = _server()
    mine, theirs = socket.socketpair()
    with mine, theirs:
        subprocess.run(
            ["nsenter", f"--net=/proc/{pid}/ns/net", sys.executable, "-c", _LISTEN]
            + [API[0], str(API[1]), str(theirs.fileno())],
            pass_fds=[theirs.fileno()],
            check=True,
            timeout=30,
        )
        _, [number], _, _ = socket.recv_fds(mine, 1, 1)
    listener = socket.socket(fileno=number)
    live: set[socket.socket] = set()

    def accept() -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = listener.accept()
                upstream = socket.create_connection(server, 10)
                upstream.settimeout(None)
                live.update((client, upstream))
                for pair in ((client, upstream), (upstream, client)):
                    threading.Thread(target=_copy, args=pair, daemon=True).start()

    thread = threading.Thread(target=accept, daemon=True)
    thread.start()
    try:
        yield
    finally:
        for sock in (listener, *live):
            with contextlib.suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)
        thread.join(10)
        for sock in (listener, *live):
            sock.close()


def _copy(source: socket.socket, sink: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while data := source.recv(1 << 16):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
