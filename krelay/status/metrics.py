"""A snapshot as Prometheus metrics; docs/status.md lists their names, labels and units."""

from __future__ import annotations

import platform
from collections.abc import Collection, Iterable, Iterator, Mapping

from prometheus_client import CollectorRegistry
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from krelay.state.snapshot import Snapshot
from krelay.state.states import AgentState, FileState, ForwardState, State, TunnelState

_MAX_VALUES = 32
"""Values of the labels `result` and `reason` of one forward; further ones become `other`."""


def render(snapshot: Snapshot, accept: str = "") -> tuple[bytes, str]:
    """Return the body and the content type of a scrape, in the format that `accept` prefers."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(_Collector(snapshot))
    encode, content_type = choose_encoder(accept)
    return encode(registry), content_type


class _Collector(Collector):
    def __init__(self, snapshot: Snapshot) -> None:
        self._snapshot = snapshot

    def collect(self) -> Iterator[Metric]:
        snapshot = self._snapshot
        python = platform.python_version()
        yield InfoMetricFamily(
            "krelay_build",
            "The versions of krelay and Python.",
            value={"version": snapshot.version, "python": python},
        )
        yield from _process(snapshot)
        yield from _config(snapshot.file, snapshot)
        yield from _forwards(snapshot.forwards)
        yield from _tunnels(snapshot.agents)


def _process(snapshot: Snapshot) -> Iterator[Metric]:
    for name, text, value in (
        ("start_time_seconds", "Start time of krelay, in Unix time.", snapshot.started.timestamp()),
        ("resident_memory_bytes", "Resident memory of krelay's process.", snapshot.memory_bytes),
        ("open_fds", "Open file descriptors of krelay's process.", snapshot.descriptors),
        ("tasks", "Tasks of krelay's event loop.", snapshot.tasks),
    ):
        yield GaugeMetricFamily(f"krelay_process_{name}", text, value=value)


def _config(file: FileState, snapshot: Snapshot) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "krelay_config_generation",
        "Number of the applied configuration, counted from 1.",
        file.generation,
    )
    yield GaugeMetricFamily(
        "krelay_config_in_step",
        "1 if the applied configuration is that of the file.",
        int(file.in_step),
    )
    reloads = CounterMetricFamily("krelay_config_reloads", "Reloads by result.", labels=["result"])
    reloads.add_metric(["ok"], file.reloads)
    reloads.add_metric(["failed"], file.failed_reloads)
    yield reloads
    yield GaugeMetricFamily(
        "krelay_config_last_reload_success_timestamp_seconds",
        "Time of the last applied configuration, in Unix time.",
        (file.applied or snapshot.started).timestamp(),
    )


def _forwards(forwards: Collection[ForwardState]) -> Iterator[Metric]:
    labels = ["target", "forward"]
    state = GaugeMetricFamily(
        "krelay_forward_state",
        "1 for the state of the forward, 0 for the other states.",
        labels=[*labels, "state"],
    )
    live = GaugeMetricFamily(
        "krelay_forward_open_streams", "Open connections and UDP flows.", labels=labels
    )
    opened = CounterMetricFamily("krelay_forward_opened_streams", "Streams opened.", labels=labels)
    ended = CounterMetricFamily(
        "krelay_forward_streams",
        "Ended streams and failed dials, by result.",
        labels=[*labels, "result"],
    )
    carried = CounterMetricFamily(
        "krelay_forward_bytes", "Bytes of payload relayed.", labels=[*labels, "direction"]
    )
    dials = HistogramMetricFamily(
        "krelay_forward_dial_seconds",
        "Seconds that the agent took to connect to the endpoint.",
        labels=labels,
    )
    drops = CounterMetricFamily(
        "krelay_forward_dropped_datagrams",
        "Datagrams that krelay dropped, by reason.",
        labels=[*labels, "reason"],
    )
    for key, forward in _with_unique_labels(forwards):
        traffic = forward.traffic
        for possible in State:
            state.add_metric([*key, possible], int(forward.state is possible))
        live.add_metric(key, forward.live)
        opened.add_metric(key, traffic.opened)
        for result, count in _bounded(traffic.results).items():
            ended.add_metric([*key, result], count)
        carried.add_metric([*key, "to_remote"], traffic.to_remote_bytes)
        carried.add_metric([*key, "to_local"], traffic.to_local_bytes)
        buckets = [
            (str(float(bound)), float(count)) for bound, count in sorted(traffic.dials.items())
        ]
        dials.add_metric(key, [*buckets, ("+Inf", traffic.dial_count)], traffic.dial_sum)
        for reason, count in _bounded(traffic.drops).items():
            drops.add_metric([*key, reason], count)
    yield from (state, live, opened, ended, carried, dials, drops)


def _with_unique_labels(
    forwards: Collection[ForwardState],
) -> Iterator[tuple[tuple[str, str], ForwardState]]:
    """Yield each forward with unique labels: Prometheus refuses a scrape with duplicate series.

    A draining forward is left out if another one has its name, since their sum would drop when it
    ends.
    """
    staying = {(f.target, f.name) for f in forwards if f.state is not State.DRAINING}
    found: set[tuple[str, str]] = set()
    for forward in forwards:
        key = forward.target, forward.name
        if forward.state is State.DRAINING and key in staying:
            continue
        while key in found:
            key = forward.target, f"{key[1]}#{forward.index}"
        found.add(key)
        yield key, forward


def _bounded(counts: Mapping[str, int]) -> Mapping[str, int]:
    """Return at most `_MAX_VALUES` counts, so that new labels cannot grow a scrape without end."""
    names = sorted(counts)
    kept = {name: counts[name] for name in names[:_MAX_VALUES]}
    if rest := names[_MAX_VALUES:]:
        kept["other"] = kept.get("other", 0) + sum(counts[name] for name in rest)
    return kept


def _tunnels(agents: Iterable[AgentState]) -> Iterator[Metric]:
    tunnels = [tunnel for agent in agents for tunnel in agent.tunnels]

    def gauge(name: str, text: str, values: Mapping[str, float]) -> Metric:
        found = GaugeMetricFamily(f"krelay_tunnel_{name}", text, labels=["tunnel"])
        for tunnel, value in values.items():
            found.add_metric([tunnel], value)
        return found

    def counter(name: str, text: str, field: str) -> Metric:
        found = CounterMetricFamily(f"krelay_tunnel_{name}", text, labels=["tunnel"])
        for tunnel in tunnels:
            found.add_metric([tunnel.name], getattr(tunnel, field))
        return found

    yield gauge("up", "1 if the tunnel is up.", {t.name: int(t.up) for t in tunnels})
    yield gauge("streams", "Streams that the tunnel carries.", {t.name: t.streams for t in tunnels})
    yield gauge(
        "rtt_seconds", "Last measured round trip to the agent, in seconds.", _measured(tunnels)
    )
    yield counter("connects", "Connections established.", "connects")
    yield counter("resumptions", "Connections that resumed a lost session.", "resumed")
    yield counter("rotations", "Connections that replaced a working one.", "rotated")
    yield counter("replayed_bytes", "Bytes sent again after resumptions.", "replayed_bytes")
    yield counter(
        "window_stalls", "Times a stream had bytes to send but no credit.", "window_stalls"
    )
    yield counter(
        "limit_stalls", "Times the in-flight limit of the tunnel delayed a stream.", "limit_stalls"
    )
    lost = CounterMetricFamily(
        "krelay_tunnel_lost_datagrams",
        "Datagrams lost in the tunnel or at the agent, by reason.",
        labels=["tunnel", "reason"],
    )
    for tunnel in tunnels:
        for reason, count in tunnel.lost_datagrams.items():
            lost.add_metric([tunnel.name, reason], count)
    yield lost


def _measured(tunnels: Iterable[TunnelState]) -> dict[str, float]:
    return {tunnel.name: tunnel.rtt for tunnel in tunnels if tunnel.rtt is not None}
