"""Reopened: sees that the way to an API server, which was shut, is open again."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from urllib.parse import urlsplit

from krelay.net.api_access import ApiAccess
from krelay.transport.connect import address_of, dial

EVERY = 1.0
"""Seconds between two looks, and for each."""


class ReopenedError(Exception):
    """What waits for an answer waits in vain: it was asked while the way was shut."""


@contextlib.asynccontextmanager
async def watched(access: ApiAccess) -> AsyncIterator[None]:
    """What is done within ends as soon as the way was seen shut for a moment, and is open again:
    TCP itself would send what was lost again only after as long as that had taken.

    Raises:
        ReopenedError: that is so.
    """
    loop = asyncio.get_running_loop()

    async def look() -> None:
        await asyncio.sleep(EVERY)
        await reopened(access)
        silence.reschedule(loop.time())

    try:
        async with asyncio.timeout(None) as silence:
            looking = loop.create_task(look())
            try:
                yield
            finally:
                looking.cancel()
    except TimeoutError as exc:
        if silence.expired():
            raise ReopenedError from exc
        raise


async def reopened(access: ApiAccess) -> None:
    """Return when a connection to the server (or its proxy), after at least one that was not had,
    comes up: one that is open all the time tells nothing new, and is no reason for haste."""
    loop = asyncio.get_running_loop()
    host, port = address_of(urlsplit(access.proxy or access.url))
    shut = False
    while True:
        at = loop.time()
        try:
            async with asyncio.timeout(EVERY):
                transport, _ = await dial(asyncio.Protocol, host, port)
        except OSError:  # TimeoutError too
            shut = True
        else:
            transport.abort()
            if shut:
                return
        await asyncio.sleep(at + EVERY - loop.time())
