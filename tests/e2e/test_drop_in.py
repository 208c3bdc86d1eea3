"""The drop-in: command lines of `kubectl port-forward`, each beside the real kubectl.

Each line of STARTS runs in kubectl. What `kubectl relay` understands of it runs in one krelay for
all lines. Both listen on the same addresses, and lead to the same pods. Each line of FAILS runs in
both, and both say why it fails.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import shlex
import socket
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from krelay.cli import kubectl as command
from krelay.cli import up
from krelay.model import Config
from tests.cli import shells
from tests.e2e import kit

# All lines run before the first test of each table.
pytestmark = pytest.mark.timeout(360)

PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
LINE = re.compile(r"Forwarding from \[?([^\]\s]+?)\]?:(\d+) -> (\d+)")

# `{w}` is the namespace, `{p}` and `{q}` are free local ports.
STARTS = [
    # the namespace
    "-n {w} pod/solo :8000",
    "-n={w} pod/solo :8000",
    "-n{w} pod/solo :8000",
    "--namespace {w} pod/solo :8000",
    "--namespace={w} pod/solo :8000",
    "pod/solo :8000 -n {w}",
    "pod/solo -n={w} :8000",
    "-n nowhere pod/solo --namespace=none -n={w} :8000",
    "--namespace= -n{w} pod/solo :8000",
    "-n {w} -- pod/solo :8000",
    "pod/solo -n{w} -- :8000",
    # other flags
    "-v0 -n {w} pod/solo :8000",
    "-v=0 -n {w} pod/solo :8000",
    "pod/solo :8000 -n {w} -v 1 --v=0",
    "-n {w} pod/solo :8000 --pod-running-timeout=5s",
    "-n {w} pod/solo :8000 --pod-running-timeout 1h2m3s",
    "-n {w} pod/solo :8000 --request-timeout=30s",
    "-n {w} pod/solo :8000 --request_timeout 30",
    "-n {w} pod/solo :8000 --cache-dir={tmp} --disable-compression",
    "-n {w} pod/solo :8000 --disable-compression=false --match-server-version=F",
    "-n {w} pod/solo :8000 --log-flush-frequency=1s --vmodule=a=1",
    "-n {w} pod/solo :8000 --profile=none --profile-output {tmp}/x",
    "-n {w} pod/solo :8000 --warnings-as-errors --insecure-skip-tls-verify=false",
    "-n {w} pod/solo :8000 --username=u --password=p",
    "-n {w} pod/solo :8000 --as=jane --as-group=system:masters --as-uid=7",
    "-n {w} pod/solo :8000 --context= --cluster= --user= --token= --kubeconfig= -s ''",
    "-n {w} pod/solo :8000 --help=false",
    # the target
    "-n {w} solo :8000",
    "-n {w} po/solo :http",
    "-n {w} pods/solo :http",
    "-n {w} deploy/web :http",
    "-n {w} deployments.apps/web :8000",
    "-n {w} deployment.v1.apps/web :8000",
    "-n {w} statefulset/db :8000",
    "-n {w} ds/node :8000",
    "-n {w} replicasets/set :http",
    "-n {w} job/task :8000",
    "-n {w} svc/web :80",
    "-n {w} service/web :http",
    # local ports and addresses
    "-n {w} pod/solo {p}:8000",
    "-n {w} pod/solo {p}:http {q}:9000",
    "-n {w} pod/solo 0:8000",
    "-n {w} pod/solo :8000 :9000",
    "-n {w} pod/solo --address 127.0.0.1 {p}:8000",
    "-n {w} pod/solo --address=127.0.0.2,127.0.0.3 {p}:8000",
    "-n {w} pod/solo --address 127.0.0.2 {p}:8000 --address=127.0.0.3",
    "-n {w} pod/solo --address ::1 {p}:8000",
    "-n {w} pod/solo --address localhost {p}:8000",
    "-n {w} pod/solo --address localhost,127.0.0.4 {p}:8000",
    "-n {w} pod/solo --address 0.0.0.0 {p}:8000",
]

# A command line, what kubectl says, what krelay says, and krelay's exit code; kubectl's is 1.
USAGE = [
    ("", "TYPE/NAME and list of ports are required", "TYPE/NAME and ports are required"),
    ("pod/x", "TYPE/NAME and list of ports are required", "`pod/x` has no port"),
    ("pod/x 1 --bogus", "unknown flag: --bogus", "unknown flag: --bogus"),
    ("pod/x 1 --bogus=1", "unknown flag: --bogus", "unknown flag: --bogus"),
    ("-x pod/x 1", "unknown shorthand flag: 'x' in -x", "unknown shorthand flag: 'x' in -x"),
    ("pod/x 1 -n", "flag needs an argument: 'n' in -n", "flag needs an argument: -n"),
    (
        "pod/x 1 --namespace",
        "flag needs an argument: --namespace",
        "flag needs an argument: --namespace",
    ),
    ("pod/x 1 --=x", "bad flag syntax: --=x", "bad flag syntax: --=x"),
    ("pod/x 1 ---x", "bad flag syntax: ---x", "bad flag syntax: ---x"),
    ("pod/x 1 -h --bogus", "unknown flag: --bogus", "unknown flag: --bogus"),
    ("pod/x 1 -v=x", 'invalid argument "x"', "'x' is not a valid integer"),
    (
        "pod/x 1 --match-server-version=maybe",
        'invalid argument "maybe"',
        'invalid argument "maybe"',
    ),
    ("pod/x 1 --pod-running-timeout=soon", "invalid duration", "`soon` is not a duration"),
    ("pod/x 1 --pod-running-timeout=0", "must be higher than zero", "must be higher than zero"),
    ("pod/x 1 --request-timeout=soon", "Invalid timeout value", "`soon` is not a duration"),
    ("-n {w} pod/solo 1 --address=", "at least 1 address", "at least 1 address"),
    ("-n {w} pod/solo 1 --address=nowhere", "is not a valid IP", "is not an address"),
    ("-n {w} pod/solo 1 --address=10.0.0.300", "is not a valid IP", "is not an address"),
    ("-n {w} pod/solo 0", "remote port must be > 0", "port 0 is out of range"),
    ("-n {w} pod/solo 70000", "value out of range", "port 70000 is out of range"),
    ("-n {w} pod/solo :", "does not have a named port ''", "no remote port"),
    ("-n {w} pod/ 80", "must have a single resource and name", "no name"),
    ("-n {w} pod/a/b 80", "more than one slash", "cannot be the name of an object"),
    ("-n {w} '' 80", "resource name may not be empty", "no name"),
    ("-n {w} bogus/x 80", 'have a resource type "bogus"', "`bogus` is not a type of target"),
]
FAILS = [
    ("-n {w} pod/nope 80", 'pods "nope" not found', 'pods "nope" not found', 4),
    ("-n={w} svc/nope 80", 'services "nope" not found', 'services "nope" not found', 4),
    ("-n{w} deploy/nope 80", '"nope" not found', 'deployments.apps "nope" not found', 4),
    ("-n {w} svc/web 7777", "does not have a service port 7777", "has no port 7777", 4),
    ("-n {w} svc/web nope", "have a named port 'nope'", "has no port nope", 4),
    ("-n {w} pod/solo nope", "have a named port 'nope'", "no port named 'nope'", 4),
    ("--context nope pod/x 80", "context: nope", 'no context "nope"', 4),
    ("--cluster=nope pod/x 80", 'cluster "nope"', 'no cluster "nope"', 4),
    ("--user nope pod/x 80", 'auth info "nope"', 'no user "nope"', 4),
    ("--kubeconfig={tmp}/nope pod/x 80", "no such file", "no kubeconfig at", 4),
    ("--client-key={tmp}/nope pod/x 80", "no such file", "No such file", 4),
    ("--as-uid 5 pod/x 80", "without impersonating a user", "need `as`", 4),
    ("--as nobody -n {w} pod/solo 80", "forbidden", "nobody", 4),
    ("--kubeconfig {anonymous} --username u --password=p -n {w} pod/solo 80", "anon", "anon", 4),
    ("--kubeconfig {anonymous} --token=nope -n {w} pod/solo 80", "Unauthorized", "Unauthorized", 4),
    ("-s https://127.0.0.1:{p} pod/x 80", "refused", "refused", 4),
    ("-n {w} pod/solo --address 203.0.113.9 :80", "cannot assign", "Cannot assign", 1),
    ("-n {w} pod/solo --address 127.0.0.1 {taken}:80", "already in use", "in use", 1),
    ("-n {w} pod/done 80", "Current status=Succeeded", "Current status=Succeeded", 4),
    ("-n {w} deploy/empty :80 --pod-running-timeout=1s", "timed out", "timed out", 3),
    (
        "-n {w} pod/pending :80 --pod-running-timeout=1s",
        "Current status=Pending",
        "Current status=Pending",
        3,
    ),
]


_ENDS = {"name": "c", "image": kit.IMAGE, "imagePullPolicy": "IfNotPresent", "command": ["true"]}


def _pod(name: str, **more: Any) -> dict[str, Any]:
    spec = kit.pod_spec(**more)
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}


@dataclass(frozen=True)
class Outcome:
    """What a program that failed says, on both streams."""

    code: int
    out: str
    err: str


class Place:
    """Fills the blanks of a command line."""

    def __init__(self, world: str, folder: Path) -> None:
        self.blanks = {"w": world, "tmp": str(folder), "anonymous": str(folder / "anonymous")}
        self._sockets = contextlib.ExitStack()
        config = json.loads(kit.kubectl("config", "view", "--raw", "--minify", "-o", "json"))
        self.user: dict[str, str] = config["users"][0]["user"]
        config["users"][0]["user"] = {}
        (folder / "anonymous").write_text(json.dumps(config))
        self.blanks["taken"] = str(self._listening().getsockname()[1])

    def _listening(self) -> socket.socket:
        return self._sockets.enter_context(socket.create_server(("127.0.0.1", 0)))

    def args(self, line: str) -> list[str]:
        """The words of a line, with free ports in it."""
        with contextlib.ExitStack() as stack:
            found = [
                stack.enter_context(socket.create_server(("0.0.0.0", 0))).getsockname()[1]
                for _ in range(2)
            ]
        return shlex.split(line.format(**self.blanks, p=found[0], q=found[1]))

    def close(self) -> None:
        self._sockets.close()


@pytest.fixture(scope="module")
def place(world: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Place]:
    kit.apply(
        world,
        kit.workload("Deployment", "empty", 0),
        _pod("pending", nodeSelector={"no": "where"}),
        _pod("done", restartPolicy="Never", containers=[_ENDS]),
    )
    jsonpath = "--for=jsonpath={.status.phase}=Succeeded"
    kit.kubectl("-n", world, "wait", jsonpath, "pod/done", "--timeout=170s")
    made = Place(world, tmp_path_factory.mktemp("drop-in"))
    yield made
    made.close()
    gone = ("deploy/empty", "pod/pending", "pod/done")
    kit.kubectl("-n", world, "delete", "--wait=false", *gone)


def understood(args: list[str], monkeypatch: pytest.MonkeyPatch) -> Config:
    """What `kubectl relay` makes of a command line."""
    found: list[Config] = []

    def run(source: Any, **_: Any) -> int:
        found.append(source.load())
        return 0

    with monkeypatch.context() as patch:
        patch.setattr(up, "run", run)
        patch.setattr(command, "preload", lambda: None)
        command.relay.main(args, "kubectl relay", standalone_mode=False)
    return found[0]


Listening = set[tuple[str, int]]


@dataclass
class Forwards:
    """Where a line listens for each of its ports, and the pod behind the first one."""

    ports: list[Listening]
    remotes: list[int]
    pod: str


@dataclass
class Started:
    """A line of STARTS: its words, and what each program makes of it."""

    args: list[str]
    config: Config
    kubectl: Forwards
    krelay: Forwards | None = None


def forwarded(args: list[str], config: Config) -> Forwards:
    """Run a line in kubectl."""
    (target,) = config.targets
    addresses = target.listen.replace("localhost", "127.0.0.1,::1").split(",")
    count = len(target.ports) * len(addresses)
    with kit.Krelay(*args, program=("kubectl", "port-forward"), expect=None) as kubectl:
        kubectl.wait_lines(count)
        found = [match.groups() for line in kubectl.output if (match := LINE.match(line))]
        pod = pod_behind(found[0][0], int(found[0][1]))
    assert len(found) == count, kubectl.told()
    by_remote: dict[int, Listening] = {}
    for host, local, remote in found:
        by_remote.setdefault(int(remote), set()).add((host, int(local)))
    return Forwards([*by_remote.values()], [*by_remote], pod)


def pod_behind(host: str, port: int) -> str:
    """The workload of the pod that answers."""
    host = "127.0.0.1" if host == "0.0.0.0" else host
    return kit.http_get((host, port)).decode().strip().partition("-")[0]


def relayed(lines: list[Started], folder: Path) -> None:
    """Run what krelay understood of all lines, in one krelay."""
    targets: dict[str, str] = {}
    for number, line in enumerate(lines):
        (target,) = line.config.targets
        ports = " ".join(f"{port.local}:{port.remote}" for port in target.ports)
        for index, address in enumerate(target.listen.split(",")):
            words = f"-n {target.namespace} -l {address} {target} {ports}"
            targets[f"line-{number}-{index}"] = words
    file = folder / "krelay.yaml"
    file.write_text(yaml.safe_dump({"apiVersion": "krelay/v1", "targets": targets}))
    with kit.Krelay("up", "-f", str(file)):
        waited = kit.run("wait", "-f", str(file), "--timeout", "60s")
        assert waited.process.returncode == 0, waited.told()
        status = kit.run("status", "-f", str(file), "-o", "json")
        forwards = json.loads("\n".join(status.output))["forwards"]
        for number, line in enumerate(lines):
            mine = [f for f in forwards if f["target"].startswith(f"line-{number}-")]
            by_index: dict[int, Listening] = {}
            for forward in mine:
                parts = [local.rpartition(":") for local in forward["listen"]]
                listening = {(host.strip("[]"), int(port)) for host, _, port in parts}
                by_index.setdefault(forward["index"], set()).update(listening)
            remotes = [int(f["endpoint"].rpartition(":")[2]) for f in mine]
            host, local = sorted(by_index[0])[0]
            pod = pod_behind(host, local)
            line.krelay = Forwards([*by_index.values()], remotes, pod)


@pytest.fixture(scope="module")
def started(place: Place, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Started]:
    """All lines of STARTS, run in both."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        words = {line: place.args(line) for line in STARTS}
        configs = {line: understood(args, monkeypatch) for line, args in words.items()}
    with ThreadPoolExecutor(4) as pool:
        found = pool.map(lambda line: forwarded(words[line], configs[line]), STARTS)
        lines = {
            line: Started(words[line], configs[line], forwards)
            for line, forwards in zip(STARTS, found, strict=True)
        }
    relayed([*lines.values()], tmp_path_factory.mktemp("relayed"))
    return lines


