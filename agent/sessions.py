"""The sessions that this agent keeps, whether a tunnel carries them now or not."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass

from agent.settings import Settings
from agent.target import Targets
from krelay.mux.driver import Driver
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

logger = logging.getLogger("krelay.agent")

MAX_SESSIONS = 64


@dataclass(slots=True)
class _Kept:
    driver: Driver
    key: bytes
    grace: asyncio.TimerHandle | None = None


class Sessions:
    """Opens, resumes and ends sessions. `on_empty` is told when the last one has ended, and
    whether its client said good-bye."""

    def __init__(
        self,
        settings: Settings,
        tasks: asyncio.TaskGroup,
        on_empty: Callable[[bool], None],
    ) -> None:
        self._settings = settings
        self._targets = Targets(tasks, settings.connect_timeout)
        self._on_empty = on_empty
        self._limits = Limits(
            replay=settings.replay,
            ping_interval=settings.ping,
            ping_timeout=settings.ping_timeout,
        )
        self._key = settings.key
        self._kept: dict[bytes, _Kept] = {}
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

    def admit(self, handshake: AgentHandshake, auth: Auth, transport: asyncio.Transport) -> Driver:
        """Let a proven client in: the driver that has the tunnel from now on.

        Raises:
            HandshakeError: the claim does not hold, or its session cannot be carried on.
        """
        if auth.session_id is None:
            session_id, kept = self._open(handshake, auth)
        else:
            session_id, kept = auth.session_id, self._resume(handshake, auth)
        try:
            # Sends nothing before this turn of the loop ends, so the welcome goes first.
            kept.driver.attach(transport, auth.received)
        except ProtocolError as exc:
            # An older count may have been long on its way, and its client gone on without it.
            if auth.received >= kept.driver.session.sent.acked:
                self._end(session_id, said_goodbye=False)
            raise HandshakeError(str(exc), ErrorCode.UNKNOWN_SESSION) from exc
        if kept.grace is not None:
            kept.grace.cancel()
            kept.grace = None
        resumed = auth.session_id is not None
        logger.info("%s: session %s", kept.driver.name, "resumed" if resumed else "open")
        received = kept.driver.session.received.count
        transport.write(
            handshake.welcome(auth, session_id, kept.key, received, self._limits.streams)
        )
        return kept.driver

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
        self._kept.clear()

    def _open(self, handshake: AgentHandshake, auth: Auth) -> tuple[bytes, _Kept]:
        if not handshake.verify(auth, self._authorise(auth)):
            raise HandshakeError("wrong key", ErrorCode.DENIED)
        if len(self._kept) >= MAX_SESSIONS:
            raise HandshakeError(f"{MAX_SESSIONS} sessions are open", ErrorCode.LIMIT)
        session_id = secrets.token_bytes(SESSION_ID_SIZE)
        self._count += 1
        driver = Driver(
            Side.AGENT,
            f"t{self._count}",
            limits=self._limits,
            on_open=self._open_target,
            on_detached=lambda exc: self._detached(session_id, exc),
            on_go_away=lambda code, message: self._end(session_id, said_goodbye=True),
        )
        key = session_key(self._key or b"", handshake.nonce, auth.nonce)
        kept = self._kept[session_id] = _Kept(driver, key)
        return session_id, kept

    def _authorise(self, auth: Auth) -> bytes:
        """The key that the claim must be proven with; the first to show it teaches it."""
        if self._key is None and self._settings.key_sha256 is not None:
            shown = key_digest(auth.key)
            if not secrets.compare_digest(shown, self._settings.key_sha256):
                raise HandshakeError("wrong key", ErrorCode.DENIED)
            self._key = auth.key
        return self._key or b""

    def _resume(self, handshake: AgentHandshake, auth: Auth) -> _Kept:
        kept = self._kept.get(auth.session_id or b"")
        # An unknown id is checked against a key that nobody has, so that it takes as long as
        # a known one with a wrong proof, and gets the same answer.
        key = kept.key if kept is not None else secrets.token_bytes(NONCE_SIZE)
        if not handshake.verify(auth, key) or kept is None:
            raise HandshakeError("no such session", ErrorCode.UNKNOWN_SESSION)
        return kept

    def _open_target(self, stream: MuxStream) -> None:
        self._targets.open(stream)

    def _detached(self, session_id: bytes, exc: Exception | None) -> None:
        kept = self._kept.get(session_id)
        if kept is None:
            return
        if exc is None:
            self._end(session_id, said_goodbye=False)
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
        self._end(session_id, said_goodbye=False)

    def _end(self, session_id: bytes, *, said_goodbye: bool) -> None:
        kept = self._kept.pop(session_id, None)
        if kept is None:
            return
        if kept.grace is not None:
            kept.grace.cancel()
        kept.driver.close(ErrorCode.GOING_AWAY)
        logger.info("%s: session ended", kept.driver.name)
        if not self._kept:
            self._on_empty(said_goodbye)
