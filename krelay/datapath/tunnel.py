"""Tunnel: last stage of the data path on this side; keeps one session carried to the agent.

A lost tunnel is dialled again, at once at first; the session resumes on it. One that grows old
hands its session to a new one while it still works.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable

from krelay.datapath.agent_health import AgentHealth
from krelay.datapath.agent_link import AgentLink
from krelay.datapath.handshake import LegacyAgentError, SessionGoneError, attach
from krelay.datapath.reconnect import Reconnector
from krelay.datapath.tunnel_stats import TunnelStats
from krelay.errors import KrelayError, NotListeningError, PodGoneError
from krelay.legacy.tunnels import LegacyTunnels
from krelay.model import SessionConfig
from krelay.mux.connection import MuxConnection
from krelay.tasks import TaskGroup
from krelay.wire.errors import ErrorCode, ProtocolError, WireError
from krelay.wire.handshake import Welcome
from krelay.wire.session import Limits, Side

logger = logging.getLogger("krelay.tunnel")

# A tunnel that lasted this long, in seconds, was no failed try: the next one is dialled at once.
_STABLE = 5.0
# Between two rotations, also where the first failed, in seconds.
_BETWEEN_ROTATIONS = 30.0
# A tunnel that there is reason to doubt gets this long, in seconds, to answer.
_DOUBT = 2.0

# Seconds between a bug here and the next try.
_AFTER_BUG = 5.0

Carrier = MuxConnection | LegacyTunnels
"""What opens streams: a session's driver, or plain tunnels where the agent knows no sessions."""


