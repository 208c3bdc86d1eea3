"""Threaded: what runs on a loop, for callers that have none: a thread, and deadlines on it."""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from krelay.errors import KrelayError, NotReadyError
from krelay.threads import use_daemons

_GRACE = 30.0
"""Seconds over its own deadlines that a loop gets to come up, or to end."""

T_co = TypeVar("T_co", covariant=True)
T = TypeVar("T")


class Runs(Protocol[T_co]):
    """What runs from `start` to `end`, both on one loop; cancelling `start` ends it."""

    async def start(self) -> T_co: ...

    async def end(self, *, cut: bool) -> None: ...


class Threaded(Generic[T]):
    """Runs something on a loop in a thread that nobody waits for without an end."""

    def __init__(self, runs: Runs[T], *, grace: float = _GRACE) -> None:
        self._runs = runs
        self._grace = grace
        self._ready: concurrent.futures.Future[T] = concurrent.futures.Future()
        self._over: concurrent.futures.Future[None] = concurrent.futures.Future()
        self._loop = asyncio.new_event_loop()
        use_daemons(self._loop)
        self._task: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()
        self._cut = False
        self._thread = threading.Thread(target=self._main, name="krelay", daemon=True)

    def start(self, timeout: float) -> T:
        """What its `start` gives, or raises; that takes `timeout` seconds at the most.

        Raises:
            NotReadyError: it took far more; the loop hangs.
        """
        try:
            self._thread.start()
        except RuntimeError:
            self._loop.close()
            raise
        try:
            return self._ready.result(timeout + self._grace)
        except TimeoutError:
            self._tell(self._cancel)
            raise NotReadyError(
                f"no word from the relaying thread in {timeout + self._grace:g} s",
                hint="is the machine overloaded, or was the process forked?",
            ) from None
        except BaseException:
            if not self._over.done():
                self._tell(self._cancel)
                self._wait()
            raise

    def end(self, *, cut: bool) -> None:
        """Its `end`, and the thread's.

        Raises:
            KrelayError: it had failed, or does not end.
        """
        self._tell(self._cancel if cut else self._stop.set)
        try:
            over = self._wait()
        except BaseException:  # somebody is in a hurry
            self._tell(self._cancel)
            self._wait()
            raise
        if not over:
            raise KrelayError(
                f"the relaying thread did not end in {self._grace:g} s",
                hint="an agent that is left in the cluster ends by itself when idle",
            )
        if not cut:
            self._over.result()

    # -- in the thread -------------------------------------------------------------------------

    def _main(self) -> None:
        failure: BaseException | None = None
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._run())
        except BaseException as exc:
            failure = exc
        if failure is None:
            self._over.set_result(None)
        else:
            self._over.set_exception(failure)
        if not self._ready.done():
            self._ready.set_exception(failure or KrelayError("ended before it was ready"))

    async def _run(self) -> None:
        if self._cut:
            return
        self._task = asyncio.current_task()
        self._ready.set_result(await self._runs.start())
        try:
            await self._stop.wait()
        except asyncio.CancelledError:
            await self._runs.end(cut=True)
            raise
        await self._runs.end(cut=False)

    def _cancel(self) -> None:
        self._cut = True
        if self._task is not None:
            self._task.cancel()

    # -- for its caller ------------------------------------------------------------------------

    def _tell(self, what: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: it has ended
            self._loop.call_soon_threadsafe(what)

    def _wait(self) -> bool:
        """Whether it has ended, in time."""
        done, _ = concurrent.futures.wait([self._over], self._grace)
        if done:
            self._thread.join(self._grace)
        return bool(done)
