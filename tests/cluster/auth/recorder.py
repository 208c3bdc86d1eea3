"""An API server on loopback, and proxies before it, that record what a client shows of itself."""

from __future__ import annotations

import base64
import contextlib
import http.server
import json
import select
import socket
import socketserver
import ssl
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast
from urllib.parse import unquote

PKI = Path(__file__).parents[1] / "pki"

VERSION = {
    "major": "1",
    "minor": "34",
    "gitVersion": "v1.34.0",
    "gitCommit": "0",
    "gitTreeState": "clean",
    "buildDate": "2025-01-01T00:00:00Z",
    "goVersion": "go1.25",
    "compiler": "gc",
    "platform": "linux/amd64",
}


@dataclass(frozen=True)
class Seen:
    """What one request showed: the defaults are what most kubeconfigs of the table lead to.

    `host` is the Host header without its port. `impersonate` are headers, as name and value.
    `via` are the proxies on the way, with their user and password. `exec_info` is the `spec` that a
    plugin was given, if it made its token of it.
    """

    scheme: str = "https"
    host: str = "127.0.0.1"
    path: str = "/version"
    sni: str = ""
    authorization: str = ""
    certificate: str = ""
    impersonate: tuple[tuple[str, str], ...] = ()
    via: tuple[str, ...] = ()
    exec_info: Any = None


class Recorder:
    """The servers: `ports` by name (`https`, `http`, `proxy`, `tlsproxy`, `socks`)."""

    def __init__(self) -> None:
        self.seen: list[Seen] = []
        self.via: list[str] = []
        self.ports: dict[str, int] = {}
        self.redirects: dict[str, str] = {}
        self._servers: list[socketserver.TCPServer] = []
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(PKI / "ca.pem"))
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
        context.load_cert_chain(PKI / "server.pem", PKI / "server-key.pem")
        context.verify_mode = ssl.CERT_OPTIONAL
        context.sni_callback = _keep_name
        self.context = context

    def clear(self) -> None:
        """Forget what was seen."""
        self.seen.clear()
        self.via.clear()
        self.redirects.clear()

    @contextlib.contextmanager
    def serve(self) -> Iterator[Recorder]:
        """Serve for the time of the block."""
        self._start("http", _Handler)
        self._start("https", _Handler, tls=True)
        self._start("proxy", _Handler)
        self._start("tlsproxy", _Handler, tls=True)
        self._start("socks", _Socks)
        if socket.has_ipv6:
            with contextlib.suppress(OSError):  # no ::1 on this machine
                self._start("https6", _Handler, tls=True, host="::1")
        try:
            yield self
        finally:
            for server in self._servers:
                server.shutdown()
                server.server_close()

    def _start(
        self,
        name: str,
        handler: type[socketserver.BaseRequestHandler],
        *,
        tls: bool = False,
        host: str = "127.0.0.1",
    ) -> None:
        server = (_Server6 if ":" in host else _Server)((host, 0), handler)
        server.recorder, server.name, server.tls = self, name, tls
        self._servers.append(server)
        self.ports[name] = server.server_address[1]
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    request_queue_size = 64
    recorder: Recorder
    name: str
    tls: bool

    def finish_request(self, request: Any, client_address: Any) -> None:
        """Speak TLS in the connection's own thread."""
        request.settimeout(20)
        if self.tls:
            try:
                request = self.recorder.context.wrap_socket(request, server_side=True)
            except OSError:
                return  # the client does not trust the certificate
        with contextlib.suppress(OSError), request:
            cast("Any", self.RequestHandlerClass)(request, client_address, self)


class _Server6(_Server):
    address_family = socket.AF_INET6


