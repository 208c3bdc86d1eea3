"""The applications in the cluster, krelay beside them, and their clients on this machine."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.apps import image
from tests.e2e import kit
from tests.e2e.conftest import find_cluster

HERE = Path(__file__).parent
TIMEOUT = 300

SSH_KEY = Path("/tmp/krelay-apps-key")
"""The client's key, in the image's root."""

INSIDE = ("unshare", "--mount", "sh", "-c", 'mount -t proc proc "$0/proc"; exec chroot "$0" "$@"')
"""Runs a program in the root that follows, on this machine's network."""

TICKING = "import time\nwhile True:\n    time.sleep(0.1)\n"


@dataclass(frozen=True)
class App:
    """What a pod runs (a shell script), and its TCP and UDP ports."""

    script: str
    tcp: tuple[int, ...] = ()
    udp: tuple[int, ...] = ()
    probed: bool = True
    """Whether the kubelet may connect to its first port to learn whether it is ready."""


APPS = {
    "postgres": App(
        "su postgres -c '/usr/lib/postgresql/15/bin/initdb -A trust -D /tmp/pg';"
        "for kind in all replication; do echo host $kind all all trust; done"
        " >>/tmp/pg/pg_hba.conf;"
        "exec su postgres -c '/usr/lib/postgresql/15/bin/postgres -D /tmp/pg -h 0.0.0.0'",
        (5432,),
    ),
    "mariadb": App(
        "mariadb-install-db --user=mysql --datadir=/tmp/my --skip-test-db;"
        "echo \"CREATE USER app@'%';\" >/tmp/init.sql;"
        "echo \"GRANT ALL ON *.* TO app@'%';\" >>/tmp/init.sql;"
        "exec mariadbd --user=mysql --datadir=/tmp/my --bind-address=0.0.0.0"
        " --socket=/tmp/my.sock --pid-file=/tmp/my.pid --init-file=/tmp/init.sql"
        " --max-allowed-packet=64M --max-connect-errors=3",
        (3306,),
    ),
    "redis": App("exec redis-server --bind 0.0.0.0 --protected-mode no --save ''", (6379,)),
    "mosquitto": App(
        "printf 'listener 1883 0.0.0.0\\nallow_anonymous true\\n' >/tmp/m.conf;"
        "exec mosquitto -c /tmp/m.conf",
        (1883,),
    ),
    "nats": App("exec nats-server -a 0.0.0.0", (4222,)),
    "rabbitmq": App(
        "echo 'loopback_users = none' >/etc/rabbitmq/rabbitmq.conf;"
        "export RABBITMQ_NODENAME=rabbit@localhost HOME=/tmp; exec rabbitmq-server",
        (5672,),
    ),
    "etcd": App(
        "exec etcd --data-dir /tmp/etcd --listen-client-urls http://0.0.0.0:2379"
        " --advertise-client-urls http://127.0.0.1:2379",
        (2379,),
    ),
    "servers": App(
        "exec env PYTHONPATH=/opt/python python3 /apps/servers.py",
        (50051, 8080, 8081),
        (4433,),
    ),
    "ssh": App(
        "mkdir -p /run/sshd /root/.ssh; chmod 700 /root/.ssh; ssh-keygen -A;"
        "cp /apps/key.pub /root/.ssh/authorized_keys; chmod 600 /root/.ssh/authorized_keys;"
        "git config --global init.defaultBranch main; git init --bare /root/repo.git;"
        "exec /usr/sbin/sshd -D -e",
        (22,),
    ),
    "debugpy": App(
        "exec env PYTHONPATH=/opt/python python3 -m debugpy --listen 0.0.0.0:5678 /apps/ticking.py",
        (5678,),
        probed=False,
    ),
    "delve": App(
        "exec dlv exec --headless --listen=0.0.0.0:2345 --api-version=2 /usr/local/bin/debugged",
        (2345,),
        probed=False,
    ),
}


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.e2e)
            item.add_marker(pytest.mark.timeout(TIMEOUT, func_only=True))


@pytest.fixture(scope="session")
def root() -> Path:
    """The root file system that the image has been made from, with the image on the node."""
    find_cluster()
    found = image.root()
    starter = (kit.ROOT / "../shared/cluster/cluster").resolve()
    subprocess.run(
        [starter, "image", image.NAME, str(found)],
        check=True,
        capture_output=True,
        timeout=900,
        env=kit.outer_environ(),
    )
    return found


