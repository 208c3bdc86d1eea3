"""Port-forward: opens the pipe to a pod's port through the API server, by the way that works."""

from __future__ import annotations

import asyncio
import logging
from collections import OrderedDict
from collections.abc import Mapping

from krelay.errors import AccessDeniedError, KrelayError, UnreachableError
from krelay.model import Transport
from krelay.net.api_access import ApiAccess
from krelay.transport.connect import connect, reaching
from krelay.transport.pipe import Pipe
from krelay.transport.reachability import ReopenedError, watched
from krelay.transport.upgrade import Refused, access_denied, final, upgrade, upgrade_error

logger = logging.getLogger("krelay.transport")

_ENV_NAME = "KUBECTL_PORT_FORWARD_WEBSOCKETS"


def transport_from_env(configured: Transport, environ: Mapping[str, str]) -> Transport:
    """What kubectl's variable makes of AUTO: `false` forbids the WebSocket. A choice stands."""
    if configured is Transport.AUTO and environ.get(_ENV_NAME, "").lower() == "false":
        return Transport.SPDY
    return configured


class TransportPreference:
    """Which way worked last with which server, so that a refusal is not paid for at each dial."""

    LIMIT = 64

    def __init__(self) -> None:
        self._worked: OrderedDict[str, Transport] = OrderedDict()

    def order(self, transport: Transport, url: str) -> tuple[Transport, ...]:
        """The ways to try. Plain SPDY first: it costs every hop less than the WebSocket."""
        if transport is not Transport.AUTO:
            return (transport,)
        if self._worked.get(url) is Transport.WEBSOCKET:
            return (Transport.WEBSOCKET, Transport.SPDY)
        return (Transport.SPDY, Transport.WEBSOCKET)

    def worked(self, url: str, way: Transport) -> None:
        """`way` opened a pipe."""
        self._worked[url] = way
        self._worked.move_to_end(url)
        while len(self._worked) > self.LIMIT:
            self._worked.popitem(last=False)


_ways = TransportPreference()


async def open_portforward(
    access: ApiAccess,
    *,
    namespace: str,
    pod: str,
    port: int,
    protocol: asyncio.Protocol,
    transport: Transport = Transport.AUTO,
    timeout: float = 10.0,
    ways: TransportPreference = _ways,
) -> Pipe:
    """A pipe to `port` of `pod`; `protocol` is told of it as of any transport.

    It stands when the API server said yes, which it says before anyone dialled the port: that
    nothing listens there, or that the pod is gone, comes with `connection_lost`, as one of the
    TunnelErrors below or as TunnelError itself. `timeout` is in seconds, for all of it; a network
    that is seen to come back meanwhile gets as long again.

    Raises:
        UnreachableError: no answer, or no way to the API server or its proxy.
        UnauthorizedError: the server does not know us (401).
        CredentialsError: we do not trust it, or the way to it is not encrypted.
        AccessDeniedError: RBAC; names the verbs.
        PodGoneError: no such pod, or it has ended.
        TunnelError: any other answer.
        ClusterError: TLS failed.
    """

    access.require_private()

    async def attempt() -> Pipe:
        order = ways.order(transport, access.url)
        return await _by_some_way(access, namespace, pod, port, protocol, order, timeout, ways)

    try:
        async with watched(access):
            return await attempt()
    except ReopenedError:
        # Once: on a link that loses packets, looks fail now and then as well.
        logger.debug("%s: it was out of reach for a moment; asked anew", access.url)
    return await attempt()


async def _by_some_way(
    access: ApiAccess,
    namespace: str,
    pod: str,
    port: int,
    protocol: asyncio.Protocol,
    order: tuple[Transport, ...],
    timeout: float,
    ways: TransportPreference,
) -> Pipe:
    failed: list[KrelayError] = []
    start = asyncio.get_running_loop().time()
    try:
        async with asyncio.timeout_at(start + timeout):
            for way in order:
                # A gateway may swallow the first way's request: leave time for the second.
                answer_by = None if way is order[-1] else start + timeout / 2
                try:
                    pipe = await _open(access, namespace, pod, port, protocol, way, answer_by)
                except _Failed as exc:
                    failed.append(exc.error)
                    if exc.final:
                        break
                    logger.debug("%s: no port-forward by %s: %s", access.url, way, exc.error)
                else:
                    ways.worked(access.url, way)
                    return pipe
    except TimeoutError as exc:
        raise UnreachableError(
            f"no answer from the API server {access.url} within {timeout:g} s",
            hint="is the cluster running, and this machine in its network (VPN, proxy)?",
        ) from exc
    raise _most_telling(failed, namespace)


class _Failed(Exception):
    """One way failed; `final` when the other would too."""

    def __init__(self, error: KrelayError, *, final: bool) -> None:
        super().__init__(str(error))
        self.error, self.final = error, final


async def _open(
    access: ApiAccess,
    namespace: str,
    pod: str,
    port: int,
    protocol: asyncio.Protocol,
    way: Transport,
    answer_by: float | None,
) -> Pipe:
    dialogue = await connect(access)
    try:
        try:
            with reaching(access):
                async with asyncio.timeout_at(answer_by):
                    carrier = await upgrade(dialogue, access, namespace=namespace, pod=pod, way=way)
                pipe = Pipe(protocol, carrier, port)
                rest = dialogue.hand_over(pipe)
        except Refused as exc:
            error = upgrade_error(exc, namespace=namespace, pod=pod)
            raise _Failed(error, final=final(exc)) from exc
        except UnreachableError as exc:
            raise _Failed(exc, final=False) from exc
        pipe.connection_made(dialogue.transport)
        if rest:
            pipe.received(rest)
    except BaseException:
        dialogue.abort()
        raise
    return pipe


def _most_telling(failed: list[KrelayError], namespace: str) -> KrelayError:
    denied = [error for error in failed if isinstance(error, AccessDeniedError)]
    if len(denied) > 1:
        return access_denied("get or create", namespace)
    return denied[0] if denied else failed[-1]
