"""The kubeconfig contexts of a run: which cluster each one leads to, and until when."""

from __future__ import annotations

import asyncio
import json
import os
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, Self

import pytest
from aiohttp import web

from krelay.cluster.api import Api
from krelay.cluster.auth.kubeconfig import Login, load
from krelay.cluster.selectors import Selector
from krelay.config.load import parse
from krelay.config.watch import Mode
from krelay.errors import CredentialsError, KrelayError, UnreachableError
from krelay.model import Config
from krelay.state.states import ContextState
from krelay.supervisor.contexts import Contexts, ContextUpdate
from krelay.supervisor.supervisor import Supervisor
from krelay.supervisor.transitions import edits
from krelay.tasks import TaskGroup
from tests import rig
from tests.supervisor.agents import FakeAgent
from tests.supervisor.world import named, text, world

PKI = Path(__file__).parents[1] / "cluster" / "pki"


class Cluster:
    """An API server under TLS, which answers with its name; it accepts only `token`, if set."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.url = ""
        self.token: str | None = None
        self.seen: list[str | None] = []
        self.watching = False
        self.handler: Callable[[web.Request], Awaitable[web.StreamResponse]] = self.own

    async def answer(self, request: web.Request) -> web.StreamResponse:
        return await self.handler(request)

    async def own(self, request: web.Request) -> web.StreamResponse:
        authorization = request.headers.get("Authorization")
        self.seen.append(authorization)
        if self.token is not None and authorization != f"Bearer {self.token}":
            return web.json_response({"kind": "Status", "code": 401}, status=401)
        if request.query.get("watch"):
            self.watching = True
            response = web.StreamResponse()
            await response.prepare(request)
            await asyncio.get_running_loop().create_future()
        if request.path.endswith("/pods"):
            metadata = {"name": self.name, "uid": self.name, "namespace": "default"}
            items = [{"metadata": metadata}]
            # The version of the old cluster is far ahead of that of the new one.
            return web.json_response({"metadata": {"resourceVersion": "9"}, "items": items})
        return web.json_response({"cluster": self.name})


@asynccontextmanager
async def cluster(name: str, certificate: str = "server") -> AsyncIterator[Cluster]:
    """Run a cluster on a free port."""
    made = Cluster(name)
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(PKI / f"{certificate}.pem", PKI / f"{certificate}-key.pem")
    app = web.Application()
    app.router.add_route("*", "/{path:.*}", made.answer)
    runner = web.AppRunner(app, shutdown_timeout=0.1, handle_signals=False)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0, ssl_context=tls).start()
        made.url = f"https://127.0.0.1:{runner.addresses[0][1]}"
        yield made
    finally:
        await runner.cleanup()


class Kubeconfig:
    """A kubeconfig file with a context, a cluster and a user of each name."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def write(self, current: str | None, **contexts: dict[str, Any]) -> None:
        """Each of `contexts` has a server, and maybe a token, a namespace, and more fields of its
        cluster."""
        body: dict[str, Any] = {"clusters": [], "users": [], "contexts": []}
        if current is not None:
            body["current-context"] = current
        for name, found in contexts.items():
            ca = found.get("ca", str(PKI / "ca.pem"))
            to = {"server": found["server"], "certificate-authority": ca}
            to |= found.get("cluster", {})
            user = found.get("user", {"token": found.get("token", "t")})
            context = {"cluster": name, "user": name}
            if "namespace" in found:
                context["namespace"] = found["namespace"]
            body["clusters"].append({"name": name, "cluster": to})
            body["users"].append({"name": name, "user": user})
            body["contexts"].append({"name": name, "context": context})
        self.path.write_text(json.dumps(body) + "\n")