@pytest.fixture(scope="session")
def run(root: Path) -> Callable[..., str]:
    """Runs a client in the image's root and returns its output."""

    def run(*words: str, stdin: str | None = None, timeout: float = 90, code: int = 0) -> str:
        done = subprocess.run(
            [*INSIDE, str(root), "env", "HOME=/root", "PYTHONPATH=/opt/python", *words],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
            check=False,
        )
        assert done.returncode == code, f"{words}: {done.returncode}\n{done.stdout}\n{done.stderr}"
        return done.stdout + done.stderr

    return run


@pytest.fixture(scope="session")
def apps(root: Path, run: Callable[..., str]) -> Iterator[str]:
    """A namespace with every application, ready."""
    key = root / SSH_KEY.relative_to("/")
    if not key.exists():
        run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(SSH_KEY))
    data = {
        "servers.py": (HERE / "servers.py").read_text(),
        "ticking.py": TICKING,
        "key.pub": key.with_suffix(".pub").read_text(),
    }
    with kit.namespaces() as make:
        namespace = make()
        objects: list[dict[str, Any]] = [
            {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "apps"}, "data": data}
        ]
        for name, app in APPS.items():
            objects += [_pod(name, app), _service(name, app)]
        kit.apply(namespace, *objects)
        waiting = set(APPS)

        def ready() -> bool:
            for pod in kit.get(namespace, "pods")["items"]:
                if all(
                    status["ready"]
                    for status in pod["status"].get("containerStatuses", [{"ready": False}])
                ):
                    waiting.discard(pod["metadata"]["name"])
            return not waiting

        kit.eventually(ready, "every application is ready", 240.0)
        yield namespace


def _pod(name: str, app: App) -> dict[str, Any]:
    container: dict[str, Any] = {
        "name": name,
        "image": image.NAME,
        "imagePullPolicy": "IfNotPresent",
        "command": ["sh", "-c", app.script],
        "volumeMounts": [{"name": "apps", "mountPath": "/apps"}],
        "securityContext": {"capabilities": {"add": ["SYS_PTRACE"]}},
    }
    if app.probed:
        container["readinessProbe"] = {"tcpSocket": {"port": app.tcp[0]}, "periodSeconds": 1}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {
            "terminationGracePeriodSeconds": 1,
            "containers": [container],
            "volumes": [{"name": "apps", "configMap": {"name": "apps"}}],
        },
    }


def _service(name: str, app: App) -> dict[str, Any]:
    ports = [
        {"name": f"{protocol.lower()}-{port}", "port": port, "protocol": protocol}
        for protocol, numbers in (("TCP", app.tcp), ("UDP", app.udp))
        for port in numbers
    ]
    return {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"selector": {"app": name}, "ports": ports},
    }


@dataclass(frozen=True)
class Local:
    """krelay, with a forward for each port of each application."""

    krelay: kit.Krelay
    via: str

    def port(self, name: str, index: int = 0, protocol: str = "tcp") -> str:
        """The local port of an application."""
        return str(self.krelay.address(name, protocol, index)[1])


@pytest.fixture(scope="session", params=["agent", "direct"])
def local(
    request: pytest.FixtureRequest, apps: str, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Local]:
    """krelay with all applications, by the agent and straight into their pods."""
    via: str = request.param
    targets: dict[str, Any] = {
        name: {"target": f"svc/{name}", "ports": [f":{port}" for port in app.tcp], "via": via}
        for name, app in APPS.items()
    }
    if via == "agent":
        targets["servers"]["ports"].append(":4433/udp")
        targets["dns"] = {
            "target": "svc/kube-dns",
            "namespace": "kube-system",
            "ports": [":53/udp", ":53/tcp"],
        }
        targets["api"] = {"target": "svc/kubernetes", "namespace": "default", "port": ":443"}
    config = {"apiVersion": "krelay/v1", "namespace": apps, "targets": targets}
    count = sum(len(target.get("ports", [1])) for target in targets.values())
    with kit.up(json.dumps(config), tmp_path_factory.mktemp(via), count) as krelay:
        yield Local(krelay, via)
