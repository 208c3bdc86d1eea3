"""Reopened: sees that the way to an API server, which was shut, is open again."""

from __future__ import annotations

import asyncio
from urllib.parse import urlsplit

from krelay.access import ApiAccess
from krelay.transport.connect import address_of
from krelay.transport.tcp import dial

EVERY = 1.0
"""Seconds between two looks, and for each."""


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
