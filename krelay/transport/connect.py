"""Connect: from an ApiAccess to a connection that an API server answers on: proxy and TLS done."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import socket
import ssl
from base64 import b64encode
from collections.abc import Callable, Iterator
from contextlib import contextmanager
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
from krelay.transport import http
from krelay.transport.handshake_stream import HandshakeStream

_PORTS = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}

AGAIN = 1.0
"""Seconds after which a connection that has no answer yet is tried once more, beside the first.

TCP itself tries again after 1, 3 and 7 seconds, while the network may long be back.
"""
ADDRESS_DEADLINE = 2.0
"""Seconds for each but the last of a host's addresses.

One after the other, since asyncio's own race of them leaves tasks behind when it is cancelled.
"""

_KEEP_ALIVE = {"TCP_KEEPIDLE": 4, "TCP_KEEPALIVE": 4, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3}
"""Seconds and probes; the second is the first's name on macOS. One whose other end is gone is known
to be within 10 s, as a session's pings would tell: plain mode has none."""

_SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
"""There is no socket to be had now, which says nothing about the other end."""

_ProtocolT = TypeVar("_ProtocolT", bound=asyncio.BaseProtocol)


async def connect(access: ApiAccess) -> HandshakeStream:
    """A connection to `access.url`. The caller sets the deadline, and aborts what it gets.

    Raises:
        UnreachableError: no connection to the server or to its proxy.
        CredentialsError: a certificate that is not trusted, or ours refused.
        ClusterError: TLS failed in another way.
    """
    server = urlsplit(access.url)
    host, port = address_of(server)
    if access.proxy is None:
        with reaching(access):
            _, dialogue = await dial(HandshakeStream, host, port, insist=True)
    else:
        dialogue = await _through(urlsplit(access.proxy), access, host, port)
    if server.scheme != "https":
        _check_near(dialogue, access)
        return dialogue
    try:
        with reaching(access):
            await dialogue.start_tls(await _context(access), access.server_hostname or host)
    except BaseException:
        dialogue.abort()
        raise
    return dialogue


def _check_near(dialogue: HandshakeStream, access: ApiAccess) -> None:
    """`localhost` is whatever a resolver makes of it: what counts is where the connection ended."""
    peer = dialogue.transport.get_extra_info("peername")
    if access.private and not (peer and is_loopback(str(peer[0]))):
        dialogue.abort()
        raise CredentialsError(f"the API server {access.url} is not on this machine")


async def _through(via: SplitResult, access: ApiAccess, host: str, port: int) -> HandshakeStream:
    """The proxy's TLS is checked as the server's, as client-go (and aiohttp) do it."""
    where = f"the proxy {via.scheme}://{via.hostname}"  # without its password
    with reaching(access, where):
        _, dialogue = await dial(HandshakeStream, *address_of(via), insist=True)
        try:
            if via.scheme == "https":
                await dialogue.start_tls(await _context(access), via.hostname or "")
            if via.scheme in ("http", "https"):
                await http_connect(dialogue, via, host, port)
            else:
                await socks_connect(dialogue, via, host, port)
        except BaseException:
            dialogue.abort()
            raise
    return dialogue


@contextmanager
def reaching(access: ApiAccess, where: str | None = None) -> Iterator[None]:
    """Turns what sockets and TLS raise into errors that name `where` (None: the API server)."""
    where = where or f"the API server {access.url}"
    try:
        yield
    except ssl.SSLCertVerificationError as exc:
        raise CredentialsError(
            f"the certificate of {where} is not trusted: {exc.verify_message}",
            hint="does certificate-authority (and tls-server-name) in kubeconfig fit this server?",
        ) from exc
    except ssl.SSLError as exc:
        raise ClusterError(
            f"TLS with {where} failed: {_words(exc)}",
            hint="does it speak TLS on this port, and does kubeconfig name the right client "
            "certificate?",
        ) from exc
    except (EOFError, OSError, UnicodeError) as exc:  # UnicodeError: a label that no name has
        raise UnreachableError(
            f"cannot reach {where}: {_words(exc)}",
            hint="is the cluster running, and this machine in its network (VPN, proxy)?",
        ) from exc


def _words(exc: EOFError | OSError | UnicodeError) -> str:
    if isinstance(exc, ssl.SSLError):
        return (exc.reason or str(exc)).lower().replace("_", " ")
    if isinstance(exc, TimeoutError):
        return "no answer in time"
    if isinstance(exc, ConnectionRefusedError):
        return "connection refused"
    return (isinstance(exc, OSError) and exc.strerror) or str(exc) or type(exc).__name__


