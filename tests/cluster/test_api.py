from __future__ import annotations

import asyncio
import contextlib
import gzip
import json
import logging
import shlex
import socket
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import ClientPayloadError, web

from krelay import __version__
from krelay.cluster import api as module
from krelay.cluster.api import Api, WatchHealth, collection, object_path
from krelay.cluster.auth.kubeconfig import Overrides
from krelay.cluster.http import translated_errors
from krelay.errors import (
    AccessDeniedError,
    ClusterError,
    CredentialsError,
    MalformedError,
    NotFoundError,
    UnreachableError,
)
from krelay.net.api_access import ApiAccess


@contextlib.asynccontextmanager
async def connected(path: str, **flags: Any) -> AsyncIterator[Api]:
    flags.setdefault("request_timeout", 8.0)
    async with await Api.connect(kubeconfig=path, overrides=Overrides(**flags)) as api:
        yield api


def test_collection_and_object_paths_are_quoted() -> None:
    assert collection("v1", "pods", "x") == "/api/v1/namespaces/x/pods"
    assert collection("v1", "pods") == "/api/v1/pods"
    assert collection("apps/v1", "deployments", "x") == "/apis/apps/v1/namespaces/x/deployments"
    assert object_path("v1", "pods", "x", "p", "log") == "/api/v1/namespaces/x/pods/p/log"
    assert object_path("v1", "pods", "a/b", "c?d") == "/api/v1/namespaces/a%2Fb/pods/c%3Fd"
    assert object_path("v1", "namespaces", None, "x") == "/api/v1/namespaces/x"


async def test_connect_sends_no_request(kube: Any) -> None:
    async with connected(kube.kubeconfig()) as api:
        assert api.namespace == "team"
        assert api.where == f"context here, {kube.url}"
    assert not kube.seen


async def test_connect_to_an_unknown_context_is_refused(kube: Any) -> None:
    with pytest.raises(CredentialsError, match='no context "there"'):
        await Api.connect(context="there", kubeconfig=kube.kubeconfig())


async def test_get_create_and_delete_send_their_requests(kube: Any) -> None:
    async with connected(kube.kubeconfig({"token": "t"})) as api:
        assert await api.get("/a", labelSelector="x=1,y in (a, b)", limit="5") == {
            "path": "/a?labelSelector=x%3D1,y+in+(a,+b)&limit=5"
        }
        bodies = []

        async def handler(request: web.Request) -> web.StreamResponse:
            bodies.append((request.method, request.path_qs, await request.text()))
            return web.json_response({"kind": "Status"})

        kube.handler = handler
        assert await api.create("/b", {"x": [1]}, fieldManager="k") == {"kind": "Status"}
        await api.delete("/c/d")
        await api.delete("/c/d", {"propagationPolicy": "Background"})
    assert [(m, p) for m, p, _ in bodies] == [
        ("POST", "/b?fieldManager=k"),
        ("DELETE", "/c/d"),
        ("DELETE", "/c/d"),
    ]
    assert [b and json.loads(b) for _, _, b in bodies] == [
        {"x": [1]},
        "",
        {"propagationPolicy": "Background"},
    ]
    headers = kube.seen[0].headers
    assert headers["Authorization"] == "Bearer t"
    assert headers["User-Agent"] == f"krelay/{__version__}"
    assert headers["Accept-Encoding"] == "identity"


async def test_repeated_headers_reach_the_server(kube: Any) -> None:
    async with connected(kube.kubeconfig({"as": "jane", "as-groups": ["a", "b"]})) as api:
        await api.get("/")
    assert kube.seen[0].headers.getall("Impersonate-Group") == ["a", "b"]


async def test_a_client_certificate_reaches_the_server(kube: Any, pki: Path) -> None:
    user = {
        "client-certificate": str(pki / "client.pem"),
        "client-key": str(pki / "client-key.pem"),
    }
    async with connected(kube.kubeconfig(user)) as api:
        await api.get("/")
    assert (("commonName", "dev"),) in kube.certificates[0]["subject"]


