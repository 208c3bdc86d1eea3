"""The events of `/v1/events`, as server-sent events."""

from __future__ import annotations

import asyncio
import json

from aiohttp import web

from krelay.state.bus import EventBus, Subscription
from krelay.state.events import PublicEvent

MAX_STREAMS = 32
HEARTBEAT = 15.0
"""Seconds without an event after which a comment shows that the stream is alive."""


class EventStreams:
    """The event streams of one server.

    Each `Subscription` bounds what waits for a slow client; `Connections` drops a client that takes
    nothing.
    """

    def __init__(self, bus: EventBus) -> None:
        self._bus = bus
        self._open: set[asyncio.Task[object]] = set()

    async def answer(self, request: web.Request) -> web.StreamResponse:
        """Send events until the client disconnects or the server closes."""
        if len(self._open) >= MAX_STREAMS:
            raise web.HTTPServiceUnavailable(
                text=f"{MAX_STREAMS} clients listen already", headers={"Retry-After": "5"}
            )
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        task = asyncio.current_task()
        assert task is not None
        self._open.add(task)
        try:
            with self._bus.subscribe(PublicEvent, after=self._after(request)) as events:
                await response.prepare(request)
                await response.write(b"retry: 1000\n\n")
                await _send_events(events, response)
        except ConnectionError:
            pass  # the client has gone
        finally:
            self._open.discard(task)
        return response

    async def close(self, app: web.Application | None = None) -> None:
        """End all streams."""
        for task in self._open:
            task.cancel()

    def _after(self, request: web.Request) -> int | None:
        """Return the number of the last event that the client has; None if it asks for none of
        the past."""
        text = request.headers.get("Last-Event-ID") or request.query.get("after", "")
        if not (text.isascii() and text.isdigit() and len(text) <= 18):
            return None
        history = self._bus.history
        # A higher number than the latest comes from an earlier run.
        return int(text) if history and int(text) <= history[-1].number else 0


async def _send_events(events: Subscription, response: web.StreamResponse) -> None:
    dropped = 0
    while True:
        try:
            async with asyncio.timeout(HEARTBEAT):
                text = as_text(await events.next())
        except TimeoutError:
            text = ": still here\n\n"
        if events.dropped > dropped:
            missed = events.dropped - dropped
            dropped = events.dropped
            text = f'event: dropped\ndata: {{"count": {missed}}}\n\n{text}'
        await response.write(text.encode())


def as_text(event: PublicEvent) -> str:
    """Return the event as sent; JSON keeps its data on one line."""
    return f"id: {event.number}\nevent: {event.kind}\ndata: {json.dumps(event.as_json())}\n\n"