def address_of(url: SplitResult) -> tuple[str, int]:
    """Host and port of a server's or a proxy's URL."""
    return url.hostname or "", url.port or _PORTS.get(url.scheme, 443)


async def _context(access: ApiAccess) -> ssl.SSLContext:
    if access.ssl is not None:
        return access.ssl
    return await in_thread(ssl.create_default_context, UnreachableError)


class ProxyError(OSError):
    """The proxy says no."""


async def http_connect(dialogue: HandshakeStream, via: SplitResult, host: str, port: int) -> None:
    """CONNECT (RFC 9110, section 9.3.6), with the user's name and password of the proxy's URL.

    Raises:
        ProxyError: refused.
        OSError, EOFError: as the dialogue.
    """
    authority = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
    headers = [("Host", authority)]
    if via.username is not None:
        pair = f"{unquote(via.username)}:{unquote(via.password or '')}"
        headers.append(("Proxy-Authorization", f"Basic {b64encode(pair.encode()).decode()}"))
    dialogue.write(http.request("CONNECT", authority, headers))
    answer = await http.read_answer(dialogue)
    if answer.status == 407:
        raise ProxyError("it wants a user name and a password (407)")
    if answer.status // 100 != 2:
        raise ProxyError(f"it answers {answer.status} to CONNECT {authority}")


async def socks_connect(dialogue: HandshakeStream, via: SplitResult, host: str, port: int) -> None:
    """SOCKS5; the proxy resolves the name.

    Raises:
        ProxyError: refused.
        OSError, EOFError: as the dialogue.
    """
    steps = socks.handshake(urlunsplit(via), host, port)
    try:
        data, wanted = next(steps)
        while True:
            if data:
                dialogue.write(data)
            data, wanted = steps.send(await dialogue.read_exactly(wanted))
    except StopIteration:
        return
    except socks.SocksError as exc:
        raise ProxyError(str(exc)) from exc


async def dial(
    factory: Callable[[], _ProtocolT], host: str, port: int, *, insist: bool = False
) -> tuple[asyncio.Transport, _ProtocolT]:
    """Connect, without Nagle's delay (asyncio's default) and with keepalive.

    `insist`: what gets no answer is tried again each second, beside the first; then `factory` makes
    another protocol for each try.

    Raises:
        OSError: no connection, for the reason that the last address gave.
    """
    found = await lookup(host)
    for left, (family, address) in zip(range(len(found))[::-1], found, strict=True):
        try:
            async with asyncio.timeout(ADDRESS_DEADLINE if left else None):
                connect = _insist if insist else _connect
                transport, protocol = await connect(factory, address, port, family)
        except OSError:
            if not left:
                raise
        else:
            with contextlib.suppress(OSError):  # it has ended meanwhile; its protocol knows
                _keep_alive(transport.get_extra_info("socket"))
            return transport, protocol
    raise OSError(f"no address for {host}")


def _keep_alive(sock: socket.socket) -> None:
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _KEEP_ALIVE.items():
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


async def _connect(
    factory: Callable[[], _ProtocolT], address: str, port: int, family: int
) -> tuple[asyncio.Transport, _ProtocolT]:
    loop = asyncio.get_running_loop()
    return await loop.create_connection(factory, address, port, family=family)


async def _insist(
    factory: Callable[[], _ProtocolT], address: str, port: int, family: int
) -> tuple[asyncio.Transport, _ProtocolT]:
    """Connect to one address, by the first of as many tries as it takes; the caller sets the
    deadline. Raises OSError: as soon as one is refused."""
    made: list[tuple[asyncio.Transport, _ProtocolT]] = []
    there = asyncio.Event()

    async def attempt() -> None:
        try:
            found = await _connect(factory, address, port, family)
        except OSError as exc:
            if exc.errno in _SHORT and len(tries) > 1:
                return  # the first still waits for an answer
            raise
        if made:
            found[0].abort()
        else:
            made.append(found)
            there.set()

    tries: list[asyncio.Task[None]] = []
    try:
        async with TaskGroup() as tasks:
            while not there.is_set():
                tries.append(tasks.create_task(attempt()))
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(AGAIN):
                        await there.wait()
            for late in tries:
                late.cancel()
    except BaseException:
        for transport, _ in made:
            transport.abort()
        raise
    return made[0]


async def open_tcp(
    host: str, port: int, *, protocol: asyncio.Protocol, timeout: float = 10.0
) -> asyncio.Transport:
    """A pipe to an agent that listens on `host` and `port`. `timeout` is in seconds.

    Raises:
        NotListeningError: refused: it may not listen yet.
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
