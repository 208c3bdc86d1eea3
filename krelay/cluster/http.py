"""HTTP: one request to an API server over aiohttp, and the words for what can go wrong with it.

aiohttp's own reading of the environment stays off: it would send a password of ~/.netrc to an
API server, and pick proxies by other rules than kubectl.
"""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from urllib.parse import urlsplit

import aiohttp
from multidict import CIMultiDict

from krelay.errors import ClusterError, CredentialsError, UnreachableError
from krelay.model import ApiAccess

CONNECT_DEADLINE = 5.0
MAX_BODY = 64 << 20


def session() -> aiohttp.ClientSession:
    """A session without a limit on connections (each watch holds one) and without cookies."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(total=None, connect=CONNECT_DEADLINE),
    )


async def send(
    opened: aiohttp.ClientSession,
    access: ApiAccess,
    method: str,
    path: str,
    *,
    query: dict[str, str] | None = None,
    body: bytes | None = None,
) -> aiohttp.ClientResponse:
    """One request; the answer's head, whatever its status. The caller releases it."""
    headers = CIMultiDict(access.headers)
    headers["Accept"] = "application/json"
    headers["Accept-Encoding"] = "identity"
    if body is not None:
        headers["Content-Type"] = "application/json"
    return await opened.request(
        method,
        access.url + path,
        params=query,
        data=body,
        headers=headers,
        ssl=access.ssl if access.ssl is not None else True,
        server_hostname=access.server_hostname,
        proxy=access.proxy,
        allow_redirects=False,
    )


async def body(response: aiohttp.ClientResponse, limit: int = MAX_BODY) -> bytes:
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


@contextmanager
def translated(access: ApiAccess, where: str) -> Iterator[None]:
    """Turns aiohttp's errors into ours. `where` is for people: the context and the server."""
    try:
        yield
    except TimeoutError as exc:
        raise _unreachable(where, "no answer in time", access) from exc
    except ssl.SSLCertVerificationError as exc:
        raise _untrusted(where, exc) from exc
    except aiohttp.ClientConnectorCertificateError as exc:
        raise _untrusted(where, exc.certificate_error) from exc
    except (aiohttp.ClientError, OSError, ValueError) as exc:
        raise _unreachable(where, _reason(exc), access) from exc


def _reason(exc: BaseException) -> str:
    cause: BaseException | None = exc
    while cause is not None:
        if isinstance(cause, ConnectionRefusedError):
            return "connection refused"
        if isinstance(cause, socket.gaierror):
            return "no such host"
        cause = cause.__cause__
    if isinstance(exc, aiohttp.ClientConnectorError):
        return exc.os_error.strerror or str(exc.os_error)
    return str(exc) or type(exc).__name__


def _unreachable(where: str, reason: str, access: ApiAccess) -> UnreachableError:
    # Without its password.
    through = f" through the proxy {urlsplit(access.proxy).hostname}" if access.proxy else ""
    return UnreachableError(
        f"cannot reach the API server ({where}){through}: {reason}",
        hint="is the cluster running, and this machine in its network (VPN)?",
    )


def _untrusted(where: str, error: Exception) -> CredentialsError:
    why = getattr(error, "verify_message", "") or str(error)
    return CredentialsError(
        f"the API server's certificate is not trusted ({where}): {why}",
        hint="does certificate-authority (and tls-server-name) in kubeconfig fit this server?",
    )
