"""A trailing dot in the server's name, for requests and for tunnels."""

from __future__ import annotations

from pathlib import Path

from krelay.cluster.api import Api
from krelay.transport.connect import connect
from tests.cluster.auth.odd_kubeconfigs import CA, Odd, config
from tests.cluster.auth.recorder import Recorder, Seen


async def test_requests_and_tunnels_check_the_name_without_its_dot(tmp_path: Path) -> None:
    """Through a proxy, since the resolver here need not know such a name."""
    with Recorder().serve() as recorder:
        cluster = f"{CA}, proxy-url: 'http://127.0.0.1:@proxy@'"
        odd = Odd(config(server="https://kube.test.:@https@/x/", cluster=cluster))
        path = odd.lay_out(tmp_path, recorder.ports)["KUBECONFIG"]
        async with await Api.connect(kubeconfig=path) as api:
            await api.get("/version")
            stream = await connect(await api.access())
            stream.write(b"GET /tunnel HTTP/1.0\r\n\r\n")
            assert await stream.read_exactly(12) == b"HTTP/1.1 200"
            stream.abort()
    request, tunnel = recorder.seen
    assert request == Seen(
        host="kube.test",
        path="/x/version",
        sni="kube.test",
        authorization="Bearer t",
        via=("proxy",),
    )
    assert (tunnel.path, tunnel.sni) == ("/tunnel", "kube.test")