@pytest.mark.parametrize("line", STARTS)
def test_a_line_that_kubectl_forwards_is_relayed_alike(
    line: str, started: dict[str, Started]
) -> None:
    kubectl, krelay = started[line].kubectl, started[line].krelay
    assert krelay is not None
    assert krelay.pod == kubectl.pod
    if "{p}" in line:
        assert krelay.ports == kubectl.ports
    hosts = [[{host for host, _ in port} for port in run.ports] for run in (krelay, kubectl)]
    assert hosts[0] == hosts[1]
    if "svc/" not in line and "service/" not in line:  # krelay dials a Service's own port
        assert set(krelay.remotes) == set(kubectl.remotes)


def outcome(program: str, args: list[str]) -> Outcome:
    """Run a line that fails."""
    done = subprocess.run(
        ["kubectl", program, *args],
        env={**os.environ, "PATH": PATH},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


@pytest.fixture(scope="module")
def failed(place: Place) -> dict[str, tuple[Outcome, Outcome | None]]:
    """All lines of USAGE and FAILS; kubectl's outcome, and krelay's of those that fail later."""
    both = [line for line, *_ in FAILS]
    lines = [line for line, *_ in USAGE] + both
    words = {line: place.args(line) for line in lines}
    with ThreadPoolExecutor(3) as pool:
        theirs = pool.map(lambda line: outcome("port-forward", words[line]), lines)
        ours = pool.map(lambda line: outcome("relay", words[line]), both)
        relay = dict(zip(both, ours, strict=True))
        return {line: (found, relay.get(line)) for line, found in zip(lines, theirs, strict=True)}


@pytest.mark.parametrize(("line", "theirs", "ours"), USAGE)
def test_a_wrong_line_is_refused_by_both(
    line: str,
    theirs: str,
    ours: str,
    place: Place,
    failed: dict[str, tuple[Outcome, Outcome | None]],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    kubectl, _ = failed[line]
    assert (kubectl.code, kubectl.out) == (1, "")
    assert theirs in kubectl.err
    monkeypatch.setattr(sys, "argv", ["kubectl-relay", *place.args(line)])
    assert command.main() == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert ours in err
    assert "Traceback" not in err


@pytest.mark.parametrize(("line", "theirs", "ours", "code"), FAILS)
def test_a_line_that_fails_in_kubectl_fails_in_krelay(
    line: str,
    theirs: str,
    ours: str,
    code: int,
    failed: dict[str, tuple[Outcome, Outcome | None]],
) -> None:
    kubectl, krelay = failed[line]
    assert krelay is not None
    assert (kubectl.code, kubectl.out) == (1, "")
    assert theirs in kubectl.err
    # `kubectl` passes on the code of a plugin.
    assert (krelay.code, krelay.out) == (code, ""), krelay.err
    assert ours in krelay.err
    assert "Traceback" not in krelay.err


def test_the_flags_of_the_connection_reach_the_cluster(place: Place) -> None:
    folder = Path(place.blanks["tmp"])
    for name in ("client-certificate", "client-key"):
        (folder / name).write_bytes(base64.b64decode(place.user[f"{name}-data"]))
    args = place.args(
        "--kubeconfig {anonymous} --client-certificate={tmp}/client-certificate "
        "--client-key {tmp}/client-key --as=jane --as-group=system:masters --as-uid=7 "
        "-n={w} pod/solo :8000"
    )
    with kit.Krelay(*args, program=("kubectl", "relay"), environ={"PATH": PATH}) as krelay:
        krelay.wait_lines(1)
        match = LINE.match(krelay.output[0])
        assert match
        assert pod_behind(match[1], int(match[2])) == "solo"


def test_kubectl_itself_takes_flags_before_the_plugins_name() -> None:
    before = subprocess.run(
        ["kubectl", "-n", "default", "relay", "pod/x", "1"],
        env={**os.environ, "PATH": PATH},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert before.returncode == 1
    assert "flags cannot be placed before plugin name: -n" in before.stderr
    after = outcome("relay", ["pod/x", "-h"])
    assert (after.code, after.err) == (0, "")
    assert after.out.startswith("Usage: kubectl relay")


def completed(*words: str) -> tuple[set[str], str]:
    """What kubectl's own completion makes of these words: the choices and the directive."""
    done = subprocess.run(
        ["kubectl", "__completeNoDesc", *words],
        env={**os.environ, "PATH": PATH},
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    *found, directive = done.stdout.splitlines()
    return set(found), directive


def test_kubectl_completes_what_the_cluster_has(world: str) -> None:
    for command_ in ("port-forward", "relay"):
        assert "pod/solo" in completed(command_, "-n", world, "pod/so")[0]
        assert "solo" in completed(command_, f"--namespace={world}", "sol")[0]
        assert world in completed(command_, "-n", world[:-2])[0]
    assert completed("relay", "-n", world, "svc/web", "") == (
        {"80", ":http", "90", ":command", "91@udp", ":echo@udp"},
        ":4",
    )
    assert completed("relay", "svc/web", "-f", "") == (set(), ":0")


@pytest.mark.parametrize("shell", shells.SHELLS)
async def test_a_shell_completes_what_the_cluster_has(
    shell: str, world: str, tmp_path: Path
) -> None:
    shells.needs(shell)
    line = f"kubectl relay -n {world}"
    cases = [
        (f"{line} pod/so", f"{line} pod/solo"),
        (f"{line} svc/web :ht", f"{line} svc/web :http"),
        (f"kubectl relay -n {world[:-1]}", line),
    ]
    await shells.complete(shell, tmp_path, cases, os.environ["KUBECONFIG"])
