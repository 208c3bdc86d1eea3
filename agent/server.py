"""Server: listens, keeps count of who is there, and ends the program when nobody is."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys

from agent import memory
from agent.budget import MemoryBudget, Reservation
from agent.client import CONNECTION_COST, Client, ReadBuffer
from agent.connection import AgentConnection
from agent.dns import Lookups
from agent.legacy import Holding, serve_plain
from agent.refusals import Refusals
from agent.sessions import Sessions
from agent.settings import Settings
from krelay.wire.errors import ErrorCode
from krelay.wire.header import Header, Status

logger = logging.getLogger("krelay.agent")

MAX_STRANGERS = 512
"""Connections that have yet to say what they are, or to prove it: the oldest makes way for the
next, so that strangers shut out no honest client, and no client's connection is counted here."""
MAX_PLAIN = 1_472
"""Plain connections."""
# After the last good-bye: long enough for a client's next session, short enough for people.
LINGER = 2.0
_LAST_CALL = 0.2
_DRAIN = 4.0
_BACKLOG = 512


class _EndedError(Exception):
    """Ends the task group, and with it every dial that is under way."""


class Server:
    """The agent's life: `run` returns when it is idle, was told good-bye or to stop."""

    sessions: Sessions

    def __init__(self, settings: Settings, lookups: Lookups | None = None) -> None:
        self._settings = settings
        self.budget = MemoryBudget(memory.budget(settings.memory))
        self.buffer = ReadBuffer()
        self.refusals = Refusals()
        self._lookups = lookups or Lookups()
        self._plain_client = Client(self.budget)
        self._strangers: dict[str, dict[AgentConnection, None]] = {}
        self._stranger_count = 0
        self._loop = asyncio.get_running_loop()
        self._entrances: set[AgentConnection] = set()
        self._plain: set[asyncio.Transport] = set()
        self._changed = asyncio.Event()
        self._done = asyncio.Event()
        self._idle_timer: asyncio.TimerHandle | None = None
        self._said_goodbye = False
        self._tasks: asyncio.TaskGroup
        self.listening = asyncio.Event()
        self.address = ("", 0)

    async def run(self) -> None:
        """Serve until there is nobody left to serve.

        Raises:
            OSError: the port cannot be bound.
        """
        settings = self._settings
        family = socket.AF_INET6 if ":" in settings.bind else socket.AF_INET
        with socket.create_server(
            (settings.bind, settings.port), family=family, backlog=_BACKLOG
        ) as sock:
            try:
                async with asyncio.TaskGroup() as tasks:
                    self._tasks = tasks
                    self.sessions = Sessions(
                        settings,
                        tasks,
                        self._on_empty,
                        budget=self.budget,
                        buffer=self.buffer,
                        lookups=self._lookups,
                    )
                    await self._serve(sock)
                    raise _EndedError
            except* _EndedError:
                pass

    def stop(self, reason: str) -> None:
        """End `run` soon."""
        if not self._done.is_set():
            logger.info("ending: %s", reason)
            self._done.set()

    async def _serve(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        server = await self._loop.create_server(
            lambda: AgentConnection(self), sock=sock, backlog=_BACKLOG
        )
        self.address = sock.getsockname()[:2]
        logger.info("listening on %s port %d", *self.address)
        if not self._settings.port:
            # Whoever asked for any port wants to know which.
            sys.stdout.write("{}:{}\n".format(*self.address))
            sys.stdout.flush()
        self.listening.set()
        self._wait_idle()
        try:
            await self._done.wait()
        finally:
            server.close()
            self.refusals.close()
            self._stay()
            if self.sessions.go_away(ErrorCode.GOING_AWAY, "the agent ends"):
                # What was opened before that arrived is refused, and not lost.
                await asyncio.sleep(_LAST_CALL)
            self.sessions.close(ErrorCode.GOING_AWAY, "the agent ends")
            for transport in self._transports():
                transport.close()
            await self._drained()

    async def _drained(self) -> None:
        """Give what was written, such as a good-bye, the time to leave."""
        try:
            async with asyncio.timeout(_DRAIN):
                while self._entrances or self._plain:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            for transport in self._transports():
                transport.abort()

    def _transports(self) -> list[asyncio.Transport]:
        return [entrance.transport for entrance in self._entrances] + list(self._plain)

    # -- who is there --------------------------------------------------------------------------

    def arrived(self, entrance: AgentConnection) -> None:
        """A connection is there."""
        self._entrances.add(entrance)
        self._said_goodbye = False
        self._stay()
        if self._stranger_count >= MAX_STRANGERS:
            # Of the address with the most of them, so that others keep their places.
            crowd = max(self._strangers.values(), key=len)
            oldest = next(iter(crowd))
            self.proven(oldest)
            oldest.transport.abort()
        self._strangers.setdefault(entrance.source, {})[entrance] = None
        self._stranger_count += 1

    def proven(self, entrance: AgentConnection) -> None:
        """It is no stranger any more."""
        crowd = self._strangers.get(entrance.source, {})
        if entrance in crowd:
            del crowd[entrance]
            self._stranger_count -= 1
            if not crowd:
                del self._strangers[entrance.source]

    def left(self, entrance: AgentConnection) -> None:
        """It is gone, or has become a plain one before."""
        self.proven(entrance)
        self._entrances.discard(entrance)
        self._left()

    def take_over(self, entrance: AgentConnection, asked: Header, early: bytes) -> None:
        """A connection turned out to be a plain one."""
        transport = entrance.transport
        reservation = self._plain_client.reserve()
        if len(self._plain) >= MAX_PLAIN or not reservation.admit(CONNECTION_COST):
            self.refusals.add(f"a plain connection: there are {len(self._plain)}")
            transport.write(bytes([Status.UNKNOWN_ERROR]))
            transport.close()
            return
        self.proven(entrance)
        self._entrances.discard(entrance)
        self._plain.add(transport)
        holding = Holding(self._plain_client, reservation, self.buffer)
        serving = serve_plain(
            asked, early, transport, self._settings.connect_timeout, self._lookups, holding
        )
        task = self._tasks.create_task(serving)
        task.add_done_callback(lambda _: self._plain_left(transport, reservation))

    def _plain_left(self, transport: asyncio.Transport, reservation: Reservation) -> None:
        reservation.release()
        self._plain.discard(transport)
        self._left()

    def _left(self) -> None:
        self._changed.set()
        self._wait_idle()

    def _on_empty(self, said_goodbye: bool) -> None:
        """The last session has ended."""
        self._said_goodbye = said_goodbye
        self._wait_idle()

    def _wait_idle(self) -> None:
        """If nobody is there, end after a while (0: never). Who has yet to say what it wants is
        there; the connection of a session that has just ended is not."""
        timeout = self._settings.idle_timeout
        here = any(not entrance.transport.is_closing() for entrance in self._entrances)
        busy = here or self._plain or len(self.sessions) or self._idle_timer is not None
        if busy or not timeout or self._done.is_set():
            return
        if self._said_goodbye:
            timeout = min(timeout, LINGER)
        self._idle_timer = self._loop.call_later(timeout, self.stop, f"idle for {timeout:g} s")

    def _stay(self) -> None:
        """Somebody is there."""
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None
