"""Carriers: what carries the streams of a tunnel.

`SessionCarrier` is the usual one: a session, which a new connection to the agent resumes. An agent
that knows no sessions has another (`krelay.legacy`), which the maker of a pool hands in.
"""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from krelay.datapath.agent_link import AgentLink, SessionGoneError, Way
from krelay.errors import TunnelError, TunnelRefusedError
from krelay.model import Compression, SessionConfig
from krelay.mux.connection import ClientTunnelProtocol, MuxConnection
from krelay.mux.stream import Stream, StreamHandler
from krelay.wire.errors import ErrorCode, HandshakeError
from krelay.wire.handshake import NONCE_SIZE, ClientHandshake, Resume, Welcome
from krelay.wire.header import Header
from krelay.wire.session import Limits, Side

_HANDSHAKE_TIMEOUT = 10.0
# How long a connection that there is reason to doubt has to answer, in seconds.
_DOUBT = 2.0

QUEUED, LATE = "queued", "late"
"""Reasons of datagrams lost at this end that belong to no forward: they waited for the tunnel when
it was lost, or when their flow ended; they arrived after their flow had ended."""
AGENT_LOSSES = ("agent_kernel_receive", "agent_kernel_send", "agent_early", "agent_backlog")
"""Reasons of datagrams lost at the agent, in the order of the LOST frame (protocol.md, section 5).
"""
LOSSES = frozenset({QUEUED, LATE, *AGENT_LOSSES})


@dataclass(slots=True)
class TunnelStats:
    """Counts of one tunnel since its start.

    `connects` counts connections to the agent; `resumed` those that resumed a session; `rotated`
    those of these that replaced a working one. `replayed_bytes`, `window_stalls` and `limit_stalls`
    are those of its sessions, and so are `compression_input`, the bytes of streams that crossed it
    compressed, and `compression_output`, those that they took there. `lost_datagrams` counts
    datagrams by reason (`LOSSES`).
    """

    connects: int = 0
    resumed: int = 0
    rotated: int = 0
    replayed_bytes: int = 0
    window_stalls: int = 0
    limit_stalls: int = 0
    compression_input: int = 0
    compression_output: int = 0
    lost_datagrams: Counter[str] = field(default_factory=Counter)


class Carrier(Protocol):
    """Carries streams to one agent."""

    multiplexed: bool
    """Whether its streams share one connection, which can be resumed. If not, each stream costs a
    connection and ends with it."""

    @property
    def ready(self) -> bool:
        """Whether it takes new streams now."""

    @property
    def count(self) -> int:
        """The number of live streams."""

    @property
    def load(self) -> int:
        """Bytes that wait or are in flight, or a number that compares like them."""

    @property
    def rtt(self) -> float | None:
        """The round trip to the agent in seconds, if it is known."""

    def open(self, header: Header, handler: StreamHandler, /) -> Stream:
        """Open a stream; `handler` receives its events.

        Raises:
            ProtocolError: the carrier takes no more streams.
            ValueError: no Header can carry this host or port.
        """

    def network_changed(self, *, broken: bool) -> None:
        """Verify soon that the connections still work; `broken`: they do not."""

    def add_to(self, stats: TunnelStats) -> None:
        """Add what this carrier has counted to `stats`."""

    def close(self, code: ErrorCode, message: str = "") -> None:
        """Reset every stream and end; `message` tells the agent why."""


class LegacyCarrier(Carrier, Protocol):
    """A carrier for an agent that knows no sessions. It makes its own connections."""

    async def run(self) -> Exception:
        """Carry streams until the agent is lost, and return why."""


LegacyCarrierFactory = Callable[[str, AgentLink, Callable[[], None]], LegacyCarrier]
"""Makes one from a name for the log, the link to the agent, and a function that it calls when no
stream is left."""


class LegacyAgentError(Exception):
    """The agent knows no sessions."""


