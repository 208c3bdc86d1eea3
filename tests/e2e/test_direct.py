"""`via: direct` and `via: auto`: into pods by port-forward, with the rights of kubectl's own."""

from __future__ import annotations

import json
import os
import socket
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.e2e import kit
from tests.e2e.kit import Krelay
from tests.e2e.test_admission import enforce

PATH = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
ECHO = """
import asyncio, os
async def echo(reader, writer):
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()
async def main():
    server = await asyncio.start_server(echo, "127.0.0.1", 7000, backlog=1024)
    await server.serve_forever()
asyncio.run(main())
"""


@pytest.fixture(scope="module")
def namespace() -> Iterator[str]:
    """Two pods behind a Service, and one whose program listens on 127.0.0.1 only."""
    with kit.namespaces() as make:
        name: str = make()
        lonely = kit.pod_spec(
            containers=[
                {
                    "name": "echo",
                    "image": kit.IMAGE,
                    "imagePullPolicy": "IfNotPresent",
                    "command": ["python3", "-c", ECHO],
                }
            ],
            terminationGracePeriodSeconds=1,
        )
        kit.apply(
            name,
            kit.program(),
            kit.workload("Deployment", "web", 2),
            kit.service("web", "web"),
            {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "lonely"}, "spec": lonely},
        )
        kit.kubectl("-n", name, "rollout", "status", "deploy/web", "--timeout=170s")
        kit.kubectl("-n", name, "wait", "pod/lonely", "--for=condition=Ready", "--timeout=170s")
        yield name


def config(namespace: str, via: str, **targets: str) -> str:
    return yaml.safe_dump(
        {"apiVersion": "krelay/v1", "namespace": namespace, "via": via, "targets": targets}
    )


def account(namespace: str, folder: Path, *rights: str) -> str:
    """A kubeconfig whose user may only do this in the namespace, each as `VERBS RESOURCES`."""
    kit.kubectl("-n", namespace, "create", "serviceaccount", "only")
    for number, right in enumerate(rights):
        verbs, resources = right.split()
        named = ["-n", namespace, "create"]
        role, subject = f"only-{number}", f"--serviceaccount={namespace}:only"
        kit.kubectl(*named, "role", role, f"--verb={verbs}", f"--resource={resources}")
        kit.kubectl(*named, "rolebinding", role, f"--role={role}", subject)
    kit.wait_granted(kit.service_account(namespace, "only"))
    token = kit.kubectl("-n", namespace, "create", "token", "only").strip()
    found = json.loads(kit.kubectl("config", "view", "--raw", "--minify", "-o", "json"))
    found["users"][0]["user"] = {"token": token}
    found["contexts"][0]["context"]["namespace"] = namespace
    path = folder / "kubeconfig"
    path.write_text(json.dumps(found))
    return str(path)


def status(path: Path) -> dict[str, Any]:
    """The state of a running krelay."""
    told = kit.run("status", "-f", str(path), "-o", "json")
    found: dict[str, Any] = json.loads("\n".join(told.output))
    return found


def forwards(path: Path) -> dict[str, Any]:
    """The forwards of a running krelay, by name."""
    return {forward["name"]: forward for forward in status(path)["forwards"]}


def echoed(address: kit.Address, data: bytes) -> bytes:
    """What comes back of `data`, sent and read at the same time."""
    with kit.dial(address) as sock:
        sender = threading.Thread(target=sock.sendall, args=(data,), daemon=True)
        sender.start()
        received = bytearray()
        while len(received) < len(data) and (more := sock.recv(1 << 20)):
            received += more
        sender.join()
        return bytes(received)


def test_a_direct_file_makes_nothing_and_reaches_every_pod(namespace: str, tmp_path: Path) -> None:
    text = config(namespace, "direct", web="svc/web :80", lonely="pod/lonely :7000")
    with kit.up(text, tmp_path, 2) as krelay:
        krelay.wait_log("web: ready")
        krelay.wait_log("lonely: ready")
        pods = {kit.http_get(krelay.address("web")) for _ in range(6)}
        assert len(pods) == 2
        data = os.urandom(16 << 20)
        assert echoed(krelay.address("lonely"), data) == data
        with ThreadPoolExecutor(100) as pool:
            each = [b"%d" % number for number in range(100)]
            assert list(pool.map(lambda d: echoed(krelay.address("lonely"), d), each)) == each
        (way,) = status(next(tmp_path.glob("krelay-*.yaml")))["direct"]
        assert f"{namespace}/lonely" in {found["pod"] for found in way["connections"]}
        kit.assert_no_agents(namespace)


def test_a_half_closed_connection_gets_its_answer_and_its_end(
    namespace: str, tmp_path: Path
) -> None:
    text = config(namespace, "direct", lonely="pod/lonely :7000")
    with kit.up(text, tmp_path, 1) as krelay, kit.dial(krelay.address("lonely")) as sock:
        sock.sendall(b"x" * 100_000)
        sock.shutdown(socket.SHUT_WR)
        assert kit.read_all(sock) == b"x" * 100_000


def test_a_port_on_which_nothing_listens_is_a_reset_and_told(
    namespace: str, tmp_path: Path
) -> None:
    text = config(namespace, "direct", none="pod/lonely :7999", fine="pod/lonely :7000")
    with kit.up(text, tmp_path, 2) as krelay:
        krelay.wait_log("none: failed: refused: nothing listens on this port inside the pod")
        with pytest.raises(ConnectionResetError), kit.dial(krelay.address("none")) as sock:
            kit.read_all(sock)
        assert echoed(krelay.address("fine"), b"x") == b"x"


