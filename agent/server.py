"""Server: accepts connections, counts them, and ends the program once it is idle."""

from __future__ import annotations

import asyncio
import logging
import socket
import sys

from agent.connection import AgentConnection
from agent.dial import Lookups
from agent.door import Door
from agent.legacy import Resources, serve_legacy
from agent.memory import (
    CONNECTION_COST,
    Client,
    MemoryBudget,
    ReadBuffer,
    Reservation,
    budget_for,
)
from agent.pending import Pending, RefusalLog
from agent.sessions import Sessions
from agent.settings import Settings
from krelay.mux.transport import SocketTransport
from krelay.wire.errors import ErrorCode
from krelay.wire.header import Header, Status

logger = logging.getLogger("krelay.agent")

DEADLINE = 10.0
"""Seconds that a connection has for its Header and its handshake."""
MAX_PENDING = 512
"""Connections whose handshake is not over, without those at the door."""
MAX_LEGACY = 1_472
"""Legacy connections."""
LINGER = 2.0
"""Idle seconds after the last client's good-bye: enough for that client's next session."""
_LAST_CALL = 0.2
_DRAIN = 4.0
_BACKLOG = 512
_RETRY_AFTER = 1.0


class _EndedError(Exception):
    """Ends the task group, and with it every dial that is under way."""


