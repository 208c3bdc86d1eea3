"""Opening: how a new connection gets its stream: at once when it can, else parked for a while."""

from __future__ import annotations

import asyncio

from krelay.datapath.route import Route
from krelay.model import Endpoint, Protocol
from krelay.mux.stream import Handler, MuxStream
from krelay.wire import header
from krelay.wire.errors import ErrorCode, ProtocolError
from krelay.wire.header import Header

_NUMBERS = {Protocol.TCP: header.TCP, Protocol.UDP: header.UDP}

RETRY_WAIT = 0.5
"""How long, in seconds, a refused dial waits for the route to lead elsewhere."""

RETRIED = frozenset(
    {ErrorCode.REFUSED, ErrorCode.UNREACHABLE, ErrorCode.CONNECT_TIMEOUT, ErrorCode.GOING_AWAY}
)
"""Refusals that an endpoint gives that has just gone away."""


def open_now(route: Route, protocol: Protocol, handler: Handler) -> MuxStream | None:
    """A stream to where `route` leads; None while there is no endpoint or no tunnel.

    Raises:
        ProtocolError: the session has too many streams.
    """
    endpoint, driver = route.endpoint, route.pool.pick()
    if endpoint is None or driver is None:
        return None
    return driver.open(Header(_NUMBERS[protocol], endpoint.host, endpoint.port), handler)


async def open_parked(
    route: Route,
    protocol: Protocol,
    handler: Handler,
    park: float,
    *,
    after: Endpoint | None = None,
) -> MuxStream | None:
    """The same, waiting up to `park` seconds; None when that was not enough.

    `after` is an endpoint that refused: a route that leads elsewhere is waited for a little.
    """
    try:
        async with asyncio.timeout(park):
            if after is not None:
                await route.wait_other(after, RETRY_WAIT)
            while True:
                await route.wait_endpoint()
                await route.pool.wait()
                if (stream := open_now(route, protocol, handler)) is not None:
                    return stream
    except (TimeoutError, ProtocolError):
        return None
