"""The sessions that this agent keeps, whether a tunnel carries them now or not."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from agent.budget import FLOOR, MemoryBudget, Reservation
from agent.client import CONNECTION_COST, FIRST_STREAMS, Client, ReadBuffer
from agent.dns import Lookups
from agent.settings import Settings
from agent.targets import Targets
from krelay.mux.connection import MuxConnection
from krelay.mux.stream import MuxStream
from krelay.wire.errors import ErrorCode, HandshakeError, ProtocolError
from krelay.wire.handshake import (
    NONCE_SIZE,
    SESSION_ID_SIZE,
    AgentHandshake,
    Ask,
    Auth,
    key_digest,
    session_key,
)
from krelay.wire.session import Limits, Side
from krelay.wire.stream import INITIAL_WINDOW

logger = logging.getLogger("krelay.agent")

MAX_SESSIONS = 64
SESSION_COST = 64 << 10
"""Bytes reserved for a session: what Python keeps for it, and a frame that has begun."""
TUNNEL_COST = 640 << 10
"""Bytes reserved for the connection that carries a session: a batch of frames that waits for the
socket, and the one behind it."""
_FIRST = SESSION_COST + TUNNEL_COST + FIRST_STREAMS * CONNECTION_COST
"""Bytes that a session has for itself and its first streams, whatever the others hold."""
CLOSING = 5.0
"""Seconds that the connection of a session that has ended has to take its good-bye."""
_LOSSES_EVERY = 1.0


class TunnelEnd(Protocol):
    """The connection that carries a session."""

    transport: asyncio.Transport


@dataclass(slots=True, eq=False)
class Kept:
    """A session that the agent keeps. `tunnel` is the connection that carried it last."""

    driver: MuxConnection
    key: bytes
    client: Client
    targets: Targets
    cost: Reservation
    grace: asyncio.TimerHandle | None = None
    tunnel: TunnelEnd | None = None
    reported: tuple[int, ...] = ()

    @property
    def losses(self) -> tuple[int, ...]:
        """The datagrams that this end has lost, in the order of the LOST frame."""
        lost, dropped = self.targets.losses, self.driver.session.dropped_datagrams
        return lost.receive, lost.send, lost.early, lost.backlog + dropped


class Sessions:
    """Opens, resumes and ends sessions. `on_empty` is told when the last one has ended, and
    whether its client said good-bye."""

    def __init__(
        self,
        settings: Settings,
        tasks: asyncio.TaskGroup,
        on_empty: Callable[[bool], None],
        *,
        budget: MemoryBudget,
        buffer: ReadBuffer,
        lookups: Lookups,
    ) -> None:
        self._settings = settings
        self._tasks = tasks
        self._budget = budget
        self._buffer = buffer
        self._lookups = lookups
        self._reporting: asyncio.TimerHandle | None = None
        self._on_empty = on_empty
        self._limits = Limits(
            replay=settings.replay,
            ping_interval=settings.ping,
            ping_timeout=settings.ping_timeout,
        )
        self._key = settings.key
        self._kept: dict[bytes, Kept] = {}
        self._count = 0

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def secured(self) -> bool:
        """Whether a client has to prove itself."""
        return self._settings.secured

    def greet(self) -> AgentHandshake:
        """The handshake for a tunnel that asks for a session."""
        if not self.secured:
            ask = Ask.NOTHING
        elif self._key is None:
            ask = Ask.KEY
        else:
            ask = Ask.PROOF
        return AgentHandshake(secrets.token_bytes(NONCE_SIZE), ask)

    def admit(self, handshake: AgentHandshake, auth: Auth, tunnel: TunnelEnd) -> Kept:
        """Let a proven client in: the session that has the tunnel from now on.

        Raises:
            HandshakeError: the claim does not hold, or its session cannot be carried on.
        """
        if auth.session_id is None:
            session_id, kept = self._open(handshake, auth)
        else:
            session_id, kept = auth.session_id, self._resume(handshake, auth)
        transport = tunnel.transport
        try:
            # Sends nothing before this turn of the loop ends, so the welcome goes first.
            kept.driver.attach(transport, auth.received)
        except ProtocolError as exc:
            # An older count may have been long on its way, and its client gone on without it.
            if auth.received >= kept.driver.session.acknowledged:
                self._end(session_id)
            raise HandshakeError(str(exc), ErrorCode.UNKNOWN_SESSION) from exc
        kept.tunnel = tunnel
        kept.driver.session.version = auth.version
        kept.reported = ()
        self._report_soon()
        if kept.grace is not None:
            kept.grace.cancel()
            kept.grace = None
        resumed = auth.session_id is not None
        logger.info("%s: session %s", kept.driver.name, "resumed" if resumed else "open")
        received = kept.driver.session.received_count
        transport.write(
            handshake.welcome(auth, session_id, kept.key, received, self._limits.streams)
        )
        return kept

    def settle(self, kept: Kept) -> None:
        """Bring the budget up to date with what a read of `kept`'s tunnel has changed."""
        client, session = kept.client, kept.driver.session
        client.settle()
        granted = INITIAL_WINDOW * len(session.streams)
        session.windows_limit = min(self._limits.windows, granted + client.room)
        while self._budget.left < 0 and self._kept:
            # What could not be refused is frames that a peer does not acknowledge.
            worst = max(self._kept, key=lambda id: self._kept[id].driver.session.memory)
            logger.warning("%s: no memory left; the session ends", self._kept[worst].driver.name)
            self._end(worst, ErrorCode.LIMIT, "the agent has no memory left")

    def go_away(self, code: ErrorCode, message: str) -> bool:
        """Tell all of them that no more streams are taken; whether there is anybody to tell."""
        attached = [kept.driver for kept in self._kept.values() if kept.driver.attached]
        for driver in attached:
            driver.go_away(code, message)
        return bool(attached)

    def close(self, code: ErrorCode, message: str) -> None:
        """End all of them."""
        for kept in list(self._kept.values()):
            if kept.grace is not None:
                kept.grace.cancel()
            kept.driver.close(code, message)
            kept.cost.release()
            kept.client.release()
        self._kept.clear()
        if self._reporting is not None:
            self._reporting.cancel()

    def _open(self, handshake: AgentHandshake, auth: Auth) -> tuple[bytes, Kept]:
        if not handshake.verify(auth, self._authorise(auth)):
            raise HandshakeError("wrong key", ErrorCode.DENIED)
        self._make_room()
        session_id = secrets.token_bytes(SESSION_ID_SIZE)
        self._count += 1
        driver = MuxConnection(
            Side.AGENT,
            f"t{self._count}",
            limits=self._limits,
            on_open=lambda stream: self._open_target(kept, stream),
            on_detached=lambda exc: self._detached(session_id, exc),
            on_go_away=lambda code, message: self._end(session_id, said_goodbye=True),
        )
        client = Client(self._budget, lambda: driver.session.held, _FIRST)
        targets = Targets(
            self._tasks,
            self._settings.connect_timeout,
            client,
            lookups=self._lookups,
            buffer=self._buffer,
        )
        key = session_key(self._key or b"", handshake.nonce, auth.nonce)
        kept = self._kept[session_id] = Kept(driver, key, client, targets, client.reserve())
        kept.cost.fix(SESSION_COST)
        return session_id, kept

    def _make_room(self) -> None:
        """For one more session: one that has been without a tunnel for long makes way.

        Raises:
            HandshakeError: all of them are in use.
        """
        while len(self._kept) >= MAX_SESSIONS or self._budget.left < _FIRST + FLOOR:
            lost = [id for id, kept in self._kept.items() if kept.grace is not None]
            if not lost:
                why = f"{len(self._kept)} sessions are open"
                raise HandshakeError(why, ErrorCode.LIMIT)
            self._end(min(lost, key=self._lost_at))

    def _lost_at(self, session_id: bytes) -> float:
        grace = self._kept[session_id].grace
        return grace.when() if grace is not None else 0.0

    def _authorise(self, auth: Auth) -> bytes:
        """The key that the claim must be proven with; the first to show it teaches it."""
        if self._key is None and self._settings.key_sha256 is not None:
            shown = key_digest(auth.key)
            if not secrets.compare_digest(shown, self._settings.key_sha256):
                raise HandshakeError("wrong key", ErrorCode.DENIED)
            self._key = auth.key
        return self._key or b""

    def _resume(self, handshake: AgentHandshake, auth: Auth) -> Kept:
        kept = self._kept.get(auth.session_id or b"")
        # An unknown id is checked against a key that nobody has, so that it takes as long as
        # a known one with a wrong proof, and gets the same answer.
        key = kept.key if kept is not None else secrets.token_bytes(NONCE_SIZE)
        if not handshake.verify(auth, key) or kept is None:
            raise HandshakeError("no such session", ErrorCode.UNKNOWN_SESSION)
        return kept

    def _open_target(self, kept: Kept, stream: MuxStream) -> None:
        kept.targets.open(stream)

    def _report_soon(self) -> None:
        if self._reporting is None:
            loop = asyncio.get_running_loop()
            self._reporting = loop.call_later(_LOSSES_EVERY, self._report_losses)

    def _report_losses(self) -> None:
        """Tell each client what this end has lost of its datagrams, where that has changed."""
        self._reporting = None
        for kept in self._kept.values():
            if kept.driver.attached and (losses := kept.losses) != (kept.reported or (0, 0, 0, 0)):
                kept.reported = losses
                kept.driver.report_losses(losses)
        if self._kept:
            self._report_soon()

    def _detached(self, session_id: bytes, exc: Exception | None) -> None:
        kept = self._kept.get(session_id)
        if kept is None:
            return
        if exc is None:
            self._end(session_id)
            return
        logger.info(
            "%s: tunnel lost (%s); kept for %g s", kept.driver.name, exc, self._settings.grace
        )
        loop = asyncio.get_running_loop()
        kept.grace = loop.call_later(self._settings.grace, self._expire, session_id)

    def _expire(self, session_id: bytes) -> None:
        logger.info(
            "%s: no tunnel came back within %g s",
            self._kept[session_id].driver.name,
            self._settings.grace,
        )
        self._end(session_id)

    def _end(
        self,
        session_id: bytes,
        code: ErrorCode = ErrorCode.GOING_AWAY,
        message: str = "",
        *,
        said_goodbye: bool = False,
    ) -> None:
        kept = self._kept.pop(session_id, None)
        if kept is None:
            return
        if kept.grace is not None:
            kept.grace.cancel()
        kept.driver.close(code, message)
        kept.cost.release()
        kept.client.release()
        if kept.tunnel is not None:
            # A peer that does not read would keep what was written for ever.
            asyncio.get_running_loop().call_later(CLOSING, kept.tunnel.transport.abort)
        logger.info("%s: session ended", kept.driver.name)
        if not self._kept:
            self._on_empty(said_goodbye)
