"""Threads: blocking calls, and a whole event loop, in daemon threads that delay no end.

An event loop at its end waits for every call in its default executor, and so does the interpreter
(asyncio/base_events.py, concurrent/futures/thread.py). A file system or a resolver that never
answers would hold both up.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager
from typing import Generic, ParamSpec, TypeVar

from krelay.errors import KrelayError, NotReadyError

P = ParamSpec("P")
T = TypeVar("T")

_GRACE = 30.0  # seconds beyond its own deadlines in which a LoopThread has to start, or to end


async def in_thread(call: Callable[[], T], lack: type[KrelayError] = KrelayError) -> T:
    """Return the result of `call`, run in a thread of the default executor.

    Raises:
        lack: no thread can be started.
    """
    try:
        future = asyncio.get_running_loop().run_in_executor(None, call)
    except (RuntimeError, MemoryError) as exc:
        hint = "this user or container may have reached its limit: see `ulimit -u`"
        raise lack("no thread can be started", hint=hint) from exc
    return await future


async def in_thread_or_here(call: Callable[[], T]) -> T:
    """Return the result of `call`, run in a thread, or on the loop if none can be started.

    It is for calls that block for moments, and that an end or a health check cannot do without.
    """
    try:
        future = asyncio.get_running_loop().run_in_executor(None, call)
    except (RuntimeError, MemoryError):
        return call()
    return await future


def use_daemons(loop: asyncio.AbstractEventLoop) -> None:
    """Make DaemonExecutor the default executor of `loop`.

    At its end, the loop starts no thread to wait for the executor: it might not get one.
    """

    async def leave_threads(timeout: float | None = None) -> None:
        """Do nothing: `loop.close` drops the executor."""

    loop.set_default_executor(DaemonExecutor())
    loop.shutdown_default_executor = leave_threads  # type: ignore[method-assign]


class DaemonExecutor(ThreadPoolExecutor):
    """Runs each call in a daemon thread; `shutdown` waits for none of them.

    It is a ThreadPoolExecutor because `loop.set_default_executor` accepts nothing else.
    """

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Start `fn` at once. Raises RuntimeError if no thread can be started.

        While the interpreter ends, it starts no threads; `fn` then runs here.
        """
        future: Future[T] = Future()

        def work() -> None:
            if not future.set_running_or_notify_cancel():
                return
            try:
                result = fn(*args, **kwargs)
            except BaseException as exc:
                future.set_exception(exc)
            else:
                future.set_result(result)

        try:
            threading.Thread(target=work, name="krelay worker", daemon=True).start()
        except RuntimeError as exc:
            if "interpreter shutdown" not in str(exc):
                raise
            work()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Return at once: a thread that hangs is left behind."""


class LoopThread(Generic[T]):
    """Keeps an async context on an event loop in a thread, for callers without a loop.

    A cut end cancels the context. Every wait for the thread has a deadline: a loop that hangs is
    left behind.
    """

    def __init__(self, context: AbstractAsyncContextManager[T], *, grace: float = _GRACE) -> None:
        self._context = context
        self._grace = grace
        self._started: Future[T] = Future()
        self._ended: Future[None] = Future()
        self._loop = asyncio.new_event_loop()
        use_daemons(self._loop)
        self._task: asyncio.Task[None] | None = None
        self._stop = asyncio.Event()
        self._cut = False
        self._thread = threading.Thread(target=self._main, name="krelay", daemon=True)

    def start(self, timeout: float) -> T:
        """Enter the context, which has `timeout` seconds by itself; return its value.

        Raises:
            NotReadyError: the loop hangs.
            KrelayError: as the context.
        """
        try:
            self._thread.start()
        except RuntimeError:
            self._loop.close()
            raise
        try:
            return self._started.result(timeout + self._grace)
        except TimeoutError:
            self._call(self._cancel)
            raise NotReadyError(
                f"no answer from the relaying thread within {timeout + self._grace:g} s",
                hint="is the machine overloaded, or was the process forked?",
            ) from None
        except BaseException:
            if not self._ended.done():
                self._call(self._cancel)
                self._wait()
            raise

    def end(self, *, cut: bool) -> None:
        """Leave the context, and wait for the thread.

        Raises:
            KrelayError: the context failed and is not cut, or does not end.
        """
        self._call(self._cancel if cut else self._stop.set)
        try:
            ended = self._wait()
        except BaseException:  # the caller was interrupted: cut instead
            self._call(self._cancel)
            self._wait()
            raise
        if not ended:
            raise KrelayError(
                f"the relaying thread did not end in {self._grace:g} s",
                hint="an agent that is left in the cluster ends by itself when idle",
            )
        if not cut:
            self._ended.result()

    def _call(self, callback: Callable[[], None]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed: the thread has ended
            self._loop.call_soon_threadsafe(callback)

    def _wait(self) -> bool:
        done, _ = concurrent.futures.wait([self._ended], self._grace)
        if done:
            self._thread.join(self._grace)
        return bool(done)

    # -- in the thread -------------------------------------------------------------------------

    def _main(self) -> None:
        try:
            with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
                runner.run(self._run())
        except BaseException as exc:
            self._ended.set_exception(exc)
        else:
            self._ended.set_result(None)
        if not self._started.done():
            failure = self._ended.exception() or KrelayError("ended before it was ready")
            self._started.set_exception(failure)

    async def _run(self) -> None:
        if self._cut:
            return
        self._task = asyncio.current_task()
        async with self._context as value:
            self._started.set_result(value)
            await self._stop.wait()

    def _cancel(self) -> None:
        self._cut = True
        if self._task is not None:
            self._task.cancel()
