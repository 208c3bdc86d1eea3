"""The API server of tests/cluster, with answers for all that the doctor asks."""

from __future__ import annotations

from contextlib import aclosing
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from krelay.config.sources import Selection
from krelay.doctor import Finding, cluster, examine, machine, server
from krelay.doctor.runner import Check
from krelay.net import engine
from tests.cluster.conftest import Kube, clean_environment, kube, pki

__all__ = ["clean_environment", "kube", "pki"]

REVIEWS = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews"
FILE = """\
apiVersion: krelay/v1
targets:
  web: svc/web :80
  cache: host/cache.example.test :6379
"""


@dataclass
class World:
    """A small cluster: what it holds, and what it refuses."""

    kube: Kube
    folder: Path
    user: str | None = "jane"
    denied: set[str] = field(default_factory=set)
    """Rights as `VERB RESOURCE` or `VERB RESOURCE NAMESPACE`."""
    refusals: dict[str, tuple[int, str]] = field(default_factory=dict)
    """Answers to a creation, by collection: `jobs`, `pods`."""
    version: Any = field(default_factory=lambda: {"gitVersion": "v1.34.1"})
    images: list[str] = field(default_factory=lambda: ["docker.io/library/python:3.11-slim"])
    services: dict[str, Any] = field(default_factory=dict)
    slices: list[Any] = field(default_factory=list)
    headers: dict[str, str] = field(default_factory=dict)
    jobs: list[str] = field(default_factory=list)
    """The Jobs that there are, by name: each has a pod that runs."""

    async def answer(self, request: web.Request) -> web.StreamResponse:
        status, body = self._judge(request, await request.json() if request.body_exists else {})
        if request.query.get("watch"):
            response = web.StreamResponse()
            await response.prepare(request)
            await request.content.read()  # until the client ends
            return response
        return web.json_response(body, status=status, headers=self.headers)

    def _judge(self, request: web.Request, body: Any) -> tuple[int, Any]:
        path = request.path
        if path == "/version":
            return (200, self.version) if isinstance(self.version, dict) else (self.version, {})
        if path.endswith("selfsubjectreviews"):
            if self.user is None:
                return 404, {"message": "the server could not find the requested resource"}
            return 201, {"status": {"userInfo": {"username": self.user}}}
        if path == REVIEWS:
            return 201, {"status": {"allowed": self._allows(body["spec"]["resourceAttributes"])}}
        if request.method == "POST":
            kind = path.rpartition("/")[2]
            code, message = self.refusals.get(kind, (201, ""))
            if message:
                return code, {"kind": "Status", "message": message}
            if not request.query.get("dryRun"):
                assert kind == "jobs"
                self.jobs.append(body["metadata"]["name"])
                body["metadata"] |= {"uid": "u"}
            return code, body
        if request.method == "DELETE":
            self.jobs.remove(path.rpartition("/")[2])
            return 200, {}
        if path == "/api/v1/nodes":
            images = [{"names": self.images}]
            return self._list([{"metadata": {"name": "n"}, "status": {"images": images}}], "nodes")
        if path.endswith("/services"):
            name = request.query.get("fieldSelector", "").removeprefix("metadata.name=")
            return self._list([self.services[name]] if name in self.services else [], "services")
        if path.endswith("/endpointslices"):
            wanted = request.query.get("labelSelector", "").rpartition("=")[2]
            slices = [one for one in self.slices if one["metadata"]["name"] in (wanted, "")]
            return self._list(slices, "endpointslices")
        if path.endswith("/pods"):
            job = request.query.get("labelSelector", "").removeprefix("job-name=")
            return self._list([_pod(job)] if job in self.jobs else [], "pods")
        return 403, {"message": f'User "jane" cannot get resource "{path}"'}

    def _list(self, items: list[Any], resource: str) -> tuple[int, Any]:
        if f"list {resource}" in self.denied:
            return 403, {"message": f'User "jane" cannot list resource "{resource}"'}
        return 200, {"metadata": {"resourceVersion": "1"}, "items": items}

    def _allows(self, asked: dict[str, str]) -> bool:
        resource = asked["resource"]
        if subresource := asked.get("subresource"):
            resource += f"/{subresource}"
        right = f"{asked['verb']} {resource}"
        return self.denied.isdisjoint({right, f"{right} {asked['namespace']}"})

    def add_service(self, name: str, *, endpoints: int = 1) -> None:
        """Add a Service of the namespace `team` with port 80, and its ready endpoints."""
        metadata = {"name": name, "namespace": "team", "uid": name, "resourceVersion": "1"}
        ports = [{"port": 80, "targetPort": 80, "protocol": "TCP"}]
        self.services[name] = {
            "metadata": metadata,
            "spec": {"clusterIP": "10.0.0.9", "ports": ports, "selector": {"app": name}},
        }
        slice_metadata = {**metadata, "labels": {"kubernetes.io/service-name": name}}
        self.slices.append(
            {
                "metadata": slice_metadata,
                "addressType": "IPv4",
                "ports": [{"port": 80, "protocol": "TCP"}],
                "endpoints": [
                    {"addresses": [f"10.1.0.{number}"], "conditions": {"ready": True}}
                    for number in range(1, endpoints + 1)
                ],
            }
        )

    async def examine(self, text: str = FILE, **options: Any) -> dict[str, list[Finding]]:
        """Return what the doctor finds about a file, by check; nothing is created."""
        path = self.folder / "krelay.yaml"
        path.write_text(text)
        kubeconfig = self.folder / "kubeconfig"
        if not kubeconfig.exists():
            self.kube.kubeconfig({"token": "t0ken"})
        options = {"kubeconfig": str(kubeconfig), "quick": True, **options}
        found: dict[str, list[Finding]] = {}
        async with aclosing(examine(Selection(str(path)), **options)) as findings:
            async for one in findings:
                found.setdefault(one.check, []).append(one)
        return found


def _pod(job: str) -> Any:
    state = {"name": "krelay-server", "image": "i", "state": {"running": {}}}
    return {
        "metadata": {"name": f"{job}-x", "namespace": "team", "uid": "p", "resourceVersion": "1"},
        "spec": {"nodeName": "n"},
        "status": {"phase": "Running", "containerStatuses": [state]},
    }


@pytest.fixture(autouse=True)
def usual_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Find nothing wrong with the machine that runs the tests, however busy it is."""
    monkeypatch.setattr(server, "SLOW", 60.0)
    monkeypatch.setattr(cluster, "SERVER_DEADLINE", 60.0)
    monkeypatch.setattr(cluster, "ANSWER_DEADLINE", 60.0)
    monkeypatch.setattr(machine, "Check", partial(Check, deadline=60.0))
    monkeypatch.setattr(machine, "_ANSWER_DEADLINE", 60.0)
    monkeypatch.setattr(engine, "_chosen", engine.Engine())
    monkeypatch.setattr(machine, "_limit", lambda: 20_000)


@pytest.fixture
async def world(kube: Kube, tmp_path: Path) -> World:
    made = World(kube, tmp_path)
    kube.handler = made.answer
    made.add_service("web")
    return made
