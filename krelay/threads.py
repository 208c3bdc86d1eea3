"""Threads: asyncio's default executor, whose hung calls do not keep a program from ending.

`asyncio.to_thread` uses the loop's default executor, and the end of a loop waits for every call in
it, as the end of the interpreter does (asyncio/base_events.py, concurrent/futures/thread.py). A
file system or a resolver that never answers would hold both up.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


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
