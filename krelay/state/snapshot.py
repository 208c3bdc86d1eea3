"""Snapshot: what is true of a running krelay at one moment; all that is shown is made from it.

The supervisor makes reports; `/v1/status`, the metrics, the page and the commands read them. Their
JSON form is that of `schema/status.schema.json`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from krelay.model import Endpoint
from krelay.text import one_line


class State(StrEnum):
    """How a forward is."""

    PENDING = "pending"
    """It has not worked yet, and nothing says that it cannot."""
    READY = "ready"
    """It is bound, the agent is reached, and the last dial or probe of its endpoint worked."""
    DEGRADED = "degraded"
    """It worked before; now something on the way does not."""
    FAILED = "failed"
    """It does not work, and did not before."""
    DRAINING = "draining"
    """It takes nothing new; what lives may finish."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """What a forward has carried since it is there. `results` counts the streams that have ended,
    and the dials that failed, by what became of them (`ok`, `reset`, `refused`, `no_such_host`, …);
    `dials` are the seconds that the agent took to reach the endpoint, as cumulative counts by upper
    bound, with their `dial_count` and `dial_sum`; `drops` counts lost datagrams by reason."""

    opened: int = 0
    results: Mapping[str, int] = field(default_factory=dict)
    to_remote_bytes: int = 0
    to_local_bytes: int = 0
    dials: Mapping[float, int] = field(default_factory=dict)
    dial_count: int = 0
    dial_sum: float = 0.0
    drops: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ForwardState:
    """One forward: a port of a target. `index` counts the target's ports from 0; `check` is how
    it is probed; `live` its connections and flows now."""

    target: str
    index: int
    name: str
    to: str
    state: State
    reason: str
    since: datetime
    context: str | None = None
    namespace: str | None = None
    protocol: str | None = None
    listen: tuple[str, ...] = ()
    endpoint: str | None = None
    via: str = ""
    check: str = "dial"
    live: int = 0
    traffic: Traffic = Traffic()


@dataclass(frozen=True, slots=True)
class TunnelState:
    """One session to an agent. `rtt` is in seconds, None before it was measured; the rest counts
    since the start: `connects` tunnels that came up, `resumed` those that carried the session on,
    `rotated` those that took over from a working one; `window_stalls` times that a stream had bytes
    and no credit, `limit_stalls` that the tunnel's own limit held it up; `lost_datagrams` by
    reason those that were lost on the way or at the agent."""

    name: str
    up: bool
    streams: int
    rtt: float | None = None
    connects: int = 0
    resumed: int = 0
    rotated: int = 0
    replayed_bytes: int = 0
    window_stalls: int = 0
    limit_stalls: int = 0
    lost_datagrams: Mapping[str, int] = field(default_factory=dict)
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class AgentState:
    """The agents of one context: where they run (`namespace/pod`, or a process) and the tunnels."""

    context: str | None
    where: tuple[str, ...]
    tunnels: tuple[TunnelState, ...]


@dataclass(frozen=True, slots=True)
class FileState:
    """The file, and whether what runs is what it says. `generation` counts what was carried out;
    `error` (as `status.refusal` has it) says why the file is not, `since` since when; `applied`
    is when what runs was carried out."""

    path: str | None
    files: tuple[str, ...]
    in_step: bool
    generation: int = 1
    reloads: int = 0
    failed_reloads: int = 0
    since: datetime | None = None
    error: Mapping[str, Any] | None = None
    applied: datetime | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All of it. `tasks` and `descriptors` are this process's own, as is `memory_bytes`."""

    version: str
    pid: int
    started: datetime
    file: FileState
    forwards: tuple[ForwardState, ...]
    draining: int
    agents: tuple[AgentState, ...]
    tasks: int = 0
    descriptors: int = 0
    memory_bytes: int = 0
    ending: bool = False
    """Whether it was told to end."""

    @property
    def ready(self) -> bool:
        """Whether every forward is, but for those that only drain beside others; where there is
        none it starts or ends, and is not."""
        staying = [forward for forward in self.forwards if forward.state is not State.DRAINING]
        return bool(staying) and all(forward.state is State.READY for forward in staying)

    def as_json(self) -> dict[str, Any]:
        """Its JSON form: camelCase keys, times as ISO 8601, texts fit to be shown."""
        found: dict[str, Any] = _json(self)
        return {**found, "ready": self.ready}


def told(name: str, state: str, reason: str) -> str:
    """How a forward is, on one line: `web: failed: connection refused`."""
    return f"{name}: {state}{f': {reason}' if reason else ''}"


_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def reached(address: str) -> Endpoint:
    """What to connect to for a bound address: one that stands for all is reached by loopback."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    return Endpoint(_LOOPBACK.get(host, host), int(port))


def _json(value: Any) -> Any:
    if dataclasses.is_dataclass(value):
        return {
            _camel(name.name): _json(getattr(value, name.name))
            for name in dataclasses.fields(value)
        }
    if isinstance(value, str):
        return one_line(value)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {str(key): _json(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json(item) for item in value]
    return value


def _camel(name: str) -> str:
    return re.sub(r"_([a-z])", lambda found: found[1].upper(), name)
