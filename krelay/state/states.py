"""States: what krelay knows of a forward, a tunnel, an agent and the file, and what ready means."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any

from krelay.text import one_line


class State(StrEnum):
    """The state of a forward."""

    PENDING = "pending"
    """It has not worked yet, and nothing says that it cannot."""
    READY = "ready"
    """It is bound, the agent is reached, the last dial or probe of its endpoint worked, and the
    kubelet does not call its program unready. The reason says what this rests on."""
    DEGRADED = "degraded"
    """It worked before; now something on the way does not. Or it works, although the kubelet calls
    its program unready."""
    FAILED = "failed"
    """It does not work, and did not before."""
    DRAINING = "draining"
    """It accepts no new connections; live ones may finish."""


@dataclass(frozen=True, slots=True)
class Traffic:
    """What a forward has carried since it was added.

    `results` counts ended streams and failed dials by result (`ok`, `reset`, `refused`, ...),
    `drops` lost datagrams by reason. `dials` has cumulative counts by upper bound of the seconds
    that the agent took to reach the endpoint; `dial_count` and `dial_sum` complete the histogram.
    """

    opened: int = 0
    results: Mapping[str, int] = field(default_factory=dict)
    to_remote_bytes: int = 0
    to_local_bytes: int = 0
    dials: Mapping[float, int] = field(default_factory=dict)
    dial_count: int = 0
    dial_sum: float = 0.0
    drops: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class ConnectionState:
    """One connection, or UDP flow, of a forward.

    `client` is the local application's address, `program` its name and pid if the system told them
    while the connection was open. `endpoint` is where it went, by the object `via`. `result` is
    None while it is there, else as in `Traffic.results`; `reason` may say more. `opened`: the
    endpoint took it.
    """

    client: str
    started: datetime
    program: str = ""
    endpoint: str | None = None
    via: str = ""
    ended: datetime | None = None
    to_remote_bytes: int = 0
    to_local_bytes: int = 0
    result: str | None = None
    reason: str = ""
    opened: bool = False


@dataclass(frozen=True, slots=True)
class Trouble:
    """Why a forward did not work at some time, and a `hint` of what mends it, or an empty one."""

    message: str
    hint: str
    time: datetime


@dataclass(frozen=True, slots=True)
class ForwardState:
    """One forward: the port at `index`, from 0, of a target. `live` counts open connections and
    flows.

    New connections take the `way` through the `agent`, or go `direct` into pods, which carries TCP
    only and resumes nothing; `way_reason` says why, if the file does not say so. `last_error` is
    the present trouble or the last one. `url` is where a browser finds a target that speaks HTTP.
    """

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
    way: str = "agent"
    way_reason: str = ""
    check: str = "auto"
    live: int = 0
    traffic: Traffic = Traffic()
    last_error: Trouble | None = None
    url: str | None = None

    def __str__(self) -> str:
        """One line: `web: failed: connection refused`."""
        return f"{self.name}: {self.state}{f': {self.reason}' if self.reason else ''}"

    @classmethod
    def from_json(cls, found: Mapping[str, Any]) -> ForwardState:
        """Return what readiness, addresses and variables depend on, from the `json_form`."""
        return cls(
            found["target"],
            found["index"],
            found["name"],
            found["to"],
            State(found["state"]),
            found.get("reason") or "",
            datetime.fromisoformat(found["since"]),
            protocol=found.get("protocol"),
            listen=tuple(found.get("listen", ())),
        )

    @property
    def remote(self) -> str:
        """The port in the cluster, by number or name."""
        return self.to.rpartition(":")[2]

    def routes(self) -> list[str]:
        """Return a line for each bound address: `NAME: ADDRESS:PORT -> TARGET:PORT (PROTOCOL)`."""
        return [f"{self.target}: {local} -> {self.to} ({self.protocol})" for local in self.listen]


@dataclass(frozen=True, slots=True)
class ShortcutState:
    """Why a faster way to an agent is not in use, and when krelay tries it again."""

    reason: str
    next_attempt: datetime


@dataclass(frozen=True, slots=True)
class TunnelState:
    """One session to an agent. All counts are since the start of krelay.

    `carrier` is what carries it now: `proxy`, `spdy`, `websocket` or `tcp`; None while it is down.
    `shortcut` is None if the faster way is in use, about to be tried, or does not exist.

    `rtt` is the last round trip in seconds. `connects` counts tunnels that came up; `resumed` those
    that carried the session on; `rotated` those that took over from a working one. In
    `window_stalls` a stream had bytes to send and no credit, in `limit_stalls` the tunnel's own
    limit held it up. `compression_input` bytes of streams crossed it compressed, which took
    `compression_output` bytes. `lost_datagrams` counts by reason what was lost on the way or at the
    agent.
    """

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
    compression_input: int = 0
    compression_output: int = 0
    lost_datagrams: Mapping[str, int] = field(default_factory=dict)
    failure: str | None = None
    carrier: str | None = None
    shortcut: ShortcutState | None = None


@dataclass(frozen=True, slots=True)
class ContextState:
    """Where a kubeconfig context leads. `name` is None in a pod without a kubeconfig, `namespace`
    is the context's own, and `namespaces` are those of the targets."""

    name: str | None
    server: str
    namespace: str
    namespaces: tuple[str, ...] = ()

    def __str__(self) -> str:
        return leads_to(self.server, self.namespaces)

    @property
    def title(self) -> str:
        """What texts about it begin with."""
        return f"context {self.name}" if self.name else "in the cluster"