@pytest.fixture
def kubeconfig(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Kubeconfig:
    """The kubeconfig of this test, in $KUBECONFIG."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "https_proxy", "http_proxy"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("KUBECONFIG", str(tmp_path / "config"))
    return Kubeconfig(tmp_path / "config")


@asynccontextmanager
async def contexts_of_a_run(**options: Any) -> AsyncIterator[Contexts]:
    contexts = Contexts(**options)
    try:
        yield contexts
    finally:
        await contexts.close()


async def reached(contexts: Contexts, context: str | None = None) -> str:
    """The name of the cluster that a context leads to."""
    return str((await (await contexts.api(context)).get("/version"))["cluster"])


# -- pinned ----------------------------------------------------------------------------------------


async def test_a_rejection_does_not_follow_the_current_context(kubeconfig: Kubeconfig) -> None:
    async with cluster("dev") as dev, cluster("prod") as prod, contexts_of_a_run() as contexts:
        both = {"dev": {"server": dev.url}, "prod": {"server": prod.url}}
        kubeconfig.write("dev", **both)
        assert await reached(contexts) == "dev"
        both["dev"]["token"] = dev.token = "new"
        kubeconfig.write("prod", **both)
        assert await reached(contexts) == "dev", "with the new credentials of the same context"
        dev.token = "unknown"
        with pytest.raises(CredentialsError):
            await reached(contexts)
        assert not prod.seen


async def test_the_current_context_is_that_of_the_start_for_later_targets_too(
    kubeconfig: Kubeconfig,
) -> None:
    async with cluster("dev") as dev, cluster("prod") as prod, contexts_of_a_run() as contexts:
        both = {"dev": {"server": dev.url}, "prod": {"server": prod.url}}
        kubeconfig.write("dev", **both)
        # The first targets name their context; one without a context comes later.
        assert await reached(contexts, "prod") == "prod"
        kubeconfig.write("prod", **both)
        assert await reached(contexts) == "dev"
        assert await contexts.api(None) is await contexts.api("dev"), "one client for both"


async def test_the_namespace_of_a_context_is_that_of_the_start(kubeconfig: Kubeconfig) -> None:
    async with cluster("dev") as dev, contexts_of_a_run() as contexts:
        kubeconfig.write("dev", dev={"server": dev.url, "namespace": "team"})
        await reached(contexts)
        kubeconfig.write("dev", dev={"server": dev.url, "namespace": "other", "token": "new"})
        dev.token = "new"
        await reached(contexts)
        assert (await contexts.api(None)).namespace == "team"


async def test_a_pod_keeps_its_service_account_when_a_kubeconfig_appears(
    kubeconfig: Kubeconfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    account = tmp_path / "account"
    account.mkdir()
    (account / "token").write_text("of-the-pod")
    (account / "ca.crt").write_bytes((PKI / "ca.pem").read_bytes())
    monkeypatch.setattr(
        load, "__kwdefaults__", {**(load.__kwdefaults__ or {}), "service_account": account}
    )
    async with cluster("pod") as pod, cluster("prod") as prod, contexts_of_a_run() as contexts:
        port = pod.url.rpartition(":")[2]
        monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "127.0.0.1")
        monkeypatch.setenv("KUBERNETES_SERVICE_PORT", port)
        assert await reached(contexts) == "pod"
        kubeconfig.write("prod", prod={"server": prod.url})
        pod.token = "renewed"
        (account / "token").write_text(pod.token)
        assert await reached(contexts) == "pod"
        assert not prod.seen


async def test_a_rejection_with_an_invalid_kubeconfig_uses_what_is_known(
    kubeconfig: Kubeconfig,
) -> None:
    async with cluster("dev") as dev, contexts_of_a_run() as contexts:
        kubeconfig.write("dev", dev={"server": dev.url})
        assert await reached(contexts) == "dev"
        kubeconfig.path.write_text("}")
        dev.token = "new"
        with pytest.raises(CredentialsError, match="401|nauthorized"):
            await reached(contexts)
        dev.token = "t"
        assert await reached(contexts) == "dev"


async def test_where_a_context_leads_is_logged_and_published_once_and_kept(
    kubeconfig: Kubeconfig, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "krelay")
    kubeconfig.write("dev", dev={"server": "https://h:6443", "namespace": "team"})
    supervisor = Supervisor(await config("targets: {web: pod/web 80}"), contexts=Contexts())
    contexts = supervisor._contexts
    await contexts.api(None)
    await contexts.api("dev")
    await contexts.close()
    line = "context dev: https://h:6443, namespace team"
    assert caplog.messages == [line]
    (event,) = supervisor.bus.history
    assert (event.kind, event.text) == ("context", line)
    details = {"name": "dev", "server": "https://h:6443", "namespace": "team"}
    assert event.details == {**details, "namespaces": ["team"]}


@pytest.mark.parametrize(
    ("file", "namespaces"),
    [
        ("namespace: shop\ntargets: {a: pod/a :80}", ("shop",)),
        ("targets:\n a: -n x pod/a :80\n b: -n y pod/b :80\n c: pod/c :80", ("x", "y", "team")),
        ("context: dev\ntargets: {a: -n x pod/a :80}", ("x",)),
        ("targets:\n a: pod/a :80\n b: {target: pod/b, ports: [80], context: prod}", ("team",)),
        ("targets: {a: host/example.test :80}", ()),
    ],
)
async def test_a_context_names_the_namespaces_of_its_targets(
    kubeconfig: Kubeconfig,
    caplog: pytest.LogCaptureFixture,
    file: str,
    namespaces: tuple[str, ...],
) -> None:
    caplog.set_level("INFO", "krelay")
    kubeconfig.write("dev", dev={"server": "https://h:6443", "namespace": "team"})
    supervisor = Supervisor(await config(file), contexts=Contexts())
    await supervisor._contexts.api(None)
    (found,) = supervisor.snapshot().contexts
    await supervisor._contexts.close()
    assert (found.namespace, found.namespaces) == ("team", namespaces)
    assert caplog.messages == [f"context dev: {found}"]


async def config(body: str) -> Config:
    return await asyncio.to_thread(parse, f"apiVersion: krelay/v1\n{body}\n", "krelay.yaml", {})


# -- read again ------------------------------------------------------------------------------------


SECRETS = ("t0ken", "n3w-token")


async def test_another_server_authority_and_token_are_adopted_and_said(
    kubeconfig: Kubeconfig, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level("DEBUG", "krelay")
    async with cluster("old") as old, cluster("new") as new, contexts_of_a_run() as contexts:
        updates: list[ContextUpdate] = []
        contexts.on_change = updates.append
        kubeconfig.write("dev", dev={"server": old.url, "token": "t0ken"})
        assert await reached(contexts) == "old"
        await contexts.api("dev")
        bundle = tmp_path / "bundle.pem"
        bundle.write_text((PKI / "ca.pem").read_text() + (PKI / "other-ca.pem").read_text())
        dev = {"server": new.url, "token": "n3w-token", "ca": str(bundle)}
        new.token = "n3w-token"
        kubeconfig.write("dev", dev=dev)
        (change,) = await contexts.reread()
        line = f"server {old.url} -> {new.url}, CA, credentials"
        assert str(change) == f"context dev: set {line}"
        assert f"context dev: kubeconfig has changed: {line}" in caplog.messages
        assert await reached(contexts) == "new"
        (update,) = updates
        assert update.keys == {None, "dev"}
        assert update.moved
        assert contexts.states() == (ContextState("dev", new.url, "default"),)
        assert [login.server for login in contexts.logins()] == [new.url]
        ((date, received),) = contexts.dates()
        assert date.endswith("GMT")
        assert received > 0
        assert not any(secret in caplog.text for secret in SECRETS)


async def test_a_file_that_says_the_same_changes_nothing(
    kubeconfig: Kubeconfig, caplog: pytest.LogCaptureFixture
) -> None:
    async with cluster("dev") as dev, contexts_of_a_run() as contexts:
        kubeconfig.write("dev", dev={"server": dev.url})
        assert await reached(contexts) == "dev"
        access = await (await contexts.api(None)).access()
        caplog.clear()
        caplog.set_level("INFO", "krelay")
        kubeconfig.write("prod", prod={"server": "https://p"}, dev={"server": dev.url})
        assert await contexts.reread() == []
        assert await (await contexts.api(None)).access() is access
        assert caplog.messages == []


async def test_the_content_of_the_files_that_kubeconfig_names_counts(
    kubeconfig: Kubeconfig, tmp_path: Path
) -> None:
    ca = tmp_path / "ca.pem"
    ca.write_bytes((PKI / "other-ca.pem").read_bytes())
    async with cluster("dev") as dev, contexts_of_a_run() as contexts:
        kubeconfig.write("dev", dev={"server": dev.url, "ca": str(ca)})
        with pytest.raises(CredentialsError, match="not trusted"):
            await reached(contexts)
        assert contexts._files() == [str(kubeconfig.path), str(ca)]
        ca.write_bytes((PKI / "ca.pem").read_bytes())
        (change,) = await contexts.reread()
        assert change.after == "CA"
        assert await reached(contexts) == "dev"


async def test_an_edit_that_is_undone_at_once_leaves_nothing(kubeconfig: Kubeconfig) -> None:
    async with cluster("dev") as dev, contexts_of_a_run() as contexts:
        kubeconfig.write("dev", dev={"server": dev.url})
        assert await reached(contexts) == "dev"
        for name in ("other-ca.pem", "ca.pem"):
            kubeconfig.write("dev", dev={"server": dev.url, "ca": str(PKI / name)})
            (change,) = await contexts.reread()
            assert change.after == "CA"
        assert await reached(contexts) == "dev"


async def test_a_file_that_moved_is_followed(kubeconfig: Kubeconfig, tmp_path: Path) -> None:
    old, new = tmp_path / "old.pem", tmp_path / "new.pem"
    old.write_bytes((PKI / "ca.pem").read_bytes())
    async with cluster("dev") as dev, contexts_of_a_run() as contexts:
        kubeconfig.write("dev", dev={"server": dev.url, "ca": str(old)})
        assert await reached(contexts) == "dev"
        access = await (await contexts.api(None)).access()
        old.rename(new)
        kubeconfig.write("dev", dev={"server": dev.url, "ca": str(new)})
        assert await contexts.reread() == [], "it has the same content"
        assert contexts._files() == [str(kubeconfig.path), str(new)]
        assert await (await contexts.api(None)).access() is access
        new.write_bytes((PKI / "other-ca.pem").read_bytes())
        (change,) = await contexts.reread()
        assert change.after == "CA"
        with pytest.raises(CredentialsError, match="not trusted"):
            await reached(contexts)


async def test_what_an_exec_plugin_is_told_is_what_kubeconfig_says(
    kubeconfig: Kubeconfig, tmp_path: Path
) -> None:
    plugin = tmp_path / "plugin"
    told = tmp_path / "told"
    answer = {"apiVersion": PLUGIN_VERSION, "kind": "ExecCredential", "status": {"token": "t"}}
    plugin.write_text(
        f"#!/bin/sh\nprintf '%s' \"$KUBERNETES_EXEC_INFO\" >{told}\necho '{json.dumps(answer)}'\n"
    )
    plugin.chmod(0o700)
    entry = {"command": str(plugin), "apiVersion": PLUGIN_VERSION, "interactiveMode": "Never"}
    async with cluster("dev") as dev, contexts_of_a_run() as contexts:
        for audience, expected in (("a", []), ("b", ["the exec plugin's extension"]), ("b", [])):
            extension = {"name": "client.authentication.k8s.io/exec", "extension": audience}
            body = {"server": dev.url, "cluster": {"extensions": [extension]}}
            user = {"exec": {**entry, "provideClusterInfo": True}}
            kubeconfig.write("dev", dev=body | {"user": user})
            assert [change.after for change in await contexts.reread()] == expected
            assert await reached(contexts) == "dev"
            assert json.loads(told.read_text())["spec"]["cluster"]["config"] == audience


PLUGIN_VERSION = "client.authentication.k8s.io/v1"


def damage(kubeconfig: Kubeconfig, url: str) -> Iterator[str]:
    """Spoil the file in one way after the other; what the warning of each says."""
    kubeconfig.path.write_text("}")
    yield "is not a kubeconfig"
    kubeconfig.path.unlink()
    yield 'no context "dev"'
    kubeconfig.path.write_text("")
    yield 'no context "dev"'
    kubeconfig.write("prod", prod={"server": url})
    yield 'no context "dev"'
    kubeconfig.write("dev", dev={"server": url, "ca": str(kubeconfig.path.parent / "missing")})
    yield "cannot read"
    kubeconfig.write("dev", dev={"server": url, "ca": str(kubeconfig.path)})
    yield "bad certificate-authority"
    kubeconfig.write("dev", dev={"server": ""})
    yield "no server"
    kubeconfig.write("dev", dev={"server": url, "cluster": {"proxy-url": "ftp://u:s3cret@p"}})
    yield "proxy-url: not a proxy URL"
    kubeconfig.write("dev", dev={"server": url, "user": {"token": "t", "as": "a\r\nX: y"}})
    yield "a header cannot carry"


async def test_a_kubeconfig_that_cannot_be_used_keeps_the_present_one_with_one_warning(
    kubeconfig: Kubeconfig, caplog: pytest.LogCaptureFixture
) -> None:
    async with cluster("dev") as dev, contexts_of_a_run() as contexts:
        kubeconfig.write("dev", dev={"server": dev.url})
        assert await reached(contexts) == "dev"
        caplog.set_level("INFO", "krelay")
        last = ""
        for words in damage(kubeconfig, "https://127.0.0.1:1"):
            caplog.clear()
            for _ in range(3):
                assert await contexts.reread() == []
                assert await reached(contexts) == "dev"
            new = words != last or "context" not in words
            assert len(caplog.messages) == new, (words, caplog.messages)
            if new:
                start = "context dev: keeping what kubeconfig said before: "
                assert caplog.messages[0].startswith(start)
                assert words in caplog.messages[0]
            last = words
        caplog.clear()
        kubeconfig.write("dev", dev={"server": dev.url})
        assert await contexts.reread() == []
        assert caplog.messages == ["context dev: kubeconfig can be used again"]


async def test_what_waits_for_a_silent_server_goes_to_the_new_one(kubeconfig: Kubeconfig) -> None:
    arrived: list[asyncio.StreamReader] = []

    async def hold(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        arrived.append(reader)
        await rig.hold(reader, writer)

    async with (
        rig.tcp_target(hold) as silent,
        cluster("new") as new,
        contexts_of_a_run() as contexts,
    ):
        kubeconfig.write("dev", dev={"server": f"https://127.0.0.1:{silent}"})
        api = await contexts.api(None)
        async with TaskGroup() as tasks:
            reading = tasks.create_task(api.get("/version"))
            writing = tasks.create_task(outcome(api.create("/jobs", {})))
            pausing = tasks.create_task(api.pause(3600, api.changes))
            await rig.until(lambda: len(arrived) == 2)
            kubeconfig.write("dev", dev={"server": new.url})
            await contexts.reread()
        assert reading.result() == {"cluster": "new"}
        assert isinstance(writing.result(), UnreachableError), "it may have been carried out"
        assert len(new.seen) == 1
        assert pausing.done()


async def outcome(work: Awaitable[object]) -> object:
    """What it returns, or the error that it raises."""
    try:
        return await work
    except KrelayError as exc:
        return exc


async def test_a_plugin_that_hangs_does_not_hold_up_the_new_credentials(
    kubeconfig: Kubeconfig, tmp_path: Path
) -> None:
    started = tmp_path / "started"
    command = ["-c", f"touch {started}; exec sleep 600"]
    plugin = {"apiVersion": "client.authentication.k8s.io/v1", "command": "sh", "args": command}
    async with cluster("dev") as dev, contexts_of_a_run() as contexts:
        user = {"exec": {**plugin, "interactiveMode": "Never"}}
        kubeconfig.write("dev", dev={"server": dev.url, "user": user})
        api = await contexts.api(None)
        async with TaskGroup() as tasks:
            asking = [tasks.create_task(api.get("/version")) for _ in range(2)]
            await rig.until(started.exists)
            kubeconfig.write("dev", dev={"server": dev.url, "token": "t"})
            await contexts.reread()
        assert [task.result() for task in asking] == [{"cluster": "dev"}] * 2
        assert dev.seen == ["Bearer t"] * 2


async def test_a_context_whose_files_hang_holds_up_no_other(
    kubeconfig: Kubeconfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    both = {"dev": {"server": "https://127.0.0.1:1"}, "prod": {"server": "https://127.0.0.1:1"}}
    async with contexts_of_a_run() as contexts:
        kubeconfig.write("dev", **both)
        (dev, prod), read = [await contexts.api(name) for name in both], Api.reread
        adopted = asyncio.Event()
        prod.on_change = lambda _: adopted.set()

        async def reread(api: Api) -> object:
            if api is dev:
                await adopted.wait()
            return await read(api)

        monkeypatch.setattr(Api, "reread", reread)
        kubeconfig.write("dev", **{name: {"server": "https://127.0.0.1:2"} for name in both})
        async with asyncio.timeout(10):
            assert len(await contexts.reread()) == 2


async def test_a_watch_begins_anew_with_a_list_at_the_new_server(kubeconfig: Kubeconfig) -> None:
    async with cluster("old") as old, cluster("new") as new, contexts_of_a_run() as contexts:
        kubeconfig.write("dev", dev={"server": old.url})
        informers = await contexts.informers(None)
        sets = informers.watch("/api/v1/pods", Selector())
        async with aclosing(sets):
            assert [*(await anext(sets))] == ["old"]
            await rig.until(lambda: old.watching)
            kubeconfig.write("dev", dev={"server": new.url})
            await contexts.reread()
            assert [*(await anext(sets))] == ["new"], "although the old server still answers"
            await rig.until(lambda: new.watching)


async def test_watches_begin_anew_on_request_where_they_are_in_use(
    kubeconfig: Kubeconfig,
) -> None:
    async with cluster("old") as old, contexts_of_a_run() as contexts:
        kubeconfig.write("dev", dev={"server": old.url})
        contexts.relist([None])  # none is in use yet
        sets = (await contexts.informers(None)).watch("/api/v1/pods", Selector())
        async with aclosing(sets):
            await anext(sets)
            await rig.until(lambda: old.watching)
            seen = len(old.seen)
            contexts.relist([None, "another"])
            await rig.until(lambda: len(old.seen) == seen + 2)  # a list and a watch


async def test_a_watch_that_is_refused_begins_with_a_list_at_the_new_server(
    kubeconfig: Kubeconfig,
) -> None:
    async with cluster("old") as old, cluster("new") as new, contexts_of_a_run() as contexts:

        async def refuse(request: web.Request) -> web.StreamResponse:
            if not request.query.get("watch"):
                return await old.own(request)
            kubeconfig.write("dev", dev={"server": new.url})
            return web.json_response({"kind": "Status", "code": 401}, status=401)

        old.handler = refuse
        kubeconfig.write("dev", dev={"server": old.url})
        informers = await contexts.informers(None)
        sets = informers.watch("/api/v1/pods", Selector())
        async with aclosing(sets), asyncio.timeout(10):
            assert [*(await anext(sets))] == ["old"]
            assert [*(await anext(sets))] == ["new"]
            await rig.until(lambda: new.watching)


async def test_pages_of_two_servers_are_no_list(kubeconfig: Kubeconfig) -> None:
    async with cluster("old") as old, cluster("new") as new, contexts_of_a_run() as contexts:

        async def pages(request: web.Request) -> web.StreamResponse:
            if "continue" in request.query:
                kubeconfig.write("dev", dev={"server": new.url})
                await contexts.reread()
                await asyncio.Event().wait()
            metadata = {"name": "old", "uid": "old", "namespace": "default"}
            more = {"resourceVersion": "9", "continue": "more"}
            return web.json_response({"metadata": more, "items": [{"metadata": metadata}]})

        old.handler = pages
        kubeconfig.write("dev", dev={"server": old.url})
        informers = await contexts.informers(None)
        sets = informers.watch("/api/v1/pods", Selector())
        async with aclosing(sets), asyncio.timeout(10):
            assert [*(await anext(sets))] == ["new"]


async def test_an_edit_of_kubeconfig_is_noticed(kubeconfig: Kubeconfig, tmp_path: Path) -> None:
    async with cluster("old") as old, cluster("new") as new, contexts_of_a_run() as contexts:
        updates: asyncio.Queue[ContextUpdate] = asyncio.Queue()
        contexts.on_change = updates.put_nowait
        kubeconfig.write("dev", dev={"server": old.url})
        async with TaskGroup() as tasks:
            watching = tasks.create_task(contexts.watch(Mode.AUTO))
            assert await reached(contexts) == "old"
            kubeconfig.write("dev", dev={"server": new.url})
            await updates.get()
            assert await reached(contexts) == "new"
            # As kind and editors do: gone for a moment, then another file.
            kubeconfig.path.unlink()
            kubeconfig.path = tmp_path / "next"
            kubeconfig.write("dev", dev={"server": old.url})
            kubeconfig.path.rename(tmp_path / "config")
            await updates.get()
            assert await reached(contexts) == "old"
            watching.cancel()


async def test_files_of_kubeconfig_that_appear_later_count(
    kubeconfig: Kubeconfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Kubeconfig(tmp_path / "sub" / "first")
    monkeypatch.setenv("KUBECONFIG", f"{first.path}:{kubeconfig.path}")
    async with cluster("old") as old, cluster("new") as new, contexts_of_a_run() as contexts:
        updates: asyncio.Queue[ContextUpdate] = asyncio.Queue()
        contexts.on_change = updates.put_nowait
        kubeconfig.write("dev", dev={"server": old.url})
        async with TaskGroup() as tasks:
            watching = tasks.create_task(contexts.watch(Mode.AUTO))
            assert await reached(contexts) == "old"
            first.path.parent.mkdir()
            first.write(None, dev={"server": new.url})
            await updates.get()
            assert await reached(contexts) == "new"
            watching.cancel()


# -- shared --------------------------------------------------------------------------------------


class FakeApi:
    closed = 0

    @classmethod
    async def connect(cls, context: str | None, kubeconfig: str | None) -> Self:
        await asyncio.sleep(0)
        if context == "none":
            raise CredentialsError("no such context")
        return cls(context)

    def __init__(self, context: str | None) -> None:
        self.login = Login("https://h", "default", {}, context=context)

    async def aclose(self) -> None:
        FakeApi.closed += 1


async def test_each_client_is_made_once_and_closed_at_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Api, "connect", FakeApi.connect)
    monkeypatch.setattr(FakeApi, "closed", 0)
    contexts = Contexts()
    first, again, other = await asyncio.gather(*(contexts.api(c) for c in (None, None, "other")))
    assert first is again
    assert first is not other
    with pytest.raises(CredentialsError):
        await contexts.api("none")
    await contexts.close()
    await contexts.close()
    assert FakeApi.closed == 2


async def test_the_watches_of_a_context_are_shared_and_end_before_its_client(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(Api, "connect", FakeApi.connect)
    contexts = Contexts()
    first, again, other = [await contexts.informers(c) for c in (None, None, "other")]
    assert first is again
    assert first is not other
    closed = FakeApi.closed
    order: list[int] = []
    close = first.close

    async def note() -> None:
        order.append(FakeApi.closed - closed)
        await close()

    monkeypatch.setattr(first, "close", note)
    await contexts.close()
    assert order == [0]
    assert FakeApi.closed == closed + 2


async def test_a_pipe_is_read_once_and_not_opened_again(
    kubeconfig: Kubeconfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async with cluster("dev") as dev, contexts_of_a_run() as contexts:
        kubeconfig.write("dev", dev={"server": dev.url})
        content = await asyncio.to_thread(kubeconfig.path.read_bytes)
        reading, writing = os.pipe()
        os.write(writing, content)
        os.close(writing)
        monkeypatch.setenv("KUBECONFIG", f"/dev/fd/{reading}")
        try:
            assert await reached(contexts) == "dev"
            caplog.set_level("INFO", "krelay")
            async with TaskGroup() as tasks:
                watching = tasks.create_task(contexts.watch(Mode.AUTO))
                assert await contexts.reread() == []
                await asyncio.sleep(0.1)
                watching.cancel()
            assert await reached(contexts) == "dev"
            assert caplog.messages == []
        finally:
            os.close(reading)


# -- what waits for another kubeconfig -------------------------------------------------------------


@pytest.mark.parametrize("hangs", [False, True])
async def test_an_edit_that_waits_for_its_cluster_is_tried_again_at_once(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, hangs: bool
) -> None:
    monkeypatch.setattr(edits, "_RETRY_FIRST", 3600.0)
    start = FakeAgent.start
    tried = asyncio.Event()

    async def unreachable(agent: FakeAgent) -> None:
        tried.set()
        if hangs:
            await asyncio.get_running_loop().create_future()
        raise UnreachableError("cannot reach the API server")

    async with named(b"a") as port:
        line = f"one: ip/127.0.0.1 :{port}"
        async with world(monkeypatch, tmp_path, text(line)) as w:
            supervisor = w.supervisor
            monkeypatch.setattr(FakeAgent, "start", unreachable)
            await asyncio.to_thread(
                w.file.write_text, text(line).replace("sessions: 1", "sessions: 2")
            )
            request = await w.reloader.load("an edit")
            await tried.wait()
            if not hangs:
                await rig.until(lambda: request.failure)
            monkeypatch.setattr(FakeAgent, "start", start)
            state = ContextState("dev", "https://h:2", "default")
            supervisor._context_changed(ContextUpdate(frozenset(), state, ("server",), True))
            await rig.until(lambda: supervisor.out_of_sync is None)
            assert request.failure is None
            assert request.changes
            assert "context" in [event.kind for event in supervisor.bus.history]