async def test_a_path_in_the_server_url_prefixes_requests(kube: Any) -> None:
    path = kube.kubeconfig(server=f"{kube.url}/k8s/clusters/c-1/")
    async with connected(path) as api:
        assert await api.get("/api") == {"path": "/k8s/clusters/c-1/api"}
        assert (await api.access()).url == f"{kube.url}/k8s/clusters/c-1"


async def test_a_server_without_tls_is_asked_in_plain_http(plain_kube: Any) -> None:
    path = plain_kube.kubeconfig(**{"certificate-authority": None})
    async with connected(path) as api:
        assert await api.get("/x") == {"path": "/x"}


async def test_tls_server_name_is_verified(kube: Any) -> None:
    async with connected(kube.kubeconfig(**{"tls-server-name": "kube.test"})) as api:
        await api.get("/")
    async with connected(kube.kubeconfig(**{"tls-server-name": "other.test"})) as api:
        with pytest.raises(CredentialsError, match=r"not trusted .*: Hostname mismatch") as caught:
            await api.get("/")
    assert caught.value.hint is not None
    assert "tls-server-name" in caught.value.hint


@pytest.mark.parametrize("ca", [None, "other-ca.pem"])
async def test_an_untrusted_certificate_is_a_credentials_error(
    kube: Any, pki: Path, ca: str | None
) -> None:
    path = kube.kubeconfig(**{"certificate-authority": str(pki / ca) if ca else None})
    async with connected(path) as api:
        with pytest.raises(CredentialsError, match="certificate is not trusted"):
            await api.get("/")
    assert not kube.seen
    path = kube.kubeconfig(**{"certificate-authority": None, "insecure-skip-tls-verify": True})
    async with connected(path) as api:
        await api.get("/")


async def test_a_refused_token_is_renewed_once(kube: Any, tmp_path: Path) -> None:
    file = tmp_path / "token"
    file.write_text("old")

    async def handler(request: web.Request) -> web.StreamResponse:
        if request.headers["Authorization"] == "Bearer new":
            return web.json_response({})
        file.write_text("new")
        return web.json_response({"message": "Unauthorized"}, status=401)

    kube.handler = handler
    async with connected(kube.kubeconfig({"tokenFile": str(file)})) as api:
        await api.get("/")
        await api.get("/")
    tokens = [request.headers["Authorization"] for request in kube.seen]
    assert tokens == ["Bearer old", "Bearer new", "Bearer new"]


async def test_a_token_refused_twice_is_a_credentials_error(kube: Any) -> None:
    kube.script((401, {"message": "Unauthorized"}))
    async with connected(kube.kubeconfig({"token": "t"})) as api:
        with pytest.raises(
            CredentialsError, match="rejects the credentials .*: Unauthorized"
        ) as caught:
            await api.create("/", {})
    assert caught.value.hint is not None
    assert len(kube.seen) == 2


EXEC = "client.authentication.k8s.io/v1beta1"


