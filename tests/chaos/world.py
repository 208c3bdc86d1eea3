"""What a run takes place in: a namespace with targets, a proxy, a krelay that goes through it."""

from __future__ import annotations

import asyncio
import base64
import json
import random
import secrets
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import yaml

from krelay.status import client
from tests.chaos.account import Account
from tests.chaos.hostile import CA
from tests.chaos.proxy import Proxy
from tests.e2e import kit
from tests.e2e.conftest import STARTER

SIDES = ("web", "api")


def cluster(*args: str, timeout: float = 60.0, check: bool = True) -> str:
    """The cluster's starter, which can also harm it."""
    starter = (kit.ROOT / STARTER).resolve()
    assert starter.exists(), f"only a cluster with a starter can be harmed: no {starter}"
    done = subprocess.run(
        [starter, *args],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env=kit.outer_environ(),
    )
    assert not check or done.returncode == 0, f"cluster {' '.join(args)}: {done.stderr}"
    return done.stdout


def serves(timeout: float = 90.0) -> None:
    """Return when the API server and the node are well."""

    def well() -> bool:
        if kit.kubectl("get", "--raw", "/readyz", "--request-timeout=5s", check=False) != "ok":
            return False
        path = "jsonpath={.items[*].status.conditions[-1].status}"
        return kit.kubectl("get", "nodes", "-o", path, check=False) == "True"

    kit.eventually(well, "the cluster is well again", timeout)


def free_ports(count: int) -> list[int]:
    """Return ports that are free now, for servers that must know their port before they bind it."""
    socks = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [sock.getsockname()[1] for sock in socks]
    for sock in socks:
        sock.close()
    return ports


def through(proxy: int, directory: Path) -> Path:
    """A kubeconfig that goes through the proxy on this port."""
    mine = json.loads(kit.kubectl("config", "view", "--raw", "--minify", "--flatten", "-o", "json"))
    entry = mine["clusters"][0]["cluster"]
    entry["server"] = f"https://127.0.0.1:{proxy}"
    # A fault puts a server of the tests' own in the API server's place.
    trusted = base64.b64decode(entry["certificate-authority-data"]) + CA.read_bytes()
    entry["certificate-authority-data"] = base64.b64encode(trusted).decode()
    path = directory / "kubeconfig"
    path.write_text(yaml.safe_dump(mine))
    return path


def upstream() -> tuple[str, int]:
    """Where the API server is."""
    mine = json.loads(kit.kubectl("config", "view", "--minify", "-o", "json"))
    url = urlsplit(mine["clusters"][0]["cluster"]["server"])
    return url.hostname or "", url.port or 443


