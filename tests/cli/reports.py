"""Snapshots in their JSON form."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from krelay.state.snapshot import Snapshot
from krelay.state.states import (
    AgentState,
    FileState,
    ForwardState,
    State,
    Traffic,
    TunnelState,
)

START = datetime(2030, 1, 2, 3, 4, 5, tzinfo=UTC)
NOW = START + timedelta(minutes=5)


def forward(target: str = "web", state: str = "ready", **fields: Any) -> ForwardState:
    """Return a forward that is ready, or not for a reason."""
    values: dict[str, Any] = {
        "index": 0,
        "name": target,
        "to": f"svc/{target}:80",
        "reason": "its port accepted at 12:03" if state == "ready" else "connection refused",
        "since": START,
        "protocol": "tcp",
        "listen": ("127.0.0.1:8080",),
        "endpoint": "10.96.0.7:80",
        **fields,
    }
    return ForwardState(target, state=State(state), **values)


def report(*forwards: ForwardState, **fields: Any) -> dict[str, Any]:
    """Return the snapshot of a krelay that has run for five minutes at NOW, with two tunnels up."""
    tunnels = (TunnelState("p1t1", True, 1, 0.003), TunnelState("p1t2", True, 0, 0.004))
    values: dict[str, Any] = {
        "file": FileState("/home/me/krelay.yaml", ("/home/me/krelay.yaml",), True),
        "draining": 0,
        "agents": (AgentState(None, ("default/krelay-server-x",), tunnels),),
        **fields,
    }
    return Snapshot("1.2.3", 4711, START, forwards=forwards, **values).as_json()


def carried(up: int, down: int) -> Traffic:
    """Return the traffic of a forward that has relayed so many bytes."""
    return Traffic(to_remote_bytes=up, to_local_bytes=down)
