"""The pipe against a real API server, kubelet and runtime: a pod that echoes on its loopback."""

from __future__ import annotations

import asyncio
import hashlib
import os
import ssl
import uuid
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from krelay.cluster.api import Api, collection, object_path
from krelay.errors import AccessDeniedError, NotListeningError, PodGoneError, TunnelError
from krelay.model import Transport
from krelay.net.api_access import ApiAccess
from krelay.transport.pipe import Pipe
from krelay.transport.portforward import TransportPreference, open_portforward
from tests.e2e import kit

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(120)]

PORT = 9701
ECHO = f"""
import asyncio
async def serve(reader, writer):
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.close()
async def main():
    async with await asyncio.start_server(serve, "127.0.0.1", {PORT}) as server:
        await server.serve_forever()
asyncio.run(main())
"""
RBAC = "rbac.authorization.k8s.io/v1"


@pytest.fixture
async def admin() -> AsyncIterator[Api]:
    assert os.environ.get("KUBECONFIG"), "these tests want KUBECONFIG; see `make e2e`"
    async with await Api.connect() as api:
        yield api


@pytest.fixture
async def namespace(admin: Api) -> AsyncIterator[str]:
    name = f"transport-{uuid.uuid4().hex[:8]}"
    await admin.create(collection("v1", "namespaces"), {"metadata": {"name": name}})
    yield name
    await admin.delete(object_path("v1", "namespaces", None, name))


@pytest.fixture
async def pod(admin: Api, namespace: str) -> str:
    """Its name; it runs, and its program may not listen yet."""
    container = {
        "name": "echo",
        "image": "python:3.11-slim",
        "imagePullPolicy": "IfNotPresent",
        "command": ["python3", "-c", ECHO],
    }
    body = {
        "metadata": {"name": "echo"},
        "spec": {"containers": [container], "terminationGracePeriodSeconds": 0},
    }
    await admin.create(collection("v1", "pods", namespace), body)
    path = object_path("v1", "pods", namespace, "echo")
    async with asyncio.timeout(60):
        while (await admin.get(path))["status"]["phase"] != "Running":  # noqa: ASYNC110
            await asyncio.sleep(0.2)
    return "echo"


@pytest.fixture(params=[Transport.SPDY, Transport.WEBSOCKET], ids=str)
def way(request: pytest.FixtureRequest) -> Transport:
    found: Transport = request.param
    return found


class Echoed(asyncio.Protocol):
    """Counts and hashes what comes back."""

    def __init__(self) -> None:
        self.size = 0
        self.digest = hashlib.sha256()
        self.came = asyncio.Event()
        self.may_write = asyncio.Event()
        self.may_write.set()
        self.lost: asyncio.Future[Exception | None] = asyncio.get_running_loop().create_future()

    def data_received(self, data: bytes) -> None:
        self.size += len(data)
        self.digest.update(data)
        self.came.set()

    def pause_writing(self) -> None:
        self.may_write.clear()

    def resume_writing(self) -> None:
        self.may_write.set()

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost.set_result(exc)
        self.came.set()

    async def until(self, size: int) -> bool:
        """Whether that many bytes came before the end."""
        while self.size < size and not self.lost.done():
            self.came.clear()
            await self.came.wait()
        return self.size >= size


async def dial(
    access: ApiAccess, namespace: str, way: Transport, port: int = PORT, pod: str = "echo"
) -> tuple[Pipe, Echoed]:
    echoed = Echoed()
    pipe = await open_portforward(
        access,
        namespace=namespace,
        pod=pod,
        port=port,
        protocol=echoed,
        transport=way,
        preference=TransportPreference(),
    )
    return pipe, echoed


async def dial_echo(access: ApiAccess, namespace: str, way: Transport) -> tuple[Pipe, Echoed]:
    """As a tunnel does it: again while nothing listens. One byte has come back."""
    async with asyncio.timeout(30):
        while True:
            pipe, echoed = await dial(access, namespace, way)
            pipe.write(b"x")
            if await echoed.until(1):
                return pipe, echoed
            assert isinstance(await echoed.lost, NotListeningError)