async def test_many_refused_at_once_run_a_plugin_once(
    kube: Any, program: Any, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    script = program(
        "login",
        f"echo run >>{runs}; n=$(wc -l <{runs})\n"
        f'echo \'{{"apiVersion": "{EXEC}", "kind": "ExecCredential",\'\n'
        'echo \'"status": {"token": "\'t$n\'"}}\'',
    )

    async def handler(request: web.Request) -> web.StreamResponse:
        known = request.headers["Authorization"] == "Bearer t2"
        return web.json_response({}, status=200 if known else 401)

    kube.handler = handler
    user = {"exec": {"command": str(script), "apiVersion": EXEC}}
    async with connected(kube.kubeconfig(user)) as api, asyncio.TaskGroup() as group:
        for _ in range(10):
            group.create_task(api.get("/"))
    assert runs.read_text() == "run\n" * 2


async def test_an_access_that_a_tunnel_rejects_is_renewed(
    kube: Any, program: Any, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    script = program(
        "login",
        f'echo run >>{runs}; echo \'{{"apiVersion": "{EXEC}", "kind": "ExecCredential",\'\n'
        'echo \'"status": {"token": "t"}}\'',
    )
    user = {"exec": {"command": str(script), "apiVersion": EXEC}}
    async with connected(kube.kubeconfig(user)) as api:
        access = await api.access()
        assert await api.access() is access
        api.reject(access)
        again = await api.access()
        assert again is not access
        assert again.ssl is access.ssl
    assert runs.read_text() == "run\n" * 2


FORBIDDEN = (
    'jobs.batch is forbidden: User "jane" cannot create resource "jobs" in API group "batch"'
    ' in the namespace "x"'
)


ACCOUNT = (
    'pods "p" is forbidden: User "system:serviceaccount:a:b" cannot get resource'
    ' "pods/portforward" in API group "" in the namespace "x": no such binding'
)
CLUSTER = (
    'nodes is forbidden: User "jane" cannot list resource "nodes" in API group "" at the'
    " cluster scope"
)


@pytest.mark.parametrize(
    ("message", "expected", "needs", "role", "binding"),
    [
        (
            FORBIDDEN,
            'cannot create jobs.batch in namespace "x"',
            "jane needs a Role",
            "role krelay -n x --verb=create --resource=jobs.batch",
            "rolebinding krelay -n x --role=krelay --user=jane",
        ),
        (
            ACCOUNT,
            'cannot get pods/portforward in namespace "x"',
            "system:serviceaccount:a:b needs a Role",
            "role krelay -n x --verb=get --resource=pods/portforward",
            "rolebinding krelay -n x --role=krelay --serviceaccount=a:b",
        ),
        (
            CLUSTER,
            "cannot list nodes in the cluster",
            "jane needs a ClusterRole",
            "clusterrole krelay --verb=list --resource=nodes",
            "clusterrolebinding krelay --clusterrole=krelay --user=jane",
        ),
    ],
)
async def test_a_missing_right_is_an_error_with_the_commands_that_grant_it(
    kube: Any, message: str, expected: str, needs: str, role: str, binding: str
) -> None:
    kube.script((403, {"kind": "Status", "reason": "Forbidden", "message": message}))
    async with connected(kube.kubeconfig()) as api:
        with pytest.raises(AccessDeniedError) as caught:
            await api.get("/")
    assert caught.value.message == expected
    hint = f"{needs} that allows it: kubectl create {role} && kubectl create {binding}"
    assert caught.value.hint == hint
    assert caught.value.exit_code == 4


@pytest.mark.parametrize(
    ("status", "body", "kind", "message"),
    [
        (403, {"message": 'pods "p" is forbidden: exceeded quota: q'}, ClusterError, "quota: q"),
        (403, "", AccessDeniedError, "access denied .*: Forbidden"),
        (403, {"message": 'User "j" cannot get path "/x"'}, AccessDeniedError, "cannot get path"),
        (404, {"message": 'pods "p" not found'}, NotFoundError, '^pods "p" not found$'),
        (404, "404 page not found", NotFoundError, "page not found"),
        (409, {"message": "exists"}, ClusterError, "refused: exists"),
        (422, {"message": "a\n\n  b"}, ClusterError, "refused: a b"),
        (418, "", ClusterError, "refused: 418"),
        (502, "<html><h1>Bad\nGateway</h1></html>", UnreachableError, "502 Bad Gateway"),
        (200, "<html>", MalformedError, "not a JSON object"),
        (200, "[]", MalformedError, "not a JSON object"),
    ],
)
async def test_an_error_status_becomes_an_error_of_its_kind(
    kube: Any, status: int, body: Any, kind: type[ClusterError], message: str
) -> None:
    kube.script((status, body, {"Retry-After": "9"} if status == 502 else {"Location": "/x"}))
    async with connected(kube.kubeconfig()) as api:
        with pytest.raises(ClusterError, match=message) as caught:
            await api.get("/")
    assert type(caught.value) is kind
    assert len(kube.seen) == 1, "no redirect is followed, no wait is longer than the deadline"


BUSY = {"Retry-After": "0"}


async def test_a_busy_server_is_asked_again(kube: Any) -> None:
    async with connected(kube.kubeconfig()) as api:
        kube.script((429, {}, BUSY), (503, {}, BUSY), (500, {}, BUSY), (200, {"a": 1}))
        assert await api.get("/") == {"a": 1}
        assert len(kube.seen) == 4
        kube.script((429, {}, BUSY), (200, {"b": 1}))
        assert await api.create("/", {}) == {"b": 1}
        assert len(kube.seen) == 6
        kube.script((503, {"message": "starting"}, BUSY))
        with pytest.raises(UnreachableError, match="503 starting"):
            await api.get("/")
        assert len(kube.seen) == 10, "a few times, not for ever"
        with pytest.raises(UnreachableError):
            await api.create("/", {})
        assert len(kube.seen) == 11, "what may have been done is not done twice"


async def test_a_retry_without_retry_after_backs_off(
    kube: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("krelay.cluster.api.random.uniform", lambda low, high: 0.0)
    kube.script((500, {}), (503, {}, {"Retry-After": "soon"}), (200, {}))
    async with connected(kube.kubeconfig()) as api:
        await api.get("/")
    assert len(kube.seen) == 3


async def test_a_silent_server_is_unreachable_at_the_deadline(kube: Any) -> None:
    released = asyncio.Event()

    async def silent(request: web.Request) -> web.StreamResponse:
        await released.wait()
        return web.Response()

    kube.handler = silent
    async with connected(kube.kubeconfig(), request_timeout=0.2) as api:
        with pytest.raises(UnreachableError, match="no answer in time"):
            await api.get("/")
    released.set()


def test_an_answer_that_breaks_off_is_an_unreachable_error() -> None:
    """aiohttp puts the representation of an exception there."""
    broken = ClientPayloadError("Response payload is not completed: <Error: 400, ...>")
    with pytest.raises(
        UnreachableError, match=r"cannot reach the API server \(here\): its answer was cut off"
    ):
        with translated_errors(ApiAccess("https://here", None, None, ()), "here"):
            raise broken


async def test_a_closed_port_is_connection_refused(kube: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    async with connected(kube.kubeconfig(server=f"https://127.0.0.1:{port}")) as api:
        with pytest.raises(UnreachableError) as caught:
            await api.get("/")
    assert caught.value.message == (
        f"cannot reach the API server (context here, https://127.0.0.1:{port}): connection refused"
    )
    assert caught.value.hint is not None


async def test_a_server_that_speaks_no_tls_is_unreachable(plain_kube: Any, kube: Any) -> None:
    async with connected(kube.kubeconfig(server=f"https://127.0.0.1:{plain_kube.port}")) as api:
        with pytest.raises(UnreachableError, match="cannot reach"):
            await api.get("/")


async def test_an_unknown_host_name_is_unreachable(
    kube: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_such(*args: object, **kwargs: object) -> object:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", no_such)
    async with connected(kube.kubeconfig(server="https://kube.test:6443")) as api:
        with pytest.raises(UnreachableError, match="no such host"):
            await api.get("/")


async def test_an_endless_answer_is_cut_off_with_an_error(
    kube: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("krelay.cluster.http.MAX_BODY", 1000)
    kube.script((200, "x" * 5000))
    async with connected(kube.kubeconfig()) as api:
        with pytest.raises(ClusterError, match="more than 1000 bytes"):
            await api.get("/")


async def test_passwords_of_netrc_are_not_sent(
    kube: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login me password secret\n")
    netrc.chmod(0o600)
    monkeypatch.setenv("NETRC", str(netrc))
    async with connected(kube.kubeconfig()) as api:
        await api.get("/")
    assert "Authorization" not in kube.seen[0].headers


def body_of(*chunks: bytes) -> Any:
    """Return a handler that streams the chunks one by one."""

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        for chunk in chunks:
            await response.write(chunk)
        return response

    return handler


async def test_a_stream_yields_its_lines_in_batches(kube: Any) -> None:
    kube.handler = body_of(b"on", b"e\ntwo\n\nth", b"ree\nlast")
    async with connected(kube.kubeconfig()) as api, api.stream("/log", follow="true") as batches:
        lines = [line async for batch in batches for line in batch]
    assert lines == [b"one", b"two", b"", b"three", b"last"]
    assert kube.seen[0].query_string == "follow=true"


async def test_an_endless_line_is_an_error(kube: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MAX_LINE", 1000)
    kube.handler = body_of(*[b"x" * 400] * 4)
    async with connected(kube.kubeconfig()) as api:
        with pytest.raises(ClusterError, match="a line of more than 1000 bytes"):
            async with api.stream("/") as batches:
                await anext(aiter(batches))


@pytest.mark.parametrize("deadline", ["silence", "total"])
async def test_a_silent_stream_ends_at_its_deadline(kube: Any, deadline: str) -> None:
    released = asyncio.Event()

    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"one\n")
        await released.wait()
        return response

    kube.handler = handler
    async with connected(kube.kubeconfig()) as api:
        limit: dict[str, Any] = {deadline: 0.2}
        async with api.stream("/", **limit) as batches:
            assert await anext(batches) == [b"one"]
            with pytest.raises(StopAsyncIteration):
                await anext(batches)
        released.set()


async def test_a_broken_stream_is_unreachable(kube: Any) -> None:
    async def handler(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        response.content_length = 100
        await response.prepare(request)
        await response.write(b"one\n")
        assert request.transport is not None
        request.transport.abort()
        return response

    kube.handler = handler
    async with connected(kube.kubeconfig()) as api, api.stream("/") as batches:
        assert await anext(batches) == [b"one"]
        with pytest.raises(UnreachableError):
            await anext(batches)


async def test_a_refused_stream_is_an_error_of_its_status(kube: Any) -> None:
    kube.script((403, {"message": FORBIDDEN}))
    async with connected(kube.kubeconfig()) as api:
        with pytest.raises(AccessDeniedError):
            async with api.stream("/"):
                pass
        kube.script((401, {}))
        with pytest.raises(CredentialsError):
            async with api.stream("/"):
                pass


class Proxy:
    """An HTTP or a SOCKS5 proxy on loopback that records its requests."""

    def __init__(self, answer: bytes = b"HTTP/1.1 200 OK\r\n\r\n") -> None:
        self.asked: list[bytes] = []
        self.answer = answer
        self.port = 0

    async def http(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.asked.append(await reader.readuntil(b"\r\n\r\n"))
        host, port = self.asked[-1].split()[1].decode().split(":")
        writer.write(self.answer)
        await self._relay(reader, writer, int(port))

    async def socks(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        count = (await reader.readexactly(2))[1]
        offers = await reader.readexactly(count)
        writer.write(b"\5\2" if 2 in offers else b"\5\0")
        if 2 in offers:
            self.asked.append(await reader.readexactly(9))
            writer.write(b"\1\0")
        head = await reader.readexactly(4)
        host = await reader.readexactly(4 if head[3] == 1 else (await reader.readexactly(1))[0])
        self.asked.append(host)
        port = int.from_bytes(await reader.readexactly(2), "big")
        if self.answer == b"no":
            writer.write(b"\5\5\0\1" + bytes(6))
            writer.close()
        elif self.answer == b"close":
            writer.close()
        else:
            writer.write(b"\5\0\0\1" + bytes(6))
            await self._relay(reader, writer, port)

    async def _relay(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, port: int
    ) -> None:
        other_reader, other_writer = await asyncio.open_connection("127.0.0.1", port)

        async def copy(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(1 << 16):
                    sink.write(data)
                    await sink.drain()
            sink.close()

        async with asyncio.TaskGroup() as group:
            group.create_task(copy(reader, other_writer))
            group.create_task(copy(other_reader, writer))


@contextlib.asynccontextmanager
async def proxied(proxy: Proxy, kind: str) -> AsyncIterator[None]:
    finished: list[asyncio.Task[None]] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        finished.append(task)
        await getattr(proxy, kind)(reader, writer)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    proxy.port = server.sockets[0].getsockname()[1]
    async with server:
        yield
    await asyncio.gather(*finished)


async def test_a_request_passes_an_http_proxy(kube: Any) -> None:
    proxy = Proxy()
    async with proxied(proxy, "http"):
        url = f"http://me:p%40ss@127.0.0.1:{proxy.port}"
        path = kube.kubeconfig(server=f"https://kube.test:{kube.port}", **{"proxy-url": url})
        async with connected(path) as api:
            assert await api.get("/x") == {"path": "/x"}
            await api.get("/x")
    assert len(proxy.asked) == 1
    assert proxy.asked[0].startswith(f"CONNECT kube.test:{kube.port} ".encode())
    assert b"\r\nProxy-Authorization: Basic bWU6cEBzcw==\r\n" in proxy.asked[0]


async def test_a_request_passes_the_proxy_of_the_environment(
    kube: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    proxy = Proxy()
    async with proxied(proxy, "http"):
        monkeypatch.setenv("HTTPS_PROXY", f"127.0.0.1:{proxy.port}")
        async with connected(kube.kubeconfig(server=f"https://kube.test:{kube.port}")) as api:
            await api.get("/x")
    assert len(proxy.asked) == 1


@pytest.mark.parametrize("user", ["", "me:pass@"])
async def test_a_request_passes_a_socks_proxy_that_resolves_names(kube: Any, user: str) -> None:
    proxy = Proxy()
    async with proxied(proxy, "socks"):
        path = kube.kubeconfig(
            server=f"https://kube.test:{kube.port}",
            **{"proxy-url": f"socks5://{user}127.0.0.1:{proxy.port}"},
        )
        async with connected(path) as api:
            assert await api.get("/x") == {"path": "/x"}
            await api.get("/x")
    assert proxy.asked == ([b"\1\2me\4pass"] if user else []) + [b"kube.test"]


@pytest.mark.parametrize(
    ("answer", "message"),
    [(b"no", "says: connection refused"), (b"close", "says: nothing: it closed the connection")],
)
async def test_a_socks_proxy_that_refuses_is_an_unreachable_error(
    kube: Any, answer: bytes, message: str
) -> None:
    proxy = Proxy(answer)
    async with proxied(proxy, "socks"):
        path = kube.kubeconfig(**{"proxy-url": f"socks5://127.0.0.1:{proxy.port}"})
        async with connected(path) as api:
            with pytest.raises(UnreachableError, match=f"through the proxy .*{message}"):
                await api.get("/x")


async def test_a_certificate_is_verified_through_a_socks_proxy(kube: Any, pki: Path) -> None:
    """The proxy does not stand in for the server."""
    proxy = Proxy()
    async with proxied(proxy, "socks"):
        path = kube.kubeconfig(
            **{
                "proxy-url": f"socks5://127.0.0.1:{proxy.port}",
                "certificate-authority": str(pki / "other-ca.pem"),
            }
        )
        async with connected(path) as api:
            with pytest.raises(CredentialsError, match="certificate is not trusted"):
                await api.get("/x")
    assert not kube.seen


async def test_a_proxy_that_refuses_is_an_error_without_the_password(
    kube: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    proxy = Proxy(b"HTTP/1.1 407 Proxy Authentication Required\r\nContent-Length: 0\r\n\r\n")
    async with proxied(proxy, "http"):
        path = kube.kubeconfig(**{"proxy-url": f"http://me:secret@127.0.0.1:{proxy.port}"})
        async with connected(path) as api:
            shown = f"through the proxy 127.0.0.1:{proxy.port}: "
            with pytest.raises(UnreachableError, match=shown) as caught:
                await api.get("/x")
    assert "secret" not in str(caught.value) + caplog.text


async def test_a_missing_socks_proxy_is_connection_refused(kube: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    path = kube.kubeconfig(**{"proxy-url": f"socks5://127.0.0.1:{port}"})
    async with connected(path) as api:
        with pytest.raises(UnreachableError, match="through the proxy .*: connection refused"):
            await api.get("/x")


@pytest.mark.parametrize("text", ["<" * (160 << 10), "[" * (160 << 10), "a" * (8 << 20)])
async def test_only_the_start_of_an_error_is_read(kube: Any, text: str) -> None:
    kube.script((418, text))
    async with connected(kube.kubeconfig()) as api:
        with pytest.raises(ClusterError, match="the API server refused") as caught:
            await api.get("/")
    assert len(str(caught.value)) < 600


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, '{"a":NaN}', '{"a":1,"a":2}'])
async def test_hostile_json_is_an_error_in_words(kube: Any, text: str) -> None:
    kube.script((200, text))
    async with connected(kube.kubeconfig()) as api:
        with pytest.raises(MalformedError, match="the answer is not a JSON object"):
            await api.get("/")


async def test_a_compressed_answer_is_not_unpacked(kube: Any) -> None:
    async def bomb(request: web.Request) -> web.StreamResponse:
        body = gzip.compress(b'{"a":"' + b"x" * (8 << 20) + b'"}')
        return web.Response(body=body, headers={"Content-Encoding": "gzip"})

    kube.handler = bomb
    async with connected(kube.kubeconfig()) as api:
        with pytest.raises(MalformedError, match="the answer is not a JSON object"):
            await api.get("/")


async def test_each_word_of_a_hint_is_one_word_for_a_shell(kube: Any) -> None:
    words = {"user": "u; rm -rf / #", "verb": "$(id)", "resource": "`id`", "group": "a|b"}
    namespace = "x' && y"
    message = (
        f'User "{words["user"]}" cannot {words["verb"]} resource "{words["resource"]}"'
        f' in API group "{words["group"]}" in the namespace "{namespace}"'
    )
    kube.script((403, {"message": message}))
    async with connected(kube.kubeconfig()) as api:
        with pytest.raises(AccessDeniedError) as caught:
            await api.get("/")
    line = str(caught.value.hint).partition("allows it: ")[2]
    what = "`id`.a|b"
    role = ["-n", namespace, "--verb=$(id)", f"--resource={what}"]
    assert shlex.split(line) == [
        *("kubectl", "create", "role", "krelay", *role, "&&"),
        *("kubectl", "create", "rolebinding", "krelay", "-n", namespace),
        *("--role=krelay", f"--user={words['user']}"),
    ]


def test_a_server_lost_by_many_watches_is_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "krelay.cluster")
    health = WatchHealth()
    with contextlib.ExitStack() as stack:
        watches = [stack.enter_context(health.watch(f"/{n}")) for n in range(5)]
        for _ in range(2):
            for _ in range(3):
                for watch in watches:
                    watch.failed(UnreachableError("connection refused"))
            for watch in watches:
                watch.recovered()
                watch.recovered()
    assert (
        caplog.messages
        == [
            "lost contact with the API server, keeping the last known state: connection refused",
            "regained contact with the API server",
        ]
        * 2
    )


def test_a_first_contact_that_fails_loses_nothing(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "krelay.cluster")
    health = WatchHealth()
    with health.watch("/a") as watch:
        watch.failed(UnreachableError("connection refused"), first=True)
    assert [(record.levelname, record.message) for record in caplog.records] == [
        ("INFO", "no contact with the API server yet: connection refused")
    ]


def test_a_right_is_lost_by_each_collection(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "krelay.cluster")
    health = WatchHealth()
    with health.watch("/a") as first, health.watch("/b") as second:
        first.failed(AccessDeniedError("no"))
        second.failed(AccessDeniedError("no"))
        second.recovered()
    assert caplog.messages == [
        "lost contact with /a, keeping the last known state: no",
        "lost contact with /b, keeping the last known state: no",
        "regained contact with /b",
    ]


def test_a_watch_that_ends_while_it_fails_is_forgotten(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "krelay.cluster")
    health, error = WatchHealth(), UnreachableError("connection refused")
    with health.watch("/a") as first:
        first.failed(error)
        with health.watch("/b") as second:
            second.failed(error)
        first.recovered()
    with health.watch("/c") as third:
        third.failed(error)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO", "WARNING"]
