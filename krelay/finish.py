"""Work that a cancellation must not leave half done: what cleans up, and has a deadline itself."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any


async def finish(work: Coroutine[Any, Any, object], *, within: float | None = None) -> None:
    """Await `work` to its end, through any cancellation; that comes after. `within`: from the
    first one on, `work` gets so many seconds, and is then cancelled in its turn."""
    loop = asyncio.get_running_loop()
    task = loop.create_task(work)
    cancelled: asyncio.CancelledError | None = None
    hurry: asyncio.TimerHandle | None = None
    while not task.done():
        try:
            await asyncio.wait((task,))
        except asyncio.CancelledError as exc:
            cancelled = exc
            if within is not None and hurry is None:
                hurry = loop.call_later(within, task.cancel)
    if hurry is not None:
        hurry.cancel()
    if cancelled is not None:
        if not task.cancelled():
            task.exception()
        raise cancelled
    task.result()
