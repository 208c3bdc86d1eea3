"""Pool: third stage of the data path; picks the tunnel that a new stream rides on."""

from __future__ import annotations

import asyncio
import itertools
import logging
from collections.abc import Callable, Mapping, Sequence
from weakref import WeakSet

from krelay.datapath.agent_link import AgentHealth, AgentLink
from krelay.datapath.carrier import Carrier, LegacyCarrierFactory
from krelay.datapath.stream_pool import PoolUser
from krelay.datapath.tunnel import Tunnel
from krelay.datapath.ways import Ways
from krelay.model import Protocol, Resolution, SessionConfig
from krelay.mux.log import about
from krelay.mux.stream import Stream, StreamHandler
from krelay.tasks import TaskGroup
from krelay.wire import header
from krelay.wire.errors import ErrorCode, ProtocolError
from krelay.wire.header import Header

logger = logging.getLogger("krelay.tunnel")

_NUMBERS = {Protocol.TCP: header.TCP, Protocol.UDP: header.UDP}

_MEANINGS = {
    ErrorCode.REFUSED: "refused: the agent reached the host, but nothing listens there",
    ErrorCode.NO_SUCH_HOST: "no such host: the cluster does not know the name",
    ErrorCode.RESOLVE_TIMEOUT: "timed out: the cluster's DNS did not answer",
    ErrorCode.CONNECT_TIMEOUT: "timed out: no answer at all: the host is down, or something drops"
    " the packets, such as a NetworkPolicy or a firewall",
    ErrorCode.UNREACHABLE: "unreachable: the agent's network has no route to it",
}

Sessions = Mapping[Tunnel, Carrier | None]
"""What tunnels carry; None for one that is down."""


