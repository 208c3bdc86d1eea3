"""What a target's pods mean, with kubectl's answer beside krelay's."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import kit
from tests.e2e.kit import Krelay

RELAY = (sys.executable, "-c", "from krelay.cli.kubectl import main; raise SystemExit(main())")
BOUND = re.compile(r"Forwarding from 127\.0\.0\.1:(\d+)")


def pod(name: str, **spec: Any) -> dict[str, Any]:
    metadata = {"name": name, "labels": {"app": name}}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}


def ends(command: str, **spec: Any) -> dict[str, Any]:
    container = {"name": "c", "image": kit.IMAGE, "imagePullPolicy": "IfNotPresent"}
    return {"restartPolicy": "Never", "containers": [{**container, "command": [command]}], **spec}


def unready(**more: Any) -> dict[str, Any]:
    spec = kit.pod_spec(**more)
    spec["containers"][0]["readinessProbe"] = {"exec": {"command": ["false"]}}
    return spec


def workload(name: str, spec: dict[str, Any]) -> dict[str, Any]:
    made = kit.workload("Deployment", name)
    made["spec"]["template"]["spec"] = spec
    return made


@pytest.fixture(scope="module")
def place(cluster: None) -> Iterator[str]:
    with kit.namespaces() as make:
        name = make()
        job = kit.workload("Job", "finished")
        job["spec"]["template"]["spec"] = ends("true")
        # As the first process of its container, a shell ignores SIGTERM.
        stuck = kit.pod_spec(terminationGracePeriodSeconds=3600)
        stuck["containers"][0]["command"] = ["sh", "-c", "python3 /program/program.py; true"]
        kit.apply(
            name,
            kit.program(),
            pod("done", **ends("true")),
            pod("bad", **ends("false")),
            job,
            pod("solo", **unready()),
            pod("stuck", **stuck),
            pod("waiting", **ends("true", nodeSelector={"no": "such"})),
            workload("unready", unready()),
            kit.workload("Deployment", "web", 2),
            kit.service("done", "done"),
            kit.service("unready", "unready"),
            kit.service("web", "web"),
            kit.service("local", "web", internalTrafficPolicy="Local"),
            kit.service("sticky", "web", sessionAffinity="ClientIP"),
        )
        kit.kubectl("-n", name, "rollout", "status", "deploy/web", "--timeout=170s")
        wait = ("-n", name, "wait", "--timeout=170s")
        kit.kubectl(*wait, "--for=condition=Complete", "job/finished")
        kit.kubectl(*wait, "--for=condition=Ready", "pod/stuck")
        for app in ("solo", "unready"):
            running = "--for=jsonpath={.status.containerStatuses[0].started}=true"
            kit.kubectl(*wait, running, "pod", "-l", f"app={app}")
        for ended, phase in (("done", "Succeeded"), ("bad", "Failed")):
            kit.kubectl(*wait, f"--for=jsonpath={{.status.phase}}={phase}", f"pod/{ended}")
        try:
            yield name
        finally:
            kit.kubectl("-n", name, "delete", "pod", "stuck", "--force", check=False)


def relay(*args: str) -> Krelay:
    return Krelay(*args, program=RELAY)


class Kubectl:
    """`kubectl port-forward`, and the local port that it announces."""

    def __init__(self, *args: str) -> None:
        self._process = subprocess.Popen(
            ["kubectl", "port-forward", *args], stdout=subprocess.PIPE, text=True
        )
        assert self._process.stdout is not None
        match = BOUND.match(self._process.stdout.readline())
        assert match, "kubectl forwards nothing"
        self.address = ("127.0.0.1", int(match[1]))

    def __enter__(self) -> Kubectl:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        with self._process:
            pass


# -- as kubectl --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "target",
    [
        "pod/done",
        "pod/bad",
        "job/finished",
        "svc/done",
        "pod/absent",
        "deploy/absent",
        "svc/absent",
    ],
)
def test_a_target_without_a_pod_fails_in_kubectl_s_words(place: str, target: str) -> None:
    words = ["-n", place, target, ":8000"]
    if target == "svc/done":
        words[-1] = ":90"
    done = subprocess.run(
        ["kubectl", "port-forward", *words], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 1
    expected = done.stderr.strip().rpartition("error: ")[2].rpartition("(NotFound): ")[2]
    krelay = relay(*words)
    assert krelay.finish() == 4, krelay.told()
    assert krelay.log[-1].startswith(f"error: {expected}"), krelay.told()
    assert not krelay.output


def test_a_pod_that_does_not_run_is_waited_for(place: str) -> None:
    krelay = relay("-n", place, "pod/waiting", ":80", "--pod-running-timeout=1s")
    assert krelay.finish() == 3, krelay.told()
    assert "pod is not running. Current status=Pending" in krelay.told()
    assert "0/1 nodes are available" in krelay.told()
    assert not krelay.output


@pytest.mark.parametrize(
    ("target", "port"),
    [
        ("pod/solo", "8000"),
        ("pod/solo", "http"),
        ("deploy/unready", "8000"),
        ("svc/unready", "80"),
        ("svc/unready", "http"),
    ],
)
def test_a_pod_is_reached_while_it_runs_ready_or_not(place: str, target: str, port: str) -> None:
    words = ("-n", place, target, f":{port}")
    with Kubectl(*words) as beside:
        expected = kit.http_get(beside.address)
    with relay(*words) as krelay:
        krelay.wait_lines(1)
        match = BOUND.match(krelay.output[0])
        assert match, krelay.told()
        assert kit.http_get(("127.0.0.1", int(match[1]))) == expected


def test_a_pod_that_is_being_deleted_is_reached_while_it_runs(place: str) -> None:
    kit.kubectl("-n", place, "delete", "pod", "stuck", "--wait=false")
    words = ("-n", place, "pod/stuck", ":8000")
    with Kubectl(*words) as beside:
        expected = kit.http_get(beside.address)
    with relay(*words) as krelay:
        krelay.wait_lines(1)
        match = BOUND.match(krelay.output[0])
        assert match, krelay.told()
        assert kit.http_get(("127.0.0.1", int(match[1]))) == expected


def test_a_relay_ends_with_its_pod(place: str) -> None:
    kit.apply(place, pod("brief", **kit.pod_spec(terminationGracePeriodSeconds=1)))
    kit.kubectl("-n", place, "wait", "--for=condition=Ready", "pod/brief", "--timeout=170s")
    krelay = relay("-n", place, "pod/brief", ":8000")
    krelay.wait_lines(1)
    kit.kubectl("-n", place, "delete", "pod", "brief")
    assert krelay.finish() == 1, krelay.told()
    assert krelay.log[-1] == "error: lost connection to pod"


# -- in a file ---------------------------------------------------------------------------------


def config(namespace: str, targets: str, more: str = "") -> str:
    lines = "".join(f"  {line.strip()}\n" for line in targets.strip().splitlines())
    return f"apiVersion: krelay/v1\nnamespace: {namespace}\n{more}\ntargets:\n{lines}"


def test_a_file_waits_for_a_ready_pod_unless_it_says_otherwise(place: str, tmp_path: Path) -> None:
    text = config(
        place,
        """
        pod: pod/solo 0:8000
        waits: svc/unready 0:80
        at-once: {target: svc/unready, port: "0:80", ready: false}
        deploy: {target: deploy/unready, port: "0:8000", ready: false}
        over: job/finished 0:8000
        """,
        "tunnel: {openTimeout: 1s}",
    )
    with kit.up(text, tmp_path, 5) as krelay:
        assert kit.http_get(krelay.address("pod")) == b"solo\n"
        for name in ("at-once", "deploy"):
            assert kit.http_get(krelay.address(name)).startswith(b"unready-")
        assert not any("waited" in line for line in krelay.log), krelay.told()
        assert kit.http_get(krelay.address("waits")).startswith(b"unready-")
        krelay.wait_log('waits: waited 1 s: service "unready" has no ready endpoint')
        assert kit.http_get(krelay.address("waits")).startswith(b"unready-")
        assert sum("waits: waited" in line for line in krelay.log) == 1, krelay.told()
        krelay.wait_log("is not running: Succeeded")


def answering(address: kit.Address, requests: int = 12) -> set[bytes]:
    return {kit.http_get(address) for _ in range(requests)}


def test_a_service_balances_or_keeps_its_clients(place: str, tmp_path: Path) -> None:
    text = config(
        place,
        """
        web: svc/web :80
        mine: {target: svc/web, port: ":80", affinity: client}
        sticky: svc/sticky :80
        local: svc/local :80
        target-port: svc/web :9000
        """,
        "agent: {replicas: 2}",
    )
    with kit.up(text, tmp_path, 5) as krelay:
        assert len(answering(krelay.address("mine"))) == 1
        assert len(answering(krelay.address("sticky"))) == 1, "by either agent"
        assert len(answering(krelay.address("local"))) == 2
        assert len(answering(krelay.address("web"), 40)) == 2
        with kit.command(krelay.address("target-port"), "tick") as sock:
            assert sock.makefile().readline() == "0\n"
        krelay.wait_log("whose port 90 has targetPort 9000")
        krelay.wait_log("as internalTrafficPolicy is Local")


def test_a_cluster_ip_that_refuses_gives_way_to_endpoints(place: str, tmp_path: Path) -> None:
    """kube-proxy knows no address of the Service, as on a node without it."""
    made = kit.service("elsewhere", "web")
    made["metadata"]["labels"] = {"service.kubernetes.io/service-proxy-name": "another"}
    kit.apply(place, made)
    text = config(place, "web: svc/elsewhere :80", "tunnel: {connectTimeout: 2s}")
    with kit.up(text, tmp_path, 1) as krelay:
        assert kit.http_get(krelay.address("web")).startswith(b"web-")
        krelay.wait_log("new connections go there")
        assert len(answering(krelay.address("web"))) == 2
