"""Port-forward: open a connection to a pod through the API server, by the transport that works.

A server found unreachable is asked again as soon as it can be reached.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, TypeVar
from urllib.parse import urlsplit

from krelay.errors import AccessDeniedError, KrelayError, UnreachableError
from krelay.model import Transport
from krelay.net.api_access import ApiAccess
from krelay.net.dial import dial
from krelay.net.handshake_stream import HandshakeStream
from krelay.transport.connect import connect, connect_errors, host_and_port
from krelay.transport.pipe import Pipe
from krelay.transport.upgrade import Carrier, RefusedUpgrade, access_denied, upgrade

if TYPE_CHECKING:
    from krelay.transport.pod_connection import PodConnection

logger = logging.getLogger("krelay.transport")

PROBE_EVERY, PROBE_DEADLINE = 1.0, 1.0  # seconds between two probes, and for each

_ENV_NAME = "KUBECTL_PORT_FORWARD_WEBSOCKETS"


def transport_from_env(configured: Transport, environ: Mapping[str, str]) -> Transport:
    """Return the transport of a port-forward; PROXY leaves it open, as AUTO does.

    Where kubectl's variable forbids the WebSocket, both mean SPDY.
    """
    if configured not in (Transport.AUTO, Transport.PROXY):
        return configured
    forbidden = environ.get(_ENV_NAME, "").lower() == "false"
    return Transport.SPDY if forbidden else Transport.AUTO


class TransportPreference:
    """The transport that worked last with each server: it saves a refusal at each dial."""

    LIMIT = 64

    def __init__(self) -> None:
        self._worked: OrderedDict[str, Transport] = OrderedDict()

    def order(self, transport: Transport, url: str) -> tuple[Transport, ...]:
        """Return the transports to try. Plain SPDY is first: it costs each hop less."""
        if transport is not Transport.AUTO:
            return (transport,)
        if self._worked.get(url) is Transport.WEBSOCKET:
            return (Transport.WEBSOCKET, Transport.SPDY)
        return (Transport.SPDY, Transport.WEBSOCKET)

    def worked(self, url: str, transport: Transport) -> None:
        """Remember that `transport` opened a pipe."""
        self._worked[url] = transport
        self._worked.move_to_end(url)
        while len(self._worked) > self.LIMIT:
            self._worked.popitem(last=False)


_preference = TransportPreference()


U = TypeVar("U", bound="Pipe | PodConnection")
"""What takes over a connection once it carries SPDY."""


@dataclass(frozen=True, slots=True)
class _Forward(Generic[U]):
    access: ApiAccess
    namespace: str
    pod: str
    make: Callable[[Carrier], U]


async def open_portforward(
    access: ApiAccess,
    *,
    namespace: str,
    pod: str,
    port: int,
    protocol: asyncio.Protocol,
    transport: Transport = Transport.AUTO,
    timeout: float = 10.0,
    preference: TransportPreference = _preference,
) -> Pipe:
    """Open a pipe to `port` of `pod`, a transport whose protocol is `protocol`.

    The API server accepts before anything has dialled the port: a port on which nothing listens,
    or a pod that is gone, ends the pipe with `connection_lost` and NotListeningError,
    PodGoneError or another TunnelError. `timeout` limits the whole, in seconds. A server that
    becomes reachable again meanwhile is given as long once more.

    Raises:
        UnreachableError: the API server or its proxy cannot be reached, or does not answer.
        UnauthorizedError: the server does not know the user (401).
        CredentialsError: the server is not trusted, or the way to it is not encrypted.
        AccessDeniedError: RBAC refused; names the verbs.
        PodGoneError: the pod does not exist, or has ended.
        TunnelError: any other response.
        ClusterError: TLS failed.
    """
    return await open_upgraded(
        access,
        lambda carrier: Pipe(protocol, carrier, port),
        namespace=namespace,
        pod=pod,
        transport=transport,
        timeout=timeout,
        preference=preference,
    )


async def open_upgraded(
    access: ApiAccess,
    make: Callable[[Carrier], U],
    *,
    namespace: str,
    pod: str,
    transport: Transport = Transport.AUTO,
    timeout: float = 10.0,
    preference: TransportPreference = _preference,
) -> U:
    """Open a connection that carries port-forwards of `pod`, and hand it to what `make` returns.

    `timeout` and the errors are those of `open_portforward`.
    """
    access.require_private()
    forward = _Forward(access, namespace, pod, make)
    try:
        async with watch_reachability(access):
            return await _open(forward, transport, timeout, preference)
    except _ReachableAgain:
        # Once: on a link that loses packets, the watch is wrong now and then.
        logger.debug("%s: reachable again; asking anew", access.url)
    return await _open(forward, transport, timeout, preference)


async def _open(
    forward: _Forward[U], configured: Transport, timeout: float, preference: TransportPreference
) -> U:
    url = forward.access.url
    failed: list[KrelayError] = []
    start = asyncio.get_running_loop().time()
    transports = preference.order(configured, url)
    try:
        async with asyncio.timeout_at(start + timeout):
            for transport in transports:
                # A gateway may swallow the first request: leave time for the second one.
                answer_by = None if transport is transports[-1] else start + timeout / 2
                stream = await connect(forward.access)
                try:
                    upgraded = await _upgrade(stream, forward, transport, answer_by)
                except RefusedUpgrade as exc:
                    failed.append(exc.error(namespace=forward.namespace, pod=forward.pod))
                    if exc.final:
                        break
                except UnreachableError as exc:
                    failed.append(exc)
                else:
                    preference.worked(url, transport)
                    return upgraded
                logger.debug("%s: no port-forward by %s: %s", url, transport, failed[-1])
    except TimeoutError as exc:
        raise UnreachableError(
            f"no answer from the API server {url} within {timeout:g} s",
            hint="is the cluster running, and this machine in its network (VPN, proxy)?",
        ) from exc
    denied = [error for error in failed if isinstance(error, AccessDeniedError)]
    if len(denied) > 1:
        raise access_denied("get or create", forward.namespace, user=denied[0].user)
    raise denied[0] if denied else failed[-1]


async def _upgrade(
    stream: HandshakeStream, forward: _Forward[U], transport: Transport, answer_by: float | None
) -> U:
    try:
        with connect_errors(forward.access):
            async with asyncio.timeout_at(answer_by):
                carrier = await upgrade(
                    stream,
                    forward.access,
                    namespace=forward.namespace,
                    pod=forward.pod,
                    transport=transport,
                )
            upgraded = forward.make(carrier)
            rest = stream.hand_over(upgraded)
        upgraded.connection_made(stream.transport)
        if rest:
            upgraded.received(rest)
    except BaseException:
        stream.abort()
        raise
    return upgraded


class _ReachableAgain(Exception):
    """The server was out of reach when it was asked, so its answer may never come."""


@contextlib.asynccontextmanager
async def watch_reachability(access: ApiAccess) -> AsyncIterator[None]:
    """Interrupt the body as soon as the server, found unreachable, is reachable again.

    TCP itself would repeat what was lost only after as long as the outage had taken.

    Raises:
        _ReachableAgain: the body was interrupted.
    """
    loop = asyncio.get_running_loop()

    async def watch() -> None:
        await asyncio.sleep(PROBE_EVERY)
        await reachable_again(access)
        deadline.reschedule(loop.time())

    try:
        async with asyncio.timeout(None) as deadline:
            watching = loop.create_task(watch())
            try:
                yield
            finally:
                watching.cancel()
    except TimeoutError as exc:
        if deadline.expired():
            raise _ReachableAgain from exc
        raise


async def reachable_again(access: ApiAccess) -> None:
    """Return when a probe of the server (or its proxy) succeeds after at least one has failed.

    A server that is reachable all the time is no reason to hurry: then this never returns.
    """
    loop = asyncio.get_running_loop()
    host, port = host_and_port(urlsplit(access.proxy or access.url))
    failed = False
    while True:
        start = loop.time()
        try:
            async with asyncio.timeout(PROBE_DEADLINE):
                transport, _ = await dial(asyncio.Protocol, host, port)
        except OSError:  # TimeoutError too
            failed = True
        else:
            transport.abort()
            if failed:
                return
        await asyncio.sleep(start + PROBE_EVERY - loop.time())
