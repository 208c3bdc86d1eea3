"""HTTP: one request to an API server over aiohttp, and the words for what can go wrong with it.

aiohttp's own reading of the environment stays off: it would send a password of ~/.netrc to an
API server, and pick proxies by other rules than kubectl.
"""

from __future__ import annotations

import base64
import functools
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit, urlunsplit

import aiohttp
from aiohttp.abc import AbstractResolver
from aiohttp.client_proto import ResponseHandler

from krelay.errors import ClusterError, CredentialsError, UnreachableError
from krelay.net.api_access import ApiAccess
from krelay.net.dns import lookup
from krelay.net.error_body import words
from krelay.net.socks import SocksError, handshake

if TYPE_CHECKING:
    from aiohttp.abc import ResolveResult

CONNECT_DEADLINE = 5.0
MAX_BODY = 64 << 20
"""Bytes of a list: a page of 200 objects, each far larger than usual."""
MAX_ERROR = 64 << 10
"""Bytes of an error's body that are read; the rest is left unread."""
MAX_STATUS_LINE = 200
_KEEP_ALIVE = {"TCP_KEEPIDLE": 15, "TCP_KEEPALIVE": 15, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}
"""Seconds and probes; the second is the first's name on macOS. aiohttp sets SO_KEEPALIVE."""


def session(socks: str | None = None) -> aiohttp.ClientSession:
    """A session without a limit on connections (each watch holds one) and without cookies.

    `socks` is the URL of a SOCKS5 proxy, which aiohttp itself takes for an HTTP proxy.
    """
    return aiohttp.ClientSession(
        connector=(
            SocksConnector(socks) if socks else aiohttp.TCPConnector(limit=0, resolver=_Resolver())
        ),
        cookie_jar=aiohttp.DummyCookieJar(),
        # Nothing compressed is asked for; what comes so may be a bomb.
        auto_decompress=False,
        timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_DEADLINE),
    )


class _Resolver(AbstractResolver):
    """In the place of aiohttp's own, which fills asyncio's executor."""

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
        """It holds nothing."""


def socks_of(access: ApiAccess) -> str | None:
    """The access's proxy, if it is a SOCKS5 one."""
    return access.proxy if access.proxy and access.proxy.startswith("socks5:") else None


async def send(
    opened: aiohttp.ClientSession,
    access: ApiAccess,
    method: str,
    path: str,
    *,
    query: dict[str, str] | None = None,
    data: bytes | None = None,
) -> aiohttp.ClientResponse:
    """One request; the answer's head, whatever its status. The caller releases it."""
    headers = [*access.headers, ("Accept", "application/json"), ("Accept-Encoding", "identity")]
    if data is not None:
        headers.append(("Content-Type", "application/json"))
    proxy, password = (None, None) if socks_of(access) else proxy_of(access.proxy)
    return await opened.request(
        method,
        access.url + path,
        params=query,
        data=data,
        headers=headers,
        ssl=access.ssl if access.ssl is not None else True,
        server_hostname=access.server_hostname,
        proxy=proxy,
        proxy_headers=password,
        allow_redirects=False,
    )


def proxy_of(url: str | None) -> tuple[str | None, dict[str, str] | None]:
    """A proxy's URL without its password, which aiohttp would repeat in its errors; a header."""
    parts = urlsplit(url or "")
    if parts.username is None:
        return url, None
    name = basic_auth(unquote(parts.username), unquote(parts.password or ""))
    bare = parts._replace(netloc=parts.netloc.rpartition("@")[2])
    return urlunsplit(bare), {"Proxy-Authorization": name}


def basic_auth(name: str, password: str) -> str:
    """The header's value for a name and a password (RFC 7617)."""
    return "Basic " + base64.b64encode(f"{name}:{password}".encode()).decode()


def keep_alive(response: aiohttp.ClientResponse) -> None:
    """Lets the kernel find out within half a minute that the other end of a stream is gone."""
    transport = response.connection.transport if response.connection else None
    sock = transport.get_extra_info("socket") if transport else None
    for name, value in _KEEP_ALIVE.items():
        if sock is not None and hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


