"""Tunnel: last stage of the data path on this side; keeps one session carried to the agent."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from krelay.datapath.backoff import Backoff
from krelay.datapath.plain import PlainDriver
from krelay.errors import KrelayError, PodGoneError, TunnelError, TunnelRefusedError
from krelay.mux.driver import Driver
from krelay.mux.link import ClientLink
from krelay.wire.errors import ErrorCode, HandshakeError, ProtocolError, WireError
from krelay.wire.handshake import NONCE_SIZE, ClientHandshake, Resume, Welcome
from krelay.wire.session import Side

logger = logging.getLogger("krelay.tunnel")

Dial = Callable[[asyncio.Protocol], Awaitable[asyncio.Transport]]
"""Opens a byte pipe to the agent and puts this protocol on it.

Raises KrelayError or OSError; it has a deadline of its own.
"""

_HANDSHAKE_TIMEOUT = 10.0
# A session without a tunnel for longer than this, in seconds, is over; the agent's own grace.
_GRACE = 120.0
# A tunnel that lasted this long, in seconds, was no failed try: the next one is dialled at once.
_STABLE = 5.0


Carrier = Driver | PlainDriver
"""What opens streams: a session's driver, or plain tunnels where the agent knows no sessions."""


@dataclass(slots=True)
class TunnelStats:
    """What became of a session's tunnels since the start: those that came up, those of them that
    carried the session on, and those of these that took over from a working one; the bytes that
    were sent again. `window_stalls` and `limit_stalls` are the session's own counts."""

    connects: int = 0
    resumed: int = 0
    rotated: int = 0
    replayed_bytes: int = 0
    window_stalls: int = 0
    limit_stalls: int = 0


class _PlainError(Exception):
    """The agent speaks plain mode only."""


class Tunnel:
    """One session and the tunnels that carry it, one after the other.

    `on_change` is told when it starts and ceases to carry streams, and of each failed try.
    `run` lasts until it is cancelled; `close` says good-bye.
    """

    def __init__(
        self,
        name: str,
        dial: Dial,
        key: bytes,
        *,
        private: bool,
        on_change: Callable[[], None],
    ) -> None:
        self.name = name
        self.driver: Carrier | None = None
        self.failure: Exception | None = None
        self.stats = TunnelStats()
        self._dial = dial
        self._key = key
        self._private = private
        self._on_change = on_change
        self._resume: Welcome | None = None
        self._lost = asyncio.Event()
        self._lost_at = 0.0

    def __repr__(self) -> str:
        return f"<Tunnel {self.name} {'up' if self.up else 'down'}>"

    @property
    def up(self) -> bool:
        """Whether it takes new streams now."""
        driver = self.driver
        if isinstance(driver, PlainDriver):
            return not driver.closed
        return driver is not None and driver.attached and not driver.session.peer_going_away

    @property
    def plain(self) -> bool:
        """Whether its agent knows no sessions."""
        return isinstance(self.driver, PlainDriver)

    @property
    def streams(self) -> int:
        """How many streams live on it."""
        driver = self.driver
        if isinstance(driver, PlainDriver):
            return len(driver.streams)
        return len(driver.session.streams) if driver is not None else 0

    @property
    def load(self) -> int:
        """What waits or is under way on it, in bytes; each stream weighs a little too."""
        assert self.driver is not None
        if isinstance(self.driver, PlainDriver):
            return len(self.driver.streams)
        session = self.driver.session
        queued = sum(stream.queued for stream in session.streams.values())
        return queued + session.unacknowledged + 1024 * len(session.streams)

    async def run(self) -> None:
        """Dial, keep, dial again."""
        clock = asyncio.get_running_loop().time
        backoff = Backoff()
        while True:
            try:
                await self._connect()
            except _PlainError:
                await self._run_plain()
            except (KrelayError, OSError, WireError) as exc:
                self._failed(exc)
            except Exception as exc:
                # A bug in a transport is one failed try; let through, it would end every forward.
                logger.exception("%s: the dial failed", self.name)
                self._failed(exc)
            else:
                up_at = clock()
                self.failure = None
                logger.info("%s: tunnel up", self.name)
                self._on_change()
                await self._lost.wait()
                self._on_change()
                if clock() - up_at >= _STABLE:
                    backoff.reset()
            await asyncio.sleep(backoff.delay())

    def close(self) -> None:
        """Say good-bye and cut what still lives."""
        if self.driver is not None:
            self.driver.close(ErrorCode.GOING_AWAY, "the client ends")
            self.driver = None

    async def _connect(self) -> None:
        driver = self.driver
        if driver is None or isinstance(driver, PlainDriver) or driver.closed:
            self._resume = None
            driver = Driver(Side.CLIENT, self.name, on_detached=self._detached)
        resume = None
        if self._resume is not None:
            received = driver.session.received
            resume = Resume(self._resume.session_id, self._resume.session_key, received)
        handshake = ClientHandshake(
            self._key, secrets.token_bytes(NONCE_SIZE), resume=resume, private=self._private
        )
        link = ClientLink(driver, handshake)
        self._lost.clear()
        try:
            transport = await self._dial(link)
            try:
                async with asyncio.timeout(_HANDSHAKE_TIMEOUT):
                    self._resume = await link.welcome
            except BaseException:
                transport.abort()
                raise
        except HandshakeError as exc:
            if exc.code == ErrorCode.UNKNOWN_SESSION:
                self._drop_session("the agent does not know it")
            if exc.code is ErrorCode.UNKNOWN_PROTOCOL:
                raise _PlainError from exc
            if exc.code in (ErrorCode.DENIED, ErrorCode.VERSION):
                raise TunnelRefusedError(f"the agent refused the tunnel: {exc}") from exc
            raise TunnelError(f"no session with the agent: {exc}") from exc
        except ProtocolError as exc:
            self._drop_session(str(exc))
            raise
        finally:
            link.welcome.cancel()
            if link.welcome.done() and not link.welcome.cancelled():
                link.welcome.exception()
        self.driver = driver

    async def _run_plain(self) -> None:
        """Go on without a session, until the agent is lost."""
        self._drop_session("the agent knows no sessions")
        driver = self.driver = PlainDriver(self.name, self._dial)
        self.failure = None
        try:
            async with asyncio.TaskGroup() as tasks:
                running = tasks.create_task(driver.run(), name=self.name)
                # It opens streams from when it runs.
                await asyncio.sleep(0)
                self._on_change()
            self._failed(running.result())
        finally:
            self.driver = None
            self._on_change()

    def _drop_session(self, why: str) -> None:
        driver, self.driver = self.driver, None
        if driver is not None:
            count = len(
                driver.streams if isinstance(driver, PlainDriver) else driver.session.streams
            )
            logger.warning("%s: session lost, %d streams are reset: %s", self.name, count, why)
            driver.close(ErrorCode.RESET)

    def _detached(self, exc: Exception | None) -> None:
        if exc is None and self.driver is not None:
            self.driver = None
        self.failure = exc
        logger.warning("%s: tunnel lost: %s", self.name, exc or "protocol error")
        self._lost_at = asyncio.get_running_loop().time()
        self._lost.set()

    def _failed(self, exc: Exception) -> None:
        level = logging.DEBUG if str(exc) == str(self.failure) else logging.WARNING
        logger.log(level, "%s: no tunnel: %s", self.name, exc or type(exc).__name__)
        self.failure = exc
        if isinstance(exc, PodGoneError):
            self._drop_session(str(exc))
        elif asyncio.get_running_loop().time() - self._lost_at > _GRACE:
            self._drop_session(f"no tunnel for {_GRACE:g} s")
        self._on_change()
