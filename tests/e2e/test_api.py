"""krelay and a real API server: identities, errors and watches."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import uuid
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any, cast

import pytest

from krelay.cluster import reflector as watch_module
from krelay.cluster.api import Api, collection, object_path
from krelay.cluster.auth.credentials import Credentials
from krelay.cluster.auth.files import read_pem
from krelay.cluster.auth.kubeconfig import Login, Overrides, load
from krelay.cluster.reflector import list_and_watch
from krelay.errors import (
    AccessDeniedError,
    ClusterError,
    CredentialsError,
    NotFoundError,
    UnreachableError,
)
from tests.e2e import kit

pytestmark = pytest.mark.e2e

RBAC = "rbac.authorization.k8s.io/v1"

EXEC = "client.authentication.k8s.io/v1beta1"


@pytest.fixture
async def admin() -> AsyncIterator[Api]:
    """The administrator of $KUBECONFIG, by client certificate."""
    assert os.environ.get("KUBECONFIG"), "these tests want KUBECONFIG; see `make e2e`"
    async with await Api.connect() as api:
        yield api


@pytest.fixture
async def namespace(admin: Api) -> AsyncIterator[str]:
    name = f"api-{uuid.uuid4().hex[:8]}"
    await admin.create(collection("v1", "namespaces"), {"metadata": {"name": name}})
    yield name
    await admin.delete(object_path("v1", "namespaces", None, name))


Grant = Callable[..., Any]


@pytest.fixture
def grant(admin: Api, namespace: str) -> Grant:
    """`await grant(verb, …)`: a token of a new service account that may do that to configmaps."""

    async def make(*verbs: str) -> str:
        name = f"who-{uuid.uuid4().hex[:8]}"
        body = {"metadata": {"name": name}}
        await admin.create(collection("v1", "serviceaccounts", namespace), body)
        rules = [{"apiGroups": [""], "resources": ["configmaps"], "verbs": verbs}]
        await admin.create(collection(RBAC, "roles", namespace), {**body, "rules": rules})
        await admin.create(
            collection(RBAC, "rolebindings", namespace),
            {
                **body,
                "roleRef": {"apiGroup": RBAC[:-3], "kind": "Role", "name": name},
                "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
            },
        )
        await asyncio.to_thread(kit.wait_granted, kit.service_account(namespace, name))
        answer = await admin.create(
            object_path("v1", "serviceaccounts", namespace, name, "token"),
            {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest"},
        )
        return str(answer["status"]["token"])

    return make


@pytest.fixture
def login() -> Login:
    """What $KUBECONFIG says."""
    return load()


Kubeconfig = Callable[[Mapping[str, Any]], str]


@pytest.fixture
def kubeconfig(login: Login, tmp_path: Path) -> Kubeconfig:
    """Writes one for the cluster of $KUBECONFIG and another user."""

    def write(user: Mapping[str, Any]) -> str:
        path = tmp_path / "kubeconfig"
        body = {
            "current-context": "it",
            "clusters": [{"name": "c", "cluster": dict(login.cluster)}],
            "users": [{"name": "u", "user": user}],
            "contexts": [{"name": "it", "context": {"cluster": "c", "user": "u"}}],
        }
        path.write_text(json.dumps(body))
        return str(path)

    return write


def config_map(name: str, **labels: str) -> dict[str, Any]:
    return {"metadata": {"name": name, "labels": {"mine": "yes", **labels}}}


async def who(api: Api) -> dict[str, Any]:
    answer = await api.create(collection("authentication.k8s.io/v1", "selfsubjectreviews"), {})
    return dict(answer["status"]["userInfo"])


async def test_the_administrator(admin: Api) -> None:
    assert (await admin.get("/version"))["major"] == "1"
    assert "system:masters" in (await who(admin))["groups"]


async def test_a_token_and_its_rights(grant: Grant, namespace: str, kubeconfig: Kubeconfig) -> None:
    path = kubeconfig({"token": await grant("get", "list")})
    maps = collection("v1", "configmaps", namespace)
    async with await Api.connect(kubeconfig=path) as api:
        assert (await api.get(maps))["kind"] == "ConfigMapList"
        with pytest.raises(NotFoundError, match='^configmaps "none" not found$'):
            await api.get(object_path("v1", "configmaps", namespace, "none"))
        with pytest.raises(AccessDeniedError) as caught:
            await api.create(maps, config_map("a"))
        assert caught.value.message == f'cannot create configmaps in namespace "{namespace}"'
        account = (await who(api))["username"].removeprefix("system:serviceaccount:")
        hint = f"rolebinding krelay -n {namespace} --role=krelay --serviceaccount={account}"
        assert caught.value.hint is not None
        assert caught.value.hint.endswith(hint)
        with pytest.raises(AccessDeniedError, match="^cannot list nodes in the cluster$"):
            await api.get(collection("v1", "nodes"))
        jobs = collection("batch/v1", "jobs", namespace)
        with pytest.raises(AccessDeniedError, match=r"^cannot create jobs\.batch in namespace"):
            await api.create(jobs, {"metadata": {"generateName": "x-"}})


async def test_a_token_in_a_file_that_is_replaced(
    grant: Grant, namespace: str, kubeconfig: Kubeconfig, tmp_path: Path
) -> None:
    file = tmp_path / "token"
    file.write_text("out-of-date")
    path = kubeconfig({"tokenFile": "token"})
    async with await Api.connect(kubeconfig=path) as api:
        with pytest.raises(CredentialsError, match="rejects the credentials"):
            await api.get(collection("v1", "configmaps", namespace))
        file.write_text(await grant("list"))
        await api.get(collection("v1", "configmaps", namespace))


async def test_a_plugin_whose_token_the_server_refuses(
    grant: Grant, namespace: str, kubeconfig: Kubeconfig, tmp_path: Path
) -> None:
    script = tmp_path / "login"
    runs = tmp_path / "runs"
    version = "client.authentication.k8s.io/v1"
    answer = '{"apiVersion": "%s", "kind": "ExecCredential", "status": {"token": "%s"}}'
    script.write_text(
        f"#!/bin/sh\necho run >>{runs}\ntoken={await grant('list')}\n"
        f'test "$(wc -l <{runs})" = 1 && token=expired\n'
        f"printf '{answer}' {version} $token\n"
    )
    script.chmod(0o755)
    user = {"exec": {"apiVersion": version, "command": "./login", "interactiveMode": "Never"}}
    async with (
        await Api.connect(kubeconfig=kubeconfig(user)) as api,
        asyncio.TaskGroup() as group,
    ):
        for _ in range(5):
            group.create_task(api.get(collection("v1", "configmaps", namespace)))
    assert runs.read_text() == "run\nrun\n"


async def test_the_certificate_of_a_plugin(
    login: Login, kubeconfig: Kubeconfig, tmp_path: Path
) -> None:
    mine = login.user
    status = {
        "clientCertificateData": base64.b64decode(mine["client-certificate-data"]).decode(),
        "clientKeyData": base64.b64decode(mine["client-key-data"]).decode(),
    }
    script = tmp_path / "login"
    answer = json.dumps({"apiVersion": EXEC, "kind": "ExecCredential", "status": status})
    script.write_text(f"#!/bin/sh\ncat <<'END'\n{answer}\nEND\n")
    script.chmod(0o755)
    path = kubeconfig({"exec": {"apiVersion": EXEC, "command": str(script)}})
    async with await Api.connect(kubeconfig=path) as api:
        assert "system:masters" in (await who(api))["groups"]


async def test_inside_a_cluster(grant: Grant, login: Login, namespace: str, tmp_path: Path) -> None:
    """A pod's service account, as the kubelet lays it down."""
    (tmp_path / "token").write_text(await grant("list"))
    (tmp_path / "namespace").write_text(namespace)
    ca = await asyncio.to_thread(read_pem, login.cluster, "certificate-authority")
    assert ca is not None
    (tmp_path / "ca.crt").write_bytes(ca)
    host, _, port = login.server.rpartition("/")[2].rpartition(":")
    environ = {
        "HOME": str(tmp_path),
        "KUBERNETES_SERVICE_HOST": host.strip("[]"),
        "KUBERNETES_SERVICE_PORT": port,
    }
    credentials = Credentials(lambda: load(environ=environ, service_account=tmp_path))
    await credentials.open()
    async with Api(credentials) as api:
        assert api.namespace == namespace
        await api.get(collection("v1", "configmaps", api.namespace))


