"""Sessions that the agent keeps, with or without a tunnel."""

from __future__ import annotations

import asyncio
import hmac
import logging
import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from agent.dial import Lookups
from agent.memory import (
    CONNECTION_COST,
    FIRST_STREAMS,
    FLOOR,
    Client,
    MemoryBudget,
    ReadBuffer,
    Reservation,
)
from agent.settings import Settings
from agent.targets import Targets
from krelay.mux.connection import MuxConnection
from krelay.mux.log import about
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
"""Bytes reserved for a session: what Python keeps for it, and a partial frame."""
TUNNEL_COST = 640 << 10
"""Bytes reserved for the tunnel of a session: two batches of frames that wait for the socket."""
_FIRST = SESSION_COST + TUNNEL_COST + FIRST_STREAMS * CONNECTION_COST
"""Bytes that a session has for itself and its first streams, whatever other clients hold."""
CLOSING = 5.0
"""Seconds that the tunnel of an ended session has to take its GOAWAY."""
_LOSSES_EVERY = 1.0


class TunnelEnd(Protocol):
    """This end of a connection that carries a session."""

    transport: asyncio.Transport

    def send(self, data: bytes) -> None:
        """Write frames of the handshake."""


@dataclass(slots=True, eq=False)
class KeptSession:
    """A session that the agent keeps. `tunnel` is the connection that carried it last."""

    mux: MuxConnection
    key: bytes
    client: Client
    targets: Targets
    cost: Reservation
    grace: asyncio.TimerHandle | None = None
    tunnel: TunnelEnd | None = None
    reported: tuple[int, ...] = ()

    @property
    def losses(self) -> tuple[int, ...]:
        """Datagrams that this end has lost, by the fields of LOST."""
        lost, dropped = self.targets.losses, self.mux.session.dropped_datagrams
        return lost.receive, lost.send, lost.early, lost.backlog + dropped


