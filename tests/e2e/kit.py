"""What the cluster's tests stand on: kubectl, the target's manifests, krelay as users run it."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[2]
PROGRAM = Path(__file__).with_name("program.py")
IMAGE = "python:3.11-slim"

# `NAME: ADDRESS:PORT -> TARGET:PORT (PROTOCOL)`, as `krelay up` announces a forward.
LINE = re.compile(r"^(\S+): \[?([^\]\s]+?)\]?:(\d+) -> (\S+) \((tcp|udp)\)$")

Address = tuple[str, int]

COLLECTED = 180.0
"""Seconds for the cluster's garbage collector to delete the pods of a Job that krelay has deleted.
It takes a minute or more if an API server has just restarted."""


def kubectl(*args: str, stdin: str | None = None, check: bool = True) -> str:
    """What kubectl says; it is given three minutes."""
    done = subprocess.run(
        ["kubectl", *args], input=stdin, capture_output=True, text=True, timeout=180, check=False
    )
    if check and done.returncode:
        raise AssertionError(f"kubectl {' '.join(args)}: {done.stderr}")
    return done.stdout


def apply(namespace: str, *objects: dict[str, Any]) -> None:
    """Create or change these objects."""
    kubectl("apply", "-n", namespace, "-f", "-", stdin=yaml.safe_dump_all(objects))


def get(namespace: str, *what: str) -> Any:
    """Objects as JSON."""
    return json.loads(kubectl("get", "-n", namespace, *what, "-o", "json"))


@contextlib.contextmanager
def namespaces(**labels: str) -> Iterator[Any]:
    """A function that makes namespaces, which are deleted afterwards, also after a failure."""
    made: list[str] = []

    def make(**more: str) -> str:
        name = f"e2e-{secrets.token_hex(3)}"
        kubectl("create", "namespace", name)
        made.append(name)
        pairs = [f"{key}={value}" for key, value in {**labels, **more}.items()]
        if pairs:
            kubectl("label", "namespace", name, *pairs)
        return name

    try:
        yield make
    finally:
        if made:
            kubectl("delete", "namespace", *made, "--wait=false", "--ignore-not-found")


def service_account(namespace: str, name: str) -> str:
    """The user name of a service account."""
    return f"system:serviceaccount:{namespace}:{name}"


def wait_granted(user: str) -> None:
    """Wait until the API server, which watches Roles, grants what those of a user permit."""

    def granted() -> bool:
        reviews = list(_reviews(user))
        if not reviews:
            return True
        answers = kubectl(
            *("create", "-f", "-", "-o", r'jsonpath={.status.allowed}{"\n"}'),
            stdin=yaml.safe_dump_all(reviews),
        )
        return answers.split() == ["true"] * len(reviews)

    eventually(granted, f"the Roles of {user} are in effect")


def _reviews(user: str) -> Iterator[dict[str, Any]]:
    """Yield a question about each rule of a user's Roles."""
    found = json.loads(kubectl("get", "roles,rolebindings", "-A", "-o", "json"))["items"]
    place = {
        (one["kind"], one["metadata"]["namespace"], one["metadata"]["name"]): one for one in found
    }
    for (kind, namespace, _), binding in place.items():
        if kind == "RoleBinding" and user in map(_user, binding.get("subjects", ())):
            role = place.get(("Role", namespace, binding["roleRef"]["name"]), {})
            for rule in role.get("rules") or ():
                resource, _, subresource = rule["resources"][0].partition("/")
                asked = {
                    "namespace": namespace,
                    "verb": rule["verbs"][0],
                    "group": rule["apiGroups"][0],
                    "resource": resource,
                    "subresource": subresource,
                    "name": next(iter(rule.get("resourceNames", ())), ""),
                }
                yield {
                    "apiVersion": "authorization.k8s.io/v1",
                    "kind": "SubjectAccessReview",
                    "spec": {"user": user, "resourceAttributes": asked},
                }


def _user(subject: dict[str, str]) -> str:
    name = subject["name"]
    account = subject["kind"] == "ServiceAccount"
    return service_account(subject["namespace"], name) if account else name


def pod_spec(**more: Any) -> dict[str, Any]:
    """A pod that runs the target's program, ready when it says so."""
    return {
        "terminationGracePeriodSeconds": 10,
        "containers": [
            {
                "name": "target",
                "image": IMAGE,
                "imagePullPolicy": "IfNotPresent",
                "command": ["python3", "-u", "/program/program.py"],
                "ports": [
                    {"name": "http", "containerPort": 8000},
                    {"name": "command", "containerPort": 9000},
                    {"name": "echo", "containerPort": 9001, "protocol": "UDP"},
                ],
                "readinessProbe": {
                    "httpGet": {"port": "http", "path": "/ready"},
                    "periodSeconds": 1,
                },
                "volumeMounts": [{"name": "program", "mountPath": "/program"}],
            }
        ],
        "volumes": [{"name": "program", "configMap": {"name": "program"}}],
        **more,
    }


