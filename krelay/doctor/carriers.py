"""Carriers: which ways to an agent work, with their round trip and throughput.

A real agent is started for it, and removed afterwards. Where its image runs krelay's own source, a
program beside it sends bytes to each client, for the throughput.
"""

from __future__ import annotations

import asyncio
import dataclasses
import math
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from krelay import payload
from krelay.datapath.agent_link import Way
from krelay.datapath.carrier import LegacyAgentError, SessionCarrier
from krelay.doctor.finding import Finding, failed, ok, skipped, warning
from krelay.errors import ClusterError, KrelayError, NotListeningError, UnreachableError
from krelay.model import (
    AGENT_DOOR_PORT,
    AGENT_PORT,
    AgentConfig,
    Compression,
    GroupSpec,
    Patch,
    SessionConfig,
    Transport,
)
from krelay.tasks import shield_cleanup
from krelay.threads import in_thread
from krelay.wire.errors import ErrorCode, WireError
from krelay.wire.frames import Buffer
from krelay.wire.handshake import key_digest
from krelay.wire.header import TCP, Header

if TYPE_CHECKING:
    from krelay.cluster.agent_lifecycle import Agent, PostedJobs
    from krelay.cluster.api import Api

CARRIERS = ("spdy", "websocket", "proxy")
"""In this order: an agent serves the API server's proxy once a port-forward showed it the key."""
START_DEADLINE = 60.0
_NODE_DEADLINE = 15.0
"""Seconds for a node: a person waits, and `krelay up` waits for an autoscaler anyway."""
_LISTENS_WITHIN, _LOOK_EVERY = 8.0, 0.2
_IDLE_TIMEOUT = 30.0
"""Seconds after which an agent ends that the doctor could not remove."""
_KEY_SIZE = 32
_DIALS = 5
_DEADLINE = 15.0
_SOURCE_PORT, _CLOSED_PORT = 47_821, 1
_LOOPBACK = "127.0.0.1"


def launch(port: int) -> str:
    """Return Python code that starts the program beside the agent: it sends bytes without end to
    each client of a loopback port.

    A carrier that was measured may leave its connection open for a while, so each has a thread.
    """
    program = f"""\
import os, socket, threading
server = socket.create_server(("{_LOOPBACK}", {port}))
block = os.urandom(65536)
def send(client):
    with client:
        try:
            while True:
                client.sendall(block)
        except OSError:
            pass
while True:
    threading.Thread(target=send, args=server.accept()[:1], daemon=True).start()
"""
    start = f'subprocess.Popen([sys.executable, "-I", "-S", "-c", {program!r}])'
    return f"import subprocess, sys\n{start}\n"


