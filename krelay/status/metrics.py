"""A snapshot as Prometheus metrics; docs/status.md lists their names, labels and units."""

from __future__ import annotations

import platform
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import datetime
from typing import Any, TypeVar, cast

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
from krelay.state.states import FileState, ForwardState, State, TunnelState

M = TypeVar("M", bound=Metric)

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
        versions = {"version": snapshot.version, "python": platform.python_version()}
        yield InfoMetricFamily("krelay_build", "Versions of krelay and Python.", value=versions)
        yield from _process(snapshot)
        yield from _config(snapshot.file, snapshot.started)
        yield from _forwards(snapshot.forwards)
        yield from _tunnels([tunnel for agent in snapshot.agents for tunnel in agent.tunnels])


def _family(kind: Callable[..., M], name: str, text: str, *labels: str) -> M:
    return kind(f"krelay_{name}", text, labels=labels)


def _gauge(name: str, text: str, value: float) -> Metric:
    return GaugeMetricFamily(f"krelay_{name}", text, value=value)


def _process(snapshot: Snapshot) -> Iterator[Metric]:
    started = snapshot.started.timestamp()
    yield _gauge("process_start_time_seconds", "Start time of krelay, in Unix time.", started)
    memory = "Resident memory of krelay's process."
    yield _gauge("process_resident_memory_bytes", memory, snapshot.memory_bytes)
    yield _gauge("process_open_fds", "Open file descriptors of the process.", snapshot.descriptors)
    yield _gauge("process_tasks", "Tasks of krelay's event loop.", snapshot.tasks)


def _config(file: FileState, started: datetime) -> Iterator[Metric]:
    text = "Number of the applied configuration, counted from 1."
    yield _gauge("config_generation", text, file.generation)
    text = "1 if the applied configuration is that of the file."
    yield _gauge("config_in_step", text, int(file.in_step))
    reloads = _family(CounterMetricFamily, "config_reloads", "Reloads by result.", "result")
    reloads.add_metric(["ok"], file.reloads)
    reloads.add_metric(["failed"], file.failed_reloads)
    yield reloads
    text = "Time of the last applied configuration, in Unix time."
    applied = (file.applied or started).timestamp()
    yield _gauge("config_last_reload_success_timestamp_seconds", text, applied)


def _forwards(forwards: Collection[ForwardState]) -> Iterator[Metric]:
    def family(kind: Callable[..., M], name: str, text: str, *labels: str) -> M:
        return _family(kind, f"forward_{name}", text, "target", "forward", *labels)

    counter, gauge = CounterMetricFamily, GaugeMetricFamily
    state = family(gauge, "state", "1 for the state of the forward, 0 for the others.", "state")
    live = family(gauge, "open_streams", "Open connections and UDP flows.")
    opened = family(counter, "opened_streams", "Streams opened.")
    ended = family(counter, "streams", "Ended streams and failed dials, by result.", "result")
    carried = family(counter, "bytes", "Bytes of payload relayed.", "direction")
    text = "Seconds that the agent took to connect to the endpoint."
    dials = family(HistogramMetricFamily, "dial_seconds", text)
    text = "Datagrams that krelay dropped, by reason."
    drops = family(counter, "dropped_datagrams", text, "reason")
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
        buckets = [(str(float(bound)), float(n)) for bound, n in sorted(traffic.dials.items())]
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


def _tunnels(tunnels: Collection[TunnelState]) -> Iterator[Metric]:
    def each(kind: Any, name: str, text: str, value: Callable[[TunnelState], Any]) -> Metric:
        family = _family(kind, f"tunnel_{name}", text, "tunnel")
        for tunnel in tunnels:
            if (found := value(tunnel)) is not None:
                family.add_metric([tunnel.name], found)
        return cast(Metric, family)

    counter, gauge = CounterMetricFamily, GaugeMetricFamily
    yield each(gauge, "up", "1 if the tunnel is up.", lambda t: int(t.up))
    yield each(gauge, "streams", "Streams that the tunnel carries.", lambda t: t.streams)
    yield each(gauge, "rtt_seconds", "Last measured round trip to the agent.", lambda t: t.rtt)
    yield each(counter, "connects", "Connections established.", lambda t: t.connects)
    text = "Connections that resumed a lost session."
    yield each(counter, "resumptions", text, lambda t: t.resumed)
    text = "Connections that replaced a working one."
    yield each(counter, "rotations", text, lambda t: t.rotated)
    text = "Bytes sent again after resumptions."
    yield each(counter, "replayed_bytes", text, lambda t: t.replayed_bytes)
    text = "Times a stream had bytes to send but no credit."
    yield each(counter, "window_stalls", text, lambda t: t.window_stalls)
    text = "Times the in-flight limit of the tunnel delayed a stream."
    yield each(counter, "limit_stalls", text, lambda t: t.limit_stalls)
    text = "Bytes of streams that crossed the tunnel compressed, in both directions."
    yield each(counter, "compression_input_bytes", text, lambda t: t.compression_input)
    text = "Bytes that the compressed data took in the tunnel, in both directions."
    yield each(counter, "compression_output_bytes", text, lambda t: t.compression_output)
    text = "Datagrams lost in the tunnel or at the agent, by reason."
    lost = _family(CounterMetricFamily, "tunnel_lost_datagrams", text, "tunnel", "reason")
    for tunnel in tunnels:
        for reason, count in tunnel.lost_datagrams.items():
            lost.add_metric([tunnel.name, reason], count)
    yield lost