def workload(kind: str, name: str, replicas: int | None = 1, **more: Any) -> dict[str, Any]:
    """A Deployment, StatefulSet, DaemonSet, ReplicaSet or Job of such pods."""
    labels = {"app": name}
    version = "batch/v1" if kind == "Job" else "apps/v1"
    spec: dict[str, Any] = {"template": {"metadata": {"labels": labels}, "spec": pod_spec(**more)}}
    if kind == "Job":
        spec["template"]["spec"]["restartPolicy"] = "Never"
    else:
        spec["selector"] = {"matchLabels": labels}
    if kind in ("Deployment", "StatefulSet", "ReplicaSet"):
        spec["replicas"] = replicas
    if kind == "StatefulSet":
        spec["serviceName"] = name
    return {"apiVersion": version, "kind": kind, "metadata": {"name": name}, "spec": spec}


def service(name: str, app: str | None, **spec: Any) -> dict[str, Any]:
    """A Service with the ports http (80), command (90) and echo (91/UDP)."""
    ports = [
        {"name": "http", "port": 80, "targetPort": "http"},
        {"name": "command", "port": 90, "targetPort": 9000},
        {"name": "echo", "port": 91, "targetPort": 9001, "protocol": "UDP"},
    ]
    body: dict[str, Any] = {"ports": ports, **spec}
    if app:
        body["selector"] = {"app": app}
    return {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name}, "spec": body}


def program() -> dict[str, Any]:
    """The ConfigMap that carries the target's program."""
    data = {"program.py": PROGRAM.read_text()}
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "program"}, "data": data}


class Krelay:
    """`krelay` as a process. As a context manager it ends with SIGINT and exit code 0."""

    def __init__(
        self,
        *args: str,
        stdin: str | None = None,
        environ: dict[str, str] | None = None,
        expect: int | None = 0,
        program: tuple[str, ...] = (sys.executable, "-m", "krelay"),
    ) -> None:
        self._expect = expect
        self.output: list[str] = []
        self.log: list[str] = []
        self._news = threading.Condition()
        self.process = subprocess.Popen(
            [*program, *args],
            stdin=subprocess.PIPE if stdin is not None else subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=ROOT,
            env={**os.environ, **(environ or {})},
        )
        if stdin is not None and self.process.stdin is not None:
            self.process.stdin.write(stdin)
            self.process.stdin.close()
        self._readers = [
            threading.Thread(target=self._read, args=(pipe, lines), daemon=True)
            for pipe, lines in (
                (self.process.stdout, self.output),
                (self.process.stderr, self.log),
            )
        ]
        for reader in self._readers:
            reader.start()

    def _read(self, pipe: Any, lines: list[str]) -> None:
        with pipe:
            for line in pipe:
                with self._news:
                    lines.append(line.rstrip("\n"))
                    self._news.notify_all()
        with self._news:
            self._news.notify_all()

    def wait_lines(self, count: int, timeout: float = 60.0) -> Krelay:
        """Wait until `count` forwards are announced."""
        return self.wait(lambda: len(self.output) >= count, f"{count} lines", timeout)

    def wait_log(self, text: str, timeout: float = 60.0) -> Krelay:
        """Wait until the log says `text`."""
        return self.wait(lambda: any(text in line for line in self.log), text, timeout)

    def wait(self, there: Any, what: str, timeout: float) -> Krelay:
        """Wait for what comes on stdout or stderr."""
        deadline = time.monotonic() + timeout
        with self._news:
            while not there():
                left = deadline - time.monotonic()
                ended = self.process.poll() is not None and not any(
                    reader.is_alive() for reader in self._readers
                )
                if left <= 0 or ended:
                    raise AssertionError(f"no {what}\n{self.told()}")
                self._news.wait(min(left, 0.5))
        return self

    def told(self) -> str:
        """All that it said, for a failure's message."""
        return "\n".join(["stdout:", *self.output, "stderr:", *self.log])

    def address(self, name: str, protocol: str = "tcp", index: int = 0) -> Address:
        """Where it listens for the forward of this target (the `index`-th of them)."""
        found = [
            (match[2], int(match[3]))
            for match in map(LINE.match, self.output)
            if match and match[1] == name and match[5] == protocol
        ]
        assert found, f"no forward {name}\n{self.told()}"
        return found[index]

    def finish(self, timeout: float = 60.0) -> int:
        """Its exit code, once it has ended by itself."""
        code = self.process.wait(timeout)
        for reader in self._readers:
            reader.join(timeout)
        return code

    def interrupt(self) -> None:
        """Ctrl-C."""
        self.process.send_signal(signal.SIGINT)

    def __enter__(self) -> Krelay:
        return self

    def __exit__(self, kind: Any, *_: object) -> None:
        try:
            if self.process.poll() is None:
                self.interrupt()
            code = self.finish()
            if kind is None and self._expect is not None:
                assert code == self._expect, f"exit {code}\n{self.told()}"
        finally:
            if self.process.poll() is None:
                self.process.kill()
                self.process.wait()


