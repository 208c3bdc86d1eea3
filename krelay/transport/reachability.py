"""Reachability: notice that an API server which could not be reached can be reached again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

from krelay.net.api_access import ApiAccess
from krelay.net.dial import dial
from krelay.transport.connect import host_and_port

PROBE_EVERY, PROBE_DEADLINE = 1.0, 1.0
"""Seconds between two probes, and for each."""


class ReachableAgain(Exception):
    """The server was out of reach when it was asked, so its answer may never come."""


@contextlib.asynccontextmanager
async def watch_reachability(access: ApiAccess) -> AsyncIterator[None]:
    """Interrupt the body as soon as the server, found unreachable, is reachable again.

    TCP itself would repeat what was lost only after as long as the outage had taken.

    Raises:
        ReachableAgain: the body was interrupted.
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
            raise ReachableAgain from exc
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