class Server:
    """The agent: `run` returns once it is idle or `stop` was called."""

    sessions: Sessions

    def __init__(self, settings: Settings, lookups: Lookups | None = None) -> None:
        self._settings = settings
        self.budget = MemoryBudget(budget_for(settings.memory))
        self.buffer = ReadBuffer()
        self.refusals = RefusalLog()
        self.deadline = DEADLINE
        self._lookups = lookups or Lookups()
        self._legacy_client = Client(self.budget)
        self._pending = Pending(MAX_PENDING)
        self._loop = asyncio.get_running_loop()
        self._connections: set[AgentConnection] = set()
        self._legacy: set[asyncio.Transport] = set()
        self._changed = asyncio.Event()
        self._done = asyncio.Event()
        self._idle_timer: asyncio.TimerHandle | None = None
        self._said_goodbye = False
        self._tasks: asyncio.TaskGroup
        self.door: Door | None = None
        self.listening = asyncio.Event()
        self.address = ("", 0)

    async def run(self, sock: socket.socket | None = None) -> None:
        """Serve until the agent is idle or stopped, on the listener `sock` if there is one.

        Raises:
            OSError: the port cannot be bound.
        """
        settings = self._settings
        if sock is None:
            family = socket.AF_INET6 if ":" in settings.bind else socket.AF_INET
            address = settings.bind, settings.port
            sock = socket.create_server(address, family=family, backlog=_BACKLOG)
        with sock:
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
        self._listen(sock)
        self.address = sock.getsockname()[:2]
        logger.info("listening on %s port %d", *self.address)
        if not self._settings.port:
            # A parent that asks for any free port reads which one it is.
            sys.stdout.write("{}:{}\n".format(*self.address))
            sys.stdout.flush()
        if self._settings.pod_ip and self._settings.secured:
            self.door = Door(self)
            self.door.open(self._settings.pod_ip, self._settings.door_port)
        self.listening.set()
        self._start_idle_timer()
        try:
            await self._done.wait()
        finally:
            self._loop.remove_reader(sock)
            sock.close()
            if self.door is not None:
                self.door.close()
            self.refusals.close()
            self._cancel_idle_timer()
            if self.sessions.go_away(ErrorCode.GOING_AWAY, "the agent ends"):
                # Streams that clients opened before that arrives are refused, not lost.
                await asyncio.sleep(_LAST_CALL)
            self.sessions.close(ErrorCode.GOING_AWAY, "the agent ends")
            for transport in self._transports():
                transport.close()
            await self._drained()

    def _listen(self, sock: socket.socket) -> None:
        if not self._done.is_set():
            self._loop.add_reader(sock, self._accept, sock)

    def _accept(self, sock: socket.socket) -> None:
        """Accept the connections in the backlog."""
        for _ in range(_BACKLOG):
            try:
                connection, _address = sock.accept()
            except (BlockingIOError, InterruptedError, ConnectionAbortedError):
                return
            except OSError as exc:
                logger.error("no connection can be accepted: %s", exc)
                self._loop.remove_reader(sock)
                self._loop.call_later(_RETRY_AFTER, self._listen, sock)
                return
            connection.setblocking(False)
            SocketTransport(connection, AgentConnection(self))

    async def _drained(self) -> None:
        """Wait until the last bytes, such as a GOAWAY, have been sent."""
        try:
            async with asyncio.timeout(_DRAIN):
                while self._connections or self._legacy:
                    self._changed.clear()
                    await self._changed.wait()
        except TimeoutError:
            for transport in self._transports():
                transport.abort()

    def _transports(self) -> list[asyncio.Transport]:
        return [connection.transport for connection in self._connections] + list(self._legacy)

    # -- connections ---------------------------------------------------------------------------

    def connected(self, connection: AgentConnection) -> None:
        """Count a new connection; abort the oldest pending one if there are too many."""
        self.admit(connection)
        self._pending.add(connection)

    def admit(self, connection: AgentConnection) -> None:
        """Count a connection that keeps the agent running."""
        self._connections.add(connection)
        self._said_goodbye = False
        self._cancel_idle_timer()

    def authenticated(self, connection: AgentConnection) -> None:
        """Count a connection as pending no longer."""
        self._pending.discard(connection)

    def disconnected(self, connection: AgentConnection) -> None:
        """Forget a connection that has ended."""
        self._pending.discard(connection)
        self._connections.discard(connection)
        self._one_less()

    def serve_legacy(self, connection: AgentConnection, request: Header, early: bytes) -> None:
        """Relay a legacy connection, or refuse it if there are too many or memory is short."""
        transport = connection.transport
        reservation = self._legacy_client.reserve()
        if len(self._legacy) >= MAX_LEGACY or not reservation.admit(CONNECTION_COST):
            self.refusals.add(f"a legacy connection: there are {len(self._legacy)}")
            transport.write(bytes([Status.UNKNOWN_ERROR]))
            transport.close()
            return
        self.authenticated(connection)
        self._connections.discard(connection)
        self._legacy.add(transport)
        resources = Resources(
            self._legacy_client,
            reservation,
            self.buffer,
            self._lookups,
            self._settings.connect_timeout,
        )
        task = self._tasks.create_task(serve_legacy(request, early, transport, resources))
        task.add_done_callback(lambda _: self._legacy_closed(transport, reservation))

    def _legacy_closed(self, transport: asyncio.Transport, reservation: Reservation) -> None:
        reservation.release()
        self._legacy.discard(transport)
        self._one_less()

    def _one_less(self) -> None:
        self._changed.set()
        self._start_idle_timer()

    def _on_empty(self, said_goodbye: bool) -> None:
        self._said_goodbye = said_goodbye
        self._start_idle_timer()

    def _start_idle_timer(self) -> None:
        """If the agent is idle, end it after a while, unless `idle_timeout` is 0.

        A connection whose handshake is not over keeps it busy; one that is closing does not, nor
        does a session without a tunnel, whose time is no longer.
        """
        timeout = self._settings.idle_timeout
        open_ = any(not each.transport.is_closing() for each in self._connections)
        busy = open_ or self._legacy or self._idle_timer is not None
        if busy or not timeout or self._done.is_set():
            return
        if self._said_goodbye:
            timeout = min(timeout, LINGER)
        self._idle_timer = self._loop.call_later(timeout, self.stop, f"idle for {timeout:g} s")

    def _cancel_idle_timer(self) -> None:
        if self._idle_timer is not None:
            self._idle_timer.cancel()
            self._idle_timer = None
