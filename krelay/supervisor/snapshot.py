"""Build a Snapshot, and the states in it, from what runs at one moment."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from krelay.agents.direct import DirectGroup
from krelay.agents.group import AgentGroup
from krelay.config.diff import group_of
from krelay.datapath.direct import DirectPool
from krelay.datapath.metrics import ForwardMetrics
from krelay.datapath.tunnel import Tunnel
from krelay.datapath.ways import Ways
from krelay.model import Check, CheckKind, Config, Kind, Protocol
from krelay.state.snapshot import connect_address
from krelay.state.states import (
    AgentState,
    ContextState,
    DirectState,
    ForwardState,
    PodConnectionState,
    ShortcutState,
    Traffic,
    TunnelState,
)
from krelay.supervisor.forward import Forward

Resolved = Callable[[str | None], ContextState | None]
"""Returns where a context leads, if that is known."""


def forward_state(
    forward: Forward,
    config: Config | None,
    resolved: Resolved = lambda context: None,
    why_direct: Callable[[Forward], str] = lambda forward: forward.direct_only,
) -> ForwardState:
    """Return the state of a forward; `config` is the active one."""
    spec, health = forward.spec, forward.health
    target, proxy = spec.target, spec.target.kind is Kind.PROXY
    resolution = forward.route.resolution
    endpoint = None if resolution is None or proxy else resolution.endpoint
    protocol = health.protocol
    key = group_of(config, target) if config else target.context
    context = resolved(key)
    namespace = target.namespace or (config.namespace if config else None)
    namespace = namespace or (context.namespace if context else None)
    return ForwardState(
        target=target.name,
        index=spec.index,
        name=forward.name,
        to=str(target) if proxy else f"{target}:{spec.port.remote}",
        state=health.state,
        reason=health.reason,
        since=health.since,
        context=context.name if context else key,
        namespace=namespace if target.kind.in_cluster else None,
        protocol=protocol.value if protocol else None,
        listen=tuple(forward.addresses),
        endpoint=str(endpoint) if endpoint else None,
        via=resolution.via if endpoint and resolution else "",
        way="direct" if isinstance(forward.route.pool, DirectPool) else "agent",
        way_reason=why_direct(forward) if isinstance(forward.route.pool, DirectPool) else "",
        check=str(health.check),
        live=forward.live,
        traffic=_traffic(forward.metrics),
        last_error=health.last_error,
        url=_url(forward),
    )


_HTTP_PORTS = frozenset({80, 3000, 5000, 8000, 8008, 8080, 8081, 8888, 9090})
_HTTPS_PORTS = frozenset({443, 8443})


def _url(forward: Forward) -> str | None:
    """Return where a browser finds the target, if it seems to speak HTTP."""
    addresses = forward.addresses
    is_target = forward.spec.target.kind is not Kind.PROXY
    if not (addresses and is_target and forward.protocol is Protocol.TCP):
        return None
    scheme = http_scheme(forward.spec.port.remote, forward.health.check)
    return f"{scheme}://{connect_address(addresses[0])}/" if scheme else None


def http_scheme(remote: int | str, check: Check) -> str | None:
    """Return `http` or `https` if the port in the cluster, or the check, says so.

    The port says so by its name, or by its number; the local number says nothing.
    """
    name = remote if isinstance(remote, str) else ""
    if name.startswith("https") or remote in _HTTPS_PORTS:
        return "https"
    http = name.startswith("http") or remote in _HTTP_PORTS or check.kind is CheckKind.HTTP
    return "http" if http else None


def _traffic(metrics: ForwardMetrics) -> Traffic:
    return Traffic(
        opened=metrics.opened,
        results=dict(metrics.results),
        to_remote_bytes=metrics.to_remote_bytes,
        to_local_bytes=metrics.to_local_bytes,
        dials=metrics.dials.cumulative(),
        dial_count=metrics.dials.count,
        dial_sum=metrics.dials.sum,
        drops=dict(metrics.lost()),
    )


def agent_state(group: AgentGroup, resolved: Resolved = lambda context: None) -> AgentState:
    """Return the state of the agents of a context and of the tunnels to them."""
    context = resolved(group.spec.context)
    return AgentState(
        context=context.name if context else group.spec.context,
        where=tuple(agent.where for agent in group.agents if agent.where),
        tunnels=tuple(_tunnel_state(tunnel) for tunnel in group.pool.tunnels),
    )


def direct_state(
    group: DirectGroup, resolved: Resolved = lambda context: None
) -> DirectState | None:
    """Return the state of the direct way of a context; None if nothing uses it."""
    pool, context = group.pool, resolved(group.spec.context)
    if not (pool.users or pool.connections):
        return None
    return DirectState(
        context=context.name if context else group.spec.context,
        connections=tuple(
            PodConnectionState(found.name, found.carrier, found.count, found.stalled)
            for found in pool.connections
        ),
        failure=str(pool.failure) if pool.failure else None,
    )


def _tunnel_state(tunnel: Tunnel) -> TunnelState:
    stats = tunnel.stats
    return TunnelState(
        name=tunnel.name,
        up=tunnel.up,
        streams=tunnel.streams,
        rtt=tunnel.rtt,
        connects=stats.connects,
        resumed=stats.resumed,
        rotated=stats.rotated,
        replayed_bytes=stats.replayed_bytes,
        window_stalls=stats.window_stalls,
        limit_stalls=stats.limit_stalls,
        compression_input=stats.compression_input,
        compression_output=stats.compression_output,
        lost_datagrams={reason: lost for reason, lost in stats.lost_datagrams.items() if lost},
        failure=str(tunnel.failure) if tunnel.failure and not tunnel.up else None,
        carrier=tunnel.carried_by,
        shortcut=_shortcut_state(tunnel.ways),
    )


def _shortcut_state(ways: Ways) -> ShortcutState | None:
    seconds = ways.next_attempt
    if seconds is None:
        return None
    return ShortcutState(ways.reason, datetime.now(UTC) + timedelta(seconds=seconds))