class SessionCarrier(MuxConnection):
    """One session. `connect` begins it, and resumes it on another connection to the agent."""

    multiplexed = True

    def __init__(
        self,
        name: str,
        config: SessionConfig,
        *,
        on_detached: Callable[[Exception | None], None],
        on_idle: Callable[[], None],
        on_ids_low: Callable[[], None],
    ) -> None:
        """`on_detached` is called when a connection is lost, with None if the session is lost with
        it; `on_idle` when no stream is left, maybe repeatedly; `on_ids_low` when another session
        should take the new streams."""
        limits = Limits(
            replay=config.resume_buffer, ping_interval=config.ping, ping_timeout=config.ping_timeout
        )
        super().__init__(
            Side.CLIENT, name, limits=limits, on_detached=on_detached, on_ids_low=on_ids_low
        )
        self.on_idle = on_idle
        self._compress = config.compression is Compression.AUTO
        self._welcome: Welcome | None = None

    @property
    def rtt(self) -> float | None:
        return self.session.rtt or None

    def network_changed(self, *, broken: bool) -> None:
        """Drop the connection unless the agent answers soon. A broken one is replaced by
        `connect`."""
        self.verify_within(_DOUBT)

    def add_to(self, stats: TunnelStats) -> None:
        session = self.session
        stats.replayed_bytes += self.replayed_bytes
        stats.window_stalls += session.window_stalls
        stats.limit_stalls += session.limit_stalls
        stats.compression_input += session.compression_input
        stats.compression_output += session.compression_output
        stats.lost_datagrams[QUEUED] += session.dropped_datagrams
        stats.lost_datagrams[LATE] += session.late_datagrams
        stats.lost_datagrams.update(dict(zip(AGENT_LOSSES, self.peer_lost, strict=True)))

    async def connect(self, way: Way, key: bytes) -> None:
        """Carry the session on over a new connection to the agent.

        A connection that carries it now is replaced when the agent agrees, and stays if this fails.

        Raises:
            LegacyAgentError: the agent does not support sessions.
            SessionGoneError: the agent does not know this session any more.
            TunnelRefusedError: the agent refuses this client, now and later.
            TunnelError: no session with the agent.
            ProtocolError: the two ends disagree on what was received: the session is over.
            KrelayError, OSError: as `Way.dial`.
        """
        session = self.session
        resume = None
        if self._welcome is not None:
            session_id, session_key = self._welcome.session_id, self._welcome.session_key
            resume = Resume(session_id, session_key, session.begin_resume)
        nonce = secrets.token_bytes(NONCE_SIZE)
        handshake = ClientHandshake(
            key, nonce, resume=resume, private=way.private, compress=self._compress
        )
        client = ClientTunnelProtocol(self, handshake)
        try:
            self._welcome = await _shake_hands(client, way)
        finally:
            session.abort_resume()
            client.welcome.cancel()
            if client.welcome.done() and not client.welcome.cancelled():
                client.welcome.exception()


async def _shake_hands(client: ClientTunnelProtocol, way: Way) -> Welcome:
    try:
        transport = await way.dial(client)
        try:
            async with asyncio.timeout(_HANDSHAKE_TIMEOUT):
                return await client.welcome
        except BaseException:
            transport.abort()
            raise
    except TimeoutError as exc:
        raise TunnelError(f"no answer from the agent within {_HANDSHAKE_TIMEOUT:g} s") from exc
    except HandshakeError as exc:
        if exc.code is ErrorCode.UNKNOWN_SESSION:
            raise SessionGoneError("the agent does not know the session") from exc
        if exc.code is ErrorCode.UNKNOWN_PROTOCOL:
            raise LegacyAgentError("the agent does not support sessions") from exc
        if exc.code in (ErrorCode.DENIED, ErrorCode.VERSION):
            raise TunnelRefusedError(f"the agent refused the tunnel: {exc}") from exc
        raise TunnelError(f"no session with the agent: {exc}") from exc