class LiveAgent:
    """The doctor's agent; `remove` it in any case."""

    def __init__(self, api: Api, spec: GroupSpec) -> None:
        self._api = api
        self._spec = spec
        self._key = secrets.token_bytes(_KEY_SIZE)
        self._jobs: PostedJobs | None = None
        self._agent: Agent | None = None
        self._has_source = False
        self._works: list[str] = []

    async def start(self) -> Finding:
        """Start it where `krelay up` would. Raises ClusterError or ConfigError."""
        from krelay.cluster.agent_lifecycle import PostedJobs, create_agent

        clock = asyncio.get_running_loop().time
        begun = clock()
        self._jobs = PostedJobs(self._api)
        session = SessionConfig(compression=Compression.OFF)
        config = await in_thread(self._config, UnreachableError)
        agent = self._agent = await create_agent(
            self._jobs,
            config,
            namespace=self._spec.namespace or self._api.namespace,
            fallbacks=self._spec.fallbacks,
            key_sha256=key_digest(self._key),
            connect_timeout=self._spec.connect_timeout,
            session=session,
            deadline=START_DEADLINE,
        )
        seconds = clock() - begun
        text = f"{agent} runs after {seconds:.1f} s, and is removed afterwards"
        return ok("agent", text, pod=str(agent), seconds=round(seconds, 2))

    async def remove(self) -> None:
        """Delete the agent's Job and its pod; a Job that is left is named in the log."""
        if self._jobs is not None:
            await shield_cleanup(self._jobs.clear())

    async def measure(self, carrier: str) -> Finding:
        """Reach the agent by one carrier; measure the round trip and the throughput."""
        assert self._agent is not None
        way = _Carrier(self._api, self._agent, carrier)
        try:
            async with asyncio.timeout(_DEADLINE):
                speed = await self._measure(way)
        except TimeoutError:
            return warning(carrier, f"no answer within {_DEADLINE:g} s", _HINTS[carrier])
        except LegacyAgentError:
            return skipped(carrier, "the agent speaks the Go krelay's protocol; not measured")
        except (KrelayError, WireError, OSError) as exc:
            hint = exc.hint if isinstance(exc, KrelayError) else None
            return warning(carrier, f"does not work: {exc}", hint or _HINTS[carrier])
        self._works.append(carrier)
        details = {"round_trip_ms": round(speed.round_trip * 1000, 2)}
        text = f"works: round trip {speed.round_trip * 1000:.1f} ms"
        if speed.rate is not None:
            details["bytes_per_second"] = round(speed.rate)
            text += f", {speed.rate / 1e6:.0f} MB/s"
        return ok(carrier, text, **details)

    async def _measure(self, way: _Carrier) -> Speed:
        """Measure `way`; the program of a container that has just started may not listen yet."""
        clock = asyncio.get_running_loop().time
        until = clock() + _LISTENS_WITHIN
        while True:
            try:
                return await measure(way, self._key, _SOURCE_PORT if self._has_source else None)
            except NotListeningError:
                if clock() >= until:
                    raise
            await asyncio.sleep(_LOOK_EVERY)

    async def verdict(self) -> Finding:
        """Say which carriers `krelay up` would use."""
        wanted = self._spec.transport
        known = [name for name in CARRIERS if name in self._works]
        if wanted is not Transport.AUTO:
            if wanted.value in known:
                return ok("tunnels", f"by {wanted} (tunnel.transport)", carriers=known)
            text = f"tunnel.transport is {wanted}, which does not work"
            return failed("tunnels", text, _ANY, exit_code=ClusterError.exit_code, carriers=known)
        if not known:
            text = "no carrier reaches the agent"
            return failed("tunnels", text, _ANY, exit_code=ClusterError.exit_code, carriers=known)
        first = next((name for name in known if name != "proxy"), None)
        if first is None:
            text = "only by proxy, on which krelay does not start by itself"
            hint = "in the file, tunnel: {transport: proxy}"
            return failed("tunnels", text, hint, exit_code=ClusterError.exit_code, carriers=known)
        moves = ", and move to proxy" if "proxy" in known else ""
        return ok("tunnels", f"start by {first}{moves}", carriers=known)

    def _config(self) -> AgentConfig:
        from krelay.cluster.agent_job import NAME, job_manifest

        config = dataclasses.replace(
            self._spec.agent,
            idle_timeout=_IDLE_TIMEOUT,
            start_timeout=min(self._spec.agent.start_timeout, _NODE_DEADLINE),
            replicas=1,
        )
        manifest, _ = job_manifest(config, namespace="default", key_sha256="")
        command = payload.command()
        containers = manifest["spec"]["template"]["spec"].get("containers") or []
        if not any(one.get("command") == command for one in containers):
            return config  # another program, which cannot start one beside it
        self._has_source = True
        patched = {"name": NAME, "command": [*command[:-1], launch(_SOURCE_PORT) + command[-1]]}
        patch = Patch({"spec": {"containers": [patched]}})
        return dataclasses.replace(config, patches=(*config.patches, patch))


