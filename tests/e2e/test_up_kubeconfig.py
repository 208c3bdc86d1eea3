"""Another kubeconfig under a running krelay: a context that is switched, a server that moves."""

from __future__ import annotations

import asyncio
import json
import os
import select
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import yaml

from krelay.cluster.api import Api
from krelay.cluster.auth.token_store import Tokens
from krelay.status.client import ask
from tests.cluster.test_oidc import File, Rotating, token
from tests.e2e import kit
from tests.e2e.test_up_resilience import ticks
from tests.supervisor import test_contexts


class Door:
    """A TCP proxy on loopback before the API server; `connections` counts what came."""

    def __init__(self, server: str) -> None:
        parts = urlsplit(server)
        self._to = (parts.hostname or "", parts.port or 443)
        self._listener = socket.create_server(("127.0.0.1", 0))
        self._open: set[socket.socket] = set()
        self.connections = 0
        self.url = f"https://127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._listener.accept()
                self.connections += 1
                threading.Thread(target=self._pass_on, args=(near,), daemon=True).start()

    def _pass_on(self, near: socket.socket) -> None:
        with suppress(OSError), near, socket.create_connection(self._to, 10) as far:
            self._open |= {near, far}
            while True:
                for sock in select.select([near, far], [], [])[0]:
                    if not (data := sock.recv(1 << 16)):
                        return
                    (far if sock is near else near).sendall(data)

    def close(self) -> None:
        """Cut all connections, and accept none any more."""
        # A thread that waits in `accept` keeps the socket; this ends its wait.
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        for sock in list(self._open):
            with suppress(OSError):
                sock.shutdown(socket.SHUT_RDWR)