def up(config: str, tmp_path: Path, forwards: int, *args: str, **more: Any) -> Krelay:
    """`krelay up` on this file, ready."""
    path = tmp_path / f"krelay-{secrets.token_hex(2)}.yaml"
    path.write_text(config)
    krelay = Krelay("up", "-f", str(path), *args, **more)
    try:
        return krelay.wait_lines(forwards)
    except BaseException:
        krelay.process.kill()
        krelay.finish()
        raise


def run(*args: str, stdin: str | None = None, environ: dict[str, str] | None = None) -> Krelay:
    """A krelay that ends by itself."""
    krelay = Krelay(*args, stdin=stdin, environ=environ)
    try:
        krelay.finish(90.0)
    except subprocess.TimeoutExpired:
        krelay.process.kill()
        krelay.finish()
        raise AssertionError(f"krelay {' '.join(args)} did not end\n{krelay.told()}") from None
    return krelay


def agents(namespace: str) -> list[str]:
    """The names of the Jobs and pods of agents in a namespace, but those of pods that end."""
    found = get(namespace, "jobs,pods", "-l", "app=krelay-server")["items"]
    return [
        f"{item['kind']}/{item['metadata']['name']}"
        for item in found
        if "deletionTimestamp" not in item["metadata"]
    ]


def assert_no_agents(*namespaces: str) -> None:
    """Check that krelay has left no agent.

    krelay deletes the Jobs, and the cluster then their pods.
    """
    for namespace in namespaces:
        left = agents(namespace)
        assert [name for name in left if name.startswith("Job/")] == []
        eventually(partial(_is_empty, namespace), f"the end of {left}", COLLECTED)


def _is_empty(namespace: str) -> bool:
    return not agents(namespace)


def outer_environ() -> dict[str, str]:
    """The environment for programs that outlive the tests: runc would use the runtime directory."""
    return {name: value for name, value in os.environ.items() if name != "XDG_RUNTIME_DIR"}


@contextlib.contextmanager
def faults() -> Iterator[Any]:
    """A function that has the cluster's starter do a fault (`stop`, `freeze`, …); all is undone
    afterwards. Skips if the cluster is not the tests' own."""
    starter = (ROOT / os.environ.get("KRELAY_TEST_CLUSTER", "../shared/cluster/cluster")).resolve()
    if not starter.exists():
        pytest.skip("needs the cluster of the tests' own")

    def fault(*args: str) -> None:
        subprocess.run(
            [starter, *args], check=True, capture_output=True, timeout=120, env=outer_environ()
        )

    try:
        yield fault
    finally:
        fault("up")


def eventually(there: Any, what: str, timeout: float = 60.0) -> None:
    """Ask until the answer is yes: for what the cluster does in its own time."""
    deadline = time.monotonic() + timeout
    while not there():
        assert time.monotonic() < deadline, f"not within {timeout:g} s: {what}"
        time.sleep(0.3)


def dial(address: Address, timeout: float = 30.0) -> socket.socket:
    """A connection with a deadline for each call."""
    return socket.create_connection(address, timeout)


def command(address: Address, line: str) -> socket.socket:
    """A connection to the target's command port that has said its command."""
    sock = dial(address)
    sock.sendall(line.encode() + b"\n")
    return sock


def read_all(sock: socket.socket) -> bytes:
    """All there is until the other end ends."""
    received = bytearray()
    while data := sock.recv(1 << 20):
        received += data
    return bytes(received)


def read_until(sock: socket.socket, end: bytes) -> bytes:
    """What comes up to and with `end`, or less if the other end ends."""
    received = bytearray()
    while end not in received and (data := sock.recv(1 << 16)):
        received += data
    return bytes(received)


def http_get(address: Address, path: str = "/") -> bytes:
    """The body of an answer with status 200."""
    with dial(address) as sock:
        host = f"{address[0]}:{address[1]}"
        sock.sendall(f"GET {path} HTTP/1.1\r\nHost: {host}\r\n\r\n".encode())
        answer = read_all(sock)
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 200"), answer[:200]
    return body


def ask_udp(address: Address, data: bytes, tries: int = 5) -> bytes:
    """The answer to a datagram, which may be lost a few times."""
    family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
    with socket.socket(family, socket.SOCK_DGRAM) as sock:
        sock.settimeout(3)
        for _ in range(tries):
            sock.sendto(data, address)
            with contextlib.suppress(TimeoutError):
                return sock.recv(65_536)
    raise AssertionError(f"no answer from {address}")