async def test_impersonation(login: Login, kubeconfig: Kubeconfig) -> None:
    user = {
        **login.user,
        "as": "jane",
        "as-uid": "7",
        "as-groups": ["red", "blue"],
        "as-user-extra": {"acme.com/team": ["x", "y"]},
    }
    async with await Api.connect(kubeconfig=kubeconfig(user)) as api:
        me = await who(api)
    assert (me["username"], me["uid"]) == ("jane", "7")
    assert me["groups"] == ["red", "blue", "system:authenticated"]
    assert me["extra"] == {"acme.com/team": ["x", "y"]}


async def test_a_quota_is_no_matter_of_rights(admin: Api, namespace: str) -> None:
    quota = {"metadata": {"name": "q"}, "spec": {"hard": {"count/configmaps": "0"}}}
    await admin.create(collection("v1", "resourcequotas", namespace), quota)
    maps = collection("v1", "configmaps", namespace)

    async def fill() -> None:
        while True:  # until admission has seen the quota
            await admin.create(maps, {"metadata": {"generateName": "a-"}})

    with pytest.raises(ClusterError, match="exceeded quota: q|status unknown for quota") as caught:
        await fill()
    assert not isinstance(caught.value, AccessDeniedError)


async def test_an_api_server_that_is_not_there(login: Login) -> None:
    overrides = Overrides(server=login.server.rpartition(":")[0] + ":1")
    async with await Api.connect(overrides=overrides) as api:
        with pytest.raises(UnreachableError, match="connection refused|no answer in time"):
            await api.get("/version")


