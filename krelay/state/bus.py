"""EventBus: publish typed events, keep the latest for late listeners, wait for a state."""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

from krelay.state.events import Event, PublicEvent
from krelay.state.snapshot import Snapshot

logger = logging.getLogger("krelay.state")

HISTORY = 200
"""Public events that are kept for late listeners."""
BACKLOG = 1_000
"""Events that may wait for one subscriber; a slower one loses the oldest."""

E = TypeVar("E", bound=Event)


class EventBus:
    """Carries events from their producers to subscribers, within one event loop.

    `publish` never waits, and no subscriber can hold up another one.
    """

    def __init__(self, snapshot: Callable[[], Snapshot] | None = None) -> None:
        """`snapshot` returns the present state, for `wait_for`."""
        self.history: deque[PublicEvent] = deque(maxlen=HISTORY)
        self._snapshot = snapshot
        self._count = 0
        self._subscriptions: set[Subscription] = set()
        self._handlers: list[tuple[type[Event], Callable[[Any], None]]] = []
        self._waiting: set[asyncio.Event] = set()

    def publish(self, event: Event) -> None:
        """Deliver `event` to all subscribers."""
        if isinstance(event, PublicEvent):
            self._count += 1
            event = dataclasses.replace(event, number=self._count)
            self.history.append(event)
        for subscription in self._subscriptions:
            subscription.put(event)
        for kind, handler in self._handlers:
            if isinstance(event, kind):
                try:
                    handler(event)
                except Exception:
                    # Its producer has nothing to do with it.
                    logger.exception("internal error")
        for changed in self._waiting:
            changed.set()

    def on(self, kind: type[E], handler: Callable[[E], None]) -> None:
        """Call `handler` with each event of `kind` from now on, from within `publish`."""
        self._handlers.append((kind, handler))

    @contextmanager
    def subscribe(self, *kinds: type[Event], after: int | None = None) -> Iterator[Subscription]:
        """Queue the events of these `kinds` from now on, of all kinds if none is given.

        Public events that are kept with a number above `after`, if given, come first.
        """
        subscription = Subscription(kinds or (Event,))
        if after is not None:
            for event in self.history:
                if event.number > after:
                    subscription.put(event)
        self._subscriptions.add(subscription)
        try:
            yield subscription
        finally:
            self._subscriptions.discard(subscription)

    async def wait_for(self, predicate: Callable[[Snapshot], bool]) -> Snapshot:
        """Return the first snapshot for which `predicate` holds, from the present one on.

        The predicate is evaluated when an event was published, once for all events of one turn of
        the event loop.
        """
        assert self._snapshot is not None, "this bus has no snapshots"
        changed = asyncio.Event()
        self._waiting.add(changed)
        try:
            while not predicate(snapshot := self._snapshot()):
                changed.clear()
                await changed.wait()
            return snapshot
        finally:
            self._waiting.discard(changed)


class Subscription:
    """The queue of one subscriber; `dropped` counts the events that it was too slow for."""

    def __init__(self, kinds: tuple[type[Event], ...]) -> None:
        self.dropped = 0
        self._kinds = kinds
        self._events: deque[Event] = deque()
        self._filled = asyncio.Event()

    def put(self, event: Event) -> None:
        """Queue an event; the oldest one makes room."""
        if not isinstance(event, self._kinds):
            return
        if len(self._events) >= BACKLOG:
            self._events.popleft()
            self.dropped += 1
        self._events.append(event)
        self._filled.set()

    async def next(self) -> Any:
        """Return the oldest queued event; wait for one if there is none."""
        while not self._events:
            self._filled.clear()
            await self._filled.wait()
        return self._events.popleft()