class World:
    """The parts, and what is asked of them. Whatever waits for a program runs in a thread."""

    def __init__(
        self,
        namespace: str,
        directory: Path,
        proxy: Proxy,
        account: Account,
        chance: random.Random,
        tunnel: str,
    ) -> None:
        self.namespace = namespace
        self.proxy = proxy
        self.account = account
        self.chance = chance
        self.agents_deleted = 0
        self.removed: list[str] = []
        """What the agents that were deleted, and the targets, had said before."""
        self.file = directory / "krelay.yaml"
        self._tunnel = tunnel
        self._ports = free_ports(3)
        self._moving = "web"
        self._swapped = False
        self._extras: dict[str, str] = {}
        self._count = 0
        self.write()
        self.krelay = kit.Krelay(
            "up", "-f", str(self.file), "-v",
            environ={"KUBECONFIG": str(through(proxy.port, directory))},
            expect=None,
        )  # fmt: skip

    # -- the file ------------------------------------------------------------------------------

    def text(self) -> str:
        """The file as it is to be."""
        moving, left, right = self._ports
        if self._swapped:
            left, right = right, left
        lines = [
            "apiVersion: krelay/v1",
            f"namespace: {self.namespace}",
            f"tunnel: {self._tunnel}",
            "targets:",
            "  svc: svc/web :90 :91/udp",
            "  deploy: deploy/web :9000",
            "  other: svc/api :90",
            f"  moving: deploy/{self._moving} {moving}:9000",
            f"  left: deploy/web {left}:8000",
            f"  right: deploy/api {right}:8000",
            *(f"  {name}: {line}" for name, line in self._extras.items()),
        ]
        return "\n".join(lines) + "\n"

    def write(self) -> None:
        """Put the file there as it is to be, at once and whole."""
        fresh = self.file.with_name(f".{secrets.token_hex(4)}")
        fresh.write_text(self.text())
        fresh.replace(self.file)

    def edit(self) -> str:
        """Change something in the file; what it was."""
        kinds = ["add", "add", "move", "swap"] + ["remove"] * (len(self._extras) // 2)
        kind = self.chance.choice(kinds)
        if kind == "add":
            self._count += 1
            self._extras[f"extra{self._count}"] = f"svc/{self.chance.choice(SIDES)} :80"
        elif kind == "remove":
            self._extras.pop(self.chance.choice(list(self._extras)))
        elif kind == "move":
            self._moving = "api" if self._moving == "web" else "web"
        else:
            self._swapped = not self._swapped
        self.write()
        return kind

    def tidy(self, flows: bool) -> None:
        """The file as it was at first. `flows`: also end every flow, which else ends when idle."""
        self._extras.clear()
        self._moving, self._swapped = "web", False
        self.write()
        if flows:
            self.file.write_text(self.text().replace(" :91/udp", ""))
            client.ask(str(self.file), "POST", "/v1/reload", timeout=60)
            self.write()
        client.ask(str(self.file), "POST", "/v1/reload", timeout=60)

    def is_as_the_file_says(self) -> str:
        """What is not; empty where all is. It asks each forward whose pod it leads to."""
        moving, left, right = self._ports
        if self._swapped:
            left, right = right, left
        wanted = {left: "web", right: "api"}
        for name, line in self._extras.items():
            address = self.krelay.address(name)
            wanted[address[1]] = line.partition("/")[2].partition(" ")[0]
        for port, side in wanted.items():
            try:
                name = kit.http_get(("127.0.0.1", port)).decode()
            except OSError as exc:
                return f"port {port}, to {side}: {exc!r}"
            if not name.startswith(f"{side}-"):
                return f"port {port} leads to {name.strip()}, not to {side}"
        with kit.command(("127.0.0.1", moving), "duplex 0 0 0") as sock:
            sock.shutdown(socket.SHUT_WR)
            name = kit.read_all(sock).decode()
        return "" if name.startswith(f"{self._moving}-") else f"moving leads to {name!r}"

    # -- krelay and its agent --------------------------------------------------------------------

    def address(self, name: str, protocol: str = "tcp") -> Callable[[], kit.Address]:
        """Where a forward listens."""
        found = self.krelay.address(name, protocol)
        return lambda: found

    def status(self) -> dict[str, Any]:
        """What krelay says of itself."""
        answer: dict[str, Any] = client.ask(str(self.file), "GET", "/v1/status", timeout=20)
        return answer

    def streams(self) -> int:
        """How many streams and flows it carries."""
        total = 0
        for agent in self.status()["agents"]:
            tunnels = agent["tunnels"]
            if isinstance(tunnels, list):
                total += sum(tunnel["streams"] for tunnel in tunnels)
            else:
                total += agent["streams"]
        return total

    def agent(self) -> str:
        """The name of its pod."""
        live: list[str] = []

        def one() -> bool:
            pods = kit.get(self.namespace, "pods", "-l", "app=krelay-server")["items"]
            live[:] = [
                str(pod["metadata"]["name"])
                for pod in pods
                if "deletionTimestamp" not in pod["metadata"]
                and pod["status"]["phase"] == "Running"
            ]
            return len(live) == 1

        # krelay uses an agent before its node reports that it runs.
        kit.eventually(one, f"one agent runs: {live}", 10.0)
        return live[0]

    def agent_ip(self) -> str:
        """The address of its pod."""
        pod = kit.get(self.namespace, "pod", self.agent())
        return str(pod["status"]["podIP"])

    def wait_agent(self, former: str) -> None:
        """Wait until another one serves."""
        # It is up when krelay has said so as often as there were agents.
        due = self.agents_deleted + 1
        self.krelay.wait(lambda: self.agents_started() >= due, f"{due} agents", 90)
        kit.eventually(lambda: former not in kit.agents(self.namespace), f"{former} is gone")

    def agents_started(self) -> int:
        """How many there were in all."""
        return sum("agent: pod " in line and line.endswith(" runs") for line in self.krelay.log)

    def in_agent(self) -> tuple[int, int]:
        """Its descriptors, and its memory in MiB."""
        script = "ls /proc/1/fd | wc -l; grep VmRSS /proc/1/status"
        said = kit.kubectl("exec", "-n", self.namespace, self.agent(), "--", "sh", "-c", script)
        words = said.split()
        return int(words[0]), int(words[2]) >> 10

    # -- targets -------------------------------------------------------------------------------

    def pods(self, side: str) -> list[str]:
        """The names of a workload's pods."""
        items = kit.get(self.namespace, "pods", "-l", f"app={side}")["items"]
        return [pod["metadata"]["name"] for pod in items]

    def collect(self, pods: list[str]) -> None:
        """Ask these pods what became of the transfers that they had."""
        for pod in pods:
            path = f"/api/v1/namespaces/{self.namespace}/pods/{pod}:8000/proxy/outcomes"
            self.removed += kit.kubectl("get", "--raw", path, check=False).splitlines()

    def rolled_out(self) -> None:
        """Wait until all targets run. What makes them is slow to come back after some restarts of
        the API server."""
        for side in SIDES:
            words = ("-n", self.namespace, "rollout", "status", f"deploy/{side}", "--timeout=50s")

            def done(words: tuple[str, ...] = words) -> bool:
                return "successfully rolled out" in kit.kubectl(*words, check=False)

            kit.eventually(done, f"deploy/{side} is rolled out", 240.0)


async def later(function: Callable[..., Any], *args: Any) -> Any:
    """In a thread, since it waits."""
    return await asyncio.to_thread(function, *args)


def settle(there: Callable[[], bool], timeout: float) -> bool:
    """Whether it becomes true in time."""
    deadline = time.monotonic() + timeout
    while not there():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.5)
    return True
