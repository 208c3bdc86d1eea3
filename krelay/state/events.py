"""EventBus: publish what happens in a running krelay, and keep the latest for late listeners."""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from krelay.text import one_line

HISTORY = 200
"""How many events are kept for who comes late."""
BACKLOG = 1_000
"""How many events may wait for one listener; one that is slower loses the oldest."""


@dataclass(frozen=True, slots=True)
class Event:
    """`kind` is `state` (a forward's), `tunnel`, `agent` or `reload`; `text` is a line for people;
    `details` holds JSON values."""

    kind: str
    text: str
    target: str | None = None
    details: dict[str, Any] = field(default_factory=dict)
    time: datetime = field(default_factory=lambda: datetime.now(UTC))
    number: int = 0

    def as_json(self) -> dict[str, Any]:
        """Its JSON form."""
        return {
            "number": self.number,
            "time": self.time.isoformat(),
            "kind": self.kind,
            "target": self.target,
            "text": self.text,
            "details": self.details,
        }


class EventBus:
    """Bounded on every side: `tell` never waits, and no listener can hold up another."""

    def __init__(self) -> None:
        self.history: deque[Event] = deque(maxlen=HISTORY)
        self._count = 0
        self._listeners: set[Listener] = set()

    def tell(self, kind: str, text: str, *, target: str | None = None, **details: Any) -> None:
        """Something happened."""
        self._count += 1
        shown = {name: _shown(value) for name, value in details.items()}
        event = Event(kind, one_line(text), target, shown, number=self._count)
        self.history.append(event)
        for listener in self._listeners:
            listener.put(event)

    @asynccontextmanager
    async def listen(self, after: int | None = None) -> AsyncIterator[Listener]:
        """Events from now on; first those that are kept with a number above `after`, if given."""
        listener = Listener()
        for event in self.history if after is not None else ():
            if after is not None and event.number > after:
                listener.put(event)
        self._listeners.add(listener)
        try:
            yield listener
        finally:
            self._listeners.discard(listener)


class Listener:
    """One who listens; `dropped` counts what it was too slow for."""

    def __init__(self) -> None:
        self.dropped = 0
        self._events: deque[Event] = deque()
        self._there = asyncio.Event()

    def put(self, event: Event) -> None:
        """One more."""
        if len(self._events) >= BACKLOG:
            self._events.popleft()
            self.dropped += 1
        self._events.append(event)
        self._there.set()

    async def next(self) -> Event:
        """The oldest that waits, once there is one."""
        while not self._events:
            self._there.clear()
            await self._there.wait()
        return self._events.popleft()


def _shown(value: Any) -> Any:
    """A JSON value whose texts are fit to be shown."""
    if isinstance(value, str):
        return one_line(value)
    if isinstance(value, Mapping):
        return {str(key): _shown(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_shown(item) for item in value]
    return value