async def body(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """The whole body.

    Raises:
        ClusterError: it is longer than `limit` bytes.
    """
    kept = bytearray()
    async for chunk in response.content.iter_any():
        kept += chunk
        if len(kept) > limit:
            raise ClusterError(f"an answer of more than {limit} bytes from {response.host}")
    return bytes(kept)


async def start_of_body(response: aiohttp.ClientResponse, limit: int) -> bytes:
    """At most `limit` bytes of the body. If there are more, the connection is closed."""
    kept = bytearray()
    async for chunk in response.content.iter_any():
        kept += chunk
        if len(kept) > limit:
            response.close()
            break
    return bytes(kept[:limit])


@contextmanager
def translated(access: ApiAccess, where: str) -> Iterator[None]:
    """Turns aiohttp's errors into ours. `where` is for people: the context and the server."""
    try:
        yield
    except TimeoutError as exc:
        raise _unreachable(where, "no answer in time", access) from exc
    except (aiohttp.ClientError, OSError, ValueError) as exc:
        if untrusted := _cause(exc, ssl.SSLCertVerificationError):
            raise _untrusted(where, untrusted) from exc
        raise _unreachable(where, _reason(exc), access) from exc


def _cause(exc: BaseException, *kinds: type[BaseException]) -> BaseException | None:
    """The innermost of the exceptions that led to `exc` that is one of `kinds`."""
    found, at = None, exc
    while True:
        found = at if isinstance(at, kinds) else found
        if at.__cause__ is None:
            return found
        at = at.__cause__


def _reason(exc: Exception) -> str:
    if _cause(exc, ConnectionRefusedError):
        return "connection refused"
    if _cause(exc, socket.gaierror):
        return "no such host"
    if isinstance(exc, aiohttp.ClientResponseError):  # a proxy's
        return words(f"{exc.status} {exc.message}", MAX_STATUS_LINE)
    if isinstance(exc, aiohttp.ClientConnectorError):
        return exc.os_error.strerror or str(exc.os_error)
    if isinstance(exc, aiohttp.ClientPayloadError):
        return "its answer broke off"
    return words(str(exc), MAX_STATUS_LINE) or type(exc).__name__


def _unreachable(where: str, reason: str, access: ApiAccess) -> UnreachableError:
    # Without its password.
    through = f" through the proxy {urlsplit(access.proxy).hostname}" if access.proxy else ""
    return UnreachableError(
        f"cannot reach the API server ({where}){through}: {reason}",
        hint="is the cluster running, and this machine in its network (VPN)?",
    )


def _untrusted(where: str, error: BaseException) -> CredentialsError:
    why = getattr(error, "verify_message", "") or str(error)
    return CredentialsError(
        f"the API server's certificate is not trusted ({where}): {why}",
        hint="does certificate-authority (and tls-server-name) in kubeconfig fit this server?",
    )


@functools.cache
def _default_context() -> ssl.SSLContext:
    return ssl.create_default_context()


class SocksConnector(aiohttp.BaseConnector):
    """Opens every connection through the SOCKS5 proxy at `proxy`, a URL; without a limit."""

    def __init__(self, proxy: str) -> None:
        super().__init__(limit=0)
        self._proxy = proxy

    async def _create_connection(
        self, req: aiohttp.ClientRequest, traces: object, timeout: object
    ) -> ResponseHandler:
        """aiohttp's hook for its connectors; the deadline is `connect`'s, around this call."""
        host, port = req.url.raw_host or "", req.url.port or 443
        context: ssl.SSLContext | None = None
        if req.is_ssl():
            context = req.ssl if isinstance(req.ssl, ssl.SSLContext) else _default_context()
        sock = await self._dial()
        try:
            await self._ask(sock, host, port)
            _, protocol = await self._loop.create_connection(
                self._factory,
                sock=sock,
                ssl=context,
                server_hostname=(req.server_hostname or host) if context else None,
            )
        except BaseException:
            sock.close()
            raise
        return protocol

    async def _dial(self) -> socket.socket:
        parts = urlsplit(self._proxy)
        found = await lookup(parts.hostname or "")
        for left, (family, address) in enumerate(found, 1 - len(found)):
            sock = socket.socket(family, socket.SOCK_STREAM)
            sock.setblocking(False)
            try:
                await self._loop.sock_connect(sock, (address, parts.port or 1080))
            except BaseException as exc:
                sock.close()
                if left == 0 or not isinstance(exc, OSError):
                    raise
            else:
                return sock
        raise socket.gaierror(f"no address for {parts.hostname}")

    async def _ask(self, sock: socket.socket, host: str, port: int) -> None:
        steps = handshake(self._proxy, host, port)
        try:
            data, wanted = next(steps)
            while True:
                await self._loop.sock_sendall(sock, data)
                data, wanted = steps.send(await self._exactly(sock, wanted))
        except StopIteration:
            return
        except SocksError as exc:
            raise ConnectionError(f"the SOCKS5 proxy says: {exc}") from exc

    async def _exactly(self, sock: socket.socket, wanted: int) -> bytes:
        got = b""
        while len(got) < wanted:
            chunk = await self._loop.sock_recv(sock, wanted - len(got))
            if not chunk:
                raise SocksError("nothing: it closed the connection")
            got += chunk
        return got
