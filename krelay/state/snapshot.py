"""Snapshot: the state of a running krelay at one moment, the source of everything it shows.

The supervisor makes snapshots. `/v1/status`, `/readyz`, the metrics, the dashboard, the live table
and the commands read them. Their JSON form is that of `schema/status.schema.json`.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Any

from krelay.model import Endpoint
from krelay.state.states import (
    AgentState,
    ContextState,
    DirectState,
    FileState,
    ForwardState,
    json_form,
    readiness,
)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """All of it. `draining` counts the live connections of draining forwards. `tasks`,
    `descriptors` and `memory_bytes` are figures of krelay's own process. `engine` makes
    the connections to the cluster. `contexts` has the kubeconfig contexts in use, `direct` the
    direct ways into pods that are in use."""

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
    engine: str = "asyncio"
    contexts: tuple[ContextState, ...] = ()
    direct: tuple[DirectState, ...] = ()

    @property
    def ready(self) -> bool:
        """Whether all forwards are ready, as `readiness` defines it."""
        return readiness(self.forwards).ready

    def as_json(self) -> dict[str, Any]:
        """Return the JSON form."""
        found: dict[str, Any] = json_form(self)
        return {**found, "ready": self.ready}


_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}


def connect_address(address: str) -> Endpoint:
    """Return where to connect for a bound address: loopback for a wildcard address."""
    host, _, port = address.rpartition(":")
    host = host.strip("[]")
    return Endpoint(_LOOPBACK.get(host, host), int(port))
