"""The door: the way in from the cluster's network, by an HTTP upgrade on the pod's own address.

Every pod of the cluster may knock, so whatever happens here before a client has proved the key is
bounded apart from the loopback listener, keeps no agent running, and is given up first when memory
or descriptors are short.
"""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from typing import Protocol

from agent.connection import AgentConnection
from agent.memory import MemoryBudget, ReadBuffer
from agent.pending import Pending, RefusalLog
from agent.sessions import TUNNEL_COST, Sessions
from agent.upgrade import SWITCHING, UpgradeError, UpgradeRequest, refusal
from krelay.mux.descriptors import files_to_spare
from krelay.mux.transport import SocketTransport
from krelay.wire.header import Header

logger = logging.getLogger("krelay.agent")

DEADLINE = 5.0
"""Seconds for the request and the handshake together."""
MAX_PENDING = 64
"""Connections at the door whose handshake is not over."""
MAX_READS = 64
"""Reads before the handshake is over; a client needs about four."""
BURST = 64
"""Connections that the door accepts at once, and INTERVAL the seconds for each further one."""
INTERVAL = 0.01
_BACKLOG = 16
_RETRY_AFTER = 1.0


class Owner(Protocol):
    """The server as the door sees it."""

    buffer: ReadBuffer
    budget: MemoryBudget
    sessions: Sessions

    def admit(self, connection: AgentConnection) -> None:
        """Count a connection that keeps the agent running."""

    def disconnected(self, connection: AgentConnection) -> None:
        """Forget a connection that has ended."""


class Door:
    """The second listener of an agent. Its connections carry the sessions of `owner`."""

    def __init__(self, owner: Owner) -> None:
        self._owner = owner
        self._loop = asyncio.get_running_loop()
        self._pending = Pending(MAX_PENDING)
        self._sock: socket.socket | None = None
        self._retry: asyncio.TimerHandle | None = None
        self._next_at = 0.0
        self.refusals = RefusalLog("at the door")
        self.deadline = DEADLINE
        self.address = ("", 0)

    def open(self, host: str, port: int) -> None:
        """Accept connections; if the address cannot be bound, log it and do without.

        There is no second attempt. In a pod with `hostNetwork` the kubelet has the port, and an
        agent must not take it while the kubelet restarts.
        """
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        try:
            sock = socket.create_server((host, port), family=family, backlog=_BACKLOG)
        except OSError as exc:
            logger.info("no door on %s port %d: %s", host, port, os.strerror(exc.errno or 0))
            return
        sock.setblocking(False)
        self._sock = sock
        self.address = sock.getsockname()[:2]
        logger.info("the door is on %s port %d", *self.address)
        self._resume()

    def close(self) -> None:
        """Accept no more, and cut the connections that carry no session."""
        if self._sock is not None:
            self._loop.remove_reader(self._sock)
            self._sock.close()
            self._sock = None
        if self._retry is not None:
            self._retry.cancel()
        self._pending.abort()
        self.refusals.close()

    def check(self) -> None:
        """Raise UpgradeError if the door cannot serve a session now."""
        if not self._owner.sessions.knows_key:
            raise UpgradeError(503, "the agent does not know the key yet")
        if self._owner.budget.free < TUNNEL_COST:
            raise UpgradeError(503, "the agent is short of memory")

    # -- accepting -----------------------------------------------------------------------------

    def _resume(self) -> None:
        self._retry = None
        if self._sock is not None:
            self._loop.add_reader(self._sock, self._accept)

    def _pause(self, seconds: float) -> None:
        """Leave connections in the backlog for a while."""
        if self._sock is not None:
            self._loop.remove_reader(self._sock)
            self._retry = self._loop.call_later(seconds, self._resume)

    def _accept(self) -> None:
        """Accept one connection: other sockets get their turn before the next."""
        if self._sock is None:
            return
        try:
            sock, _ = self._sock.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return
        except OSError as exc:
            self.refusals.add(str(exc))
            self._pause(_RETRY_AFTER)
            return
        now = self._loop.time()
        self._next_at = max(self._next_at, now - (BURST - 1) * INTERVAL) + INTERVAL
        if self._next_at > now:
            self._pause(self._next_at - now)
        if not files_to_spare():
            self.refusals.add("the agent is short of file descriptors")
            sock.close()
            return
        sock.setblocking(False)
        SocketTransport(sock, DoorConnection(self))

    # -- connections ---------------------------------------------------------------------------

    @property
    def buffer(self) -> ReadBuffer:
        """The buffer that connections read into."""
        return self._owner.buffer

    @property
    def sessions(self) -> Sessions:
        """The sessions that connections open and resume."""
        return self._owner.sessions

    def connected(self, connection: AgentConnection) -> None:
        """Count a new connection, unless the door has closed since it was accepted."""
        if self._sock is None:
            connection.transport.abort()
        else:
            self._pending.add(connection)

    def authenticated(self, connection: AgentConnection) -> None:
        """Let a connection that carries a session in."""
        self._pending.discard(connection)
        self._owner.admit(connection)

    def disconnected(self, connection: AgentConnection) -> None:
        """Forget a connection that has ended."""
        self._pending.discard(connection)
        self._owner.disconnected(connection)

    def serve_legacy(self, connection: AgentConnection, request: Header, early: bytes) -> None:
        """Refuse it; an agent with a door has a key, so the connection has refused it before."""
        connection.transport.close()


class DoorConnection(AgentConnection):
    """A connection that begins with an HTTP request for an upgrade."""

    def __init__(self, door: Door) -> None:
        super().__init__(door)
        self._door = door
        self._request: UpgradeRequest | None = UpgradeRequest()
        self._reads = 0

    def _read_opening(self, data: bytes) -> None:
        self._reads += 1
        if self._reads > MAX_READS:
            self._door.refusals.add("too many small reads")
            self.transport.abort()
            return
        if self._request is not None:
            try:
                early = self._request.receive_data(data)
                if early is None:
                    return
                self._door.check()
            except UpgradeError as exc:
                self._door.refusals.add(str(exc))
                self.transport.write(refusal(exc))
                self.transport.close()
                return
            self._request = None
            self.transport.write(SWITCHING)
            data = early
        if data:
            super()._read_opening(data)
