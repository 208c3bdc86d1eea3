"""The cluster of the tests, and the targets in it that they share."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e import kit

STARTER = os.environ.get("KRELAY_TEST_CLUSTER", "../shared/cluster/cluster")
TIMEOUT = 300


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Everything here needs the cluster, and takes a cluster's time."""
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents:
            item.add_marker(pytest.mark.e2e)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(TIMEOUT))


def find_cluster() -> None:
    """$KUBECONFIG if it is set, else the cluster that the starter keeps on this machine."""
    if os.environ.get("KUBECONFIG"):
        return
    starter = (kit.ROOT / STARTER).resolve()
    assert starter.exists(), f"set KUBECONFIG, or KRELAY_TEST_CLUSTER to a starter: no {starter}"
    subprocess.run([starter, "up"], check=True, timeout=1800, env=kit.outer_environ())
    told = subprocess.run([starter, "env"], check=True, capture_output=True, text=True).stdout
    for line in told.splitlines():
        name, _, value = line.removeprefix("export ").partition("=")
        os.environ[name] = os.path.expandvars(value.strip("\"'"))


@pytest.fixture(scope="session", autouse=True)
def cluster() -> None:
    """A cluster, for every test here."""
    find_cluster()


@pytest.fixture(scope="session")
def world(cluster: None) -> Iterator[str]:
    """A namespace with every kind of target in it, all of them ready."""
    with kit.namespaces() as make:
        namespace = make()
        kit.apply(
            namespace,
            kit.program(),
            kit.workload("Deployment", "web", 2),
            kit.workload("StatefulSet", "db"),
            kit.workload("DaemonSet", "node"),
            kit.workload("ReplicaSet", "set"),
            kit.workload("Job", "task"),
            {
                "apiVersion": "v1",
                "kind": "Pod",
                "metadata": {"name": "solo", "labels": {"app": "solo"}},
                "spec": kit.pod_spec(),
            },
            kit.service("web", "web"),
            kit.service("headless", "web", clusterIP="None"),
            kit.service("bare", None),
            {
                "apiVersion": "v1",
                "kind": "Service",
                "metadata": {"name": "elsewhere"},
                "spec": {
                    "type": "ExternalName",
                    "externalName": f"web.{namespace}.svc.cluster.local",
                },
            },
        )
        kit.kubectl("-n", namespace, "rollout", "status", "deploy/web", "--timeout=170s")
        kit.kubectl(
            "-n", namespace, "wait", "--for=condition=Ready", "pods", "--all", "--timeout=170s"
        )
        address = kit.get(namespace, "pod", "solo")["status"]["podIP"]
        kit.apply(
            namespace,
            {
                "apiVersion": "discovery.k8s.io/v1",
                "kind": "EndpointSlice",
                "metadata": {"name": "bare-1", "labels": {"kubernetes.io/service-name": "bare"}},
                "addressType": "IPv4",
                "ports": [{"name": "http", "port": 8000}, {"name": "command", "port": 9000}],
                "endpoints": [{"addresses": [address], "conditions": {"ready": True}}],
            },
        )
        yield namespace


@pytest.fixture
def namespace(cluster: None) -> Iterator[Callable[..., str]]:
    """Makes namespaces with these labels; they are deleted afterwards."""
    with kit.namespaces() as make:
        yield make


@pytest.fixture(scope="session")
def relay(world: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[kit.Krelay]:
    """One krelay with forwards to all of the world, for tests that do not disturb others."""
    solo: Any = kit.get(world, "pod", "solo")["status"]["podIP"]
    config = f"""
apiVersion: krelay/v1
namespace: {world}
targets:
  svc: svc/web :80 :command :91/udp
  named: service/web :http
  headless: services/headless :http
  bare: svc/bare :80
  elsewhere: svc/elsewhere :80
  deploy: deployment/web :http
  sts: sts/db :8000
  ds: daemonsets.apps/node :http
  rs: rs/set :8000
  job: jobs.batch/task :8000
  pod: pod/solo :http :9000 :9001
  plain: solo :8000
  ip: ip/{solo} :8000 :81
  host: host/web.{world}.svc.cluster.local :80
  dns: -n kube-system svc/kube-dns :53/udp :53/tcp
"""
    with kit.up(config, tmp_path_factory.mktemp("relay"), 21) as krelay:
        yield krelay
