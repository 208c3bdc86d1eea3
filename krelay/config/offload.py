"""Offload: a call that blocks, in a thread that holds up nothing else.

asyncio's own executor has few threads, which credentials and metrics need as well, and the end of
a program that embeds krelay waits for them. These are daemons: one that hangs is left behind.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import TypeVar

from krelay.errors import KrelayError

_T = TypeVar("_T")


class StuckError(KrelayError):
    """A call did not come back in time; `over` is done once it does."""

    def __init__(self, message: str, over: asyncio.Future[None]) -> None:
        super().__init__(message)
        self.over = over


class Offload:
    """Threads for calls of one purpose, `what` in messages. Each has `within` seconds, and `most`
    may be under way, those that were left behind among them."""

    def __init__(self, what: str, *, within: float, most: int) -> None:
        self._what = what
        self._within = within
        self._most = most
        self._under_way = 0

    async def run(self, call: Callable[[], _T]) -> _T:
        """Return what `call` does.

        Raises:
            StuckError: it takes too long; its thread goes on.
            KrelayError: too many were left behind, or there is no thread to be had.
        """
        if self._under_way >= self._most:
            raise KrelayError(f"{self._what}: {self._under_way} earlier calls are still under way")
        loop = asyncio.get_running_loop()
        found: asyncio.Future[_T] = loop.create_future()
        over: asyncio.Future[None] = loop.create_future()

        def end(result: _T | None, error: BaseException | None) -> None:
            self._under_way -= 1
            over.set_result(None)
            if found.cancelled():
                return
            if error is not None:
                found.set_exception(error)
            else:
                found.set_result(result)  # type: ignore[arg-type]

        def work() -> None:
            result, error = None, None
            try:
                result = call()
            except Exception as exc:
                error = exc
            with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(end, result, error)

        try:
            threading.Thread(target=work, name=self._what, daemon=True).start()
        except RuntimeError as exc:
            raise KrelayError(f"{self._what}: no thread can be started") from exc
        self._under_way += 1
        try:
            await asyncio.wait((found,), timeout=self._within)
            if found.done():
                return found.result()
        finally:
            found.cancel()
        raise StuckError(f"{self._what} takes more than {self._within:g} s", over)