def test_requests_follow_a_rolling_update(namespace: str, tmp_path: Path) -> None:
    with kit.up(config(namespace, "direct", web="svc/web :80"), tmp_path, 1) as krelay:
        krelay.wait_log("web: ready")
        before = {kit.http_get(krelay.address("web")) for _ in range(6)}
        kit.kubectl("-n", namespace, "rollout", "restart", "deploy/web")
        seen: set[bytes] = set()

        def both_answered() -> bool:
            seen.add(kit.http_get(krelay.address("web")))
            return len(seen - before) == 2

        kit.eventually(both_answered, "answers of both new pods")
        kit.assert_no_agents(namespace)


def test_a_program_on_loopback_is_reached_although_the_agent_is_refused(
    namespace: str, tmp_path: Path
) -> None:
    text = config(namespace, "auto", web="svc/web :80", lonely="pod/lonely :7000")
    with kit.up(text, tmp_path, 2) as krelay:
        krelay.wait_log("lonely: its pod refuses the agent, but not a port-forward")
        krelay.wait_log("lonely: ready")
        assert echoed(krelay.address("lonely"), b"x") == b"x"
        found = forwards(next(tmp_path.glob("krelay-*.yaml")))
        assert {name: each["way"] for name, each in found.items()} == {
            "web": "agent",
            "lonely": "direct",
        }
        assert "refuses the agent" in found["lonely"]["wayReason"]


def test_an_edit_moves_new_connections_to_the_other_way(namespace: str, tmp_path: Path) -> None:
    with kit.up(config(namespace, "direct", web="svc/web :80"), tmp_path, 1) as krelay:
        address = krelay.address("web")
        kit.http_get(address)
        path = next(tmp_path.glob("krelay-*.yaml"))
        path.write_text(config(namespace, "agent", web="svc/web :80"))
        krelay.wait_log("re-routed svc/web:80 (via direct) -> svc/web:80 (via agent)")
        kit.http_get(address)
        assert kit.agents(namespace)
        path.write_text(config(namespace, "direct", web="svc/web :80"))
        krelay.wait_log("re-routed svc/web:80 (via agent) -> svc/web:80 (via direct)")
        kit.http_get(address)
        kit.assert_no_agents(namespace)


def test_a_quota_that_refuses_the_agent_leaves_the_direct_way(tmp_path: Path) -> None:
    with kit.namespaces() as make:
        name = make()
        kit.apply(name, kit.program(), kit.workload("Deployment", "web"), kit.service("web", "web"))
        kit.kubectl("-n", name, "rollout", "status", "deploy/web", "--timeout=170s")
        kit.kubectl("-n", name, "create", "quota", "none", "--hard=count/jobs.batch=0")
        enforce(name)
        text = config(name, "auto", web="svc/web :80", far="host/db.example.test :5432")
        with kit.up(text, tmp_path, 2) as krelay:
            krelay.wait_log("no agent: ")
            krelay.wait_log("web: ready")
            assert kit.http_get(krelay.address("web"))
            found = forwards(next(tmp_path.glob("krelay-*.yaml")))
            assert found["web"]["way"] == "direct"
            assert "exceeded quota" in found["web"]["wayReason"]
            assert "no agent can be had" in found["far"]["reason"]
            kit.kubectl("-n", name, "delete", "quota", "none")
            next(tmp_path.glob("krelay-*.yaml")).write_text(
                config(name, "auto", web="svc/web :80", far="host/node.example.test :5432")
            )
            krelay.wait_log("there is an agent now")
            assert kit.http_get(krelay.address("web"))
        kit.kubectl("-n", name, "create", "quota", "none", "--hard=count/jobs.batch=0")
        enforce(name)
        path = tmp_path / "agent.yaml"
        path.write_text(config(name, "agent", web="svc/web :80"))
        with Krelay("up", "-f", str(path), expect=4) as refused:
            refused.finish()
            assert "exceeded quota" in refused.told()


def test_an_account_that_may_only_port_forward_reaches_what_kubectl_reaches(
    namespace: str, tmp_path: Path
) -> None:
    path = account(
        namespace,
        tmp_path,
        "get pods,services,deployments.apps",
        "list pods",
        "create pods/portforward",
    )
    environ = {"KUBECONFIG": path, "PATH": PATH}
    for target in (("pod/lonely", ":7000"), ("svc/web", ":80"), ("deploy/web", ":8000")):
        for command in ("port-forward", "relay"):
            program = ("kubectl", command)
            with Krelay(*target, environ=environ, expect=None, program=program) as tool:
                tool.wait_lines(1)
                address = ("127.0.0.1", int(tool.output[0].split()[2].rpartition(":")[2]))
                if target[0] == "pod/lonely":
                    assert echoed(address, b"x") == b"x"
                else:
                    assert kit.http_get(address)
    kit.assert_no_agents(namespace)


def test_a_direct_file_without_the_right_to_port_forward_ends_with_the_hint(
    tmp_path: Path,
) -> None:
    with kit.namespaces() as make:
        name = make()
        kit.apply(name, kit.program(), kit.workload("Deployment", "web"), kit.service("web", "web"))
        kit.kubectl("-n", name, "rollout", "status", "deploy/web", "--timeout=170s")
        kubeconfig = account(name, tmp_path, "get,list,watch services,pods")
        environ = {"KUBECONFIG": kubeconfig, "PATH": PATH}
        path = tmp_path / "direct.yaml"
        path.write_text(config(name, "direct", web="svc/web :80"))
        with Krelay("up", "-f", str(path), environ=environ, expect=4) as up:
            up.finish()
        relay = Krelay(
            *("--via=direct", "-n", name, "svc/web", ":80"),
            environ=environ,
            expect=4,
            program=("kubectl", "relay"),
        )
        with relay:
            relay.finish()
        for refused in (up, relay):
            assert "pods/portforward" in refused.told()
            assert "krelay rbac" in refused.told()