class Tunnel:
    """One session and the tunnels that carry it, one after the other.

    `on_change` is told when it starts and ceases to carry streams, and of each failed try;
    `on_worn` when its session needs a successor (`Session.ids_low`). `run` lasts until it is
    cancelled; `close` says good-bye.
    """

    def __init__(
        self,
        name: str,
        way: AgentLink,
        key: bytes,
        config: SessionConfig,
        *,
        reached: AgentHealth,
        on_change: Callable[[], None],
        on_worn: Callable[[Tunnel], None] | None = None,
        wanted: Callable[[], bool] | None = None,
    ) -> None:
        """`reached` is shared by the tunnels of a way; `wanted` says whether a connection waits."""
        self.name = name
        self.driver: Carrier | None = None
        self.failure: Exception | None = None
        self._config = config
        self._way = way
        self._key = key
        self._reached = reached
        self._on_change = on_change
        self._on_worn = on_worn
        self._loop = asyncio.get_running_loop()
        self._stats = TunnelStats()
        self._resume: Welcome | None = None
        self._lost = True
        self._trying = Reconnector(name, way, wanted)
        self._rotating = False
        self._over: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        return f"<Tunnel {self.name} {'up' if self.up else 'down'}>"

    @property
    def up(self) -> bool:
        """Whether it takes new streams now."""
        return self.driver is not None and self.driver.ready

    @property
    def plain(self) -> bool:
        """Whether its agent knows no sessions."""
        return isinstance(self.driver, LegacyTunnels)

    @property
    def streams(self) -> int:
        """How many streams live on it."""
        return self.driver.count if self.driver is not None else 0

    @property
    def load(self) -> int:
        """What waits or is under way on it, in bytes or nearly so."""
        return self.driver.load if self.driver is not None else 0

    @property
    def stats(self) -> TunnelStats:
        """What became of its tunnels up to now."""
        return self._stats.with_(self.driver)

    async def run(self) -> None:
        """Dial, keep, dial again, whatever fails."""
        while True:
            try:
                await self._once()
                await self._trying.pause(self.failure)
            except Exception:
                # Let through, it would end every forward.
                logger.exception("%s: internal error", self.name)
                await asyncio.sleep(_AFTER_BUG)

    async def _once(self) -> None:
        try:
            await self._reached.give_up(self.failure)
            await self._trying.dialled(self._connect)
        except LegacyAgentError:
            await self._run_plain()
        except Exception as exc:
            self._failed(exc)
        else:
            up_at = self._loop.time()
            self.failure = None
            self._on_change()
            await self._carry()
            self._on_change()
            if self._loop.time() - up_at >= _STABLE:
                self._trying.worked()

    def network_changed(self, *, broken: bool) -> None:
        """The network or the machine is not what it was. `sure`: what is up, or being dialled, is
        of no use any more, so that another takes over; else it gets a moment to prove itself. One
        that is down is tried again now."""
        if broken:
            self._trying.restart()
        if broken and isinstance(self.driver, LegacyTunnels):
            self.driver.lose()  # what lives on it has no session that could be carried on
        elif broken or not self.up:
            self._trying.retry_now()
        elif isinstance(self.driver, MuxConnection):
            self.driver.verify_within(_DOUBT)

    def dial_soon(self) -> None:
        """A connection waits for a tunnel: the next try is not far."""
        if not self.up:
            self._trying.dial_soon()

    def close(self) -> None:
        """Say good-bye and cut what still lives."""
        self._still_good()
        driver, self.driver = self.driver, None
        if driver is not None:
            driver.close(ErrorCode.GOING_AWAY, "the client ends")
            self._stats.add(driver)

    # -- one tunnel ----------------------------------------------------------------------------

    async def _connect(self) -> None:
        """A new tunnel carries the session, or a new session if there is none."""
        config = self._config
        driver = self.driver
        if driver is None or isinstance(driver, LegacyTunnels) or driver.closed:
            self._resume = None
            limits = Limits(
                replay=config.resume_buffer,
                ping_interval=config.ping,
                ping_timeout=config.ping_timeout,
            )
            driver = MuxConnection(
                Side.CLIENT,
                self.name,
                limits=limits,
                on_detached=self._detached,
                on_ids_low=self._worn,
            )
        former = self._resume
        try:
            self._resume = await attach(driver, self._way, self._key, former)
        except (SessionGoneError, ProtocolError) as exc:
            self._drop_session(str(exc))
            raise
        self._still_good()
        self._reached.by(self)
        self._lost = not driver.attached
        if self._lost:  # in the very turn of the loop in which it came up
            self._adrift()
        # The end of the former tunnel may be why: it is no reason to look again.
        self._trying.settle()
        self.driver = driver
        self._stats.connects += 1
        self._stats.resumed += former is not None
        logger.info("%s: tunnel %s", self.name, "resumed" if former else "up")

    async def _carry(self) -> None:
        """Until the tunnel is lost; before it grows old, another takes over."""
        while not self._lost:
            await self._trying.nudged(self._best_before())
            while not self._lost and not await self._rotate():
                await self._trying.nudged(min(self._config.max_age, _BETWEEN_ROTATIONS))
        self._trying.settle()

    async def _rotate(self) -> bool:
        """Make before break: what fails here leaves the session where it is."""
        self._rotating = True
        try:
            await self._trying.dialled(self._connect)
        except Exception as exc:
            known = self._lost or str(exc) == str(self.failure)
            level = logging.DEBUG if known else logging.WARNING
            why = str(exc) or type(exc).__name__
            bug = _is_bug(exc) and not known
            logger.log(level, "%s: no tunnel to take over: %s", self.name, why, exc_info=bug)
            if not self._lost:
                self.failure = exc
            return False
        else:
            self.failure = None
            self._stats.rotated += 1
            self._on_change()
            return True
        finally:
            self._rotating = False

    def _best_before(self) -> float:
        """Seconds until another tunnel is to take over."""
        # Not all at once: those that came up together need not go together.
        max_age = self._config.max_age * random.uniform(0.9, 1.0)
        left = self._way.expires - time.time() + 1.0
        return max(min(max_age, left), min(max_age, _BETWEEN_ROTATIONS))

    async def _run_plain(self) -> None:
        """Go on without a session, until the agent is lost."""
        self._drop_session("the agent knows no sessions")
        driver = self.driver = LegacyTunnels(self.name, self._way.dial)
        self.failure = None
        self._reached.by(self)
        try:
            async with TaskGroup() as tasks:
                running = tasks.create_task(driver.run(), name=self.name)
                # It opens streams from when it runs.
                await asyncio.sleep(0)
                self._on_change()
            self._failed(running.result())
        finally:
            if self.driver is driver:
                self.driver = None
                self._stats.add(driver)
            self._on_change()

    def _worn(self) -> None:
        if self._on_worn is not None:
            self._on_worn(self)

    # -- what is lost --------------------------------------------------------------------------

    def _detached(self, exc: Exception | None) -> None:
        """The tunnel is lost; None: its session with it."""
        self._lose()  # first: it is dialled again whatever fails here
        if exc is None:
            self._forget_session()
        else:
            self._adrift()
        self.failure = exc
        # The end of a tunnel that is being replaced is no news.
        level = logging.DEBUG if self._rotating else logging.WARNING
        logger.log(level, "%s: tunnel lost: %s", self.name, exc or "protocol error")

    def _lose(self) -> None:
        self._lost = True
        self._trying.retry_now()

    def _adrift(self) -> None:
        self._reached.lost(self)
        if self._over is None:
            self._over = self._loop.call_later(self._config.resume_timeout, self._expire)

    def _expire(self) -> None:
        self._over = None
        self._drop_session(
            f"no tunnel for {self._config.resume_timeout:g} s (tunnel.resumeTimeout)"
        )
        self._on_change()

    def _still_good(self) -> None:
        """The session is carried, or over: no end of its grace to wait for."""
        if self._over is not None:
            self._over.cancel()
            self._over = None

    def _drop_session(self, why: str) -> None:
        driver = self.driver
        if driver is not None:
            logger.warning(
                "%s: session lost, %d streams are reset: %s", self.name, driver.count, why
            )
        self._forget_session()

    def _forget_session(self) -> None:
        self._still_good()
        driver, self.driver = self.driver, None
        self._reached.lost(self)
        self._lose()
        if driver is not None:
            driver.close(ErrorCode.RESET)
            self._stats.add(driver)  # with what its end has lost

    def _failed(self, exc: Exception) -> None:
        # A pod runs before its agent listens; if it never does, the forwards' states tell it.
        known = isinstance(exc, NotListeningError) or str(exc) == str(self.failure)
        level = logging.DEBUG if known else logging.WARNING
        # A bug in a transport is one failed try.
        bug = _is_bug(exc) and not known
        logger.log(
            level, "%s: no tunnel: %s", self.name, str(exc) or type(exc).__name__, exc_info=bug
        )
        self.failure = exc
        if isinstance(exc, PodGoneError):
            self._drop_session(str(exc))
        self._reached.missed(exc)
        self._on_change()


def _is_bug(exc: Exception) -> bool:
    """Whether nobody expects it; that there is no memory or thread for a moment, everybody does."""
    if isinstance(exc, RuntimeError):
        return "start new thread" not in str(exc)
    return not isinstance(exc, KrelayError | OSError | WireError | LegacyAgentError | MemoryError)
