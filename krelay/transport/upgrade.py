"""Upgrade: asks for a port-forward on a connection, in one of two ways; its carrier if granted.

Plain: `POST`, `Upgrade: SPDY/3.1`. WebSocket: `GET`. Kubernetes derives the RBAC verb from the
method (apiserver pkg/endpoints/request/requestinfo.go): `create` and `get` respectively.
"""

from __future__ import annotations

from typing import Protocol
from urllib.parse import quote, urlsplit

from krelay.model import Transport
from krelay.net.api_access import ApiAccess
from krelay.transport import http
from krelay.transport.handshake_stream import HandshakeStream
from krelay.transport.spdy import Buffer
from krelay.transport.websocket import WebSocket


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
