"""Thrift: gives back to the system what the allocator keeps after a burst of work."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import logging
import sys
from collections.abc import Callable

from krelay.errors import KrelayError
from krelay.threads import in_thread

logger = logging.getLogger("krelay.supervisor")

_LOOK_EVERY = 10.0
_LOOKS = 6
"""After so many while something lives it is done as well; the loop stands still for some ms."""


async def give_back(streams: Callable[[], int]) -> None:
    """Return memory that is free: once a minute while something lives, of which a development
    machine may have one connection for ever, and once when nothing does any more. `streams` counts
    what lives. Lasts until cancelled; returns where the allocator cannot be asked.

    glibc keeps what was freed in the middle of its heap, which after hours of traffic can be a few
    times of what krelay needs (man 3 malloc_trim).
    """
    trim = _trimmer()
    if trim is None:
        return
    looks = 0
    while True:
        await asyncio.sleep(_LOOK_EVERY)
        before, looks = looks, looks + 1 if streams() else 0
        if looks % _LOOKS == 0 and before:
            with contextlib.suppress(KrelayError):  # no thread can be had: later
                await in_thread(lambda: trim(0))
                logger.debug("memory given back")


def _trimmer() -> Callable[[int], int] | None:
    if sys.platform != "linux":
        return None
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return None  # another C library
    return trim
