"""A TCP proxy that does harm on purpose: delays, throttles, cuts, truncates, swallows, refuses.

It stands on loopback between krelay and the API server and knows nothing of what passes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from krelay.mux.sockets import reset_socket

_PIECE = 16 << 10
_HELD = 64
"""Pieces that a direction holds before it reads no more, as a network's buffers would."""


@dataclass
class Faults:
    """What is done to a connection, or to all of them. `delay` is in seconds and holds each piece,
    in order; `rate` in bytes per second, of each connection and direction; `hole` lets nothing pass
    and says nothing, not even that an end has gone."""

    delay: float = 0.0
    rate: float = 0.0
    hole: bool = False

    def heal(self) -> None:
        """No fault."""
        self.delay, self.rate, self.hole = 0.0, 0.0, False


class Connection:
    """One that was accepted. Both its own faults and those of the proxy apply."""

    def __init__(self, proxy: Proxy, reader: asyncio.StreamReader, writer: asyncio.StreamWriter):
        self.faults = Faults()
        self.passed = 0
        self._proxy = proxy
        self._near = (reader, writer)
        self._truncate = 0
        self._ended = asyncio.Event()
        self._writers = [writer]

    def cut(self) -> None:
        """RST both ways, in the middle of whatever was under way."""
        for writer in self._writers:
            reset_socket(writer.transport)
        self._ended.set()

    def truncate(self, count: int) -> None:
        """Of the next piece lose the last `count` bytes, then end in good order both ways."""
        self._truncate = count

    async def run(self) -> None:
        """Pass bytes on until either end is done."""
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.TaskGroup() as tasks:
                work = tasks.create_task(self._carry(tasks))
                await self._ended.wait()
                work.cancel()
                raise _OverError
        except* _OverError:
            pass
        for writer in self._writers:
            if not writer.is_closing():
                writer.close()
        # What an orderly end leaves to be written is given a second.
        late = loop.call_later(1.0, self.cut)
        for writer in self._writers:
            with contextlib.suppress(OSError):
                await writer.wait_closed()
        late.cancel()

    async def _carry(self, tasks: asyncio.TaskGroup) -> None:
        await self._clear()
        try:
            far = await asyncio.open_connection(*self._proxy.upstream, limit=_PIECE)
        except OSError:
            self.cut()
            return
        self._writers.append(far[1])
        for source, sink in ((self._near[0], far[1]), (far[0], self._near[1])):
            queue = _Queue()
            tasks.create_task(self._read(source, queue))
            tasks.create_task(self._write(queue, sink))

    async def _read(self, source: asyncio.StreamReader, queue: _Queue) -> None:
        now = asyncio.get_running_loop().time
        while True:
            data: bytes | None
            try:
                data = await source.read(_PIECE)
            except OSError:
                data = None
            delay = max(self.faults.delay, self._proxy.faults.delay)
            await queue.put((now() + delay, data))
            if not data:
                return

    async def _write(self, queue: _Queue, sink: asyncio.StreamWriter) -> None:
        loop = asyncio.get_running_loop()
        while True:
            due, data = await queue.get()
            await asyncio.sleep(due - loop.time())
            await self._clear()
            if data is None:
                self.cut()
                return
            if self._truncate and data:
                sink.write(data[: -self._truncate])
                data = b""
            if not data:
                self._ended.set()
                return
            sink.write(data)
            self.passed += len(data)
            try:
                await sink.drain()
            except OSError:
                self.cut()
                return
            rate = min(filter(None, (self.faults.rate, self._proxy.faults.rate)), default=0.0)
            if rate:
                await asyncio.sleep(len(data) / rate)

    async def _clear(self) -> None:
        """Return while there is no hole."""
        while self.faults.hole or self._proxy.faults.hole:
            await self._proxy.changed()


class _OverError(Exception):
    """Ends a connection's task group."""


class _Queue(asyncio.Queue[tuple[float, bytes | None]]):
    def __init__(self) -> None:
        super().__init__(_HELD)


class Proxy:
    """Listens on loopback from `open` on, with everything that it does to the connections that go
    through it. Set `faults` (or a connection's own), then `apply`."""

    def __init__(self, upstream: tuple[str, int], tasks: asyncio.TaskGroup) -> None:
        self.upstream = upstream
        self.faults = Faults()
        self.connections: set[Connection] = set()
        self.port = 0
        self._tasks = tasks
        self._server: asyncio.Server | None = None
        self._news: deque[asyncio.Future[None]] = deque()

    async def open(self) -> None:
        """Listen; the port stays the same after `refuse`."""
        if self._server is None:
            self._server = await asyncio.start_server(
                self._accept, "127.0.0.1", self.port, limit=_PIECE
            )
            self.port = self._server.sockets[0].getsockname()[1]

    def refuse(self) -> None:
        """Refuse new connections until `open`; those that live go on."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def apply(self) -> None:
        """Wake what waits for a change of the faults."""
        while self._news:
            waiting = self._news.popleft()
            if not waiting.done():
                waiting.set_result(None)

    async def changed(self) -> None:
        """Return at the next `apply`."""
        waiting = asyncio.get_running_loop().create_future()
        self._news.append(waiting)
        await waiting

    async def heal(self) -> None:
        """No faults any more, also none of single connections, and listening again."""
        for faults in (self.faults, *(one.faults for one in self.connections)):
            faults.heal()
        self.apply()
        await self.open()

    def cut(self, some: Iterable[Connection] | None = None) -> int:
        """RST on these connections, or all; how many they were."""
        victims = list(self.connections if some is None else some)
        for one in victims:
            one.cut()
        return len(victims)

    def close(self) -> None:
        """Refuse and cut."""
        self.refuse()
        self.cut()

    def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        one = Connection(self, reader, writer)
        self.connections.add(one)
        task = self._tasks.create_task(one.run())
        task.add_done_callback(lambda _: self.connections.discard(one))
