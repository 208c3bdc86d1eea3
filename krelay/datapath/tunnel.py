"""Tunnel: last stage of the data path on this side; keeps streams carried to one agent.

A connection that is lost is dialled again, at once at first, and the session is resumed on it. One
that grows old is replaced while it still works, and so is one for which there is a faster way.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

from krelay.datapath.agent_link import AgentHealth, AgentLink, SessionGoneError, Way
from krelay.datapath.carrier import (
    Carrier,
    LegacyAgentError,
    LegacyCarrierFactory,
    SessionCarrier,
    TunnelStats,
)
from krelay.datapath.ways import Ways
from krelay.errors import (
    KrelayError,
    NotListeningError,
    PodGoneError,
    TunnelError,
    TunnelRefusedError,
    UnreachableError,
)
from krelay.model import SessionConfig
from krelay.mux.log import About, about
from krelay.retry import Backoff, OnceUntilChanged
from krelay.tasks import TaskGroup
from krelay.wire.errors import ErrorCode, ProtocolError, WireError

logger = logging.getLogger("krelay.tunnel")

HASTE = 1.0
"""Longest pause before an attempt while a connection waits for the tunnel, in seconds."""
# A connection that lasted this long, in seconds, was a success: the next one is dialled at once.
_STABLE = 5.0
# Shortest time between two rotations, also after one that failed, in seconds.
_BETWEEN_ROTATIONS = 30.0
# Longest time for the shortcut to prove itself, in seconds, besides round trips to the API server:
# TCP, TLS, the request and the handshake take about six.
_SHORTCUT_TIMEOUT, _SHORTCUT_TRIPS = 1.0, 6
# Pause after an internal error, in seconds.
_AFTER_BUG = 5.0


class Tunnel:
    """Carries streams to one agent by one connection after the other.

    `run` lasts until it is cancelled; `close` says good-bye to the agent.
    """

    def __init__(
        self,
        name: str,
        link: AgentLink,
        key: bytes,
        config: SessionConfig,
        *,
        health: AgentHealth,
        ways: Ways,
        on_change: Callable[[], None],
        on_ids_low: Callable[[Tunnel], None],
        wanted: Callable[[], bool],
        legacy: LegacyCarrierFactory | None = None,
    ) -> None:
        """Tunnels to the same agent share `health` and `ways`.

        `on_change` is called when the tunnel comes up or goes down, and after each failed attempt;
        `on_ids_low` when its session needs a successor (`Session.ids_low`). `wanted` returns
        whether a connection waits for a tunnel.
        """
        self.name = name
        self.link = link
        self.health = health
        self.ways = ways
        self.way: Way | None = None
        """The way of the present connection, or of the last one."""
        self.carrier: Carrier | None = None
        self.failure: Exception | None = None
        self._config = config
        self._key = key
        self._legacy = legacy
        self._on_change = on_change
        self._on_ids_low = on_ids_low
        self._loop = asyncio.get_running_loop()
        self._log = about(logger, tunnel=name)
        self._failures = OnceUntilChanged()
        self._stats = TunnelStats()
        self._session: SessionCarrier | None = None
        self._connected = False
        self._rotating = False
        self._doubted = False
        self._up_at = self._rotate_at = 0.0
        self._reconnector = Reconnector(self._log, link, wanted)
        self._grace: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()

    def __repr__(self) -> str:
        return f"<Tunnel {self.name} {'up' if self.up else 'down'}>"

    @property
    def up(self) -> bool:
        """Whether it takes new streams now."""
        return self.carrier is not None and self.carrier.ready

    @property
    def multiplexed(self) -> bool:
        """Whether its streams share one connection; True until its agent is known."""
        return self.carrier is None or self.carrier.multiplexed

    @property
    def streams(self) -> int:
        """The number of live streams."""
        return self.carrier.count if self.carrier is not None else 0

    @property
    def load(self) -> int:
        """Bytes that wait or are in flight, or a number that compares like them."""
        return self.carrier.load if self.carrier is not None else 0

    @property
    def rtt(self) -> float | None:
        """The round trip to the agent in seconds, if it is known."""
        return self.carrier.rtt if self.carrier is not None else None

    @property
    def carried_by(self) -> str | None:
        """What carries it now: the name of its way; None while it is down."""
        return self.way.name if self.way is not None and self.up else None

    @property
    def stats(self) -> TunnelStats:
        """What it has counted so far."""
        stats = replace(self._stats, lost_datagrams=self._stats.lost_datagrams.copy())
        if self.carrier is not None:
            self.carrier.add_to(stats)
        return stats

    async def run(self) -> None:
        """Connect and reconnect until cancelled, whatever fails."""
        while True:
            try:
                await self.health.wait_turn(self)
                await self._attempt()
                if self.link.starting is None:
                    await self._reconnector.pause(self.failure)
            except Exception:
                # An error that left this task would end every forward.
                self._log.exception("internal error")
                await asyncio.sleep(_AFTER_BUG)

    async def wait_idle(self) -> None:
        """Return when no stream is left."""
        while self.streams:
            self._idle.clear()
            await self._idle.wait()

    def network_changed(self, *, broken: bool) -> None:
        """React to another network or a wake-up of this machine.

        `broken`: connections and dials from before are of no use, so new ones replace them.
        Otherwise a connection gets a moment to prove itself. A tunnel that is down is dialled now.
        """
        self.ways.retry()
        if broken:
            self._doubted = True
            self._reconnector.restart()
        if self.carrier is None or not self.up or (broken and self.carrier.multiplexed):
            self._reconnector.hint.set()
        else:
            self.carrier.network_changed(broken=broken)
            self._reconnector.hint.set()  # for the shortcut

    def drop(self, reason: str) -> None:
        """Give the session up, because its agent is gone, and begin another one now."""
        self._drop_session(reason)
        self._reconnector.backoff.reset()
        self._reconnector.restart()
        self._reconnector.hint.set()

    def dial_soon(self) -> None:
        """Shorten the pause before the next attempt: a connection waits for a tunnel."""
        if not self.up:
            self._reconnector.dial_soon()

    def close(self) -> None:
        """Say good-bye to the agent and reset what still lives."""
        self._stop_grace()
        self._end_carrier(ErrorCode.GOING_AWAY, "the client ends")

    # -- one connection ------------------------------------------------------------------------

    async def _attempt(self) -> None:
        """Connect, and carry streams until the connection is lost."""
        starting = self.link.starting
        try:
            await self.health.abandon_if_lost(self.failure)
            await self._reconnector.connect(self._connect)
        except LegacyAgentError as exc:
            await self._run_legacy(exc)
        except Exception as exc:
            starting = starting or self.link.starting  # this dial may have begun it
            if starting is not None and _is_normal_at_start(exc):
                self._log.debug("the agent is being started: %s", exc)
                if self._session is not None:
                    self._drop_session("its agent is gone, and another one is being started")
            else:
                self._attempt_failed(exc)
        else:
            up_at = self._loop.time()
            self._clear_failure()
            self._on_change()
            await self._carry()
            self._on_change()
            if self._loop.time() - up_at >= _STABLE:
                self._reconnector.backoff.reset()

    async def _connect(self) -> None:
        """Resume the session on a new connection, or begin one, by the first way that works."""
        if self.link.shortcut_only and self.ways.shortcut is None:
            return await self._begin_on_shortcut()
        failure: Exception | None = None
        for way in self.ways.order(self.way if self._session is not None else None):
            try:
                return await self._connect_by(way)
            except PodGoneError:
                raise
            except Exception as exc:
                if way is self.link or self.link.shortcut_only:
                    failure = exc
                    if isinstance(exc, SessionGoneError | ProtocolError | LegacyAgentError):
                        break
                else:
                    self._shortcut_failed(exc)
        assert failure is not None
        if isinstance(failure, SessionGoneError | ProtocolError):
            self._drop_session(str(failure))
        raise failure

    async def _begin_on_shortcut(self) -> None:
        """Begin a session on the private way, where the key is safe, and move it before its use.

        If it cannot move, it waits where it is for the next attempt.
        """
        session = self._new_session()
        await session.connect(self.link, self._key)
        if self._session is not None:
            self._drop_session("another agent has taken the place of its agent")
        self._session = session
        self.ways.connected(self.link)
        if (shortcut := self.ways.shortcut) is None:
            raise TunnelError("the agent is gone")
        await self._connect_by(shortcut)

    async def _connect_by(self, way: Way) -> None:
        session = self._session or self._new_session()
        if (shortcut := self.ways.shortcut) is not None and way is shortcut:
            await shortcut.prepare()
        if way is self.link or self.link.shortcut_only:
            await session.connect(way, self._key)
        else:
            limit = _SHORTCUT_TIMEOUT + _SHORTCUT_TRIPS * (session.rtt or 0.0)
            try:
                async with asyncio.timeout(limit):
                    await session.connect(way, self._key)
            except TimeoutError as exc:
                raise TunnelError(f"no answer within {limit:.1f} s") from exc
        self._connected_by(way, session)

    def _new_session(self) -> SessionCarrier:
        return SessionCarrier(
            self.name,
            self._config,
            on_detached=self._detached,
            on_idle=self._idle.set,
            on_ids_low=lambda: self._on_ids_low(self),
        )

    def _connected_by(self, way: Way, session: SessionCarrier) -> None:
        resumes = self.carrier is not None
        self._stop_grace()
        self.health.connected(self)
        self._connected = session.attached
        if not self._connected:  # it was lost in the turn of the loop in which it came up
            self._start_grace()
        # The end of the former connection may have set it: which is no reason to dial again.
        self._reconnector.hint.clear()
        self._doubted = False
        self.carrier = self._session = session
        if self._rotating and way is not self.way:
            self._log.info("tunnel moved to %s", way.name)
        else:
            self._log.info("tunnel %s by %s", "resumed" if resumes else "up", way.name)
        self.way = way
        self.ways.connected(way)
        self._up_at = self._loop.time()
        self._rotate_at = self._up_at + self._best_before()
        self._stats.connects += 1
        self._stats.resumed += resumes

    async def _carry(self) -> None:
        """Return when the connection is lost.

        Replace it before it grows old, and move the session to the shortcut when that is due.
        """
        while self._connected:
            left = self._rotate_at - self._loop.time()
            await self._reconnector.wait_hint(min(left, self.ways.move_in(self.way)))
            if not self._connected:
                break
            if self._doubted or self._loop.time() >= self._rotate_at:
                self._doubted = False
                if not await self._rotate():
                    pause = min(self._config.max_age, _BETWEEN_ROTATIONS)
                    self._rotate_at = self._loop.time() + pause
            elif not self.ways.move_in(self.way):
                await self._move()
        self._reconnector.hint.clear()

    async def _rotate(self) -> bool:
        """Replace the connection while it works; return whether that succeeded."""
        try:
            await self._take_over(self._connect)
        except Exception as exc:
            new = self._connected and self._note_failure(exc)
            self._log_failure("no tunnel to take over", exc, new=new)
            return False
        return True

    async def _move(self) -> None:
        """Move the session to the shortcut while the connection works, or set that aside."""
        if (shortcut := self.ways.shortcut) is None:
            return
        try:
            await self._take_over(lambda: self._connect_by(shortcut))
        except Exception as exc:
            self._shortcut_failed(exc)

    async def _take_over(self, connect: Callable[[], Awaitable[None]]) -> None:
        self._rotating = True
        try:
            await self._reconnector.connect(connect)
            self._stats.rotated += 1
            self._clear_failure()
            self._on_change()
        finally:
            self._rotating = False

    def _best_before(self) -> float:
        """Return the seconds until another connection should take over."""
        # Connections that came up together should not be replaced together.
        max_age = self._config.max_age * random.uniform(0.9, 1.0)
        left = (self.way or self.link).expires - time.time() + 1.0
        return max(min(max_age, left), min(max_age, _BETWEEN_ROTATIONS))

    async def _run_legacy(self, exc: LegacyAgentError) -> None:
        """Carry streams without a session until the agent is lost."""
        if self._legacy is None or self.link.shortcut_only:
            self._attempt_failed(TunnelRefusedError(str(exc)))
            return
        self._drop_session(str(exc))
        carrier = self.carrier = self._legacy(self.name, self.link, self._idle.set)
        self.health.connected(self)
        try:
            async with TaskGroup() as tasks:
                running = tasks.create_task(carrier.run(), name=self.name)
                # It opens streams from when it runs.
                await asyncio.sleep(0)
                self._clear_failure()
                self._on_change()
            self._attempt_failed(running.result())
        finally:
            if self.carrier is carrier:
                self.carrier = None
                carrier.add_to(self._stats)
            self._on_change()

    # -- ends and failures ---------------------------------------------------------------------

    def _detached(self, exc: Exception | None) -> None:
        """Handle the loss of the connection; None: its session is lost with it.

        While another one takes over, the agent ends it, so only silence is a failure then.
        """
        self._disconnected()  # first: it is dialled again whatever fails here
        if exc is None:
            self._forget_session()
            self._clear_failure()
        else:
            self._start_grace()
            self._note_failure(exc)
            lasted = self._loop.time() - self._up_at
            counts = not self._rotating or isinstance(exc, TimeoutError)
            if counts and self.way is not None and self.ways.lost(self.way, lasted, exc):
                self._log_set_aside()
        replaced = self._rotating or self.carrier is None
        level = logging.DEBUG if replaced else logging.WARNING
        self._log.log(level, "tunnel lost: %s", exc or "protocol error")

    def _disconnected(self) -> None:
        self._connected = False
        self._reconnector.hint.set()

    def _start_grace(self) -> None:
        self.health.disconnected(self)
        if self._grace is None:
            self._grace = self._loop.call_later(self._config.resume_timeout, self._grace_over)

    def _stop_grace(self) -> None:
        if self._grace is not None:
            self._grace.cancel()
            self._grace = None

    def _grace_over(self) -> None:
        self._grace = None
        timeout = self._config.resume_timeout
        self._drop_session(f"no tunnel for {timeout:g} s (tunnel.resumeTimeout)")
        self._on_change()

    def _drop_session(self, why: str) -> None:
        if self.carrier is not None:
            self._log.warning("session lost, %d streams are reset: %s", self.streams, why)
        self._forget_session()

    def _forget_session(self) -> None:
        self._stop_grace()
        self.health.disconnected(self)
        self._disconnected()
        self._end_carrier(ErrorCode.RESET)

    def _end_carrier(self, code: ErrorCode, message: str = "") -> None:
        carrier, self.carrier, self._session = self.carrier or self._session, None, None
        if carrier is not None:
            carrier.close(code, message)
            carrier.add_to(self._stats)  # with the datagrams that its end has lost
        self._idle.set()

    def _attempt_failed(self, exc: Exception) -> None:
        # A pod runs before its agent listens. If it never does, the forwards' states say so. What
        # ends the start is reported there.
        quiet = isinstance(exc, NotListeningError) or (
            isinstance(exc, KrelayError) and exc.fails_start and not self.health.known
        )
        new = self._note_failure(exc) and not quiet
        self._log_failure("no tunnel", exc, new=new)
        if isinstance(exc, PodGoneError):
            self._drop_session(str(exc))
        self.health.attempt_failed(exc)
        self._on_change()

    def _shortcut_failed(self, exc: Exception) -> None:
        if self.ways.failed(exc):
            self._log_set_aside(exc if _is_bug(exc) else None)

    def _log_set_aside(self, bug: Exception | None = None) -> None:
        self._log.log(
            logging.ERROR if bug else logging.INFO,
            "not by %s: %s; next attempt in %.0f s",
            self.link.shortcut.name if self.link.shortcut is not None else "the shortcut",
            self.ways.reason,
            self.ways.next_attempt or 0.0,
            exc_info=bug,
        )

    def _note_failure(self, exc: Exception) -> bool:
        """Keep a failure; return whether it differs from the last one."""
        self.failure = exc
        return self._failures.is_new(exc)

    def _clear_failure(self) -> None:
        self.failure = None
        self._failures.clear()

    def _log_failure(self, what: str, exc: Exception, *, new: bool) -> None:
        level = logging.WARNING if new else logging.DEBUG
        why = str(exc) or type(exc).__name__
        # A bug in a transport is one failed attempt, and is logged with its traceback.
        self._log.log(level, "%s: %s", what, why, exc_info=new and _is_bug(exc))


class Reconnector:
    """Decides when a tunnel is dialled: at once, after a growing delay, or on a hint."""

    def __init__(self, log: About, link: AgentLink, wanted: Callable[[], bool]) -> None:
        """`wanted` returns whether a connection waits for the tunnel."""
        self.backoff = Backoff()
        self.hint = asyncio.Event()
        """Set when another attempt may succeed now; ends the present wait."""
        self._log = log
        self._link = link
        self._wanted = wanted
        self._dial_timeout: asyncio.Timeout | None = None
        self._pause: asyncio.Timeout | None = None
        self._shortened = False

    async def connect(self, dial: Callable[[], Awaitable[None]]) -> None:
        """Run `dial`, again whenever `restart` is called meanwhile. Raises what `dial` raises."""
        while True:
            timeout = self._dial_timeout = asyncio.timeout(None)
            try:
                async with timeout:
                    return await dial()
            except TimeoutError:
                if not timeout.expired():
                    raise
                self._log.debug("dialling again")
            finally:
                self._dial_timeout = None

    def restart(self) -> None:
        """Cancel the dial in progress, if any, and begin another."""
        if self._dial_timeout is not None and not self._dial_timeout.expired():
            self._dial_timeout.reschedule(0.0)

    def dial_soon(self) -> None:
        """Shorten the present pause, once: a connection waits."""
        pause = self._pause
        if pause is None or self._shortened or pause.expired():
            return
        self._shortened = True
        sooner = asyncio.get_running_loop().time() + self._short_delay()
        when = pause.when()
        if when is not None and sooner < when:
            pause.reschedule(sooner)

    async def pause(self, failure: Exception | None) -> None:
        """Wait until the next attempt.

        The wait is short if a connection waits. If `failure` says that the API server could not be
        reached, the wait ends when it can be.
        """
        delay = self.backoff.delay()
        self._shortened = self._wanted()
        if self._shortened:
            delay = min(delay, self._short_delay())
        async with TaskGroup() as tasks:
            probing = tasks.create_task(self._hint_when_reachable(failure))
            try:
                async with asyncio.timeout(delay) as self._pause:
                    await self.hint.wait()
            except TimeoutError:
                pass
            finally:
                self._pause = None
            self.hint.clear()
            probing.cancel()

    async def wait_hint(self, timeout: float) -> None:
        """Return on a hint, or after `timeout` seconds."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self.hint.wait()
        self.hint.clear()

    @staticmethod
    def _short_delay() -> float:
        return random.uniform(HASTE / 2, HASTE)

    async def _hint_when_reachable(self, failure: Exception | None) -> None:
        if not isinstance(failure, UnreachableError):
            return
        try:
            await self._link.reachable_again()
        except (KrelayError, OSError) as exc:
            self._log.debug("cannot probe the API server: %s", exc)
        except Exception:
            # Only a probe: an error that left this task would end every forward.
            self._log.exception("cannot probe the API server")
        else:
            self.hint.set()


def _is_normal_at_start(exc: Exception) -> bool:
    """Return whether a dial may end like this before the agent listens."""
    return isinstance(exc, TunnelError | UnreachableError) and not isinstance(
        exc, TunnelRefusedError
    )


def _is_bug(exc: Exception) -> bool:
    """Return whether an error is unexpected. A lack of memory or threads is not."""
    if isinstance(exc, RuntimeError):
        return "start new thread" not in str(exc)  # CPython has no type for it
    return not isinstance(exc, KrelayError | OSError | WireError | LegacyAgentError | MemoryError)
