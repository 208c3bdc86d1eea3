"""Thrift: gives back to the system what the allocator keeps after a burst of work."""

from __future__ import annotations

import asyncio
import ctypes
import logging
import sys
from collections.abc import Callable

logger = logging.getLogger("krelay.supervisor")

_LOOK_EVERY = 10.0


async def give_back(streams: Callable[[], int]) -> None:
    """Once nothing lives any more, return the memory that it took; `streams` counts what lives.
    Lasts until cancelled; returns where the allocator cannot be asked.

    glibc keeps what was freed in the middle of its heap, which after hours of traffic can be a few
    times of what krelay needs (man 3 malloc_trim).
    """
    trim = _trimmer()
    if trim is None:
        return
    busy = False
    while True:
        await asyncio.sleep(_LOOK_EVERY)
        if streams():
            busy = True
        elif busy:
            busy = False
            await asyncio.to_thread(trim, 0)
            logger.debug("memory given back")


def _trimmer() -> Callable[[int], int] | None:
    if sys.platform != "linux":
        return None
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return None  # another C library
    return trim
