"""Reporting: what runs, as a Snapshot: read where it is kept, at one moment."""

from __future__ import annotations

import asyncio
import os
from collections.abc import Iterator
from datetime import datetime

from krelay import __version__
from krelay.agents.group import AgentGroup
from krelay.config.diff import group_of
from krelay.datapath.metrics import ForwardMetrics
from krelay.datapath.tunnel import Tunnel
from krelay.model import Config, Kind
from krelay.state.error_codec import to_json
from krelay.state.snapshot import (
    AgentState,
    FileState,
    ForwardState,
    Snapshot,
    Traffic,
    TunnelState,
)
from krelay.supervisor.active import ActiveConfig
from krelay.supervisor.forward import Forward
from krelay.supervisor.reload import Reloader
from krelay.supervisor.supervisor import Supervisor
from krelay.threads import in_thread_or_here


async def take_snapshot(supervisor: Supervisor, reloader: Reloader, started: datetime) -> Snapshot:
    """All of it; `started` is when this run began."""
    # The system is asked first: what follows is of one turn of the loop.
    descriptors, memory = await in_thread_or_here(_process)
    running = supervisor.running
    return Snapshot(
        version=__version__,
        pid=os.getpid(),
        started=started,
        file=_file(supervisor, reloader, started),
        forwards=forwards(supervisor),
        draining=sum(f.live for f in running.ending if isinstance(f, Forward)),
        agents=tuple(_agent(group) for group in running.groups.values()),
        tasks=len(asyncio.all_tasks()),
        descriptors=descriptors,
        memory_bytes=memory,
        ending=supervisor.ending,
    )


def forwards(supervisor: Supervisor) -> tuple[ForwardState, ...]:
    """Each forward of what runs."""
    running = supervisor.running
    return tuple(_forward(forward, running.config) for forward in _forwards(running))


def _process() -> tuple[int, int]:
    """How many descriptors this process has open, and its resident memory. Blocks."""
    import psutil

    process = psutil.Process()
    try:
        return process.num_fds(), process.memory_info().rss
    except (psutil.Error, OSError):
        return 0, 0


def _file(supervisor: Supervisor, reloader: Reloader, started: datetime) -> FileState:
    drift = reloader.drift
    return FileState(
        path=reloader.files[0] if reloader.files else None,
        files=reloader.files,
        in_step=drift is None,
        generation=supervisor.generation,
        reloads=supervisor.carried_out,
        failed_reloads=reloader.failed + supervisor.refused,
        since=drift.since if drift else None,
        error=to_json(drift.error) if drift and drift.error else None,
        applied=supervisor.applied_at or started,
    )


def _forwards(running: ActiveConfig) -> Iterator[Forward]:
    """Those that the file has, then those that drain, but for what has a namesake that does not."""
    keys = set(running.forwards)
    yield from running.forwards.values()
    for thing in running.ending:
        if isinstance(thing, Forward) and thing.spec.key not in keys:
            keys.add(thing.spec.key)
            yield thing


def _forward(forward: Forward, config: Config | None) -> ForwardState:
    spec, health = forward.spec, forward.health
    target, proxy = spec.target, spec.target.kind is Kind.PROXY
    resolution = forward.route.resolution
    endpoint = None if resolution is None or proxy else resolution.endpoint
    speaks = forward.speaks
    namespace = target.namespace or (config.namespace if config else None)
    return ForwardState(
        target=target.name,
        index=spec.index,
        name=forward.name,
        to=str(target) if proxy else f"{target}:{spec.port.remote}",
        state=health.state,
        reason=health.reason,
        since=health.since,
        context=group_of(config, target) if config else target.context,
        namespace=namespace if target.kind.in_cluster else None,
        protocol=speaks.value if speaks else None,
        listen=tuple(forward.addresses),
        endpoint=str(endpoint) if endpoint else None,
        via=resolution.via if endpoint and resolution else "",
        check=str(health.check),
        live=forward.live,
        traffic=_traffic(forward.metrics),
    )


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


def _agent(group: AgentGroup) -> AgentState:
    return AgentState(
        context=group.spec.context,
        where=tuple(reach.where for reach in group.reaches if reach.where),
        tunnels=tuple(_tunnel(tunnel) for tunnel in group.pool.tunnels),
    )


def _tunnel(tunnel: Tunnel) -> TunnelState:
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
        lost_datagrams={reason: lost for reason, lost in stats.lost_datagrams.items() if lost},
        failure=str(tunnel.failure) if tunnel.failure and not tunnel.up else None,
    )