async def test_64_mib_there_and_back(admin: Api, namespace: str, pod: str, way: Transport) -> None:
    pipe, echoed = await dial_echo(await admin.access(), namespace, way)
    block = os.urandom(1 << 20)
    sent = hashlib.sha256(b"x")
    pipe.set_write_buffer_limits(high=256 << 10)
    async with asyncio.timeout(60):
        for _ in range(64):
            await echoed.may_write.wait()
            pipe.write(block)
            sent.update(block)
        assert await echoed.until(1 + (64 << 20))
    assert echoed.digest.digest() == sent.digest()
    pipe.close()
    assert await echoed.lost is None


async def test_nothing_listens(admin: Api, namespace: str, pod: str, way: Transport) -> None:
    _, echoed = await dial(await admin.access(), namespace, way, port=1)
    assert isinstance(await echoed.lost, NotListeningError)


async def test_the_pod_goes(admin: Api, namespace: str, pod: str, way: Transport) -> None:
    access = await admin.access()
    _, echoed = await dial_echo(access, namespace, way)
    await admin.delete(object_path("v1", "pods", namespace, pod))
    async with asyncio.timeout(10):
        lost = await echoed.lost
    assert isinstance(lost, TunnelError)
    assert isinstance(await last_word(access, namespace, way), PodGoneError)


async def last_word(access: ApiAccess, namespace: str, way: Transport) -> Exception | None:
    """Dials a pod that goes until it is gone: first for the runtime, then for the API server."""
    async with asyncio.timeout(30):
        while True:
            try:
                _, echoed = await dial(access, namespace, way)
            except PodGoneError as exc:
                return exc
            lost = await echoed.lost
            if not isinstance(lost, NotListeningError):
                return lost


async def test_no_such_pod(admin: Api, namespace: str, way: Transport) -> None:
    with pytest.raises(PodGoneError, match='pods "none" not found'):
        await dial(await admin.access(), namespace, way, pod="none")


async def granted(admin: Api, namespace: str, *verbs: str) -> ApiAccess:
    """As a new service account that may do this to pods/portforward, and nothing else."""
    name = f"who-{uuid.uuid4().hex[:8]}"
    named: dict[str, Any] = {"metadata": {"name": name}}
    await admin.create(collection("v1", "serviceaccounts", namespace), named)
    rules = [{"apiGroups": [""], "resources": ["pods/portforward"], "verbs": verbs}]
    await admin.create(collection(RBAC, "roles", namespace), {**named, "rules": rules})
    binding = {
        **named,
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": name},
        "subjects": [{"kind": "ServiceAccount", "name": name, "namespace": namespace}],
    }
    await admin.create(collection(RBAC, "rolebindings", namespace), binding)
    await asyncio.to_thread(kit.wait_granted, kit.service_account(namespace, name))
    path = object_path("v1", "serviceaccounts", namespace, name, "token")
    token = (await admin.create(path, {"spec": {}}))["status"]["token"]
    access = await admin.access()
    return replace(
        access,
        ssl=_without_certificate(access),
        headers=(("Authorization", f"Bearer {token}"),),
    )


def _without_certificate(access: ApiAccess) -> ssl.SSLContext:
    """The same trust, nobody's certificate."""
    assert access.ssl is not None
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    for authority in access.ssl.get_ca_certs(binary_form=True):
        context.load_verify_locations(cadata=authority)
    return context


@pytest.mark.parametrize(
    ("verb", "allowed", "forbidden"),
    [
        ("create", Transport.SPDY, Transport.WEBSOCKET),
        ("get", Transport.WEBSOCKET, Transport.SPDY),
    ],
)
async def test_one_verb_is_enough(
    admin: Api, namespace: str, pod: str, verb: str, allowed: Transport, forbidden: Transport
) -> None:
    """Kubernetes 1.34; from 1.35 on the WebSocket needs both verbs."""
    access = await granted(admin, namespace, verb)
    for way in (allowed, Transport.AUTO):
        pipe, echoed = await dial_echo(access, namespace, way)
        pipe.abort()
        await echoed.lost
    other = "get" if verb == "create" else "create"
    with pytest.raises(
        AccessDeniedError, match=f'cannot {other} pods/portforward in namespace "{namespace}"'
    ):
        await dial(access, namespace, forbidden)


async def test_no_verb_at_all(admin: Api, namespace: str, pod: str) -> None:
    access = await granted(admin, namespace, "list")
    with pytest.raises(AccessDeniedError, match="cannot get or create pods/portforward"):
        await dial(access, namespace, Transport.AUTO)