def named(found: Mapping[str, dict[str, Any]]) -> dict[str, dict[str, str]]:
    """The labels of each but `mine`, by name: krelay reads no more of what it does not know."""
    every = [item["metadata"] for item in found.values()]
    return {
        metadata["name"]: {k: v for k, v in metadata["labels"].items() if k != "mine"}
        for metadata in every
    }


@contextlib.asynccontextmanager
async def following(api: Api, namespace: str) -> AsyncIterator[Any]:
    """The configmaps that are ours."""
    sets = list_and_watch(api, collection("v1", "configmaps", namespace), label_selector="mine=yes")
    async with contextlib.aclosing(cast(Any, sets)):
        yield sets


async def until(sets: Any, expected: dict[str, dict[str, str]]) -> None:
    async for found in sets:
        if named(found) == expected:
            return


async def test_a_watch(admin: Api, namespace: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watch_module, "PAGE", 2)
    maps = collection("v1", "configmaps", namespace)
    for number in range(5):
        await admin.create(maps, config_map(f"m{number}", n=str(number)))
    expected = {f"m{n}": {"n": str(n)} for n in range(5)}
    async with following(admin, namespace) as sets:
        assert named(await anext(sets)) == expected, "five objects in three pages"
        await admin.create(maps, config_map("new", a="1"))
        assert named(await anext(sets)) == expected | {"new": {"a": "1"}}
        await admin.delete(object_path("v1", "configmaps", namespace, "new"))
        assert named(await anext(sets)) == expected
        await admin.create(maps, config_map("new", a="2"))
        assert named(await anext(sets)) == expected | {"new": {"a": "2"}}


async def test_a_watch_goes_on_when_its_connection_breaks(
    admin: Api, login: Login, namespace: str
) -> None:
    maps = collection("v1", "configmaps", namespace)
    host, _, port = login.server.rpartition("/")[2].rpartition(":")
    open_writers: list[asyncio.StreamWriter] = []

    async def relay(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        other_reader, other_writer = await asyncio.open_connection(host.strip("[]"), int(port))
        open_writers.extend((writer, other_writer))

        async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(1 << 16):
                    sink.write(data)
            sink.close()

        async with asyncio.TaskGroup() as group:
            group.create_task(copy(reader, other_writer))
            group.create_task(copy(other_reader, writer))

    server = await asyncio.start_server(relay, "127.0.0.1", 0)
    here = f"https://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    overrides = Overrides(server=here, tls_server_name=host.strip("[]"))
    async with (
        server,
        await Api.connect(overrides=overrides) as api,
        following(api, namespace) as sets,
    ):
        await until(sets, {})
        expected = {}
        for number in range(3):
            for writer in open_writers:
                writer.transport.abort()
            await admin.create(maps, config_map(f"m{number}", n=str(number)))
            expected[f"m{number}"] = {"n": str(number)}
            await until(sets, expected)


async def test_a_watch_that_is_not_allowed(
    grant: Grant,
    admin: Api,
    namespace: str,
    kubeconfig: Kubeconfig,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The collection is listed again and again instead."""
    monkeypatch.setattr(watch_module, "POLL_EVERY", (0.2, 0.2))
    path = kubeconfig({"token": await grant("list")})
    maps = collection("v1", "configmaps", namespace)
    async with await Api.connect(kubeconfig=path) as api, following(api, namespace) as sets:
        assert named(await anext(sets)) == {}
        await admin.create(maps, config_map("late", a="1"))
        await until(sets, {"late": {"a": "1"}})