class Sessions:
    """Opens, resumes and ends sessions.

    `on_empty` is called when the last one has ended; its argument says whether its client ended it
    by GOAWAY.
    """

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
        self._kept: dict[bytes, KeptSession] = {}
        self._count = 0

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def secured(self) -> bool:
        """Whether a client must prove that it knows the key."""
        return self._settings.secured

    @property
    def knows_key(self) -> bool:
        """Whether the agent has the key itself, not only its digest."""
        return self._key is not None

    def begin_handshake(self) -> AgentHandshake:
        """Return the handshake for a connection that asks for a session."""
        if not self.secured:
            ask = Ask.NOTHING
        elif self._key is None:
            ask = Ask.KEY
        else:
            ask = Ask.PROOF
        return AgentHandshake(os.urandom(NONCE_SIZE), ask)

    def accept(self, handshake: AgentHandshake, auth: Auth, tunnel: TunnelEnd) -> KeptSession:
        """Answer a client's AUTH; return the session that `tunnel` carries from now on.

        Raises:
            HandshakeError: the proof is wrong, or the session cannot be opened or resumed.
        """
        if auth.session_id is None:
            session_id, kept = self._open(handshake, auth)
        else:
            session_id, kept = auth.session_id, self._resume(handshake, auth)
        try:
            # Sends nothing before this turn of the loop ends, so WELCOME goes first.
            kept.mux.attach(tunnel.transport, auth.received)
        except ProtocolError as exc:
            # An AUTH that was delayed has an older count: its client has resumed elsewhere.
            if auth.received >= kept.mux.session.acknowledged:
                self._end(session_id)
            raise HandshakeError(str(exc), ErrorCode.UNKNOWN_SESSION) from exc
        kept.tunnel = tunnel
        kept.mux.session.version = auth.version
        kept.reported = ()
        self._report_soon()
        if kept.grace is not None:
            kept.grace.cancel()
            kept.grace = None
        state = "open" if auth.session_id is None else "resumed"
        about(logger, tunnel=kept.mux.name).info("session %s", state)
        tunnel.send(
            handshake.welcome(
                auth, session_id, kept.key, kept.mux.session.received_count, self._limits.streams
            )
        )
        return kept

    def settle(self, kept: KeptSession) -> None:
        """Update the budget after a read of `kept`'s tunnel."""
        client, session = kept.client, kept.mux.session
        client.settle()
        granted = INITIAL_WINDOW * len(session.streams)
        session.windows_limit = min(self._limits.windows, granted + client.available)
        while self._budget.left < 0 and self._kept:
            # Only frames that a peer does not acknowledge can exceed the budget.
            worst = max(self._kept, key=lambda id: self._kept[id].mux.session.memory)
            log = about(logger, tunnel=self._kept[worst].mux.name)
            log.warning("no memory left; the session ends")
            self._end(worst, ErrorCode.LIMIT, "the agent has no memory left")

    def go_away(self, code: ErrorCode, message: str) -> bool:
        """Send GOAWAY on every tunnel; return whether any is attached."""
        attached = [kept.mux for kept in self._kept.values() if kept.mux.attached]
        for mux in attached:
            mux.go_away(code, message)
        return bool(attached)

    def close(self, code: ErrorCode, message: str) -> None:
        """End all sessions."""
        for kept in list(self._kept.values()):
            self._release(kept, code, message)
        self._kept.clear()
        if self._reporting is not None:
            self._reporting.cancel()

    def _open(self, handshake: AgentHandshake, auth: Auth) -> tuple[bytes, KeptSession]:
        if not handshake.verify(auth, self._authorise(auth)):
            raise HandshakeError("wrong key", ErrorCode.DENIED)
        self._make_room()
        session_id = os.urandom(SESSION_ID_SIZE)
        self._count += 1
        mux = MuxConnection(
            Side.AGENT,
            f"t{self._count}",
            limits=self._limits,
            on_open=lambda stream: self._open_target(kept, stream),
            on_detached=lambda exc: self._detached(session_id, exc),
            on_go_away=lambda code, message: self._end(session_id, said_goodbye=True),
        )
        client = Client(self._budget, lambda: mux.session.held, _FIRST)
        targets = Targets(
            self._tasks,
            self._settings.connect_timeout,
            client,
            lookups=self._lookups,
            buffer=self._buffer,
        )
        mux.use_compression(auth.compression)
        key = session_key(self._key or b"", handshake.nonce, auth.nonce)
        kept = self._kept[session_id] = KeptSession(mux, key, client, targets, client.reserve())
        kept.cost.fix(SESSION_COST)
        return session_id, kept

    def _make_room(self) -> None:
        """End the sessions that lost their tunnel first, until one more session fits.

        Raises:
            HandshakeError: every session has a tunnel.
        """
        while len(self._kept) >= MAX_SESSIONS or self._budget.left < _FIRST + FLOOR:
            lost = [id for id, kept in self._kept.items() if kept.grace is not None]
            if not lost:
                reason = f"{len(self._kept)} sessions are open"
                raise HandshakeError(reason, ErrorCode.LIMIT)
            self._end(min(lost, key=self._lost_at))

    def _lost_at(self, session_id: bytes) -> float:
        grace = self._kept[session_id].grace
        return grace.when() if grace is not None else 0.0

    def _authorise(self, auth: Auth) -> bytes:
        """Return the key for the client's proof; learn it here if only its digest is known."""
        if self._key is None and self._settings.key_sha256 is not None:
            shown = key_digest(auth.key)
            if not hmac.compare_digest(shown, self._settings.key_sha256):
                raise HandshakeError("wrong key", ErrorCode.DENIED)
            self._key = auth.key
        return self._key or b""

    def _resume(self, handshake: AgentHandshake, auth: Auth) -> KeptSession:
        kept = self._kept.get(auth.session_id or b"")
        # A random key for an unknown id: it takes as long, and gets the same answer, as a known id
        # with a wrong proof.
        key = kept.key if kept is not None else os.urandom(NONCE_SIZE)
        if not handshake.verify(auth, key) or kept is None:
            raise HandshakeError("no such session", ErrorCode.UNKNOWN_SESSION)
        return kept

    def _open_target(self, kept: KeptSession, stream: MuxStream) -> None:
        kept.targets.open(stream)

    def _report_soon(self) -> None:
        if self._reporting is None:
            loop = asyncio.get_running_loop()
            self._reporting = loop.call_later(_LOSSES_EVERY, self._report_losses)

    def _report_losses(self) -> None:
        """Send LOST to each client whose count has changed."""
        self._reporting = None
        for kept in self._kept.values():
            if kept.mux.attached and (losses := kept.losses) != (kept.reported or (0, 0, 0, 0)):
                kept.reported = losses
                kept.mux.report_losses(losses)
        if self._kept:
            self._report_soon()

    def _detached(self, session_id: bytes, exc: Exception | None) -> None:
        kept = self._kept.get(session_id)
        if kept is None:
            return
        if exc is None:
            self._end(session_id)
            return
        log = about(logger, tunnel=kept.mux.name)
        log.info("tunnel lost (%s); kept for %g s", exc, self._settings.session_grace)
        loop = asyncio.get_running_loop()
        kept.grace = loop.call_later(self._settings.session_grace, self._expire, session_id)

    def _expire(self, session_id: bytes) -> None:
        log = about(logger, tunnel=self._kept[session_id].mux.name)
        log.info("not resumed within %g s", self._settings.session_grace)
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
        self._release(kept, code, message)
        if kept.tunnel is not None:
            # A peer that does not read would keep the written bytes in memory.
            asyncio.get_running_loop().call_later(CLOSING, kept.tunnel.transport.abort)
        about(logger, tunnel=kept.mux.name).info("session ended")
        if not self._kept:
            self._on_empty(said_goodbye)

    def _release(self, kept: KeptSession, code: ErrorCode, message: str) -> None:
        if kept.grace is not None:
            kept.grace.cancel()
        kept.mux.close(code, message)
        kept.cost.release()
        kept.client.close()
