"""Forward: one port of a target, from the file to a bound listener on a route."""

from __future__ import annotations

import asyncio
import logging

from krelay.datapath.listener import TcpListener
from krelay.datapath.route import Route
from krelay.datapath.udp import UdpListener
from krelay.errors import ListenError
from krelay.model import Port, Protocol, Target, TunnelConfig

logger = logging.getLogger("krelay.forward")

# How long a forward without a protocol of its own waits for its Service to say one, in seconds.
_PROTOCOL_WAIT = 5.0


class Forward:
    """Binds when it knows its protocol and local port; `bound` is set then, or when it cannot."""

    def __init__(self, target: Target, port: Port, route: Route, tunnel: TunnelConfig) -> None:
        self.target = target
        self.port = port
        self.route = route
        self.listener: TcpListener | UdpListener | None = None
        self.failure: ListenError | None = None
        self.bound = asyncio.Event()
        self._tunnel = tunnel

    @property
    def name(self) -> str:
        """For people: the target's name, and the port where it has several."""
        if len(self.target.ports) == 1:
            return self.target.name
        return f"{self.target.name}[{self.port}]"

    @property
    def certain(self) -> bool:
        """Whether the file alone says what to listen on."""
        known = self.port.protocol is not None or not self.target.kind.in_cluster
        return known and self.port.local is not None

    def describe(self) -> list[str]:
        """A line for each bound address: `NAME: ADDRESS:PORT -> TARGET:PORT (PROTOCOL)`."""
        if self.listener is None:
            return []
        protocol = "udp" if isinstance(self.listener, UdpListener) else "tcp"
        lines = []
        for host, port in self.listener.addresses:
            local = f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
            remote = f"{self.target}:{self.port.remote}"
            lines.append(f"{self.target.name}: {local} -> {remote} ({protocol})")
        return lines

    async def bind(self, tasks: asyncio.TaskGroup) -> None:
        """Listen, as soon as it is known on what; a failure is logged and kept in `failure`.

        Connections' own tasks belong to `tasks`.
        """
        protocol = self.port.protocol or await self._protocol()
        local = self.port.local
        if local is None:
            local = (await self.route.wait_endpoint()).port
        make = UdpListener if protocol is Protocol.UDP else TcpListener
        listener = make(self.name, self.route, tasks, park=self._tunnel.park)
        try:
            await listener.open(self.target.listen, local)
        except ListenError as exc:
            self.failure = exc
            logger.error("%s: %s%s", self.name, exc, f"; hint: {exc.hint}" if exc.hint else "")
        else:
            self.listener = listener
        self.bound.set()

    async def drain(self, timeout: float) -> None:
        """Accept no more; cut what is left after `timeout` seconds."""
        if self.listener is not None:
            await self.listener.drain(timeout)

    def cut(self) -> None:
        """Free the address and reset what lives, now."""
        if self.listener is not None:
            self.listener.cut()

    async def _protocol(self) -> Protocol:
        resolution = await self.route.resolved()
        try:
            async with asyncio.timeout(_PROTOCOL_WAIT):
                await self.route.wait_endpoint()
        except TimeoutError:
            return resolution.protocol
        assert self.route.resolution is not None
        return self.route.resolution.protocol
