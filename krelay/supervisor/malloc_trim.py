"""Return memory to the system that the allocator keeps after a burst of work."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import sys
from collections.abc import Callable

from krelay.errors import KrelayError
from krelay.threads import in_thread

logger = logging.getLogger("krelay.supervisor")

_LOOK_EVERY = 10.0
_LOOKS = 6
"""Looks between two trims while streams live. A trim takes milliseconds of the event loop."""


async def give_back(streams: Callable[[], int]) -> None:
    """Return free memory once a minute while streams live, and once when the last one has ended.

    `streams` counts the live streams. Runs until cancelled; returns at once if the allocator has no
    such function.

    glibc keeps memory that was freed in the middle of its heap. After hours of traffic that can be
    a few times what krelay needs (man 3 malloc_trim).
    """
    trim = _trimmer()
    if trim is None:
        return
    looks = 0
    while True:
        await asyncio.sleep(_LOOK_EVERY)
        before, looks = looks, looks + 1 if streams() else 0
        if looks % _LOOKS == 0 and before:
            with contextlib.suppress(KrelayError):  # no thread is available: try again later
                await in_thread(lambda: trim(0))
                logger.debug("free memory returned to the system")


def _trimmer() -> Callable[[int], int] | None:
    if sys.platform != "linux":
        return None
    import ctypes

    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError):
        return None  # another C library
    return trim
