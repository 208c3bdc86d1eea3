"""Threads: calls that block, in asyncio's default executor: one that hangs does not keep a program
from ending, and where no thread can be had there is an error in words.

The end of a loop waits for every call in its default executor, as the end of the interpreter does
(asyncio/base_events.py, concurrent/futures/thread.py). A file system or a resolver that never
answers would hold both up.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

from krelay.errors import KrelayError

P = ParamSpec("P")
T = TypeVar("T")


async def in_thread(call: Callable[[], T], lack: type[KrelayError] = KrelayError) -> T:
    """Return what `call` does in a thread of the default executor.

    Raises:
        lack: no thread can be started.
    """
    try:
        future = asyncio.get_running_loop().run_in_executor(None, call)
    except (RuntimeError, MemoryError) as exc:
        hint = "this user, or this container, may have no more: see `ulimit -u`"
        raise lack("no thread can be started", hint=hint) from exc
    return await future


async def in_thread_or_here(call: Callable[[], T]) -> T:
    """Return what `call` does: in a thread, or at once where none can be started. It is for calls
    that block for moments, and that an end or a health check cannot do without."""
    try:
        future = asyncio.get_running_loop().run_in_executor(None, call)
    except (RuntimeError, MemoryError):
        return call()
    return await future


def use_daemons(loop: asyncio.AbstractEventLoop) -> None:
    """Give `loop` a DaemonExecutor. Its end starts no thread to wait for that, which it might not
    get."""
    loop.set_default_executor(DaemonExecutor())
    loop.shutdown_default_executor = _left_alone  # type: ignore[method-assign]


async def _left_alone(timeout: float | None = None) -> None:
    """Stand in for `loop.shutdown_default_executor`; `loop.close` lets go of the executor."""


class DaemonExecutor(ThreadPoolExecutor):
    """Runs each call in a daemon thread; `shutdown` waits for none of them.

    It is a ThreadPoolExecutor because `loop.set_default_executor` accepts nothing else.
    """

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> Future[T]:
        """Start `fn` at once.

        Raises:
            RuntimeError: no thread can be started.
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

        threading.Thread(target=work, name="krelay worker", daemon=True).start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Return at once: a thread that hangs is left behind."""
