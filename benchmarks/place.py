"""Where the benchmarks run: the cluster, a namespace with the target in it, and free ports."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import yaml

from benchmarks import processes, target
from benchmarks.results import FailedError

ROOT = Path(__file__).parents[1]
STARTER = os.environ.get("KRELAY_TEST_CLUSTER", "../shared/cluster/cluster")
KUBECTL = os.environ.get("KUBECTL", "kubectl")
IMAGE = "python:3.11-slim"
DELETION = 60.0
"""Seconds in which the namespace must be deleted."""
CONTAINERS = 10.0
"""Seconds until a pod's status names its containers."""

ECHO, SOURCE, SINK, HTTP, UDP = range(target.FIRST, target.FIRST + 5)
TCP_PORTS = (ECHO, SOURCE, SINK, HTTP)
UDP_PORTS = (ECHO, UDP)


def kubectl(*args: str, stdin: str | None = None) -> str:
    """Return what kubectl prints; give it a minute."""
    what = f"kubectl {' '.join(args[:4])}"
    try:
        done = subprocess.run(
            [KUBECTL, *args], input=stdin, capture_output=True, text=True, timeout=60
        )
    except subprocess.TimeoutExpired:
        raise FailedError(f"{what}: no answer") from None
    if done.returncode:
        raise FailedError(f"{what}: {done.stderr.strip()}")
    return done.stdout


def find_cluster() -> None:
    """Use $KUBECONFIG if it is set, else the cluster that the starter keeps on this machine."""
    if shutil.which(KUBECTL) is None:
        raise SystemExit("The benchmarks need kubectl.")
    starter = (ROOT / STARTER).resolve()
    if not os.environ.get("KUBECONFIG"):
        if not starter.exists():
            raise SystemExit(
                "The benchmarks need a cluster: set KUBECONFIG, "
                "or KRELAY_TEST_CLUSTER to a program that starts one."
            )
        subprocess.run([starter, "up"], check=True, timeout=1800)
        told = subprocess.run([starter, "env"], check=True, capture_output=True, text=True).stdout
        for line in told.splitlines():
            name, _, value = line.removeprefix("export ").partition("=")
            os.environ[name] = os.path.expandvars(value.strip("\"'"))
    asked = [KUBECTL, "get", "--raw", "/readyz", "--request-timeout=10s"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=30)
    if done.returncode:
        lines = done.stderr.strip().splitlines()
        raise SystemExit(
            f"The cluster of $KUBECONFIG does not answer: {lines[-1] if lines else ''}"
        )


def free_ports(count: int) -> list[int]:
    """Return ports in a row that are free for TCP and UDP, below those that clients get."""
    for _ in range(200):
        first = 10_000 + secrets.randbelow(21_000 - count)
        with contextlib.ExitStack() as stack, contextlib.suppress(OSError):
            for port in range(first, first + count):
                for kind in (socket.SOCK_STREAM, socket.SOCK_DGRAM):
                    sock = stack.enter_context(socket.socket(socket.AF_INET, kind))
                    sock.bind(("127.0.0.1", port))
            return list(range(first, first + count))
    raise SystemExit(f"This machine has no {count} free ports in a row.")


class Namespace:
    """A namespace with the target in it."""

    def __init__(self, name: str) -> None:
        self.name = name

    def pods(self) -> list[Any]:
        """Return the namespace's pods."""
        found: list[Any] = json.loads(kubectl("-n", self.name, "get", "pods", "-o", "json"))[
            "items"
        ]
        return found

    def make_target(self) -> None:
        """Start the target, and wait until it serves."""
        container = {
            "name": "target",
            "image": IMAGE,
            "imagePullPolicy": "IfNotPresent",
            "command": ["python3", "-u", "/program/target.py"],
            "readinessProbe": {"tcpSocket": {"port": HTTP}, "periodSeconds": 1},
            "volumeMounts": [{"name": "program", "mountPath": "/program"}],
        }
        spec = {
            "containers": [container],
            "terminationGracePeriodSeconds": 1,
            "volumes": [{"name": "program", "configMap": {"name": "program"}}],
        }
        program = {"target.py": Path(target.__file__).read_text()}
        objects = [
            {
                "apiVersion": "v1",
                "kind": "ConfigMap",
                "metadata": {"name": "program"},
                "data": program,
            },
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "target"}, "spec": spec},
        ]
        kubectl("-n", self.name, "apply", "-f", "-", stdin=yaml.safe_dump_all(objects))
        ready = ("wait", "--for=condition=Ready", "pod/target", "--timeout=55s")
        kubectl("-n", self.name, *ready)

    def uids(self) -> set[str]:
        """Return the UIDs of the namespace's pods."""
        return {pod["metadata"]["uid"] for pod in self.pods()}

    def processes(self, uids: set[str]) -> list[psutil.Process]:
        """Return the processes of these pods on this machine, once their containers are known."""
        deadline = time.monotonic() + CONTAINERS
        while True:
            pods = [pod for pod in self.pods() if pod["metadata"]["uid"] in uids]
            statuses = [pod["status"].get("containerStatuses", ()) for pod in pods]
            ids = [status.get("containerID", "") for row in statuses for status in row]
            if all(statuses) and all(ids) or time.monotonic() > deadline:
                marks = [*uids, *(name.partition("//")[2] for name in ids if name)]
                return processes.inside(marks) if uids else []
            time.sleep(0.1)

    def is_local(self) -> bool:
        """Tell whether the node's processes run on this machine."""
        return bool(self.processes(self.uids()))


@contextlib.contextmanager
def namespace() -> Iterator[Namespace]:
    """Make a namespace with the target in it, and delete it in the end."""
    name = f"bench-{secrets.token_hex(3)}"
    kubectl("create", "namespace", name)
    try:
        place = Namespace(name)
        place.make_target()
        yield place
    finally:
        delete(name)


def delete(name: str) -> None:
    """Delete the namespace, also if the API server is away for a moment."""
    deadline = time.monotonic() + DELETION
    while True:
        try:
            kubectl("delete", "namespace", name, "--wait=false", "--ignore-not-found")
            return
        except FailedError as exc:
            if time.monotonic() > deadline:
                raise FailedError(f"The namespace {name} is left behind. {exc}") from exc
            time.sleep(1)
