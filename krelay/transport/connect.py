"""Connect: dial TCP, and from an ApiAccess pass the proxy and TLS on the way to an API server."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
from base64 import b64encode
from collections.abc import Callable, Iterator
from typing import TypeVar
from urllib.parse import SplitResult, unquote, urlsplit, urlunsplit

from krelay.errors import (
    ClusterError,
    CredentialsError,
    NotListeningError,
    TunnelError,
    UnreachableError,
)
from krelay.net import socks
from krelay.net.api_access import ApiAccess, is_loopback
from krelay.net.dns import lookup
from krelay.tasks import TaskGroup
from krelay.threads import in_thread
from krelay.transport.handshake_stream import HandshakeStream
from krelay.transport.http import Exchange

REDIAL_EVERY = 1.0
"""Seconds after which a connection without an answer is dialled once more, beside the first.

TCP itself repeats its SYN after 1, 3 and 7 seconds, while the network may long be back.
"""
ADDRESS_DEADLINE = 2.0
"""Seconds for each but the last of a host's addresses.

They are dialled one after the other: asyncio's own race leaves tasks behind when it is cancelled.
"""

_PORTS = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}
_KEEP_ALIVE = {"TCP_KEEPIDLE": 4, "TCP_KEEPALIVE": 4, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3}
"""Seconds and probes: a dead peer is noticed within 10 s, as by a session's pings, which legacy
mode does not have. macOS calls TCP_KEEPIDLE TCP_KEEPALIVE."""
_EXHAUSTED = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
"""This machine has no socket left, which says nothing about the peer."""

_ProtocolT = TypeVar("_ProtocolT", bound=asyncio.BaseProtocol)


class ProxyError(OSError):
    """A proxy refused the connection."""


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
            _require_loopback(stream, access)
            return stream
        with connect_errors(access):
            await stream.start_tls(await _ssl_context(access), access.server_hostname or host)
    except BaseException:
        stream.abort()
        raise
    return stream


def _require_loopback(stream: HandshakeStream, access: ApiAccess) -> None:
    """Check where the connection ended: `localhost` is whatever a resolver makes of it."""
    peer = stream.transport.get_extra_info("peername")
    if access.private and not (peer and is_loopback(str(peer[0]))):
        raise CredentialsError(f"the API server {access.url} is not on this machine")


async def _connect_by_proxy(
    proxy: SplitResult, access: ApiAccess, host: str, port: int
) -> HandshakeStream:
    """The TLS of a proxy is checked like the server's, as client-go and aiohttp do it."""
    with connect_errors(access, f"the proxy {proxy.scheme}://{proxy.hostname}"):
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
    status = (await Exchange(stream, "CONNECT", authority, headers).read_head()).status
    if status == 407:
        raise ProxyError("it wants a user name and a password (407)")
    if status // 100 != 2:
        raise ProxyError(f"it answers {status} to CONNECT {authority}")


async def socks_connect(stream: HandshakeStream, proxy: SplitResult, host: str, port: int) -> None:
    """Ask a SOCKS5 proxy for the connection; the proxy resolves the name.

    Raises:
        ProxyError: the proxy refused.
        OSError, EOFError: the connection failed.
    """
    steps = socks.handshake(urlunsplit(proxy), host, port)
    try:
        data, wanted = next(steps)
        while True:
            stream.write(data)
            data, wanted = steps.send(await stream.read_exactly(wanted))
    except StopIteration:
        return
    except socks.SocksError as exc:
        raise ProxyError(str(exc)) from exc


@contextlib.contextmanager
def connect_errors(access: ApiAccess, peer: str | None = None) -> Iterator[None]:
    """Turn what sockets and TLS raise into errors that name `peer` (None: the API server)."""
    peer = peer or f"the API server {access.url}"
    try:
        yield
    except ssl.SSLCertVerificationError as exc:
        raise CredentialsError(
            f"the certificate of {peer} is not trusted: {exc.verify_message}",
            hint="does certificate-authority (and tls-server-name) in kubeconfig fit this server?",
        ) from exc
    except ssl.SSLError as exc:
        raise ClusterError(
            f"TLS with {peer} failed: {_reason(exc)}",
            hint="does it speak TLS on this port, and does kubeconfig name the right client "
            "certificate?",
        ) from exc
    except (EOFError, OSError, UnicodeError) as exc:  # UnicodeError: IDNA cannot encode the name
        raise UnreachableError(
            f"cannot reach {peer}: {_reason(exc)}",
            hint="is the cluster running, and this machine in its network (VPN, proxy)?",
        ) from exc


def _reason(exc: EOFError | OSError | UnicodeError) -> str:
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


async def dial(
    factory: Callable[[], _ProtocolT],
    host: str,
    port: int,
    *,
    redial_every: float | None = None,
) -> tuple[asyncio.Transport, _ProtocolT]:
    """Connect, without Nagle's delay (asyncio's default) and with keepalive.

    With `redial_every`, a connection that is not answered for so many seconds is dialled again
    beside the first one; `factory` then makes a protocol for each attempt.

    Raises:
        OSError: no address could be connected to, for the reason that the last one gave.
    """
    found = await lookup(host)
    for left, (family, address) in zip(range(len(found))[::-1], found, strict=True):
        try:
            async with asyncio.timeout(ADDRESS_DEADLINE if left else None):
                transport, protocol = await _dial_address(
                    factory, address, port, family, redial_every
                )
        except OSError:
            if not left:
                raise
        else:
            with contextlib.suppress(OSError):  # already closed: the protocol knows
                _keep_alive(transport.get_extra_info("socket"))
            return transport, protocol
    raise OSError(f"no address for {host}")


def _keep_alive(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEP_ALIVE.items():
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


async def _dial_address(
    factory: Callable[[], _ProtocolT],
    address: str,
    port: int,
    family: int,
    redial_every: float | None,
) -> tuple[asyncio.Transport, _ProtocolT]:
    """Connect to one address; the first attempt that succeeds wins. A refusal ends all of them."""
    loop = asyncio.get_running_loop()
    made: list[tuple[asyncio.Transport, _ProtocolT]] = []
    connected = asyncio.Event()

    async def attempt() -> None:
        try:
            found = await loop.create_connection(factory, address, port, family=family)
        except OSError as exc:
            if exc.errno in _EXHAUSTED and len(attempts) > 1:
                return  # the first one still waits for its answer
            raise
        if made:
            found[0].abort()
        else:
            made.append(found)
            connected.set()

    attempts: list[asyncio.Task[None]] = []
    try:
        async with TaskGroup() as tasks:
            while not connected.is_set():
                attempts.append(tasks.create_task(attempt()))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(redial_every):
                        await connected.wait()
            for late in attempts:
                late.cancel()
    except BaseException:
        for transport, _ in made:
            transport.abort()
        raise
    return made[0]


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