def _keep_name(sock: Any, name: str | None, context: ssl.SSLContext) -> None:
    sock.asked_name = name or ""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        """Record a request and answer with a version, or redirect as the test says."""
        recorder = self.server.recorder
        recorder.seen.append(self._read())
        location = recorder.redirects.get(self.path.partition("?")[0])
        body = json.dumps(VERSION).encode()
        self.send_response(302 if location else 200)
        if location:
            self.send_header("Location", location)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _read(self) -> Seen:
        path, via = self.path, tuple(self.server.recorder.via)
        if "://" in path:  # to a proxy
            via += (self._proxy(),)
            path = "/" + path.split("/", 3)[3]
        authorization = self.headers.get("Authorization", "")
        info = None
        if authorization.startswith("Bearer info."):
            info = json.loads(base64.b64decode(authorization.removeprefix("Bearer info.")))["spec"]
            authorization = "Bearer info"
        host = self.headers.get("Host", "")
        return Seen(
            scheme="https" if self.server.tls else "http",
            host=(host.rpartition(":")[0] if not host.endswith("]") else "") or host,
            path=path.partition("?")[0],
            sni=getattr(self.connection, "asked_name", ""),
            authorization=authorization,
            certificate=_name(self.connection),
            impersonate=tuple(
                sorted(
                    (unquote(name).lower(), value.encode("latin-1").decode())
                    for name, value in self.headers.items()
                    if name.lower().startswith("impersonate-")
                )
            ),
            via=via,
            exec_info=info,
        )

    def _proxy(self) -> str:
        user = self.headers.get("Proxy-Authorization", "").removeprefix("Basic ")
        return f"{self.server.name} {base64.b64decode(user).decode()}".strip()

    def do_CONNECT(self) -> None:
        """Record the way and relay to where the client wants."""
        self.server.recorder.via.append(self._proxy())
        port = int(self.path.rpartition(":")[2])
        self.send_response(200)
        self.end_headers()
        self.close_connection = True
        _relay(self.connection, port)

    def log_message(self, format: str, *args: object) -> None:
        """Log nothing."""


class _Socks(socketserver.BaseRequestHandler):
    server: _Server

    def handle(self) -> None:
        """Serve one SOCKS5 connection (RFC 1928, RFC 1929)."""
        sock = cast("socket.socket", self.request)
        file = sock.makefile("rb")

        def read(count: int) -> bytes:
            return file.read(count)

        user = ""
        offers = read(read(2)[1])
        sock.sendall(b"\5\2" if 2 in offers else b"\5\0")
        if 2 in offers:
            name = read(read(2)[1])
            user = f"{name.decode()}:{read(read(1)[0]).decode()}"
            sock.sendall(b"\1\0")
        kind = read(4)[3]
        read({1: 4, 4: 16}.get(kind) or read(1)[0])
        port = int.from_bytes(read(2), "big")
        sock.sendall(b"\5\0\0\1" + bytes(6))
        self.server.recorder.via.append(f"socks {user}".strip())
        _relay(sock, port)


def _relay(client: socket.socket, port: int) -> None:
    """Copy both ways until the target ends, in one thread: OpenSSL allows no two at once."""
    with socket.create_connection(("127.0.0.1", port)) as target:
        sinks = {client: target, target: client}
        while target in sinks:
            for source in _readable(sinks):
                try:
                    data = source.recv(1 << 16)
                    sinks[source].sendall(data)
                except OSError:
                    return
                if not data:
                    del sinks[source]
                    with contextlib.suppress(OSError):
                        target.shutdown(socket.SHUT_WR)


def _readable(sockets: Iterable[socket.socket]) -> list[socket.socket]:
    """Wait until some have data, which OpenSSL may hold already."""
    held: list[socket.socket] = [
        sock for sock in sockets if isinstance(sock, ssl.SSLSocket) and sock.pending()
    ]
    return held or select.select([*sockets], (), ())[0]


def _name(sock: socket.socket) -> str:
    found = sock.getpeercert() if isinstance(sock, ssl.SSLSocket) else None
    subject = cast("Any", found or {}).get("subject", ())
    return next((value for part in subject for key, value in part if key == "commonName"), "")