class Kubeconfig:
    """A kubeconfig whose contexts lead through doors to the cluster of the tests."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.environ = {"KUBECONFIG": str(path)}
        whole = kit.kubectl("config", "view", "--raw", "--minify", "--flatten", "-o", "json")
        self._body: dict[str, Any] = json.loads(whole)
        self.server: str = self._body["clusters"][0]["cluster"]["server"]

    def write(self, current: str, namespace: str, **doors: Door) -> None:
        cluster, user = self._body["clusters"][0]["cluster"], self._body["users"][0]["name"]
        name = cluster.get("tls-server-name") or urlsplit(self.server).hostname
        body = {
            **self._body,
            "current-context": current,
            "clusters": [
                {"name": key, "cluster": {**cluster, "server": door.url, "tls-server-name": name}}
                for key, door in doors.items()
            ],
            "contexts": [
                {"name": key, "context": {"cluster": key, "user": user, "namespace": namespace}}
                for key in doors
            ],
        }
        self.path.write_text(yaml.safe_dump(body))


@pytest.fixture
def kubeconfig(cluster: None, tmp_path: Path) -> Kubeconfig:
    return Kubeconfig(tmp_path / "kubeconfig")


def status(directory: Path) -> Any:
    (file,) = directory.glob("krelay-*.yaml")
    return ask(str(file), "GET", "/v1/status", timeout=10.0)


def config(*targets: str) -> str:
    return "apiVersion: krelay/v1\ntunnel: {sessions: 1}\ntargets:\n" + "".join(
        f"  {target}\n" for target in targets
    )


def test_a_context_that_is_switched_leads_nothing_elsewhere(
    namespace: Any, world: str, tmp_path: Path, kubeconfig: Kubeconfig
) -> None:
    place = namespace()
    here, there = Door(kubeconfig.server), Door(kubeconfig.server)
    kubeconfig.write("dev", place, dev=here, prod=there)
    web, db = f"web: -n {world} svc/web :80", f"db: -n {world} sts/db :8000"
    first = config(web)
    with kit.up(first, tmp_path, 1, environ=kubeconfig.environ) as krelay:
        krelay.wait_log(f"context dev: {here.url}, namespace {world}")
        kit.kubectl("config", "use-context", "prod", "--kubeconfig", os.fspath(kubeconfig.path))
        (file,) = tmp_path.glob("krelay-*.yaml")
        file.write_text(config(web, db))
        krelay.wait_lines(2)
        assert kit.http_get(krelay.address("db"))
        # The agent is lost, and started again.
        kit.kubectl("-n", place, "delete", *kit.agents(place), "--wait=false")
        krelay.wait_log("gone")
        kit.eventually(lambda: kit.http_get(krelay.address("web")), "a new agent")
        found = status(tmp_path)
        (context,) = found["contexts"]
        assert (context["name"], context["server"]) == ("dev", here.url)
        assert (context["namespace"], context["namespaces"]) == (place, [world])
        assert {forward["context"] for forward in found["forwards"]} == {"dev"}
        assert not there.connections
    here.close()


def test_a_server_that_moves_costs_no_connection(
    world: str, tmp_path: Path, kubeconfig: Kubeconfig
) -> None:
    old, new = Door(kubeconfig.server), Door(kubeconfig.server)
    kubeconfig.write("dev", world, dev=old)
    text = config("solo: pod/solo :9000", "web: svc/web :80")
    with kit.up(text, tmp_path, 2, environ=kubeconfig.environ) as krelay:
        with kit.command(krelay.address("solo"), "tick") as sock:
            ticking = ticks(sock)
            next(ticking)
            before = kit.agents(world)
            old.close()
            krelay.wait_log("connection refused")
            began = time.monotonic()
            kubeconfig.write("dev", world, dev=new)
            krelay.wait_log(f"kubeconfig has changed: server {old.url} -> {new.url}")
            krelay.wait_log("tunnel resumed")
            assert time.monotonic() - began < 5, "without waiting for a pause to end"
            for _ in range(20):
                next(ticking)
            ticking.close()
        assert kit.http_get(krelay.address("web"))
        assert set(before) <= set(kit.agents(world))
        # The watches are at the new server too.
        kit.eventually(
            lambda: (
                not any("lost contact" in line for line in krelay.log)
                or any("regained contact" in line for line in krelay.log)
            ),
            "the watches are back",
        )
    new.close()


def test_a_move_from_a_server_that_still_answers_is_complete(
    world: str, tmp_path: Path, kubeconfig: Kubeconfig
) -> None:
    old, new = Door(kubeconfig.server), Door(kubeconfig.server)
    kubeconfig.write("dev", world, dev=old)
    text = config("solo: pod/solo :9000")
    with kit.up(text, tmp_path, 1, environ=kubeconfig.environ) as krelay:
        with kit.command(krelay.address("solo"), "tick") as sock:
            ticking = ticks(sock)
            next(ticking)
            krelay.wait_log("tunnel moved to proxy")
            log = len(krelay.log)
            kubeconfig.write("dev", world, dev=new)
            kit.eventually(
                lambda: any("tunnel resumed" in line for line in krelay.log[log:]), "resumed"
            )
            log = len(krelay.log)
            old.close()
            for _ in range(20):
                next(ticking)
            ticking.close()
        assert not [line for line in krelay.log[log:] if "lost" in line], krelay.told()
    new.close()


def test_a_direct_forward_follows_a_server_that_moves(
    world: str, tmp_path: Path, kubeconfig: Kubeconfig
) -> None:
    old, new = Door(kubeconfig.server), Door(kubeconfig.server)
    kubeconfig.write("dev", world, dev=old)
    text = config("solo: {target: pod/solo, port: ':8000', via: direct}")
    with kit.up(text, tmp_path, 1, environ=kubeconfig.environ) as krelay:
        assert kit.http_get(krelay.address("solo"))
        kubeconfig.write("dev", world, dev=new)
        krelay.wait_log("kubeconfig has changed")
        old.close()
        assert kit.http_get(krelay.address("solo"))
        assert new.connections
    new.close()


def test_a_cluster_made_anew_gets_a_new_agent(
    namespace: Any, world: str, tmp_path: Path, kubeconfig: Kubeconfig
) -> None:
    place = namespace()
    old, new = Door(kubeconfig.server), Door(kubeconfig.server)
    kubeconfig.write("dev", place, dev=old)
    text = config(f"web: -n {world} svc/web :80")
    with kit.up(text, tmp_path, 1, environ=kubeconfig.environ) as krelay:
        assert kit.http_get(krelay.address("web"))
        old.close()
        krelay.wait_log("connection refused")
        former = kit.agents(place)
        kit.kubectl("-n", place, "delete", *former, "--wait=true")
        # As `kind delete cluster` and `kind create cluster` write it.
        kubeconfig.write("none", place)
        krelay.wait_log('keeping what kubeconfig said before: no context "dev"')
        kubeconfig.write("dev", place, dev=new)
        krelay.wait_log("kubeconfig can be used again")
        assert kit.http_get(krelay.address("web")), "a connection waits for the new agent"
        assert former
        assert not set(former) & set(kit.agents(place))
        assert new.connections
    new.close()
    kit.assert_no_agents(place)


async def test_kubectl_and_krelay_share_tokens_that_rotate(tmp_path: Path, cluster: None) -> None:
    async with test_contexts.cluster("oidc") as server:
        issuer = Rotating(server, test_contexts.PKI)
        file = await asyncio.to_thread(File, tmp_path / "config", issuer, test_contexts.PKI)
        api = await Api.connect(kubeconfig=str(file.path))

        async def ask_as_kubectl() -> None:
            path = os.fspath(file.path)
            raw = ("get", "--raw", "/version", "--kubeconfig", path)
            assert "v1" in await asyncio.to_thread(kit.kubectl, *raw)

        async def ask_as_krelay() -> None:
            assert (await api.get("/version"))["gitVersion"] == "v1"

        try:
            await ask_as_krelay()
            assert len(issuer.forms) == 1
            await ask_as_kubectl()
            assert len(issuer.forms) == 1, "kubectl uses what krelay wrote"
            for ask in (ask_as_kubectl, ask_as_krelay) * 2:
                # The server rejects the id token before its time.
                before, issuer.id_token = len(issuer.forms), ""
                expired = Tokens(token(-10), (await file.tokens()).refresh_token)
                if ask is ask_as_kubectl:
                    await asyncio.to_thread(file.store.write, expired)
                await ask()
                assert len(issuer.forms) == before + 1
                await ask_as_kubectl()
                await ask_as_krelay()
                assert len(issuer.forms) == before + 1, "nobody is logged out"
            assert issuer.valid == (await file.tokens()).refresh_token
        finally:
            await api.aclose()
