"""Connect: dial TCP, and from an ApiAccess pass the proxy and TLS on the way to an API server."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
from base64 import b64encode
from collections.abc import Iterator
from urllib.parse import SplitResult, unquote, urlsplit

from krelay.errors import (
    ClusterError,
    CredentialsError,
    NotListeningError,
    TunnelError,
    UnreachableError,
)
from krelay.net.api_access import ApiAccess, is_loopback
from krelay.net.dial import dial
from krelay.net.handshake_stream import HandshakeStream
from krelay.net.socks import ProxyError, socks_connect
from krelay.threads import in_thread
from krelay.transport.http import Exchange

REDIAL_EVERY = 1.0
"""Seconds after which a connection without an answer is dialled once more, beside the first.

TCP itself repeats its SYN after 1, 3 and 7 seconds, while the network may long be back.
"""

_PORTS = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}


async def connect(access: ApiAccess) -> HandshakeStream:
    """Open a connection to `access.url`. The caller sets the deadline and aborts the stream.

    Raises:
        UnreachableError: no connection to the server or to its proxy.
        CredentialsError: a certificate is not trusted, or the way is not private.
        ClusterError: TLS failed in another way.
    """
    server = urlsplit(access.url)
    host, port = host_and_port(server)
    if access.proxy is not None:
        stream = await _connect_by_proxy(urlsplit(access.proxy), access, host, port)
    else:
        with connect_errors(access):
            _, stream = await dial(HandshakeStream, host, port, redial_every=REDIAL_EVERY)
    try:
        if server.scheme != "https":
            # Where the connection ended: `localhost` is whatever a resolver makes of it.
            peer = stream.transport.get_extra_info("peername")
            if access.private and not (peer and is_loopback(str(peer[0]))):
                raise CredentialsError(f"the API server {access.url} is not on this machine")
            return stream
        with connect_errors(access):
            await stream.start_tls(await _ssl_context(access), access.server_hostname or host)
    except BaseException:
        stream.abort()
        raise
    return stream


async def _connect_by_proxy(
    proxy: SplitResult, access: ApiAccess, host: str, port: int
) -> HandshakeStream:
    """The TLS of a proxy is checked like the server's, as client-go and aiohttp do it."""
    # Without the user and password that the URL may hold.
    with connect_errors(access, f"the proxy {proxy.scheme}://{proxy.netloc.rpartition('@')[2]}"):
        _, stream = await dial(HandshakeStream, *host_and_port(proxy), redial_every=REDIAL_EVERY)
        try:
            if proxy.scheme == "https":
                await stream.start_tls(await _ssl_context(access), proxy.hostname or "")
            if proxy.scheme in ("http", "https"):
                await http_connect(stream, proxy, host, port)
            else:
                await socks_connect(stream, proxy, host, port)
        except BaseException:
            stream.abort()
            raise
    return stream


async def http_connect(stream: HandshakeStream, proxy: SplitResult, host: str, port: int) -> None:
    """Send CONNECT (RFC 9110, section 9.3.6), with the credentials of the proxy's URL.

    Raises:
        ProxyError: the proxy refused.
        OSError, EOFError: the connection failed.
    """
    name = host if host.isascii() else host.encode("idna").decode()
    authority = f"[{name}]:{port}" if ":" in name else f"{name}:{port}"
    headers = [("Host", authority)]
    if proxy.username is not None:
        pair = f"{unquote(proxy.username)}:{unquote(proxy.password or '')}"
        headers.append(("Proxy-Authorization", f"Basic {b64encode(pair.encode()).decode()}"))
    status, _ = await Exchange(stream, "CONNECT", authority, headers).read_head()
    if status == 407:
        raise ProxyError("it requires a user name and a password (407)")
    if status // 100 != 2:
        raise ProxyError(f"it answers {status} to CONNECT {authority}")


@contextlib.contextmanager
def connect_errors(access: ApiAccess, peer: str | None = None) -> Iterator[None]:
    """Turn what sockets and TLS raise into errors that name `peer` (None: the API server)."""
    hint = "is the cluster running, and this machine in its network (VPN, proxy)?"
    if peer:
        hint = "does it run? HTTPS_PROXY or kubeconfig's proxy-url names it, NO_PROXY passes it by"
    peer = peer or f"the API server {access.url}"
    try:
        yield
    except ssl.SSLCertVerificationError as exc:
        raise CredentialsError(
            f"the certificate of {peer} is not trusted: {exc.verify_message}",
            hint="do certificate-authority and tls-server-name in kubeconfig match this server?",
        ) from exc
    except ssl.SSLError as exc:
        raise ClusterError(
            f"TLS with {peer} failed: {failure_reason(exc)}",
            hint="does it speak TLS on this port, and does kubeconfig name the right client "
            "certificate?",
        ) from exc
    except (EOFError, OSError, UnicodeError) as exc:  # UnicodeError: IDNA cannot encode the name
        raise UnreachableError(
            f"cannot reach {peer}: {failure_reason(exc)}",
            hint=hint,
        ) from exc


def failure_reason(exc: EOFError | OSError | UnicodeError) -> str:
    """Return what a socket or TLS raised in a few words."""
    if isinstance(exc, ssl.SSLError):
        return (exc.reason or str(exc)).lower().replace("_", " ")
    if isinstance(exc, TimeoutError):
        return "no answer in time"
    if isinstance(exc, ConnectionRefusedError):
        return "connection refused"
    return (isinstance(exc, OSError) and exc.strerror) or str(exc) or type(exc).__name__


def host_and_port(url: SplitResult) -> tuple[str, int]:
    """Return the host and the port of a server's or a proxy's URL."""
    return url.hostname or "", url.port or _PORTS.get(url.scheme, 443)


async def _ssl_context(access: ApiAccess) -> ssl.SSLContext:
    if access.ssl is not None:
        return access.ssl
    return await in_thread(ssl.create_default_context, UnreachableError)


async def open_tcp(
    host: str, port: int, *, protocol: asyncio.Protocol, timeout: float = 10.0
) -> asyncio.Transport:
    """Connect `protocol` to an agent that listens on `host` and `port`, within `timeout` seconds.

    Raises:
        NotListeningError: the connection was refused; the agent may not listen yet.
        TunnelError: no connection.
    """
    try:
        async with asyncio.timeout(timeout):
            transport, _ = await dial(lambda: protocol, host, port)
    except ConnectionRefusedError as exc:
        raise NotListeningError(f"nothing listens on {host} port {port}") from exc
    except TimeoutError as exc:
        raise TunnelError(f"no answer from {host} port {port} within {timeout:g} s") from exc
    except OSError as exc:
        raise TunnelError(f"cannot reach {host} port {port}: {exc.strerror or exc}") from exc
    return transport
