"""A snapshot with an example of everything."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from typing import Any

from krelay.state.snapshot import Snapshot
from krelay.state.states import (
    AgentState,
    FileState,
    ForwardState,
    ShortcutState,
    State,
    Traffic,
    TunnelState,
)

NOW = datetime.now(UTC)


def forward(target: str, state: State = State.READY, **fields: Any) -> ForwardState:
    """Return a forward; by default it works."""
    said = {
        "index": 0,
        "name": target,
        "to": f"svc/{target}:80",
        "reason": "",
        "since": NOW - timedelta(minutes=12),
        "protocol": "tcp",
        "listen": ("127.0.0.1:8080",),
        "endpoint": "10.96.14.7:80",
        "via": "clusterIP",
    }
    return ForwardState(**{**said, **fields, "target": target, "state": state})


TRAFFIC = Traffic(
    opened=1042,
    results={"ok": 1031, "reset": 7, "refused": 2},
    to_remote_bytes=48_300_112,
    to_local_bytes=912_004_211,
    dials={0.001: 3, 0.01: 900, 0.1: 1030, 1.0: 1038},
    dial_count=1040,
    dial_sum=9.75,
    drops={},
)

FORWARDS = (
    forward("web", live=14, traffic=TRAFFIC),
    forward(
        "api",
        name="api[9000:http]",
        to="deploy/api:http",
        listen=("127.0.0.1:9000",),
        endpoint="10.244.0.31:8080",
        via="pod api-6d9f7c5b4-x2x8k",
        live=3,
        traffic=dataclasses.replace(TRAFFIC, to_local_bytes=4 << 20),
    ),
    forward(
        "dns",
        to="svc/kube-dns:53",
        protocol="udp",
        listen=("127.0.0.1:5353",),
        endpoint="10.96.0.10:53",
        live=2,
        traffic=Traffic(
            opened=88, drops={"no_stream": 4}, to_local_bytes=9_120, to_remote_bytes=3_004
        ),
    ),
    forward(
        "shop-db",
        State.DEGRADED,
        to="sts/postgres:5432",
        listen=("127.0.0.1:5432", "[::1]:5432"),
        endpoint=None,
        via="",
        reason="no pod of sts/postgres is ready: postgres-0 is waiting (CrashLoopBackOff)",
        since=NOW - timedelta(seconds=48),
        live=1,
    ),
    forward(
        "legacy",
        State.FAILED,
        to="ip/10.0.0.7:22",
        listen=(),
        protocol=None,
        endpoint="10.0.0.7:22",
        via="as given",
        reason="cannot listen on 127.0.0.1:2222: Address already in use",
        since=NOW - timedelta(hours=2),
    ),
    forward(
        "cache",
        State.PENDING,
        to="host/redis.corp.example:6379",
        listen=("127.0.0.1:6379",),
        endpoint="redis.corp.example:6379",
        via="as given",
        reason="being checked",
        since=NOW - timedelta(seconds=3),
    ),
)

TUNNELS = (
    TunnelState(
        "p1t1",
        True,
        16,
        rtt=0.0127,
        connects=3,
        resumed=2,
        rotated=1,
        replayed_bytes=4096,
        window_stalls=5,
        limit_stalls=2,
        compression_input=3_000_000,
        compression_output=1_000_000,
        lost_datagrams={"queued": 3, "agent_backlog": 4},
        carrier="proxy",
    ),
    TunnelState(
        "p1t2",
        True,
        4,
        rtt=0.0131,
        connects=1,
        carrier="spdy",
        shortcut=ShortcutState("no answer within 1.0 s", NOW + timedelta(minutes=5)),
    ),
    TunnelState("p1t3", False, 0, failure="no answer from the API server"),
)


def report(*forwards: ForwardState, **fields: Any) -> Snapshot:
    """Return a snapshot with these forwards, or with FORWARDS."""
    said = {
        "version": "1.2.3",
        "pid": 4242,
        "started": NOW - timedelta(hours=3, minutes=20),
        "file": FileState(
            "/home/me/shop/krelay.yaml",
            ("/home/me/shop/krelay.yaml",),
            True,
            generation=4,
            reloads=5,
            failed_reloads=2,
            applied=NOW - timedelta(minutes=12),
        ),
        "draining": 0,
        "agents": (AgentState("staging", ("relays/krelay-server-7k2xw",), TUNNELS),),
        "tasks": 31,
        "descriptors": 44,
        "memory_bytes": 58 << 20,
    }
    return Snapshot(**{**said, **fields, "forwards": forwards or FORWARDS})


class Live:
    """A snapshot that can change while it is served."""

    def __init__(self, *forwards: ForwardState, **fields: Any) -> None:
        self.now = report(*forwards, **fields)

    async def __call__(self) -> Snapshot:
        return self.now

    def change(self, target: str, **fields: Any) -> None:
        """Change a forward."""
        self.now = dataclasses.replace(
            self.now,
            forwards=tuple(
                dataclasses.replace(found, **fields) if found.target == target else found
                for found in self.now.forwards
            ),
        )