class Pool:
    """The tunnels to a group of agents, shared by all targets. `run` keeps them up.

    It is the StreamPool of the way through an agent. A lost agent costs only the streams that its
    tunnels carried.
    """

    def __init__(
        self,
        name: str,
        links: Sequence[AgentLink],
        key: bytes,
        *,
        size: int,
        config: SessionConfig = SessionConfig(),  # noqa: B008
        legacy: LegacyCarrierFactory | None = None,
        on_tunnel: Callable[[Tunnel], None] | None = None,
    ) -> None:
        """Make `size` tunnels in all, but at least one for each of `links`.

        `key` proves this client to the agents. `legacy` carries the streams to an agent that knows
        no sessions; without it such an agent is refused. `on_tunnel` is called with each tunnel
        that comes up or goes down.
        """
        self.name = name
        self._delay = ""
        self._on_tunnel = on_tunnel
        self._up: set[Tunnel] = set()
        self.users: WeakSet[PoolUser] = WeakSet()
        """The routes that lead through this pool; each change wakes them."""
        self._key = key
        self._config = config
        self._legacy = legacy
        self._legacy_logged = False
        self.no_agent = ""
        """Why no agent can be had; empty while one may be."""
        self._changed = asyncio.Event()
        self._numbers = itertools.count(1)
        self._tasks: TaskGroup | None = None
        self._running: dict[Tunnel, asyncio.Task[None]] = {}
        self._retiring: set[Tunnel] = set()
        agents = [(link, AgentHealth(link, config.resume_timeout), Ways(link)) for link in links]
        count = max(size, len(links))
        self.tunnels = [self._tunnel(*agents[n % len(agents)]) for n in range(count)]

    @property
    def streams(self) -> int:
        """The number of live streams."""
        return sum(tunnel.streams for tunnel in self.tunnels)

    @property
    def failure(self) -> Exception | None:
        """Why the last attempt of a tunnel failed, unless all are up."""
        return next((tunnel.failure for tunnel in self.tunnels if tunnel.failure), None)

    @property
    def wanted(self) -> bool:
        """Whether a connection waits for a tunnel."""
        return any(user.wanted for user in self.users)

    # -- the interface of StreamPool -----------------------------------------------------------

    @property
    def multiplexed(self) -> bool:
        return all(tunnel.multiplexed for tunnel in self.tunnels)

    def carriers(self, resolution: Resolution) -> list[Carrier]:
        return [tunnel.carrier for tunnel in self.tunnels if tunnel.carrier]

    def reaches(self, resolution: Resolution) -> bool:
        return resolution.endpoint is not None and self.pick() is not None

    def obstacle(self, resolution: Resolution) -> str:
        if self.no_agent:
            return f"no agent can be had: {self.no_agent}"
        failure = self.failure
        if failure is None:
            return f"no agent yet: {self._delay}" if self._delay else "no tunnel to the agent yet"
        return f"no tunnel to the agent: {str(failure) or type(failure).__name__}"

    def open(
        self, resolution: Resolution, protocol: Protocol, handler: StreamHandler
    ) -> Stream | None:
        endpoint, carrier = resolution.endpoint, self.pick()
        if endpoint is None or carrier is None:
            return None
        try:
            return carrier.open(Header(_NUMBERS[protocol], endpoint.host, endpoint.port), handler)
        except ValueError as exc:
            raise ProtocolError(str(exc), ErrorCode.NO_SUCH_HOST) from exc

    def explain(self, code: ErrorCode, message: str) -> str:
        return _MEANINGS.get(code, code.text) + (f" ({message})" if message else "")

    def has_other(self, resolution: Resolution) -> bool:
        return False  # only the cluster knows where a clusterIP leads

    def user_changed(self, user: PoolUser) -> None:
        """Do nothing: an agent reaches every endpoint."""

    # -- tunnels -------------------------------------------------------------------------------

    def pick(self) -> Carrier | None:
        """Return the carrier with the least load for a new stream; None while no tunnel is up."""
        up = [tunnel for tunnel in self.tunnels if tunnel.up and tunnel not in self._retiring]
        return min(up, key=lambda tunnel: tunnel.load).carrier if up else None

    async def wait_change(self) -> None:
        """Return when a tunnel came up, went down or failed to come up."""
        await self._changed.wait()

    async def wait_idle(self) -> None:
        """Return when no stream is left."""
        while self.streams:
            for tunnel in list(self.tunnels):
                await tunnel.wait_idle()

    async def run(self) -> None:
        """Keep every tunnel up until cancelled; say good-bye to the agents at the end."""
        try:
            async with TaskGroup() as self._tasks:
                for tunnel in self.tunnels:
                    self._run(tunnel, self._tasks)
        finally:
            self._tasks = None
            for tunnel in self.tunnels:
                tunnel.close()

    def dial_soon(self) -> None:
        """Shorten the pauses of tunnels that are down: a connection waits."""
        for tunnel in self.tunnels:
            tunnel.dial_soon()

    def network_changed(self, *, broken: bool) -> None:
        """React to another network or a wake-up of this machine: see `Tunnel.network_changed`."""
        for tunnel in self.tunnels:
            tunnel.network_changed(broken=broken)

    def sessions(self, link: AgentLink) -> Sessions:
        """Return the sessions with the agent of `link`, by tunnel."""
        return {tunnel: tunnel.carrier for tunnel in self.tunnels if tunnel.link is link}

    def drop(self, sessions: Sessions, reason: str) -> None:
        """End those of `sessions` that a tunnel still has, since their agent is gone, and dial."""
        for tunnel, carrier in sessions.items():
            if tunnel.carrier is carrier:
                tunnel.drop(reason)
        self._on_change()

    def _tunnel(self, link: AgentLink, health: AgentHealth, ways: Ways) -> Tunnel:
        return Tunnel(
            f"{self.name}t{next(self._numbers)}",
            link,
            self._key,
            self._config,
            health=health,
            ways=ways,
            legacy=self._legacy,
            on_change=self._on_change,
            on_ids_low=self._replace,
            wanted=lambda: self.wanted,
        )

    def _run(self, tunnel: Tunnel, tasks: TaskGroup) -> None:
        self._running[tunnel] = tasks.create_task(tunnel.run(), name=tunnel.name)

    def _replace(self, tunnel: Tunnel) -> None:
        """Have another tunnel to the same agent take the new streams: the stream ids run out."""
        if self._tasks is None or tunnel not in self._running:
            return
        successor = self._tunnel(tunnel.link, tunnel.health, tunnel.ways)
        about(logger, tunnel=tunnel.name).info(
            "its stream ids are running out; %s takes over", successor.name
        )
        self.tunnels.append(successor)
        self._run(successor, self._tasks)
        self._tasks.create_task(self._retire(tunnel, successor), name=tunnel.name)

    async def _retire(self, tunnel: Tunnel, successor: Tunnel) -> None:
        """End `tunnel` when its successor is up and its last stream has ended."""
        while not successor.up:
            await self.wait_change()
        self._retiring.add(tunnel)
        await tunnel.wait_idle()
        self.tunnels.remove(tunnel)
        self._retiring.discard(tunnel)
        self._up.discard(tunnel)
        self._running.pop(tunnel).cancel()
        tunnel.close()
        self._on_change()

    def delayed(self, delay: str) -> None:
        """Say to all who wait what an agent's start lacks; an empty text ends that."""
        if delay != self._delay:
            self._delay = delay
            for user in list(self.users):
                user.wake()

    def _on_change(self) -> None:
        if not self._legacy_logged and not all(tunnel.multiplexed for tunnel in self.tunnels):
            self._legacy_logged = True
            logger.warning(
                "the agent does not support sessions (it is not krelay's own): each connection has"
                " its own tunnel, and none is resumed"
            )
        for tunnel in self.tunnels:
            if tunnel.up is not (tunnel in self._up) and self._on_tunnel is not None:
                self._up.symmetric_difference_update((tunnel,))
                self._on_tunnel(tunnel)
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()
        for user in list(self.users):
            user.wake()
