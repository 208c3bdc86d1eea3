"""Metrics: a Snapshot as Prometheus reads it. Every name, label and unit is in docs/status.md."""

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

_MOST_VALUES = 32
"""How many results, or reasons, of one forward are told apart; what is beyond is `other`."""


def render(snapshot: Snapshot, accept: str = "") -> tuple[bytes, str]:
    """The text of a scrape and its content type, in the format that `accept` prefers."""
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
            "What runs.",
            value={"version": snapshot.version, "python": python},
        )
        yield from _process(snapshot)
        yield from _config(snapshot.file, snapshot)
        yield from _forwards(snapshot.forwards)
        yield from _tunnels(snapshot.agents)


def _process(snapshot: Snapshot) -> Iterator[Metric]:
    for name, text, value in (
        ("start_time_seconds", "When krelay started, in Unix time.", snapshot.started.timestamp()),
        ("resident_memory_bytes", "Memory of krelay's own process.", snapshot.memory_bytes),
        ("open_fds", "Open file descriptors.", snapshot.descriptors),
        ("tasks", "Tasks of the event loop.", snapshot.tasks),
    ):
        yield GaugeMetricFamily(f"krelay_process_{name}", text, value=value)


def _config(file: FileState, snapshot: Snapshot) -> Iterator[Metric]:
    yield GaugeMetricFamily(
        "krelay_config_generation", "Counts the configs that were carried out.", file.generation
    )
    yield GaugeMetricFamily(
        "krelay_config_in_step", "Whether what runs is what the file says.", int(file.in_step)
    )
    reloads = CounterMetricFamily(
        "krelay_config_reloads", "Reloads by what became of them.", labels=["result"]
    )
    reloads.add_metric(["ok"], file.reloads)
    reloads.add_metric(["failed"], file.failed_reloads)
    yield reloads
    yield GaugeMetricFamily(
        "krelay_config_last_reload_success_timestamp_seconds",
        "When a config was carried out last, in Unix time.",
        (file.applied or snapshot.started).timestamp(),
    )


def _forwards(forwards: Collection[ForwardState]) -> Iterator[Metric]:
    labels = ["target", "forward"]
    state = GaugeMetricFamily(
        "krelay_forward_state", "1 for the state that it is in.", labels=[*labels, "state"]
    )
    live = GaugeMetricFamily(
        "krelay_forward_open_streams", "Live connections and flows.", labels=labels
    )
    opened = CounterMetricFamily(
        "krelay_forward_opened_streams", "Streams since it is there.", labels=labels
    )
    ended = CounterMetricFamily(
        "krelay_forward_streams",
        "Streams that ended, and dials that failed, by what became of them.",
        labels=[*labels, "result"],
    )
    carried = CounterMetricFamily(
        "krelay_forward_bytes", "Payload carried.", labels=[*labels, "direction"]
    )
    dials = HistogramMetricFamily(
        "krelay_forward_dial_seconds", "The agent's time to reach the endpoint.", labels=labels
    )
    drops = CounterMetricFamily(
        "krelay_forward_dropped_datagrams", "Datagrams lost here.", labels=[*labels, "reason"]
    )
    for who, forward in _told_apart(forwards):
        traffic = forward.traffic
        for possible in State:
            state.add_metric([*who, possible], int(forward.state is possible))
        live.add_metric(who, forward.live)
        opened.add_metric(who, traffic.opened)
        for result, count in _bounded(traffic.results).items():
            ended.add_metric([*who, result], count)
        carried.add_metric([*who, "to_remote"], traffic.to_remote_bytes)
        carried.add_metric([*who, "to_local"], traffic.to_local_bytes)
        buckets = [
            (str(float(bound)), float(count)) for bound, count in sorted(traffic.dials.items())
        ]
        dials.add_metric(who, [*buckets, ("+Inf", traffic.dial_count)], traffic.dial_sum)
        for reason, count in _bounded(traffic.drops).items():
            drops.add_metric([*who, reason], count)
    yield from (state, live, opened, ended, carried, dials, drops)


def _told_apart(
    forwards: Collection[ForwardState],
) -> Iterator[tuple[tuple[str, str], ForwardState]]:
    """Each with labels that no other has: Prometheus refuses a scrape that has a series twice.
    What drains beside a namesake is left out, since counts that add it would fall at its end."""
    staying = {(f.target, f.name) for f in forwards if f.state is not State.DRAINING}
    found: set[tuple[str, str]] = set()
    for forward in forwards:
        who = forward.target, forward.name
        if forward.state is State.DRAINING and who in staying:
            continue
        while who in found:
            who = forward.target, f"{who[1]}#{forward.index}"
        found.add(who)
        yield who, forward


def _bounded(counts: Mapping[str, int]) -> Mapping[str, int]:
    """The counts by label; who may bring up new ones must not make a scrape grow for ever."""
    names = sorted(counts)
    kept = {name: counts[name] for name in names[:_MOST_VALUES]}
    if rest := names[_MOST_VALUES:]:
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

    yield gauge("up", "Whether it stands.", {t.name: int(t.up) for t in tunnels})
    yield gauge("streams", "Streams that it carries.", {t.name: t.streams for t in tunnels})
    yield gauge("rtt_seconds", "The last round trip to the agent.", _measured(tunnels))
    yield counter("connects", "Connections that came up.", "connects")
    yield counter("resumptions", "Connections that carried the session on.", "resumed")
    yield counter("rotations", "Connections that took over from a working one.", "rotated")
    yield counter("replayed_bytes", "Bytes sent again after a resumption.", "replayed_bytes")
    yield counter("window_stalls", "Times that a stream had bytes and no credit.", "window_stalls")
    yield counter("limit_stalls", "Times that its own limit held it up.", "limit_stalls")
    lost = CounterMetricFamily(
        "krelay_tunnel_lost_datagrams",
        "Datagrams lost on the way or at the agent.",
        labels=["tunnel", "reason"],
    )
    for tunnel in tunnels:
        for reason, count in tunnel.lost_datagrams.items():
            lost.add_metric([tunnel.name, reason], count)
    yield lost


def _measured(tunnels: Iterable[TunnelState]) -> dict[str, float]:
    return {tunnel.name: tunnel.rtt for tunnel in tunnels if tunnel.rtt is not None}
