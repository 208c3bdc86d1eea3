"""Pod proxy: open a pipe to an agent through the API server's `proxy` subresource.

The API server dials the pod's IP itself and passes the request on. After the agent's 101 it copies
bytes both ways; no kubelet and no container runtime is in between. It removes the user's
credentials, but the way from it to the pod is not encrypted.
"""

from __future__ import annotations

import asyncio
from typing import cast

from krelay.errors import (
    AccessDeniedError,
    KrelayError,
    NotListeningError,
    TunnelError,
    UnreachableError,
)
from krelay.net.api_access import ApiAccess
from krelay.net.error_body import error_text, status_message
from krelay.net.handshake_stream import HandshakeStream
from krelay.transport.connect import connect, connect_errors, failure_reason
from krelay.transport.upgrade import RefusedUpgrade, request_upgrade, unauthorized

UPGRADE = "krelay"
"""Protocol of the upgrade, in both directions."""

# asyncio's TLS decrypts reads of 256 KiB.
_READ_SIZE = 256 << 10
_SHOWN = 200  # characters of a peer's text in an error


async def open_pod_proxy(
    access: ApiAccess,
    *,
    namespace: str,
    pod: str,
    port: int,
    protocol: asyncio.Protocol,
    timeout: float = 10.0,
) -> asyncio.Transport:
    """Connect `protocol` to `port` on the address of `pod`, and return its transport.

    `timeout` limits the whole, in seconds.

    Raises:
        UnreachableError: the API server or its proxy cannot be reached, or does not answer.
        UnauthorizedError: the server does not know the user (401).
        CredentialsError: the server is not trusted, or the way to it is not encrypted.
        AccessDeniedError: RBAC refused.
        NotListeningError: nothing listens on the port.
        TunnelError: any other response.
        ClusterError: TLS failed.
    """
    access.require_private()
    try:
        async with asyncio.timeout(timeout):
            stream = await connect(access)
            try:
                return await _pass_upgrade(stream, access, namespace, pod, port, protocol)
            except BaseException:
                stream.abort()
                raise
    except TimeoutError as exc:
        raise UnreachableError(f"no answer by pods/proxy within {timeout:g} s") from exc


async def _pass_upgrade(
    stream: HandshakeStream,
    access: ApiAccess,
    namespace: str,
    pod: str,
    port: int,
    protocol: asyncio.Protocol,
) -> asyncio.Transport:
    try:
        with connect_errors(access):
            await _upgrade(stream, access, namespace, f"{pod}:{port}")
            reads = _Reads(protocol)
            rest = stream.hand_over(reads)
    except RefusedUpgrade as exc:
        raise _error(exc, namespace=namespace, pod=pod, port=port) from None
    except UnreachableError as exc:
        # The server was reached. It, or what is behind it, did not keep the connection.
        cause = exc.__cause__
        assert isinstance(cause, EOFError | OSError | UnicodeError)
        raise TunnelError(f"pods/proxy: {failure_reason(cause)}") from exc
    reads.connection_made(stream.transport)
    if rest:
        protocol.data_received(rest)
    return stream.transport


async def _upgrade(
    stream: HandshakeStream, access: ApiAccess, namespace: str, pod_and_port: str
) -> None:
    wanted = (("Connection", "Upgrade"), ("Upgrade", UPGRADE))
    headers = await request_upgrade(
        stream, access, "GET", namespace, f"{pod_and_port}/proxy/", wanted
    )
    if [value.lower() for name, value in headers if name == "upgrade"] != [UPGRADE]:
        raise RefusedUpgrade("get", 0, b"an upgrade to something else")


def _error(refused: RefusedUpgrade, *, namespace: str, pod: str, port: int) -> KrelayError:
    """Return krelay's error for a response other than the upgrade.

    The pod may have answered, or a program in its place. So only a Status is taken for the API
    server's, and not even that is proof that the pod is gone.
    """
    shown = error_text(refused.body, _SHOWN, kind=True)
    if status_message(refused.body, kind=True) is not None:
        if refused.status == 401:
            return unauthorized(shown)
        if refused.status == 403:
            more = "" if "pods/proxy" in shown else f": {shown}"
            return AccessDeniedError(
                f'cannot get pods/proxy in namespace "{namespace}"{more}',
                hint="the Role needs the verb get on pods/proxy",
            )
        if refused.status == 404:
            return TunnelError(f"pod {namespace}/{pod} is gone: {shown}")
    if "connection refused" in shown:
        return NotListeningError(f"nothing listens on port {port} of the agent's pod")
    status = refused.status or "a wrong answer"
    return TunnelError(f"pods/proxy: {shown or 'the answer is empty'} ({status})")


class _Reads(asyncio.BufferedProtocol):
    """Passes on what a transport calls, so that it reads into one buffer for all reads."""

    def __init__(self, protocol: asyncio.Protocol) -> None:
        self._protocol = protocol
        self._view = memoryview(bytearray(_READ_SIZE))
        self.pause_writing = protocol.pause_writing  # type: ignore[method-assign]
        self.resume_writing = protocol.resume_writing  # type: ignore[method-assign]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._protocol.connection_made(cast(asyncio.Transport, transport))

    def get_buffer(self, sizehint: int) -> memoryview:
        return self._view

    def buffer_updated(self, nbytes: int) -> None:
        self._protocol.data_received(bytes(self._view[:nbytes]))

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is None or not isinstance(exc, TimeoutError):
            lost = TunnelError(f"the connection to the agent was lost: {exc or 'it ended'}")
            lost.__cause__ = exc
            exc = lost
        self._protocol.connection_lost(exc)
