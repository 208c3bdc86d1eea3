"""What `krelay up` says of each forward is what the cluster does with its connections."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from krelay.status.client import ask
from tests.e2e import kit

SCHEMA = json.loads((kit.ROOT / "schema" / "status.schema.json").read_text())
# An address of the cluster's that no pod has, and that no route leads to: packets vanish.
SILENT = "10.98.0.1"


class Asked:
    """A krelay, and its own word on its forwards."""

    def __init__(self, file: Path, krelay: kit.Krelay) -> None:
        self.file = file
        self.krelay = krelay

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = ask(str(self.file), "GET", "/v1/status", timeout=10.0)
        jsonschema.validate(found, SCHEMA)
        return found

    def forward(self, name: str) -> dict[str, Any]:
        return next(f for f in self.status()["forwards"] if f["target"] == name)

    def becomes(self, name: str, state: str, reason: str = "") -> dict[str, Any]:
        """The forward, once it is in this state for this reason."""

        def there() -> bool:
            found = self.forward(name)
            return found["state"] == state and reason in found["reason"]

        try:
            kit.eventually(there, f"{name} {state} {reason}")
        except AssertionError as exc:
            raise AssertionError(f"{exc}: {self.forward(name)}\n{self.krelay.told()}") from exc
        return self.forward(name)


@pytest.fixture
def asked(namespace: Callable[..., str], tmp_path: Path) -> Iterator[tuple[Asked, str]]:
    """One krelay before targets of every fate, and their namespace."""
    place = namespace()
    kit.apply(
        place,
        kit.program(),
        kit.workload("Deployment", "web", 1),
        kit.service("web", "web"),
        kit.service("empty", "nobody"),
    )
    kit.kubectl("-n", place, "rollout", "status", "deploy/web", "--timeout=170s")
    pods = kit.get(place, "pods", "-l", "app=web")["items"]
    file = tmp_path / "krelay.yaml"
    file.write_text(
        f"""
apiVersion: krelay/v1
namespace: {place}
tunnel: {{connectTimeout: 2s}}
targets:
  works: svc/web :80
  deploy: deploy/web :8000
  empty: svc/empty :80/tcp
  missing: svc/missing 0:80/tcp
  refused: ip/{pods[0]["status"]["podIP"]} :7777
  silent: ip/{SILENT} :80
  nowhere: host/nowhere.invalid :80
  http: {{target: svc/web, port: ":80", check: http GET /ready -> 200}}
  wrong: {{target: svc/web, port: ":80", check: http GET /ready -> 204}}
  dns:
    target: svc/kube-dns
    namespace: kube-system
    port: ":53/udp"
    check: {{dns: kubernetes.default.svc.cluster.local}}
  echo: svc/web :91/udp
"""
    )
    with kit.Krelay("up", "-f", str(file)) as krelay:
        krelay.wait_lines(11)
        yield Asked(file, krelay), place


def test_states_are_what_connections_meet(asked: tuple[Asked, str]) -> None:
    run, place = asked
    for name, reason in (
        ("works", "its endpoint is ready; its port accepted at "),
        ("deploy", "the pod is ready; its port accepted at "),
        ("http", "http GET /ready -> 200 passed at "),
        ("dns", "dns kubernetes.default.svc.cluster.local passed at "),
        ("echo", "its endpoint is ready; not probed: a UDP port answers nothing but its protocol"),
    ):
        found = run.becomes(name, "ready", reason)
        assert found["traffic"]["opened"] == 0
    run.becomes("empty", "pending", "no ready endpoint")
    run.becomes("missing", "failed", "not found")
    run.becomes("refused", "failed", "refused: ")
    run.becomes("silent", "failed", "timed out: no answer at all")
    run.becomes("nowhere", "failed", "no such host: ")
    run.becomes("wrong", "failed", "GET /ready -> 200, expected 204")
    whole = run.status()
    assert not whole["ready"]
    (agent,) = whole["agents"]
    (pod,) = kit.get(place, "pods", "-l", "app=krelay-server")["items"]
    assert agent["where"] == [f"{place}/{pod['metadata']['name']}"]
    assert all(tunnel["up"] for tunnel in agent["tunnels"])

    # What carries is counted, and what is refused too.
    assert kit.http_get(run.krelay.address("works")).startswith(b"web-")
    with pytest.raises(ConnectionResetError), kit.dial(run.krelay.address("refused")) as sock:
        kit.read_all(sock)
    kit.ask_udp(run.krelay.address("echo", "udp"), b"hello")
    traffic = {f["target"]: f["traffic"] for f in run.status()["forwards"]}
    assert traffic["works"]["results"] == {"ok": 1}
    assert traffic["works"]["toLocalBytes"] > 60
    assert traffic["works"]["dialCount"] == 1
    assert traffic["refused"]["results"] == {"refused": 1}
    # Once for each time that it was asked: where an answer is late, it is asked again.
    assert traffic["echo"]["toLocalBytes"] in range(5, 26, 5)


def test_a_deployment_that_goes_and_comes_back(asked: tuple[Asked, str]) -> None:
    run, place = asked
    followed = ("works", "deploy", "http")
    for name in followed:
        run.becomes(name, "ready")
    kit.kubectl("-n", place, "scale", "deploy/web", "--replicas=0")
    for name in followed:
        run.becomes(name, "degraded", "no pod" if name == "deploy" else "no ready endpoint")
    kit.kubectl("-n", place, "scale", "deploy/web", "--replicas=1")
    for name in followed:
        since = run.becomes(name, "ready")["since"]
        assert since > run.status()["started"]
    # A second time it is an agent that goes.
    kit.kubectl("-n", place, "delete", "pod", "-l", "app=krelay-server", "--wait=false")
    run.krelay.wait_log("works: degraded: no tunnel to the agent")
    for name in followed:
        run.becomes(name, "ready")
