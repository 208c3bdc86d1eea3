"""Redirects of GET requests, which go on as in Go's client."""

from __future__ import annotations

import ssl
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest

from krelay.cluster import http
from krelay.cluster.api import Api
from krelay.cluster.auth.identity import tls_context
from krelay.errors import ClusterError
from tests.cluster.auth.recorder import PKI, Recorder, Seen
from tests.cluster.conftest import write_kubeconfig

MINE = Seen(
    authorization="Bearer t", certificate="dev", impersonate=(("impersonate-user", "jane"),)
)


@pytest.fixture(scope="module")
def servers() -> Iterator[Recorder]:
    with Recorder().serve() as found:
        yield found


@pytest.fixture
async def api(servers: Recorder, tmp_path: Path) -> AsyncIterator[Api]:
    servers.clear()
    user = {
        "token": "t",
        "as": "jane",
        "client-certificate": str(PKI / "client.pem"),
        "client-key": str(PKI / "client-key.pem"),
    }
    cluster = {
        "server": f"https://127.0.0.1:{servers.ports['https']}",
        "certificate-authority": str(PKI / "ca.pem"),
    }
    write_kubeconfig(tmp_path / "kubeconfig", cluster, user)
    async with await Api.connect(kubeconfig=str(tmp_path / "kubeconfig")) as found:
        yield found


def shown(**changes: Any) -> Seen:
    return Seen(
        **{
            "authorization": MINE.authorization,
            "certificate": MINE.certificate,
            "impersonate": MINE.impersonate,
            **changes,
        }
    )


@pytest.mark.parametrize("location", ["/b", "b", "https://127.0.0.1:{https}/b", "/b?x=y"])
async def test_a_redirect_on_the_same_host_keeps_the_credentials(
    servers: Recorder, api: Api, location: str
) -> None:
    servers.redirects["/a"] = location.format(**servers.ports)
    assert (await api.get("/a", limit="5"))["major"] == "1"
    assert servers.seen == [shown(path="/a"), shown(path="/b")]


async def test_another_host_gets_no_credentials(servers: Recorder, api: Api) -> None:
    servers.redirects["/a"] = f"https://localhost:{servers.ports['https']}/b"
    servers.redirects["/b"] = f"https://127.0.0.1:{servers.ports['https']}/c"
    await api.get("/a")
    assert servers.seen == [
        shown(path="/a"),
        Seen(path="/b", host="localhost", sni="localhost"),
        Seen(path="/c"),
    ], "and none come back when the way does"


async def test_the_loop_does_not_wait_for_the_authorities_of_another_host(
    servers: Recorder, api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    make, threads = http._without_certificate, []

    def watched(context: ssl.SSLContext) -> ssl.SSLContext:
        threads.append(threading.current_thread())
        return make(context)

    monkeypatch.setattr(http, "_without_certificate", watched)
    servers.redirects["/a"] = f"https://localhost:{servers.ports['https']}/b"
    servers.redirects["/b"] = f"https://localhost:{servers.ports['https']}/c"
    await api.get("/a")
    (thread,) = threads
    assert thread is not threading.current_thread()


def test_another_host_is_not_trusted_more_than_the_first() -> None:
    itself = tls_context((PKI / "server.pem").read_bytes(), None, verify=True)
    assert not http._without_certificate(itself).cert_store_stats()["x509"]
    several = tls_context((PKI / "ca.pem").read_bytes(), None, verify=True)
    assert http._without_certificate(several).cert_store_stats()["x509"] == 1


async def test_a_watch_follows_redirects(servers: Recorder, api: Api) -> None:
    servers.redirects["/a"] = "/b"
    async with api.stream("/a") as lines:
        async for batch in lines:
            assert b"gitVersion" in batch[0]
    assert [seen.path for seen in servers.seen] == ["/a", "/b"]


async def test_redirects_end_after_ten_requests(servers: Recorder, api: Api) -> None:
    servers.redirects["/a"] = "/a"
    with pytest.raises(ClusterError, match="stopped after 10 redirects"):
        await api.get("/a")
    assert len(servers.seen) == 10


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.1:{http}/b",
        "ftp://x/",
        "https://me:hunter2@127.0.0.1:{https}/",
        "https://[x/",
    ],
)
async def test_a_redirect_that_leads_astray_is_an_error(
    servers: Recorder, api: Api, location: str
) -> None:
    servers.redirects["/a"] = location.format(**servers.ports)
    with pytest.raises(ClusterError, match="redirects .*which krelay does not follow") as caught:
        await api.get("/a")
    assert "hunter2" not in "".join(caught.value.report())
    assert len(servers.seen) == 1
