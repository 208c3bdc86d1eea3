"""What `check: auto` costs a program, and what it takes the kubelet's word for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from krelay.status.client import ask
from tests.e2e import kit

# Counts the connections to its ports, as a server's log does. It is ready while /tmp/ready exists.
COUNTER = """
import asyncio, json, os

counts = {}

async def count(port):
    async def serve(reader, writer):
        counts[port] += 1
        await reader.read()
        writer.close()

    counts[port] = 0
    await asyncio.start_server(serve, "", port)

async def answer(reader, writer):
    path = (await reader.readuntil(b"\\r\\n\\r\\n")).split()[1]
    ok = path != b"/ready" or os.path.exists("/tmp/ready")
    body = json.dumps(counts).encode()
    status = b"200 OK" if ok else b"503 Unready"
    head = b"HTTP/1.1 %s\\r\\nContent-Length: %d\\r\\nConnection: close\\r\\n\\r\\n"
    writer.write(head % (status, len(body)) + body)
    await writer.drain()
    writer.close()

async def main():
    open("/tmp/ready", "w").close()
    for port in (7000, 7001, 7002, 2345):
        await count(port)
    await asyncio.start_server(answer, "", 8000)
    await asyncio.Event().wait()

asyncio.run(main())
"""


def counter() -> list[dict[str, Any]]:
    container = {
        "name": "counter",
        "image": kit.IMAGE,
        "imagePullPolicy": "IfNotPresent",
        "command": ["python3", "-c", COUNTER],
        "readinessProbe": {"httpGet": {"port": 8000, "path": "/ready"}, "periodSeconds": 1},
    }
    ports = [{"name": f"p{port}", "port": port} for port in (7001, 2345)]
    return [
        kit.workload("Deployment", "counted", containers=[container], volumes=[]),
        kit.service("counted", "counted", ports=ports),
    ]


class Counted:
    """The counting pod, and krelay's word on it."""

    def __init__(self, place: str, file: Path) -> None:
        (pod,) = kit.get(place, "pods", "-l", "app=counted")["items"]
        self.place, self.pod, self.file = place, pod["metadata"]["name"], file

    def counts(self) -> dict[int, int]:
        path = f"/api/v1/namespaces/{self.place}/pods/{self.pod}:8000/proxy/counts"
        return {
            int(port): count
            for port, count in json.loads(kit.kubectl("get", "--raw", path)).items()
        }

    def exec(self, *command: str) -> None:
        kit.kubectl("exec", "-n", self.place, self.pod, "--", *command)

    def reason(self, name: str, state: str) -> str:
        """The reason for the state, once it is this one."""
        found: dict[str, Any] = {}

        def there() -> bool:
            forwards = ask(str(self.file), "GET", "/v1/status", timeout=10.0)["forwards"]
            found.update(next(one for one in forwards if one["target"] == name))
            return bool(found["state"] == state)

        kit.eventually(there, f"{name} {state}")
        return str(found["reason"])


@pytest.mark.timeout(180)
def test_auto_connects_once_and_never_to_a_debugger(
    namespace: Callable[..., str], tmp_path: Path
) -> None:
    place = namespace()
    kit.apply(place, *counter())
    kit.kubectl("-n", place, "rollout", "status", "deploy/counted", "--timeout=170s")
    file = tmp_path / "krelay.yaml"
    counted = Counted(place, file)
    file.write_text(
        f"""
apiVersion: krelay/v1
namespace: {place}
targets:
  deploy: deploy/counted :7000
  service: svc/counted :7001
  dialled: {{target: deploy/counted, port: ":7002", check: dial}}
  debugger: deploy/counted :2345
  debugged: svc/counted :2345
"""
    )
    with kit.Krelay("up", "-f", str(file)) as krelay:
        krelay.wait_lines(5)
        for name, program in (("deploy", "the pod"), ("service", "its endpoint")):
            assert counted.reason(name, "ready").startswith(
                f"{program} is ready; its port accepted at "
            )
        for name, program in (("debugger", "the pod"), ("debugged", "its endpoint")):
            assert counted.reason(name, "ready") == (
                f"{program} is ready; not probed: a debugger's port takes one client"
            )
        # The check that is repeated is the clock of this test: more than 20 s pass.
        kit.eventually(lambda: counted.counts()[7002] >= 3, "three dials", 90.0)
        found = counted.counts()
        assert (found[7000], found[7001], found[2345]) == (1, 1, 0)

        counted.exec("rm", "/tmp/ready")
        for name in ("deploy", "service", "debugger"):
            counted.reason(name, "degraded")
        counted.exec("touch", "/tmp/ready")
        for name in ("deploy", "service", "debugger"):
            counted.reason(name, "ready")
        found = counted.counts()
        assert (found[7000], found[7001], found[2345]) == (1, 1, 0)
