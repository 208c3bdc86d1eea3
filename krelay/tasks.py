"""Tasks: a group that raises one plain error and never loses a cancellation; guards for tasks.

`asyncio.TaskGroup` has three traps. It raises an `ExceptionGroup` where callers want the error
itself; Python 3.11.2 wraps whatever is raised inside an `except*` block in another group; and
before Python 3.13 a group that is already aborting swallows every cancellation that arrives while
it waits for its children (asyncio/taskgroups.py, `__aexit__`). So the client uses this one.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Coroutine
from typing import Any, Self, TypeVar

from krelay.errors import KrelayError

T = TypeVar("T")

logger = logging.getLogger("krelay.tasks")

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds before a task that failed runs again


class TaskGroup:
    """Like `asyncio.TaskGroup`, but it ends in exactly one of three ways.

    - If its owner was cancelled from outside, at any moment, also while the group was already
      ending: `CancelledError`, whatever else went wrong.
    - Otherwise, if the body or a child failed: the first error itself. If several failed, an
      unexpected one (a bug) goes before a `KrelayError`, and all of them are its `__cause__`.
    - Otherwise it returns.

    In each case its children have ended before. `Task.cancelling` has grown by the cancellations
    from outside only, so an enclosing timeout recognizes its own.
    """

    async def __aenter__(self) -> Self:
        owner = asyncio.current_task()
        assert owner is not None, "a task group needs a task"
        self._owner = owner
        self._cancels = owner.cancelling()
        self._children: set[asyncio.Task[Any]] = set()
        self._errors: list[BaseException] = []
        self._aborting = False
        self._exiting = False
        self._interrupted = False
        return self

    def create_task(
        self, work: Coroutine[Any, Any, T], *, name: str | None = None
    ) -> asyncio.Task[T]:
        """Run `work` until it returns or the group ends; its error ends the group.

        Raises:
            RuntimeError: the group has ended.
        """
        if self._exiting and not self._children:
            work.close()
            raise RuntimeError("the task group has ended")
        task = self._owner.get_loop().create_task(work, name=name)
        self._children.add(task)
        task.add_done_callback(self._ended)
        if self._aborting:
            task.cancel()
        return task

    async def __aexit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        self._exiting = True
        if self._interrupted:
            self._owner.uncancel()
            if kind is asyncio.CancelledError:
                error = None
        if error is not None:
            self._abort()
        await self._children_ended()
        if self._owner.cancelling() > self._cancels:
            raise asyncio.CancelledError
        if error is not None and not isinstance(error, asyncio.CancelledError):
            # The body may have raised what it got from a child.
            self._errors = [error, *(exc for exc in self._errors if exc is not error)]
        if self._errors:
            bugs = [exc for exc in self._errors if not isinstance(exc, KrelayError)]
            first = (bugs or self._errors)[0]
            if len(self._errors) == 1:
                raise first
            raise first from BaseExceptionGroup("several tasks failed", self._errors)
        if error is not None:
            raise error

    async def _children_ended(self) -> None:
        # The first turn takes a cancellation that was requested but not yet delivered, also the
        # group's own: it must not interrupt the owner later.
        turn: Coroutine[Any, Any, object] = asyncio.sleep(0)
        while True:
            try:
                await turn
            except asyncio.CancelledError:
                if self._owner.cancelling() > self._cancels:
                    self._abort()
            if not self._children:
                return
            turn = asyncio.wait(self._children)

    def _abort(self) -> None:
        self._aborting = True
        for child in self._children:
            child.cancel()

    def _ended(self, child: asyncio.Task[Any]) -> None:
        self._children.discard(child)
        if child.cancelled() or (error := child.exception()) is None:
            return
        self._errors.append(error)
        if not self._aborting:
            self._abort()
            if not self._exiting:
                self._interrupted = True
                self._owner.cancel()


async def guard(work: Callable[[], Coroutine[Any, Any, object]], what: str) -> bool:
    """Await `work()`; log its error instead of raising it, and return whether it had none.

    It is for the tasks of a shared group: a bug, or an unexpected object, costs only the part that
    `work` serves. A `KrelayError` is one line of the log, anything else has its traceback.
    """
    try:
        await work()
    except KrelayError as exc:
        logger.error("%s: %s", what, exc.line())
    except Exception:
        logger.exception("%s: internal error", what)
    else:
        return True
    return False


async def keep(work: Callable[[], Coroutine[Any, Any, object]], what: str) -> None:
    """Run `work` until it returns; log its errors, and run it again after each one.

    It is for tasks that last as long as krelay: they must work again after a moment without
    threads, descriptors or memory. The pause grows from 1 s to 60 s.
    """
    pause = FIRST_PAUSE
    while not await guard(work, what):
        await asyncio.sleep(pause)
        pause = min(pause * 2, LONGEST_PAUSE)


async def shield_cleanup(work: Coroutine[Any, Any, object], *, within: float | None = None) -> None:
    """Await `work` to its end, even if the caller is cancelled; then raise that cancellation.

    `work` has to set its own deadline. `within` adds one: the seconds that `work` gets after the
    first cancellation before it is cancelled too.
    """
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
