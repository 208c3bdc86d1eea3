"""Upgrade: asks for a port-forward on a connection, in one of two ways; its carrier if granted.

Plain: `POST`, `Upgrade: SPDY/3.1`. WebSocket: `GET`. Kubernetes derives the RBAC verb from the
method (apiserver pkg/endpoints/request/requestinfo.go): `create` and `get` respectively.
"""

from __future__ import annotations

import re
from typing import Protocol
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
from krelay.net.error_body import page_words, status_message, words
from krelay.transport import http
from krelay.transport.handshake_stream import HandshakeStream
from krelay.transport.spdy import Buffer
from krelay.transport.websocket import WebSocket

_SHOWN = 300
_LOOKED_AT = 4096
_GONE = re.compile(
    r"network namespace for sandbox \S{1,200} is closed"
    r"|sandbox( \S{1,200}| container)? is not running"
    r"|sandbox [\\\"\w-]{1,200}( in store)?:? not found|could not find sandbox|no such container"
    r"|pod does not exist|pods?( \S{1,300})? not found",
    re.IGNORECASE,
)


class Refused(Exception):
    """An answer other than the upgrade: to the request that needs the RBAC `verb`.

    `status` 0 stands for a 101 that makes no sense.
    """

    def __init__(self, verb: str, status: int, body: bytes) -> None:
        super().__init__(verb, status, body)
        self.verb, self.status, self.body = verb, status, body


class Carrier(Protocol):
    """How SPDY's bytes travel on the connection; sans-I/O."""

    def unwrap(self, data: Buffer) -> list[Buffer]:
        """The SPDY bytes in what was received."""

    def wrap(self, data: bytes) -> bytes:
        """SPDY bytes as they are to be sent."""

    def replies(self) -> bytes:
        """What the carrier itself has to send now."""

    @property
    def ended(self) -> str | None:
        """Why the carrier is of no more use, or None."""


class Plain:
    """SPDY as it is."""

    headers = (
        ("Connection", "Upgrade"),
        ("Upgrade", "SPDY/3.1"),
        ("X-Stream-Protocol-Version", "portforward.k8s.io"),
        ("Content-Length", "0"),
    )
    ended = None

    def unwrap(self, data: Buffer) -> list[Buffer]:
        return [data]

    def wrap(self, data: bytes) -> bytes:
        return data

    def replies(self) -> bytes:
        return b""


async def upgrade(
    dialogue: HandshakeStream, access: ApiAccess, *, namespace: str, pod: str, way: Transport
) -> Carrier:
    """Turn an HTTP connection into one that carries SPDY to `pod`. `way` is not AUTO.

    Raises:
        Refused: with what the server (or something before it) said instead.
        OSError, EOFError: as the dialogue.
    """
    url = urlsplit(access.url)
    target = (
        f"{url.path.rstrip('/')}/api/v1/namespaces/{quote(namespace, safe='')}"
        f"/pods/{quote(pod, safe='')}/portforward"
    )
    host = ("Host", url.netloc.rpartition("@")[2])
    if way is Transport.WEBSOCKET:
        websocket = WebSocket()
        answer = await _ask(dialogue, "GET", target, (host, *websocket.headers, *access.headers))
        if wrong := websocket.accept(answer.head):
            raise Refused("get", 0, wrong.encode("utf-8", "replace"))
        return websocket
    answer = await _ask(dialogue, "POST", target, (host, *Plain.headers, *access.headers))
    if answer.headers.get("upgrade", "").lower() != "spdy/3.1":
        raise Refused("create", 0, b"an upgrade to something else")
    return Plain()


async def _ask(
    dialogue: HandshakeStream, method: str, target: str, headers: http.Headers
) -> http.Answer:
    dialogue.write(http.request(method, target, headers))
    answer = await http.read_answer(dialogue)
    if answer.status != 101:
        body = await http.read_body(dialogue, answer)
        raise Refused("get" if method == "GET" else "create", answer.status, body)
    return answer


class UnauthorizedError(CredentialsError):
    """The API server does not know us (401): other credentials may help, and nothing else."""


def final(refused: Refused) -> bool:
    """Whether the other way would be answered the same: who we are, or the pod, is unknown."""
    if refused.status == 404:
        return _status(refused) is not None or _gone(refused)
    return refused.status == 401 or _gone(refused)


def upgrade_error(refused: Refused, *, namespace: str, pod: str) -> KrelayError:
    """The error for an upgrade that was refused."""
    status = _status(refused)
    said = page_words(refused.body, _SHOWN) if status is None else words(status, _SHOWN)
    if refused.status == 401:
        return UnauthorizedError(
            f"the API server does not know us: {said or 'Unauthorized'}",
            hint="log in again; `kubectl auth whoami` should fail alike",
        )
    if refused.status == 403:
        # What an API server says of RBAC the message says better; anything else is shown.
        more = "" if "pods/portforward" in said or not said else f": {said}"
        return access_denied(refused.verb, namespace, more)
    if refused.status == 404 or _GONE.search(said):
        return PodGoneError(f"pod {namespace}/{pod} is gone: {said or 'not found'}")
    return TunnelError(
        f"no port-forward to pod {namespace}/{pod}: "
        f"{said or 'the answer is empty'} ({refused.status or 'a wrong answer'})"
    )


def access_denied(verbs: str, namespace: str, more: str = "") -> AccessDeniedError:
    """RBAC's no; `verbs` in words."""
    return AccessDeniedError(
        f'cannot {verbs} pods/portforward in namespace "{namespace}"{more}',
        hint="the Role needs the verbs get and create on pods/portforward",
    )


def stream_error(text: str) -> TunnelError:
    """The error for what came on the error stream (nothing: the forward just ended)."""
    said = " ".join(text.split())
    if not said:
        return EndedError("the agent ended the connection")
    if gone := _GONE.search(said):
        return PodGoneError(f"the agent's pod is gone: {words(gone[0], _SHOWN)}")
    if "connection refused" in said:
        return NotListeningError("nothing listens on the agent's port in its pod")
    return TunnelError(f"the port-forward ended: {said[-_SHOWN:]}")  # the cause comes last


def _status(refused: Refused) -> str | None:
    """The message of the Status that was answered, None if there is none."""
    return status_message(refused.body, kind=True)


def _gone(refused: Refused) -> bool:
    return _GONE.search(page_words(refused.body, _LOOKED_AT)) is not None
