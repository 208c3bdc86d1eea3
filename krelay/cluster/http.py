"""HTTP: requests over aiohttp, also through a proxy, with errors that users understand.

aiohttp's own reading of the environment stays off: it would send a password of ~/.netrc to an
API server, and choose proxies by other rules than kubectl.
"""

from __future__ import annotations

import base64
import functools
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

import aiohttp
from aiohttp.abc import AbstractResolver
from aiohttp.client_proto import ResponseHandler

from krelay.errors import ClusterError, CredentialsError, UnreachableError
from krelay.net import tls_in_tls
from krelay.net.api_access import ApiAccess
from krelay.net.dial import dial, set_keep_alive
from krelay.net.dns import lookup
from krelay.net.error_body import words
from krelay.net.handshake_stream import HandshakeStream
from krelay.net.socks import ProxyError, socks_connect
from krelay.threads import in_thread

if TYPE_CHECKING:
    from aiohttp.abc import ResolveResult

CONNECT_DEADLINE = 5.0
MAX_BODY = 64 << 20  # bytes of a list: a page of 200 objects, each far larger than usual
MAX_REQUESTS = 10  # of one GET that is redirected
MAX_ERROR = 64 << 10  # bytes of an error's body that are read
_MAX_REASON = 200
_REDIRECTS = (301, 302, 303, 307, 308)


def session(socks: str | None = None) -> aiohttp.ClientSession:
    """Return a session without cookies and without a limit on connections (each watch holds one).

    `socks` is the URL of a SOCKS5 proxy.
    """
    tls_in_tls.mend()
    return aiohttp.ClientSession(
        connector=(
            _SocksConnector(socks) if socks else aiohttp.TCPConnector(limit=0, resolver=_Resolver())
        ),
        cookie_jar=aiohttp.DummyCookieJar(),
        # krelay asks for no compression; a compressed answer may be a bomb.
        auto_decompress=False,
        timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_DEADLINE),
    )


async def send(
    opened: aiohttp.ClientSession,
    access: ApiAccess,
    method: str,
    path: str,
    *,
    query: dict[str, str] | None = None,
    data: bytes | None = None,
) -> aiohttp.ClientResponse:
    """Send a request; return the head of the answer. The caller releases the response.

    A GET follows redirects as Go's client does. Another host than the first one gets neither the
    credentials nor the client certificate.

    Raises:
        ClusterError: too many redirects, or one that leads away from HTTPS.
    """
    headers = [*access.headers, ("Accept", "application/json"), ("Accept-Encoding", "identity")]
    if data is not None:
        headers.append(("Content-Type", "application/json"))
    proxy, proxy_headers = (None, None) if socks_proxy(access) else split_proxy(access.proxy)
    url, context = access.url + path, access.ssl
    for _ in range(MAX_REQUESTS):
        response = await opened.request(
            method,
            url,
            params=query,
            data=data,
            headers=headers,
            ssl=context if context is not None else True,
            server_hostname=access.server_hostname,
            proxy=proxy,
            proxy_headers=proxy_headers,
            allow_redirects=False,
        )
        location = response.headers.get("Location") if response.status in _REDIRECTS else None
        if method != "GET" or not location:
            return response
        response.release()
        url, query = _follow(url, location), None
        if urlsplit(url).hostname != urlsplit(access.url).hostname:
            headers = [pair for pair in headers if pair not in access.headers]
            if context is access.ssl and context is not None:
                context = await in_thread(partial(_without_certificate, context), UnreachableError)
    raise ClusterError(f"stopped after {MAX_REQUESTS} redirects")


def _follow(url: str, location: str) -> str:
    """Return where a redirect of `url` leads. Raises ClusterError."""
    try:
        found = urljoin(url, location)
        parts = urlsplit(found)
        scheme, host, _ = parts.scheme, parts.hostname or "", parts.port
        # What came without TLS may have been forged: it would not be the API server's answer.
        private = scheme == "https" or scheme == urlsplit(url).scheme == "http"
        if private and host and "@" not in parts.netloc:
            return found
        shown = f"to {scheme}://{words(host, _MAX_REASON)}"
    except ValueError:
        shown = "to no URL"
    raise ClusterError(f"the API server redirects {shown}, which krelay does not follow")


def _without_certificate(context: ssl.SSLContext) -> ssl.SSLContext:
    """Return a context that trusts the same authorities, and no more, and shows no client
    certificate. Blocks."""
    if context.cert_store_stats()["x509"]:
        other = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        # Empty if kubeconfig names no authority, but the certificate of the server itself.
        if authorities := b"".join(context.get_ca_certs(binary_form=True)):
            other.load_verify_locations(cadata=authorities)
    else:
        other = ssl.create_default_context()
    other.verify_flags = context.verify_flags
    other.check_hostname = context.check_hostname
    other.verify_mode = context.verify_mode
    other.set_alpn_protocols(["http/1.1"])
    return other


def socks_proxy(access: ApiAccess) -> str | None:
    """Return the URL of the proxy if it is a SOCKS5 one, which aiohttp takes for an HTTP proxy."""
    return access.proxy if access.proxy and access.proxy.startswith("socks5:") else None


def split_proxy(url: str | None) -> tuple[str | None, dict[str, str] | None]:
    """Return a proxy's URL without its password, which aiohttp's errors would repeat, and the
    header that carries the password."""
    parts = urlsplit(url or "")
    if parts.username is None:
        return url, None
    authorization = basic_auth(unquote(parts.username), unquote(parts.password or ""))
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2])
    return urlunsplit(bare), {"Proxy-Authorization": authorization}


