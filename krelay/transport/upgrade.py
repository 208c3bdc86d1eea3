"""Upgrade: ask an API server for a port-forward; return the carrier of its SPDY, or the error.

Plain SPDY: `POST` with `Upgrade: SPDY/3.1`. WebSocket: `GET`. Kubernetes derives the RBAC verb from
the method (apiserver pkg/endpoints/request/requestinfo.go): `create` and `get` respectively.

Error texts: of the runtimes, containerd internal/cri/server/sandbox_portforward*.go and CRI-O
server/sandbox_portforward.go; of the kubelet, pkg/kubelet/server/server.go.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeAlias
from urllib.parse import quote, urlsplit

from krelay.errors import (
    AccessDeniedError,
    CredentialsError,
    EndedError,
    KrelayError,
    NotListeningError,
    PodGoneError,
    TunnelError,
)
from krelay.model import Transport
from krelay.net.api_access import ApiAccess
from krelay.net.error_body import error_text, page_words, status_message, words
from krelay.net.handshake_stream import HandshakeStream
from krelay.transport.http import Exchange, Headers
from krelay.transport.spdy import Buffer

if TYPE_CHECKING:
    from krelay.transport.websocket import WebSocket

_SHOWN = 300  # characters of a peer's text in an error
_USER = re.compile(r'User "([^"]{1,256})" cannot ')
_SEARCHED = 4096  # characters of a page that are searched for the words of a runtime
_GONE = re.compile(
    r"network namespace for sandbox \S{1,200} is closed"
    r"|sandbox( \S{1,200}| container)? is not running"
    r"|sandbox [\\\"\w-]{1,200}( in store)?:? not found|could not find sandbox|no such container"
    r"|pod does not exist|pods?( \S{1,300})? not found",
    re.IGNORECASE,
)


class Plain:
    """A carrier that adds nothing; the methods are those of `WebSocket`."""

    name = "spdy"
    headers = (
        ("Connection", "Upgrade"),
        ("Upgrade", "SPDY/3.1"),
        ("X-Stream-Protocol-Version", "portforward.k8s.io"),
        ("Content-Length", "0"),
    )
    ended: str | None = None

    def unwrap(self, data: Buffer) -> list[Buffer]:
        return [data]

    def wrap(self, data: bytes) -> bytes:
        return data

    def replies(self) -> bytes:
        return b""

    def accept(self, headers: Headers) -> str | None:
        """Return the fault in the headers of a 101 response, or None."""
        upgrades = [value.lower() for name, value in headers if name == "upgrade"]
        return None if upgrades == ["spdy/3.1"] else "an upgrade to something else"


Carrier: TypeAlias = "Plain | WebSocket"
"""How SPDY's bytes travel on the connection; sans-I/O."""


class RefusedUpgrade(Exception):
    """A response other than the upgrade, to the request that needs the RBAC `verb`.

    `status` 0 means a 101 that grants something else.
    """

    def __init__(self, verb: str, status: int, body: bytes) -> None:
        super().__init__(verb, status, body)
        self.verb, self.status, self.body = verb, status, body

    @property
    def final(self) -> bool:
        """Whether the other transport would fail alike: the user or the pod is unknown."""
        if self.status == 404 and status_message(self.body, kind=True) is not None:
            return True
        return self.status == 401 or _GONE.search(page_words(self.body, _SEARCHED)) is not None

    def error(self, *, namespace: str, pod: str) -> KrelayError:
        """Return krelay's error for it."""
        shown = error_text(self.body, _SHOWN, kind=True)
        if self.status == 401:
            return unauthorized(shown)
        if self.status == 403:
            # The error says better what an API server says of RBAC; anything else is shown.
            more = "" if "pods/portforward" in shown or not shown else f": {shown}"
            user = _USER.search(shown)
            return access_denied(self.verb, namespace, more, user=user[1] if user else "")
        if self.status == 404 or _GONE.search(shown):
            return PodGoneError(f"pod {namespace}/{pod} is gone: {shown or 'not found'}")
        return TunnelError(
            f"no port-forward to pod {namespace}/{pod}: "
            f"{shown or 'the answer is empty'} ({self.status or 'a wrong answer'})"
        )


class UnauthorizedError(CredentialsError):
    """The API server does not know the user (401); only other credentials can help."""


async def upgrade(
    stream: HandshakeStream, access: ApiAccess, *, namespace: str, pod: str, transport: Transport
) -> Carrier:
    """Turn an HTTP connection into one that carries SPDY to `pod`. `transport` is not AUTO.

    Raises:
        RefusedUpgrade: the server, or something before it, responded in another way.
        OSError, EOFError: the connection failed.
    """
    carrier: Carrier
    if transport is Transport.WEBSOCKET:
        from krelay.transport.websocket import WebSocket

        method, verb, carrier = "GET", "get", WebSocket()
    else:
        method, verb, carrier = "POST", "create", Plain()
    headers = await request_upgrade(
        stream, access, method, namespace, f"{pod}/portforward", carrier.headers
    )
    if wrong := carrier.accept(headers):
        raise RefusedUpgrade(verb, 0, wrong.encode("utf-8", "replace"))
    return carrier


async def request_upgrade(
    stream: HandshakeStream,
    access: ApiAccess,
    method: str,
    namespace: str,
    subresource: str,
    wanted: Headers,
) -> Headers:
    """Request an upgrade with the headers `wanted`, and return those of the 101.

    `subresource` is the path behind `pods/`.

    Raises:
        RefusedUpgrade: the response is another one.
        OSError, EOFError: the connection failed.
    """
    url = urlsplit(access.url)
    target = (
        f"{quote(url.path.rstrip('/'), safe='/%')}/api/v1/namespaces/{quote(namespace, safe='')}"
        f"/pods/{quote(subresource, safe='/:')}"
    )
    host = ("Host", url.netloc.rpartition("@")[2])
    exchange = Exchange(stream, method, target, (host, *wanted, *access.headers))
    status, headers = await exchange.read_head()
    if status != 101:
        verb = "create" if method == "POST" else "get"
        raise RefusedUpgrade(verb, status, await exchange.read_body())
    return headers


def unauthorized(shown: str) -> UnauthorizedError:
    """Return the error for a 401; `shown` is what the server says."""
    return UnauthorizedError(
        f"the API server rejects the credentials: {shown or 'Unauthorized'}",
        hint="log in again; `kubectl auth whoami` should fail too",
    )


def access_denied(
    verbs: str, namespace: str, more: str = "", *, user: str = ""
) -> AccessDeniedError:
    """Return the error for RBAC's refusal; `verbs` are those that were tried, in words."""
    return AccessDeniedError(
        f'cannot {verbs} pods/portforward in namespace "{namespace}"{more}',
        hint="the Role needs the verbs get and create on pods/portforward",
        user=user,
    )


def stream_error(text: str) -> TunnelError:
    """Return the error for the text of the error stream; if empty, the forward just ended."""
    shown = " ".join(text.split())
    if not shown:
        return EndedError("the agent ended the connection")
    if gone := _GONE.search(shown):
        return PodGoneError(f"the agent's pod is gone: {words(gone[0], _SHOWN)}")
    if "connection refused" in shown:
        return NotListeningError("nothing listens on the agent's port in its pod")
    return TunnelError(f"the port-forward ended: {shown[-_SHOWN:]}")  # the cause comes last
