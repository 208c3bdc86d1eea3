"""An API server on loopback with answers from the test, and kubeconfigs that lead to it."""

from __future__ import annotations

import json
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

PKI = Path(__file__).parent / "pki"
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Kube:
    """Records requests in `seen`; `handler` answers them."""

    def __init__(self, folder: Path, port: int, scheme: str) -> None:
        self.url = f"{scheme}://127.0.0.1:{port}"
        self.port = port
        self.seen: list[web.Request] = []
        self.certificates: list[object] = []
        self.handler: Handler = self.echo
        self._folder = folder

    async def echo(self, request: web.Request) -> web.StreamResponse:
        return web.json_response({"path": request.path_qs})

    async def answer(self, request: web.Request) -> web.StreamResponse:
        self.seen.append(request)
        assert request.transport is not None
        self.certificates.append(request.transport.get_extra_info("peercert"))
        return await self.handler(request)

    def script(self, *answers: tuple[int, Any] | tuple[int, Any, dict[str, str]]) -> None:
        """Answer in this order, then repeat the last: status, JSON or text, headers."""
        left = list(answers)

        async def handler(request: web.Request) -> web.StreamResponse:
            status, body, *more = left.pop(0) if len(left) > 1 else left[0]
            text = body if isinstance(body, str) else json.dumps(body)
            return web.Response(status=status, text=text, headers=more[0] if more else None)

        self.handler = handler

    def kubeconfig(self, user: dict[str, Any] | None = None, **cluster: Any) -> str:
        """Write a kubeconfig; return its path. `None` removes a key of the cluster."""
        body = {"server": self.url, "certificate-authority": str(PKI / "ca.pem"), **cluster}
        path = self._folder / "kubeconfig"
        write_kubeconfig(path, {k: v for k, v in body.items() if v is not None}, user or {})
        return str(path)


def write_kubeconfig(path: Path, cluster: dict[str, Any], user: dict[str, Any]) -> None:
    """Write one context, `here`, of namespace `team`."""
    path.write_text(
        json.dumps(
            {
                "current-context": "here",
                "clusters": [{"name": "c", "cluster": cluster}],
                "users": [{"name": "u", "user": user}],
                "contexts": [
                    {
                        "name": "here",
                        "context": {"cluster": "c", "user": "u", "namespace": "team"},
                    }
                ],
            }
        )
    )


async def _serve(folder: Path, context: ssl.SSLContext | None) -> AsyncIterator[Kube]:
    app = web.Application()
    runner = web.AppRunner(
        app, shutdown_timeout=0.1, handle_signals=False, handler_cancellation=True
    )
    kube = Kube(folder, 0, "https" if context else "http")
    app.router.add_route("*", "/{path:.*}", kube.answer)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, ssl_context=context)
    await site.start()
    kube.port = runner.addresses[0][1]
    kube.url = kube.url[:-1] + str(kube.port)
    try:
        yield kube
    finally:
        await runner.cleanup()


@pytest.fixture
async def kube(tmp_path: Path) -> AsyncIterator[Kube]:
    """The server under TLS; client certificates are optional."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(PKI / "ca.pem"))
    context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    context.load_cert_chain(PKI / "server.pem", PKI / "server-key.pem")
    context.verify_mode = ssl.CERT_OPTIONAL
    async for server in _serve(tmp_path, context):
        yield server


@pytest.fixture
async def plain_kube(tmp_path: Path) -> AsyncIterator[Kube]:
    """The server without TLS, as behind `kubectl proxy`."""
    async for server in _serve(tmp_path, None):
        yield server


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Hide the proxy, the kubeconfig and the cluster of the machine that runs the tests."""
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "NO_PROXY", "KUBECONFIG"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    monkeypatch.delenv("KUBERNETES_SERVICE_HOST", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def program(tmp_path: Path) -> Callable[[str, str], Path]:
    """Return a function that writes an executable script and returns its path."""

    def write(name: str, script: str) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return path

    return write


@pytest.fixture
def pki() -> Path:
    return PKI