def basic_auth(name: str, password: str) -> str:
    """Return the Authorization header for a name and a password (RFC 7617)."""
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


def keep_alive(response: aiohttp.ClientResponse) -> None:
    """Let the kernel detect a dead peer within half a minute; aiohttp sets SO_KEEPALIVE."""
    transport = response.connection.transport if response.connection else None
    if transport and (sock := transport.get_extra_info("socket")):
        set_keep_alive(sock, idle=15, interval=5)


async def read_body(
    response: aiohttp.ClientResponse, limit: int, *, truncate: bool = False
) -> bytes:
    """Return the body, or with `truncate` at most its first `limit` bytes.

    Raises:
        ClusterError: the body is longer than `limit` bytes.
    """
    kept = bytearray()
    async for chunk in response.content.iter_any():
        kept += chunk
        if len(kept) > limit:
            if not truncate:
                raise ClusterError(f"an answer of more than {limit} bytes from {response.host}")
            response.close()
            break
    return bytes(kept[:limit])


@contextmanager
def translated_errors(access: ApiAccess, where: str) -> Iterator[None]:
    """Translate aiohttp's errors into krelay's; `where` names context and server."""
    try:
        yield
    except (aiohttp.ClientError, OSError, ValueError) as exc:
        if untrusted := _cause(exc, ssl.SSLCertVerificationError):
            reason = getattr(untrusted, "verify_message", "") or str(untrusted)
            raise CredentialsError(
                f"the API server's certificate is not trusted ({where}): {reason}",
                hint="does certificate-authority (and tls-server-name) in kubeconfig fit this "
                "server?",
            ) from exc
        # Without the user and password that the URL may hold.
        proxy = urlsplit(access.proxy or "").netloc.rpartition("@")[2]
        through = f" through the proxy {proxy}" if proxy else ""
        raise UnreachableError(
            f"cannot reach the API server ({where}){through}: {_reason(exc)}",
            hint="is the cluster running, and this machine in its network (VPN)?",
        ) from exc


def is_wrong_signature(exc: CredentialsError) -> bool:
    """Return whether a certificate was not signed by the authority that OpenSSL chose by name."""
    untrusted = _cause(exc, ssl.SSLCertVerificationError)
    return getattr(untrusted, "verify_code", 0) == _CERT_SIGNATURE_FAILURE


_CERT_SIGNATURE_FAILURE = 7  # OpenSSL's X509_V_ERR_CERT_SIGNATURE_FAILURE


def _cause(exc: BaseException | None, kind: type[BaseException]) -> BaseException | None:
    """Return the innermost cause of `exc`, or itself, that is a `kind`."""
    found = None
    while exc is not None:
        found = exc if isinstance(exc, kind) else found
        exc = exc.__cause__
    return found


def _reason(exc: Exception) -> str:
    if isinstance(exc, TimeoutError):
        return "no answer in time"
    if _cause(exc, ConnectionRefusedError):
        return "connection refused"
    if _cause(exc, socket.gaierror):
        return "no such host"
    if isinstance(exc, aiohttp.ClientResponseError):  # from a proxy
        return words(f"{exc.status} {exc.message}", _MAX_REASON)
    if isinstance(exc, aiohttp.ClientConnectorError):
        return exc.os_error.strerror or str(exc.os_error)
    if isinstance(exc, aiohttp.ClientPayloadError):
        return "its answer was cut off"
    return words(str(exc), _MAX_REASON) or type(exc).__name__


class _Resolver(AbstractResolver):
    """Resolve names in krelay's own threads; aiohttp's resolver fills asyncio's executor."""

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_UNSPEC
    ) -> list[ResolveResult]:
        return [
            {
                "hostname": host,
                "host": address,
                "port": port,
                "family": found,
                "proto": socket.IPPROTO_TCP,
                "flags": socket.AI_NUMERICHOST | socket.AI_NUMERICSERV,
            }
            for found, address in await lookup(host)
            if family in (socket.AF_UNSPEC, found)
        ]

    async def close(self) -> None:
        """Do nothing: the resolver holds no resources."""


@functools.cache
def _default_context() -> ssl.SSLContext:
    return ssl.create_default_context()


class _SocksConnector(aiohttp.BaseConnector):
    """Open every connection through the SOCKS5 proxy at `proxy`, a URL; without a limit."""

    def __init__(self, proxy: str) -> None:
        super().__init__(limit=0)
        self._proxy = urlsplit(proxy)

    async def _create_connection(
        self, req: aiohttp.ClientRequest, traces: object, timeout: object
    ) -> ResponseHandler:
        """Open a connection (aiohttp's hook); aiohttp applies the connect deadline around it."""
        protocol = self._factory()
        proxy, host = self._proxy, req.url.raw_host or ""
        _, stream = await dial(HandshakeStream, proxy.hostname or "", proxy.port or 1080)
        try:
            await socks_connect(stream, proxy, host, req.url.port or 443)
            if req.is_ssl():
                context = req.ssl if isinstance(req.ssl, ssl.SSLContext) else _default_context()
                await stream.start_tls(context, req.server_hostname or host)
            rest = stream.hand_over(protocol)
        except BaseException as exc:
            stream.abort()
            if isinstance(exc, ProxyError | EOFError):
                said = exc if isinstance(exc, ProxyError) else f"nothing: {exc}"
                raise ConnectionError(f"the SOCKS5 proxy says: {said}") from exc
            raise
        protocol.connection_made(stream.transport)
        if rest:
            protocol.data_received(rest)
        return protocol
