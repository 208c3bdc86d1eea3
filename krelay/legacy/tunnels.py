"""Plain mode (v0): for an agent that knows no sessions, each stream is a tunnel of its own.

Stands where a session's driver stands (`krelay.mux.connection`), for the Go krelay's agent
(protocol.md, section 3.1).
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable

from krelay.errors import KrelayError, PodGoneError, TunnelError
from krelay.legacy.stream import LegacyStream
from krelay.mux.stream import StreamHandler
from krelay.tasks import TaskGroup
from krelay.wire import header
from krelay.wire.errors import ErrorCode, ProtocolError
from krelay.wire.header import Header

logger = logging.getLogger("krelay.plain")

HEARTBEAT = 20.0
"""Seconds; the agent ends when it has had no connection for minutes."""
ANSWER_DEADLINE = 30.0
"""Seconds from a stream's Header to the agent's answer: longer than it dials."""
MAX_STREAMS = 1_024

Dial = Callable[[asyncio.Protocol], Awaitable[asyncio.Transport]]


class LegacyTunnels:
    """The streams to one agent. `run` lasts until the agent is lost or it is cancelled."""

    attached = True

    def __init__(self, name: str, dial: Dial) -> None:
        self.name = name
        self.closed = False
        self.streams: set[LegacyStream] = set()
        self.forgotten_datagrams = 0
        """Datagrams that waited for a tunnel that did not come up, or was given up."""
        self._dial = dial
        self._tasks: TaskGroup | None = None
        self._lost: asyncio.Future[PodGoneError] = asyncio.get_running_loop().create_future()

    @property
    def ready(self) -> bool:
        """Whether it takes new streams now."""
        return not self.closed

    @property
    def count(self) -> int:
        """How many streams live on it."""
        return len(self.streams)

    @property
    def load(self) -> int:
        """The same: each has a tunnel of its own."""
        return len(self.streams)

    async def run(self) -> PodGoneError:
        """Carry streams, and keep the agent from being idle, until it is lost: why."""
        try:
            async with TaskGroup() as self._tasks:
                beating = self._tasks.create_task(self._beat(), name=self.name)
                reason = await self._lost
                beating.cancel()
                self.close(ErrorCode.RESET)
        finally:
            self.close(ErrorCode.RESET)
        return reason

    def open(self, asked: Header, handler: StreamHandler) -> LegacyStream:
        """Open a stream; `handler` learns what becomes of it.

        Raises:
            ProtocolError: too many streams, or there is no agent any more.
            ValueError: no Header can carry this host or port.
        """
        if self._tasks is None or self.closed:
            raise ProtocolError("the agent is gone")
        if len(self.streams) >= MAX_STREAMS:
            raise ProtocolError(f"{MAX_STREAMS} streams are open")
        asked.encode()  # here, and not when the tunnel is there
        stream = LegacyStream(self, asked, handler)
        stream.task = self._tasks.create_task(self._connect(stream), name=self.name)
        self.streams.add(stream)
        return stream

    def close(self, code: ErrorCode, message: str = "") -> None:
        """Cut every stream."""
        self.closed = True
        for stream in list(self.streams):
            stream.fail(code)

    def lose(self) -> None:
        """What lives is of no use any more; streams to come get tunnels of their own, as ever."""
        for stream in list(self.streams):
            stream.lose(TunnelError("the network is not what it was"))

    async def _beat(self) -> None:
        beat = Header(header.HEARTBEAT, "0.0.0.0", 0).encode()
        while True:
            await asyncio.sleep(HEARTBEAT)
            try:
                transport = await self._dial(asyncio.Protocol())
            except (KrelayError, OSError) as exc:
                self._missed(exc)
            except Exception:
                # A bug in a transport is one missed beat; let through, it would end every forward.
                logger.exception("%s: dialling failed", self.name)
            else:
                transport.write(beat)
                transport.close()

    async def _connect(self, stream: LegacyStream) -> None:
        # One stream's bug is its own; let through, it would end every other.
        try:
            await self._dialled(stream)
        except Exception:
            logger.exception("%s: a stream failed", self.name)
            stream.reset()

    async def _dialled(self, stream: LegacyStream) -> None:
        try:
            async with asyncio.timeout(ANSWER_DEADLINE):
                await self._dial(stream)
                await stream.answered.wait()
        except (KrelayError, OSError) as exc:
            self._missed(exc)
            stream.lose(exc)
        except Exception:
            logger.exception("%s: dialling failed", self.name)
            stream.refuse(ErrorCode.INTERNAL, "internal error")

    def _missed(self, exc: Exception) -> None:
        """A tunnel did not come up; where the agent's pod is gone, none ever will."""
        logger.debug("%s: no tunnel: %s", self.name, exc)
        if isinstance(exc, PodGoneError) and not self._lost.done():
            self._lost.set_result(exc)
