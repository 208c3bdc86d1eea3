"""Connect: from an ApiAccess to a connection that an API server answers on: proxy and TLS done."""

from __future__ import annotations

import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import SplitResult, urlsplit

from krelay.errors import ClusterError, CredentialsError, UnreachableError
from krelay.net.api_access import ApiAccess, is_loopback
from krelay.threads import in_thread
from krelay.transport import proxy
from krelay.transport.handshake_stream import HandshakeStream
from krelay.transport.tcp import dial

_PORTS = {"http": 80, "https": 443, "socks5": 1080, "socks5h": 1080}


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
                await proxy.http_connect(dialogue, via, host, port)
            else:
                await proxy.socks_connect(dialogue, via, host, port)
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