_ANY = "`krelay up -v` shows each attempt; an intermediary may block upgrades"
_HINTS = {
    "spdy": "an intermediary may block SPDY upgrades; krelay takes the WebSocket then",
    "websocket": "needs Kubernetes 1.31 or later, and `get` on pods/portforward",
    "proxy": "needs `get` on pods/proxy, and a network from the API server to pods; "
    "tunnels work without it, but cost the API server more",
}


class _Carrier:
    """One way to the agent, by one carrier only."""

    expires = math.inf

    def __init__(self, api: Api, agent: Agent, name: str) -> None:
        self.name = name
        self.private = name != "proxy"
        self._api = api
        self._agent = agent

    async def dial(self, protocol: asyncio.Protocol) -> asyncio.Transport:
        from krelay.transport.pod_proxy import open_pod_proxy
        from krelay.transport.portforward import open_portforward

        access = await self._api.access()
        if self.name == "proxy":
            return await open_pod_proxy(
                access,
                namespace=self._agent.namespace,
                pod=self._agent.pod,
                port=AGENT_DOOR_PORT,
                protocol=protocol,
            )
        return await open_portforward(
            access,
            namespace=self._agent.namespace,
            pod=self._agent.pod,
            port=AGENT_PORT,
            protocol=protocol,
            transport=Transport(self.name),
        )


@dataclass(frozen=True, slots=True)
class Speed:
    """The round trip in seconds, and the bytes a second from the agent if they were measured."""

    round_trip: float
    rate: float | None


async def measure(way: Way, key: bytes, source_port: int | None, seconds: float = 1.0) -> Speed:
    """Begin a session by `way`, and measure it. The program of `launch` sends on `source_port`.

    Raises:
        LegacyAgentError, KrelayError, ProtocolError, OSError: no session.
    """
    session = SessionCarrier(
        f"doctor/{way.name}",
        SessionConfig(compression=Compression.OFF),
        on_detached=lambda error: None,
        on_idle=lambda: None,
        on_ids_low=lambda: None,
    )
    try:
        await session.connect(way, key)
        trips = [await _round_trip(session) for _ in range(_DIALS)]
        rate = None if source_port is None else await _throughput(session, source_port, seconds)
        return Speed(sorted(trips)[_DIALS // 2], rate)
    finally:
        session.close(ErrorCode.GOING_AWAY, "the doctor is done")


async def _round_trip(session: SessionCarrier) -> float:
    """Return the time of a dial that the agent refuses: nothing listens there."""
    clock = asyncio.get_running_loop().time
    events = _Events()
    begun = clock()
    session.open(Header(TCP, _LOOPBACK, _CLOSED_PORT), events)
    await events.ended.wait()
    return clock() - begun


async def _throughput(session: SessionCarrier, port: int, seconds: float) -> float | None:
    """Return the bytes a second that arrive; None if the agent sends none."""
    clock = asyncio.get_running_loop().time
    events = _Events()
    stream = session.open(Header(TCP, _LOOPBACK, port), events)
    events.consume = stream.consume
    begun = clock()
    await events.begun.wait()
    await asyncio.sleep(seconds)
    rate = events.received / (clock() - begun)
    stream.reset()
    return rate or None


class _Events:
    """Counts what arrives on a stream. `begun` is set with the first bytes, or at the end."""

    def __init__(self) -> None:
        self.received = 0
        self.begun, self.ended = asyncio.Event(), asyncio.Event()
        self.consume: Callable[[int], None] = lambda count: None

    def on_accepted(self) -> None:
        """Wait for the first bytes."""

    def on_data(self, data: Buffer) -> None:
        self.received += len(data)
        self.begun.set()
        self.consume(len(data))

    def on_datagram(self, data: Buffer) -> None:
        """TCP has no datagrams."""

    def on_refused(self, code: ErrorCode, message: str) -> None:
        self._end()

    def on_end(self) -> None:
        self._end()

    def on_reset(self, code: ErrorCode) -> None:
        self._end()

    def on_writable(self) -> None:
        """Nothing is written."""

    def _end(self) -> None:
        self.begun.set()
        self.ended.set()