_MOST_NAMESPACES = 3


def leads_to(server: str, namespaces: Sequence[str]) -> str:
    """Return where a context leads, in words."""
    if not namespaces:
        return server
    kind = "namespace" if len(namespaces) == 1 else "namespaces"
    left = len(namespaces) - _MOST_NAMESPACES
    more = f" and {left} more" if left > 0 else ""
    return f"{server}, {kind} {', '.join(namespaces[:_MOST_NAMESPACES])}{more}"


@dataclass(frozen=True, slots=True)
class AgentState:
    """The agents of one context, each as `NAMESPACE/POD` or a process, and the tunnels to them."""

    context: str | None
    where: tuple[str, ...]
    tunnels: tuple[TunnelState, ...]


@dataclass(frozen=True, slots=True)
class PodConnectionState:
    """A connection into a `pod`, `NAMESPACE/NAME`, that carries port-forwards.

    `stalled`: one of its streams holds up the others.
    """

    pod: str
    carrier: str
    streams: int
    stalled: bool = False


@dataclass(frozen=True, slots=True)
class DirectState:
    """The direct way into the pods of a context, and the `failure` to reach one of them."""

    context: str | None
    connections: tuple[PodConnectionState, ...]
    failure: str | None = None


@dataclass(frozen=True, slots=True)
class FileState:
    """The file, and whether the active config is the one that it describes (`in_step`).

    `since` is when the two began to differ, `error` why, as `krelay.state.error_codec` encodes it.
    `generation` counts the configs applied, the first one included.
    """

    path: str | None
    files: tuple[str, ...]
    in_step: bool
    generation: int = 1
    reloads: int = 0
    failed_reloads: int = 0
    since: datetime | None = None
    error: Mapping[str, Any] | None = None
    applied: datetime | None = None


def is_ready(forward: ForwardState) -> bool:
    """Return whether connections to `forward` are expected to work now."""
    return forward.state is State.READY


@dataclass(frozen=True, slots=True)
class Readiness:
    """Whether a set of forwards is ready: those that are not, the requested names that no target
    has, and whether no forward exists yet."""

    waiting: tuple[ForwardState, ...]
    unknown: tuple[str, ...] = ()
    starting: bool = False

    @property
    def ready(self) -> bool:
        """Whether nothing is left to wait for."""
        return not (self.waiting or self.unknown or self.starting)

    def as_json(self) -> dict[str, Any]:
        """Return the body of `/readyz`."""
        return {
            "ready": self.ready,
            "reason": "nothing is relayed yet" if self.starting else "",
            "notReady": [
                {
                    "target": forward.target,
                    "forward": forward.name,
                    "state": forward.state,
                    "reason": forward.reason,
                    "since": forward.since.isoformat(),
                }
                for forward in self.waiting
            ],
        }


def readiness(forwards: Collection[ForwardState], names: Collection[str] = ()) -> Readiness:
    """Return the readiness of `forwards`, or of those whose targets are in `names`.

    A draining forward does not count while an active one remains: of the same target if `names`
    are given, of any target otherwise.
    """
    if not forwards:
        return Readiness((), starting=True)
    known = {forward.target for forward in forwards}
    chosen = [forward for forward in forwards if not names or forward.target in names]
    active = {forward.target for forward in chosen if forward.state is not State.DRAINING}

    def counts(forward: ForwardState) -> bool:
        replaced = forward.target in active if names else bool(active)
        return forward.state is not State.DRAINING or not replaced

    return Readiness(
        tuple(forward for forward in chosen if counts(forward) and not is_ready(forward)),
        tuple(dict.fromkeys(name for name in names if name not in known)),
    )


def json_form(value: Any) -> Any:
    """Return `value` as JSON: camelCase keys, times as ISO 8601, texts safe to display."""
    if dataclasses.is_dataclass(value):
        return {
            _camel(found.name): json_form(getattr(value, found.name))
            for found in dataclasses.fields(value)
        }
    if isinstance(value, str):
        return one_line(value)
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, Mapping):
        return {str(key): json_form(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [json_form(item) for item in value]
    return value


def _camel(name: str) -> str:
    return re.sub(r"_([a-z])", lambda found: found[1].upper(), name)
